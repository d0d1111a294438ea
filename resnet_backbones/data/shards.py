"""WebDataset shards: tars of a few thousand samples each, `KEY.jpg` beside `KEY.cls`, for data that outgrows a disk.

Shards are read at random, not as a stream: an epoch goes through them in random order, a pool of shards at a time, and
draws the pool's samples in random order. So the order is a function of the seed alone, the same for any number of ranks
and workers, a stopped run goes on at the exact sample, and nothing waits in a shuffle buffer.
"""

import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from braceexpand import braceexpand
from torch import Tensor

from ..errors import UserError, reason
from ..paths import local_file, read_whole
from .files import read_at, scan_tar

POOL = 8  # shards drawn from at a time
MOST_SHARDS, LONGEST = 10**6, 4096  # of a pattern, and its characters
IMAGES = ("jpg", "jpeg", "png", "webp")


def is_shards(path: str) -> bool:
    """Whether `path` is a pattern of shards: a tar's name with braces; a single one is written `{000000..000000}`."""
    return path.endswith(".tar") and "{" in path


class ShardImages:
    """The labelled images of all shards that `pattern` names; the twin of `imagenet.FileImages`.

    The number of samples in each shard is taken from `index.json` beside them, in the form that WebDataset's
    `widsindex` writes; without it, every shard is looked through once. `KEY.cls` holds a class's name or, in digits,
    its index in `classes.txt` beside the shards. `classes` are the names in label order, by default those.

    A remote shard is fetched when it is first drawn from and its local copy removed when others have taken its place.
    Raises `UserError` for a shard that is missing, cut short or not made of such samples.
    """

    def __init__(self, pattern: str, classes: Sequence[str] | None = None) -> None:
        self.urls = _expanded(pattern)
        folder = pattern.rpartition("/")[0]
        self.own_classes = _class_names(folder, pattern)
        self.classes = list(classes) if classes is not None else self.own_classes
        self.label_of = {name: label for label, name in enumerate(self.classes)}
        self.held: OrderedDict[int, tuple[str, np.ndarray]] = OrderedDict()
        known = _counts(folder)
        counts = [known.get(PurePosixPath(url).name) or len(self._shard(k)[1]) for k, url in enumerate(self.urls)]
        self.starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: int) -> tuple[bytes, int, str]:
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, samples = self._shard(k)
        sample = index - int(self.starts[k])
        if sample >= len(samples):
            raise UserError(f"{self.urls[k]} holds {len(samples)} samples, fewer than index.json beside it says.")
        offset, size, label = map(int, samples[sample])
        return read_at(path, offset, size), label, self.where(index)

    def where(self, index: int) -> str:
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.urls[k]}:{index - int(self.starts[k])}"

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order, a pool of shards after the other."""
        shards = torch.randperm(len(self.urls), generator=generator)
        pools = []
        for pool in shards.split(POOL):
            members = torch.cat([torch.arange(self.starts[k], self.starts[k + 1]) for k in pool.tolist()])
            pools.append(members[torch.randperm(len(members), generator=generator)])
        return torch.cat(pools)

    def _shard(self, k: int) -> tuple[str, np.ndarray]:
        """A shard's local path and, for each of its samples, the image's offset and size and the label."""
        if k not in self.held:
            path = str(local_file(self.urls[k], "shard"))
            self.held[k] = path, self._samples(path, self.urls[k])
            if len(self.held) > 2 * POOL:
                oldest, (old_path, _) = self.held.popitem(last=False)
                if "://" in self.urls[oldest]:
                    os.unlink(old_path)
        self.held.move_to_end(k)
        return self.held[k]

    def _samples(self, path: str, url: str) -> np.ndarray:
        names, offsets, sizes, _ = scan_tar(path)
        images, labels = {}, {}
        for name, offset, size in zip(names, offsets, sizes, strict=True):
            key, _, kind = os.fsdecode(name).rpartition("/")[2].partition(".")
            key = f"{os.fsdecode(name).rpartition('/')[0]}/{key}"
            if kind.lower() in IMAGES:
                images[key] = offset, size
            elif kind == "cls":
                labels[key] = self._label(
                    read_at(path, int(offset), min(int(size), LONGEST)).decode(errors="replace").strip(),
                    f"{url}:{key}.cls",
                )
        odd = sorted(set(images) ^ set(labels))
        if odd or not images:
            wanted = f"{odd[0].removeprefix('/')} lacks one" if odd else "it has none"
            raise UserError(f"{url} is no shard of images: each KEY.jpg needs a KEY.cls beside it, and {wanted}.")
        return np.array([(*images[key], labels[key]) for key in images], np.int64)

    def _label(self, text: str, where: str) -> int:
        known = text.isdecimal() and len(text) < 19 and int(text) < len(self.own_classes)
        name = self.own_classes[int(text)] if known else text
        if name not in self.label_of or (text.isdecimal() and not known):
            raise UserError(f"{where} says {text[:80]!r}, which is none of the {len(self.classes)} classes.")
        return self.label_of[name]


def _expanded(pattern: str) -> list[str]:
    """The shards that `pattern` names. Raises `UserError` where it is no pattern or names too many."""
    try:
        if len(pattern) > LONGEST or _most(pattern) > MOST_SHARDS:
            raise ValueError(f"it names more than {MOST_SHARDS} shards")
        return list(braceexpand(pattern))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{pattern[:200]} is no pattern like train-{{000000..000009}}.tar: {reason(error)}.") from error


def _most(pattern: str) -> int:
    """At most so many names a pattern has; counted before braceexpand writes out every part of it."""
    ranges = re.findall(r"{(-?\d+)\.\.(-?\d+)", pattern)
    count = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)
    count *= 52 ** len(re.findall(r"{[A-Za-z]\.\.[A-Za-z]", pattern))
    choices = []
    for character in pattern:
        if character == "{":
            choices.append(1)
        elif character == "," and choices:
            choices[-1] += 1
        elif character == "}" and choices:
            count *= choices.pop()
    return count


def _class_names(folder: str, pattern: str) -> list[str]:
    path = local_file(f"{folder}/classes.txt" if folder else "classes.txt", "list of class names")
    try:
        names = read_whole(path).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    classes = [line.strip() for line in names.splitlines() if line.strip()]
    if not classes:
        raise UserError(f"classes.txt beside {pattern} is empty; it must name a class a line.")
    return classes


def _counts(folder: str) -> dict[str, int]:
    """Samples by a shard's file name, as far as `index.json` tells."""
    try:
        index = json.loads(read_whole(local_file(f"{folder}/index.json" if folder else "index.json", "shard index")))
        counts = {PurePosixPath(shard["url"]).name: int(shard["nsamples"]) for shard in index["shardlist"]}
        if not all(0 < count <= 10**6 for count in counts.values()):
            raise ValueError("a shard has a sample or more, and not millions")
        return counts
    except UserError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError, OSError) as error:
        raise UserError(
            f"{folder}/index.json is damaged ({reason(error)}); write it with widsindex or remove it."
        ) from error
