"""Which images of a data set an entry of `datasets:` takes: those of a list or a folder, or a fraction of all."""

import hashlib
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, errors_about
from ..paths import stays_below
from .files import FolderTree
from .formats.listing import as_posix, stem_of
from .text import read_text

REST = "rest"
DEVKIT_LISTS = "ImageSets/Main"
SHOWN = 20  # names in a message


@dataclass(frozen=True)
class Split:
    """What `split:` of one entry means.

    Args:
        source: the key of the entry, for messages.
        root: the folder of the data set, where lists and folders are looked for.
        name: what `split` says; None takes all images.
        seed: of the shuffle that fractions are taken from.
        part: where the split starts and ends in the shuffle, from 0 to 1, if it is a fraction or the rest.
    """

    source: str
    root: Path
    name: str | None = None
    seed: int = 0
    part: tuple[float, float] | None = None

    def choose(self, names: Sequence[str]) -> list[str]:
        """Those of the images `names`, relative to the data set's folder, that are in the split.

        A list gives their order. Raises `UserError` if there is no such split, it is empty or lists other images.
        """
        if self.name is None:
            return list(names)
        if self.part is not None:
            shuffle = shuffled(names, self.seed)
            start, end = (round(len(names) * position) for position in self.part)
            chosen = sorted(shuffle[start:end])
        else:
            with errors_about(self.source):
                path = find_split(self.root, self.name)
            if path is None:
                raise UserError(f"{self.source}: {_no_split(self.root, self.name)}")
            if path.is_file():
                return listed(path, names)
            chosen = [name for name in names if name.startswith(f"{as_posix(self.name)}/")]
        if not chosen:
            raise UserError(f"{self.source}: split {self.name} has none of the {len(names)} images in {self.root}.")
        return chosen


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """In a random order that depends on the seed and the file names alone, without folders and suffixes.

    So it is the same for every format of a data set, and adding an image moves no other one.
    """

    def draw(name: str) -> tuple[bytes, str]:
        key = f"{seed}/{posixpath.basename(stem_of(name))}"
        return hashlib.sha256(key.encode(errors="surrogateescape")).digest(), name

    return sorted(names, key=draw)


def parts_of(splits: dict[str, str], seed: int = 0) -> dict[str, tuple[float, float]]:
    """Where the entries that split one data set start and end in its shuffle: `splits` of fractions and "rest".

    Raises `UserError` if the fractions exceed 1, or the rest is empty or taken twice.
    """
    parts, start = {}, 0.0
    for name, split in splits.items():
        if split != REST:
            parts[name] = (start, start + float(split))
            start += float(split)
    names = " + ".join(f"datasets.{name} ({split})" for name, split in splits.items() if split != REST)
    if start > 1 + 1e-9:
        raise UserError(f"The splits {names} sum to {start:g}, above 1.")
    rests = [name for name, split in splits.items() if split == REST]
    if not rests:
        return parts
    if len(rests) > 1:
        raise UserError(
            f"{' and '.join(f'datasets.{name}' for name in rests)} both take the rest; give one a fraction."
        )
    if not parts:
        raise UserError(
            f"datasets.{rests[0]}: split: rest needs another entry of the same root, annotations and split_seed with a "
            "fraction, such as split: 0.8."
        )
    if start > 1 - 1e-9:
        raise UserError(f"datasets.{rests[0]}: there is no rest: {names} take everything.")
    return {**parts, rests[0]: (start, 1.0)}


def is_part(split: str | None, root: Path) -> bool:
    """Whether `split` is a fraction or "rest", and not the name of a list or folder."""
    return (split == REST or _is_fraction(split)) and find_split(root, split) is None


def _is_fraction(split: str | None) -> bool:
    try:
        return 0 < float(split) < 1
    except (TypeError, ValueError):
        return False


def find_split(root: Path, split: str) -> Path | None:
    """The list or folder that `split` names: SPLIT.txt or SPLIT in ImageSets/Main, or in `root` itself.

    Raises `UserError` for a name that points outside `root`.
    """
    if not stays_below(f"{split}.txt"):
        raise UserError(f"split {split[:80]!r} points outside {root}; name a list or a folder in it.")
    if os.path.isdir(root / split) and not os.path.isfile(root / DEVKIT_LISTS / f"{split}.txt"):
        return root / split
    lists = [folder / name for folder in (root / DEVKIT_LISTS, root) for name in (f"{split}.txt", split)]
    return next(filter(os.path.isfile, lists), None)


def _no_split(root: Path, split: str) -> str:
    lists = sorted(path.stem for path in (root / DEVKIT_LISTS).glob("*.txt")) if os.path.isdir(root) else []
    others = sorted(path.name for path in root.glob("*.txt")) if os.path.isdir(root) else []
    there = [*lists, *others, *(f"{folder}/" for folder in FolderTree(root).folders())]
    shown = ", ".join(there[:SHOWN]) + (" …" if len(there) > SHOWN else "")
    return (
        f"split {split!r} is neither a list nor a folder in {root}, nor a fraction such as 0.8. Lists and folders "
        f"there: {shown or 'none'}."
    )


def listed(path: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that the lines of the file `path` name, in its order.

    A line is the name of an image or of its annotation file, with or without suffix, and with more or fewer of its
    folders. Its annotation file may follow it, and in the lists of a VOC devkit a -1, 0 or 1. Raises `UserError` naming
    a line that fits none, several, or one listed before.
    """
    by_base = defaultdict(list)
    for name in names:
        by_base[posixpath.basename(stem_of(name))].append(name)
    has_flags = path.parent.parts[-2:] == tuple(DEVKIT_LISTS.split("/"))
    lines = [line.strip() for line in read_text(path, "list of images").splitlines()]
    found = []
    for line in filter(None, lines):
        readings = (_matches(path, by_base) for path in _readings(line, has_flags))
        matches = next(filter(None, readings), [])
        if len(matches) != 1:
            fault = f"is none of the {len(names)} annotated images" if not matches else f"fits {' and '.join(matches)}"
            raise UserError(f"{path}: {line[:200]!r} {fault}; write the names as they are there.")
        found += matches
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: image {min(repeated)} is listed twice; remove one of the lines.")
    if not found:
        raise UserError(f"{path} lists no image.")
    return found


def _readings(line: str, has_flags: bool) -> list[str]:
    """The parts of a line that may be the path of an image, the most likely first."""
    paths, words = [line, posixpath.splitext(line)[0]], line.split()
    if has_flags and words[-1] in ("-1", "0", "1"):
        paths.append(" ".join(words[:-1]))
    if len(words) == 2 and len({posixpath.splitext(posixpath.basename(as_posix(word)))[0] for word in words}) == 1:
        paths.append(words[0])  # of an image and its annotation file
    return paths


def _matches(line: str, by_base: dict[str, list[str]]) -> list[str]:
    """The names that a line can mean: those whose paths, without suffix, end the same way; only the best of them."""
    path = as_posix(line)
    wanted = stem_of(path).split("/")
    same_end = defaultdict(list)
    for name in by_base.get(wanted[-1], []):
        parts = stem_of(name).split("/")
        common = min(len(parts), len(wanted))
        if parts[-common:] == wanted[-common:]:
            same_end[parts == wanted, common].append(name)
    best = same_end[max(same_end)] if same_end else []
    return [name for name in best if posixpath.basename(name) == posixpath.basename(path)] or best
