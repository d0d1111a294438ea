"""COCO's instances files beside or apart from the images: where they are, and parts of one."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..files import is_stray
from ..json_file import read_json, without_garbage_collection
from ..splits import Split, find_split
from .guess import kind_of


def read_coco(
    root: Path, annotations: str | None, split: Split, classes: Sequence[str] | None = None
) -> tuple[Path, object]:
    """The image folder and the content of `annotations`, or of the only COCO file in `root` or its folder `split`.

    Raises `UserError` naming the file if it cannot be read, or if there is not one.
    """
    if annotations is None and split.name and split.part is None:
        folder = find_split(root, split.name)
        if folder is not None and folder.is_dir():
            root, split = folder, Split(split.source, folder)
    with without_garbage_collection():
        content = read_json(annotations or str(find_coco(root)))
        return root, take(content, split)


def find_coco(root: Path) -> Path:
    """The one COCO file in `root` or its `annotations/`. Raises `UserError` naming those found if it is not one."""
    for folder in (root, root / "annotations"):
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        jsons = [name for name in names if name.lower().endswith(".json") and not is_stray(name)]
        found = [name for name in jsons if kind_of(folder / name) == "coco"]
        if len(found) > 1:
            raise UserError(f"{folder} has several COCO files, {', '.join(found)}; set `annotations` to one of them.")
        if found:
            return folder / found[0]
    raise UserError(f"{root} has no COCO file; set `annotations` to one, or `split` to the folder that has one.")


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
