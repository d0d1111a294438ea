"""COCO's instances files, beside or apart from the images: find them, locate their images, take a part of one."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError, errors_about
from ..files import is_stray, missing_files
from ..json_file import read_json, without_garbage_collection
from ..splits import Split, find_split
from .guess import kind_of
from .listing import ImageFiles, as_posix, stem_of

logger = logging.getLogger(__name__)


def read_coco(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, object]:
    """The image folder and the content of `annotations`, or of the only COCO file in `root` or its folder `split`.

    Raises `UserError` naming the file if it cannot be read, or if there is not exactly one.
    """
    if annotations is None and split.name and split.part is None:
        folder = find_split(root, split.name)
        if folder is not None and folder.is_dir():
            root, split = folder, Split(split.source, folder)
    with without_garbage_collection():
        content = read_json(annotations or str(find_coco(root)))
        return root, take(located(content, root, split.source), split)


def find_coco(root: Path) -> Path:
    """The COCO file in `root` or its `annotations/`. Raises `UserError` naming those found unless there is just one."""
    for folder in (root, root / "annotations"):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        jsons = [name for name in names if name.lower().endswith(".json") and not is_stray(name)]
        found = [name for name in jsons if kind_of(folder / name) == "coco"]
        if len(found) > 1:
            raise UserError(f"{folder} has several COCO files, {', '.join(found)}; set `annotations` to one of them.")
        if found:
            return folder / found[0]
    raise UserError(f"{root} has no COCO file; set `annotations` to one, or `split` to the folder that has one.")


def located(content: object, root: Path, source: str) -> object:
    """The content of an instances file with the names that images have below `root`.

    If an image is not where `file_name` says, which may be a path on another computer, the only one whose path ends
    the same way, with any suffix, is taken. LVIS has a `coco_url` instead.
    """
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return content
    given = [image.get("file_name") or image.get("coco_url") if isinstance(image, dict) else None for image in images]
    names = [name.replace("\\", "/") for name in given if isinstance(name, str)]
    lost = {name for name in names if name.startswith("/") or ".." in name}
    with errors_about(source):
        lost |= set(missing_files(root, [name for name in names if name not in lost]))
    if not lost:
        return content
    files = ImageFiles(root)
    found = {name: files.find(stem_of(as_posix(name)), name) for name in sorted(lost)}
    uses = Counter([*found.values(), *names])
    found = {name: place for name, place in found.items() if place and uses[place] == 1}
    if found:
        shown = (source, len(found), *next(iter(found.items())))
        logger.warning("%s: %d images are not where their file_name says (first %s, taken to be %s)", *shown)

    def moved(image: dict, name: object) -> dict:
        place = found.get(name.replace("\\", "/")) if isinstance(name, str) else None
        return image if place is None else image | {"file_name": place}

    return {**content, "images": [moved(image, name) for image, name in zip(images, given, strict=True)]}


def take(content: object, split: Split) -> object:
    """The content of an instances file with only the images of `split` and without the annotations of the others."""
    if split.name is None or not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return content
    images = content["images"]
    names = [image.get("file_name") if isinstance(image, dict) else None for image in images]
    chosen = {*split.choose([name for name in names if isinstance(name, str)]), None}
    kept = [image for image, name in zip(images, names, strict=True) if name in chosen]  # a wrong one, to be reported
    left_out = {str(image.get("id")) for image, name in zip(images, names, strict=True) if name not in chosen}
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        annotations = [o for o in annotations if not (isinstance(o, dict) and str(o.get("image_id")) in left_out)]
    return {**content, "images": kept} | ({} if annotations is None else {"annotations": annotations})
