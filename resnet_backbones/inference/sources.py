"""The files that a command's inputs stand for: files, folders, globs, URLs and lists on standard input."""

import glob
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from ..data.annotations import Annotations
from ..data.files import FolderTree
from ..data.formats.listing import as_posix, ends_of, image_suffixes, is_image
from ..data.text import decode_text
from ..errors import UserError
from ..paths import stays_below

VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}


class Source(NamedTuple):
    """An image or a video.

    Attributes:
        path: a path or URL.
        name: used in the results: relative to the given folder, or the file name of a file given by itself.
        image_id, size: of the ground truth, with width and height; None without one.
    """

    path: str
    name: str
    image_id: int | str | None = None
    size: tuple[int, int] | None = None

    @property
    def is_video(self) -> bool:
        return posixpath.splitext(self.name)[1].lower() in VIDEOS


def find_sources(inputs: Sequence[str], output: Path) -> list[Source]:
    """The images and videos of `inputs`, each once, in their order; those of a folder or glob sorted.

    Args:
        inputs: paths, folders, whose images are taken, globs, URLs, or "-" for paths on standard input, one per line.
        output: the folder of the results, whose pictures and videos are not inputs.

    Raises `UserError` for an input that does not exist, but not for one listed on standard input, which may be long;
    for a folder or glob without images; and where there is nothing at all.
    """
    found: list[Source] = []
    for given in inputs:
        if given == "-":
            found += [source for line in _listed() for source in _sources_of(line, listed=True)]
        else:
            found += _sources_of(given)
    if not found:
        raise UserError("Standard input lists no paths.")
    drawn = tuple(os.path.join(os.path.realpath(output / name), "") for name in ("images", "videos"))
    found = [source for source in found if not os.path.realpath(source.path).startswith(drawn)]
    if not found:
        raise UserError(f"All inputs are in {output}, where the results go; choose another --output.")
    return _distinct(found)


def _listed() -> list[str]:
    """The lines of standard input that are not blank. Paths need not be text, and stay as they are."""
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    try:
        text = decode_text(content)
    except UnicodeDecodeError:
        text = os.fsdecode(content)
    if "\0" in text:
        raise UserError("Standard input has NUL characters, as after find -print0; list paths as text, one per line.")
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _name_in(url: str) -> str:
    try:
        name = posixpath.basename(unquote(urlparse(url).path))
    except ValueError:  # such as half an IPv6 address, which cannot be fetched either
        name = ""
    return name if stays_below(name) else "image"


def _sources_of(given: str, listed: bool = False) -> list[Source]:
    if "://" in given:
        return [Source(given, _name_in(given))]
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        images = [Source(os.path.join(path, name), name) for name in FolderTree(Path(path)).names() if is_image(name)]
        if not images and not listed:
            raise UserError(f"The folder {given} has no images ({', '.join(sorted(image_suffixes()))}).")
        return images or [Source(path, os.path.basename(os.path.normpath(path)))]
    if listed or os.path.exists(path):
        return [Source(path, os.path.basename(path))]
    if not glob.has_magic(path):
        raise UserError(f"Input {given} does not exist (looked for {os.path.abspath(path)}).")
    files = [Source(name, os.path.basename(name)) for name in sorted(glob.glob(path, recursive=True))]
    files = [source for source in files if is_image(source.name) or source.is_video]
    if not files:
        raise UserError(f"No image or video matches {given}.")
    return files


def _distinct(sources: Iterable[Source]) -> list[Source]:
    """Each file once; if several share a name, they are named by their whole paths."""
    unique: dict[str, Source] = {}
    for source in sources:
        unique.setdefault(source.path if "://" in source.path else os.path.realpath(source.path), source)
    counts = Counter(source.name for source in unique.values())
    return [
        source if counts[source.name] == 1 else source._replace(name=as_posix(path)) for path, source in unique.items()
    ]


def with_ground_truth(sources: list[Source], data: Annotations) -> tuple[list[Source], int]:
    """The `sources` that are images of `data`, with their ids, sizes and names there; and how many others there are.

    An image's name there is the end of its path. Raises `UserError` if there are none.
    """
    index = {data.file_name(k): k for k in range(len(data))}
    found = {}
    for source in sources:
        k = next((index[end] for end in ends_of(as_posix(source.path)) if end in index), None)
        if k is not None and k not in found:
            size = tuple(data.sizes[k].tolist()) if data.sizes[k].all() else None
            found[k] = Source(source.path, data.file_name(k), data.image_id(k), size)
    if not found:
        example = f", such as {data.file_name(0)}" if len(data) else ", which has none"
        raise UserError(f"None of the {len(sources)} inputs is an image of {data.name}{example}.")
    return list(found.values()), len(sources) - len(found)
