"""ILSVRC's own layout (2012 to 2017): training images in folders of synsets, validation images flat."""

import csv
from pathlib import PurePosixPath
from xml.etree.ElementTree import ParseError

from defusedxml.ElementTree import fromstring

from ..errors import UserError
from .files import FolderTree, TarTree

IMAGES, ANNOTATIONS, SOLUTION = "Data/CLS-LOC", "Annotations/CLS-LOC", "LOC_val_solution.csv"


def ilsvrc_folder(tree: FolderTree | TarTree, split: str) -> str | None:
    """The folder of the images of `split` if `tree` has that layout, else None."""
    for top in ("", "ILSVRC/"):
        if split in tree.folders(f"{top}{IMAGES}"):
            return f"{top}{IMAGES}/{split}"
    return None


def ilsvrc_answers(tree: FolderTree | TarTree, folder: str, names: list[str]) -> list[str]:
    """The synset of each image in a flat folder, from `LOC_val_solution.csv` or else from its XML in `Annotations`.

    Raises `UserError` if neither has it or the table is damaged.
    """
    try:
        rows = csv.reader(tree.read(SOLUTION).decode().splitlines())
        answers = {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    except OSError:
        answers = {}
    except (ValueError, csv.Error) as error:
        raise UserError(f"{tree.path(SOLUTION)} is not a table of images and synsets: {error}.") from error
    return [answers.get(PurePosixPath(name).stem) or _annotated(tree, folder, name) for name in names]


def _annotated(tree: FolderTree | TarTree, folder: str, name: str) -> str:
    path = PurePosixPath(folder.replace(IMAGES, ANNOTATIONS), f"{PurePosixPath(name).stem}.xml")
    try:
        synset = fromstring(tree.read(str(path)), forbid_dtd=True).findtext("object/name")
    except (OSError, ParseError, ValueError, LookupError):
        synset = None
    if not synset:
        raise UserError(
            f"The class of {tree.path(name)} is unknown: it is not in a class folder, and neither ILSVRC's {SOLUTION} "
            f"nor {path} has it."
        )
    return synset
