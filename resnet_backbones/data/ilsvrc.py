"""ILSVRC's own layout (2012 to 2017): training images in folders of synsets, validation images flat."""

import csv
from pathlib import PurePosixPath

from ..errors import UserError
from .files import FolderTree, TarTree
from .xml import parse_xml

IMAGES, ANNOTATIONS, SOLUTION = "Data/CLS-LOC", "Annotations/CLS-LOC", "LOC_val_solution.csv"


def ilsvrc_folder(tree: FolderTree | TarTree, split: str) -> str | None:
    """Where the images of `split` lie if `tree` has that layout, else None."""
    for top in ("", "ILSVRC/"):
        if split in tree.folders(f"{top}{IMAGES}"):
            return f"{top}{IMAGES}/{split}"
    return None


def ilsvrc_answers(tree: FolderTree | TarTree, folder: str, names: list[str]) -> list[str]:
    """The synset of each flat image, from `LOC_val_solution.csv` or else from its XML in `Annotations`.

    Raises `UserError` where neither knows it and where the table is damaged.
    """
    try:
        rows = csv.reader(tree.read(SOLUTION).decode().splitlines())
        answers = {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    except OSError:
        answers = {}
    except (ValueError, csv.Error) as error:
        raise UserError(f"{tree.where(SOLUTION)} is no table of images and synsets: {error}.") from error
    return [answers.get(PurePosixPath(name).stem) or _annotated(tree, folder, name) for name in names]


def _annotated(tree: FolderTree | TarTree, folder: str, name: str) -> str:
    path = PurePosixPath(folder.replace(IMAGES, ANNOTATIONS), f"{PurePosixPath(name).stem}.xml")
    try:
        synset = parse_xml(tree.read(str(path))).findtext("object/name")
    except (OSError, ValueError):
        synset = None
    if not synset:
        raise UserError(
            f"The class of {tree.where(name)} is unknown: it is in no class folder, and neither in ILSVRC's {SOLUTION} "
            f"nor in {path}."
        )
    return synset
