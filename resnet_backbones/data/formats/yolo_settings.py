"""`data.yaml` and the lists of class names beside YOLO's labels."""

import os
from pathlib import Path

import yaml

from ...errors import UserError, reason
from ..files import FolderTree
from ..splits import listed
from ..text import read_text
from .guess import kind_of
from .listing import ImageFiles, as_posix, ends_of

SAME_SPLIT = {"val": "valid", "valid": "val"}  # Roboflow's folder and Ultralytics' key, and the reverse


def find_settings(root: Path) -> Path | None:
    """`data.yaml` in `root`, or the only YAML file there with `names:`. Raises `UserError` for several."""
    names = [name for name in sorted(os.listdir(root)) if name.lower().endswith((".yaml", ".yml"))]
    found = [name for name in names if kind_of(root / name) == "yolo"]
    chosen = [name for name in found if name.lower().startswith("data.")] or found
    if len(chosen) > 1:
        raise UserError(f"{root} has several YAML files with names, {', '.join(chosen)}; set `annotations` to one.")
    return root / chosen[0] if chosen else None


def read_settings(file: Path) -> dict:
    """The content of `data.yaml`, with every value as it is written. Raises `UserError` naming the file."""
    try:
        content = yaml.load(read_text(file, "YOLO settings"), yaml.BaseLoader)  # strings only: a class may be "no"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, (list, dict)):
        fault = f"`names` {names[:80]!r}" if isinstance(names, str) else "no `names`"
        raise UserError(f"{file} has {fault}; give a list of classes or a mapping of numbers to classes.")
    if not isinstance(content.get("path", ""), str):
        raise UserError(f"{file}: `path` is not the name of a folder.")
    return content


def names_of(settings: dict, file: Path) -> dict[int, str]:
    """The class names by their numbers, from 0."""
    names = settings["names"]
    rows = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        return {int(number): str(name) for number, name in rows}
    except ValueError as error:
        raise UserError(f"{file}: `names` has a key that is not a number: {reason(error)}.") from error


def listed_names(root: Path, labels: Path | None) -> dict[int, str]:
    """The class names by their numbers, from classes.txt, obj.names or _darknet.labels near the images or labels.

    Raises `UserError` if there is no such file.
    """
    near = [folder for start in (labels, root) if start for folder in (start, *start.absolute().parents[:2])]
    below = [root / name for name in FolderTree(root).folders()]
    below += [folder / name for folder in below for name in FolderTree(folder).folders()]
    near += [*(folder / "labels" for folder in near), *below]
    for folder in near:
        for pattern in ("classes.txt", "*.names", "_darknet.labels"):
            for path in sorted(folder.glob(pattern)):
                names = [line.strip() for line in read_text(path, "list of classes").splitlines()]
                return dict(enumerate(name for name in names if name))
    raise UserError(
        f"{root} has neither data.yaml nor classes.txt, obj.names or _darknet.labels, which name the classes."
    )


def sources_of(settings: dict, file: Path, root: Path, split: str | None) -> list[Path]:
    """The folders and lists of images that `data.yaml` has for `split`; none if it has no such key.

    Raises `UserError` for one that does not exist.
    """
    key = split if settings.get(split) else SAME_SPLIT.get(split)
    given = settings.get(key)
    if not given or key in ("names", "path"):
        return []
    found = []
    for value in [given] if isinstance(given, str) else given:
        # Roboflow writes ../train/images and means train/images; paths from another computer end like those here.
        ends = [end for end in ends_of(as_posix(str(value))) if "/" in end] or [as_posix(str(value))]
        places = [root / str(value), file.parent / str(value), *(root / end for end in ends)]
        existing = [place for place in places if os.path.exists(place)]
        if not existing:
            raise UserError(f"{file}: {key}: {value} does not exist (looked for {places[0].absolute()}).")
        found.append(existing[0])
    return found


def images_of(sources: list[Path], root: Path) -> tuple[Path, list[str]]:
    """The folder that all `sources` and `root` are in, and the names of their images relative to it."""
    folders = [path for path in sources if os.path.isdir(path)]
    top = Path(os.path.commonpath([os.path.abspath(path) for path in (root, *folders)]))
    names = []
    for path in sources:
        below = path if os.path.isdir(path) else root
        found = ImageFiles(below).names
        prefix = os.path.relpath(below, top)
        found = found if below is path else listed(path, found)
        names += found if prefix == "." else [f"{prefix}/{name}" for name in found]
    return top, list(dict.fromkeys(names))
