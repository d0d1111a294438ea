"""Labelled images: a tree of class folders or ILSVRC as published, each in a folder or a tar, and WebDataset shards."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import FolderTree, TarTree, open_tree
from .ilsvrc import ilsvrc_answers, ilsvrc_folder
from .shards import ShardImages, is_shards

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FileImages:
    """Labelled images of a tree: `read(index)` gives the encoded image, the index of its class, and its place."""

    def __init__(self, tree: FolderTree | TarTree, names: list[str], labels: list[int], classes: list[str]) -> None:
        # Arrays are single blocks of memory, which loader workers share; lists would be copied object by object.
        self.tree, self.names = tree, np.array([os.fsencode(name) for name in names])
        self.labels, self.classes = np.array(labels), classes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes, int, str]:
        name = os.fsdecode(self.names[index])
        return self.tree.read(name), int(self.labels[index]), self.tree.where(name)

    def where(self, index: int) -> str:
        return self.tree.where(os.fsdecode(self.names[index]))

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order."""
        return torch.randperm(len(self), generator=generator)


def load_images(root: str, split: str, classes: Sequence[str] | None = None) -> FileImages | ShardImages:
    """The labelled images of `split`.

    Args:
        root: a folder, or an uncompressed tar of one, in which `split` is a folder of class folders; or which holds
            ILSVRC's `Data/CLS-LOC`, whose flat validation images get their classes from `LOC_val_solution.csv` or
            `Annotations`; or "", where `split` is a whole path.
        split: as above, or shards such as "train-{000000..001023}.tar".
        classes: names in label order; None takes the folders' names, sorted. A split may lack some of them.

    Raises `UserError` where there are no images, a class folder is empty, or a class is not in `classes`.
    """
    if is_shards(split):
        return ShardImages(f"{root.rstrip('/')}/{split}" if root else split, classes)
    if os.path.isabs(split):
        root = ""
    tree = open_tree(root or split)
    folder = (ilsvrc_folder(tree, split) or split) if root else ""
    where = tree.where(folder)
    names = [name for name in tree.names(folder) if name.lower().endswith(SUFFIXES)]
    if not names:
        raise UserError(
            f"There are no images in {where}; {root or split} holds {', '.join(tree.folders()) or 'no folders'}. See "
            "data.root, data.train and data.val."
        )
    found = _class_folders(tree, folder, names) or ilsvrc_answers(tree, folder, names)
    classes = list(classes) if classes is not None else sorted(set(found))
    if len(set(classes)) < len(classes) or not classes:
        raise UserError(f"data.classes is {classes}; it must name each class once.")
    strangers = sorted(set(found) - set(classes))
    if strangers:
        raise UserError(
            f"{where} has classes that are not among the {len(classes)} of training: {', '.join(strangers[:5])}"
            f"{' …' if len(strangers) > 5 else ''}. Those are {', '.join(classes[:10])}"
            f"{' …' if len(classes) > 10 else ''}."
        )
    label_of = {name: label for label, name in enumerate(classes)}
    return FileImages(tree, names, [label_of[name] for name in found], classes)


def _class_folders(tree: FolderTree | TarTree, folder: str, names: list[str]) -> list[str]:
    """The class of each file by the folder it is in; nothing where there are no class folders."""
    depth = len(PurePosixPath(folder).parts)
    if not tree.folders(folder):
        return []
    loose = [name for name in names if len(PurePosixPath(name).parts) == depth + 1]
    if loose:
        raise UserError(f"{tree.where(loose[0])} is outside the class folders beside it; move or remove it.")
    found = [PurePosixPath(name).parts[depth] for name in names]
    empty = sorted(set(tree.folders(folder)) - set(found))
    if empty:
        raise UserError(
            f"{tree.where(folder)} has class folders without images: {', '.join(empty[:5])}"
            f"{' …' if len(empty) > 5 else ''}; fill or remove them."
        )
    return found
