"""The image files of a data set, found by name, by stem or by what an annotation calls them."""

import logging
import posixpath
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

from PIL import Image

from ...errors import UserError
from ..files import FolderTree

logger = logging.getLogger(__name__)


@cache
def image_suffixes() -> set[str]:
    """The suffixes of the image formats that are read: ".jpg", ".jpeg", ".jfif" …, in lower case."""
    from ..images import FORMATS  # slow to import

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in image_suffixes()


def stem_of(name: str) -> str:
    """A path without its suffix, if that is one of an image: "a.b/c.d.JPG" gives "a.b/c.d".

    In Unicode's form C: in file names, macOS writes an umlaut as two characters, others as one.
    """
    return unicodedata.normalize("NFC", posixpath.splitext(name)[0] if is_image(name) else name)


def as_posix(path: str) -> str:
    """A path as any system writes it, kept below its folder: "..\\a\\b" gives "a/b", and "a/../b" gives "b"."""
    kept: list[str] = []
    for part in path.strip().replace("\\", "/").split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/".join(kept)


def ends_of(path: str) -> list[str]:
    """A path with fewer and fewer of its folders: "a/b/c" gives "a/b/c", "b/c" and "c"."""
    parts = path.split("/")
    return ["/".join(parts[k:]) for k in range(len(parts))]


class ImageFiles:
    """The images below `folder` except strays, by their names relative to it, with "/"."""

    def __init__(self, folder: Path) -> None:
        self.names = [name for name in FolderTree(folder).names() if is_image(name)]
        self.folders = {posixpath.dirname(stem_of(name)) for name in self.names}
        self.by_stem, self.by_base = defaultdict(list), defaultdict(list)
        for name in self.names:
            self.by_stem[stem_of(name)].append(name)
            self.by_base[posixpath.basename(stem_of(name))].append(name)

    def find(self, stem: str, stated: str = "") -> str | None:
        """The image of the annotation file `stem`, a path without suffix, which calls its image `stated`.

        Looks, with any suffix, for the stem, then for `stated` relative to the folder of the annotation file and to
        that of the images. If there are no images where the annotation file is, takes the only one elsewhere whose
        path ends like the stem or `stated`. Of several, takes the one with the suffix of `stated`, or the first.
        """
        stem = unicodedata.normalize("NFC", stem)
        folder = posixpath.dirname(stem)
        file = posixpath.basename(stated.replace("\\", "/").strip())
        paths = [stem, stem_of(stem)]  # some tools write a.jpg.json
        if file:
            paths += [stem_of(as_posix(path)) for path in (f"{folder}/{stated}", f"{folder}/{file}", stated)]
        for found in filter(None, map(self.by_stem.get, paths)):
            return next((name for name in found if posixpath.basename(name) == file), found[0])
        if folder in self.folders:  # then those of other folders have annotations of their own
            return None
        for path in (*ends_of(stem), *ends_of(stem_of(as_posix(stated)))):
            found = self.by_base.get(posixpath.basename(path), [])
            found = [name for name in found if f"/{stem_of(name)}".endswith(f"/{path}")]
            named = [name for name in found if posixpath.basename(name) == file] or found
            if len(named) == 1:
                return named[0]
        return None


def annotated(images: ImageFiles, folder: Path, suffix: str) -> dict[str, str]:
    """The annotation files below `folder`, relative to it, by the names of their images.

    Files whose image their own name does not tell are listed under it, without suffix. Images without a file are left
    out: nobody has labeled them. Raises `UserError` if there are no files, or two for one image.
    """
    found: dict[str, str] = {}
    for name in FolderTree(folder).names():
        stem, end = posixpath.splitext(name)
        if end.lower() == suffix:
            image = images.find(stem) or stem
            if image in found:
                raise UserError(f"{folder}: {found[image]} and {name} are both for image {image}; remove one of them.")
            found[image] = name
    if not found:
        raise UserError(f"{folder} has no {suffix} annotation files; set `annotations` to their folder.")
    unlabeled = len(images.names) - len(found)
    if unlabeled > 0:
        logger.info("%s: %d images without a %s file are left out", folder, unlabeled, suffix)
    return found
