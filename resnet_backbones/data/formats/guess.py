"""Guess the format of a data set from its files."""

import os
import re
from collections import Counter
from pathlib import Path

from ...errors import UserError
from ..files import FolderTree, is_stray
from ..text import ENCODINGS

TITLES = {"coco": "COCO", "voc": "PASCAL VOC", "yolo": "YOLO", "labelme": "labelme", "cvat": "CVAT"}
BY_SUFFIX = {".json": "coco", ".xml": "cvat", ".yaml": "yolo", ".yml": "yolo"}  # of `annotations`, if it is a file
HEAD = 2**16  # bytes that identify a file
FILES = 50  # of a folder to look into
# What identifies a format at the beginning of a file, by suffix.
SIGNS = {
    ".json": {"labelme": r'"(shapes|imagePath)"\s*:', "coco": r'"(images|annotations|categories)"\s*:\s*\['},
    ".xml": {"voc": r"<annotation\b", "cvat": r"<annotations\b"},
    ".yaml": {"yolo": r"^names\s*:"},
    ".yml": {"yolo": r"^names\s*:"},
    ".names": {"yolo": ""},
    ".labels": {"yolo": ""},  # _darknet.labels
}
CLASS_LISTS = ("classes.txt", "obj.data")


def guess_format(root: Path, annotations: str | None) -> tuple[str, str]:
    """The format of what is in `annotations` or in `root`, and the file or folder that it was guessed from.

    Raises `UserError` saying what was found if it is of no known format, or of several.
    """
    if annotations and not os.path.isdir(annotations):
        return BY_SUFFIX.get(os.path.splitext(annotations)[1].lower(), "coco"), annotations
    top = Path(annotations or root)
    found = _evidence(top)
    folders = FolderTree(top).folders()
    for _ in range(2):  # a folder for each split, or one for images and one for annotations, or both
        if not found:
            for folder in folders:
                found = {kind: f"{folder}/{sign}" for kind, sign in _evidence(top / folder).items()} | found
            folders = [f"{folder}/{name}" for folder in folders for name in FolderTree(top / folder).folders()]
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        signs = " and ".join(f"{sign} ({kind})" for kind, sign in sorted(found.items()))
        raise UserError(f"{top} has files of several formats: {signs}. Set `format` to the one to read.")
    raise UserError(
        f"{top} is of no known format; it has {_contents(top)}. Set `format` to one of {', '.join(TITLES)}, or "
        "`annotations`."
    )


def _evidence(folder: Path) -> dict[str, str]:
    """The formats found directly in `folder`, each with the first file or folder that shows it."""
    entries = [name for name in sorted(os.listdir(folder)) if not is_stray(name)]
    if {"Annotations", "JPEGImages"} <= set(entries):
        return {"voc": "Annotations/ and JPEGImages/"}
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for name in entries:
        suffix = os.path.splitext(name)[1].lower()
        seen[suffix] += 1
        if name.lower() in CLASS_LISTS:
            found.setdefault("yolo", name)
        elif suffix in SIGNS and seen[suffix] <= FILES and (kind := kind_of(folder / name)):
            found.setdefault(kind, name)
    return found


def kind_of(path: Path) -> str | None:
    """The format of a JSON, XML or YAML file, judging by its first lines; None if unknown."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        head = file.read(HEAD)
    encoding = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), "utf-8")
    text = head.decode(encoding, errors="ignore")
    if path.suffix.lower() == ".json" and len(head) < HEAD and '"images"' not in text and '"shapes"' not in text:
        return None  # such as the notes.json of Label Studio's YOLO, which lists the categories
    signs = SIGNS[path.suffix.lower()]
    return next((kind for kind, sign in signs.items() if re.search(sign, text, flags=re.M)), None)


def _contents(folder: Path) -> str:
    """A summary such as "3 .jpg, 2 .txt, images/"."""
    tree = FolderTree(folder)
    files = [name for name in os.listdir(folder) if not is_stray(name) and os.path.isfile(folder / name)]
    suffixes = Counter(os.path.splitext(name)[1].lower() or "files without suffix" for name in files)
    shown = [f"{count} {suffix}" for suffix, count in suffixes.most_common(5)]
    return ", ".join([*shown, *(f"{name}/" for name in tree.folders()[:5])]) or "no files"
