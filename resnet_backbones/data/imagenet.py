"""Labeled images: class folders or ILSVRC as published, both in a folder or a tar, and WebDataset shards."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import FolderTree, TarTree, open_tree
from .formats.listing import is_image
from .ilsvrc import ilsvrc_answers, ilsvrc_folder
from .shards import ShardImages, is_shards


class FileImages:
    """The labeled images of a tree: `read(index)` gives the encoded image, its label and its path."""

    def __init__(self, tree: FolderTree | TarTree, names: list[str], labels: list[int], classes: list[str]) -> None:
        # Loader workers share the memory of arrays; they would copy the objects of a list.
        self.tree, self.names = tree, np.array([os.fsencode(name) for name in names])
        self.labels, self.classes = np.array(labels), classes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes, int, str]:
        name = os.fsdecode(self.names[index])
        return self.tree.read(name), int(self.labels[index]), self.tree.path(name)

    def path(self, index: int) -> str:
        return self.tree.path(os.fsdecode(self.names[index]))

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order."""
        return torch.randperm(len(self), generator=generator)


def load_images(root: str, split: str, classes: Sequence[str] | None = None) -> FileImages | ShardImages:
    """The labeled images of `split`.

    Args:
        root: a folder or an uncompressed tar of one. `split` in it has a folder for each class; or it has ILSVRC's
            `Data/CLS-LOC`, where the classes of validation images are read from `LOC_val_solution.csv` or
            `Annotations`. If it is "", `split` is a whole path.
        split: as above, or shards such as "train-{000000..001023}.tar".
        classes: names in label order, some of which a split may lack; by default the folders' names, sorted.

    Raises `UserError` if there are no images, a class folder is empty, or a class is not in `classes`.
    """
    if is_shards(split):
        return ShardImages(f"{root.rstrip('/')}/{split}" if root else split, classes)
    if os.path.isabs(split):
        root = ""
    tree = open_tree(root or split)
    folder = (ilsvrc_folder(tree, split) or split) if root else ""
    path = tree.path(folder)
    names = [name for name in tree.names(folder) if is_image(name)]
    if not names:
        raise UserError(
            f"There are no images in {path}; {root or split} has {', '.join(tree.folders()) or 'no folders'}. See "
            "data.root, data.train and data.val, or --data and --split."
        )
    found = _class_folders(tree, folder, names) or ilsvrc_answers(tree, folder, names)
    classes = list(classes) if classes is not None else sorted(set(found))
    if len(set(classes)) < len(classes) or not classes:
        raise UserError(f"data.classes is {classes}; it must name each class once.")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise UserError(
            f"{path} has classes that are not among the {len(classes)} of training: {', '.join(unknown[:5])}"
            f"{' …' if len(unknown) > 5 else ''}. Those are {', '.join(classes[:10])}"
            f"{' …' if len(classes) > 10 else ''}."
        )
    label_of = {name: label for label, name in enumerate(classes)}
    return FileImages(tree, names, [label_of[name] for name in found], classes)


def check_images(root: str, split: str) -> None:
    """Raise `UserError` if `load_images` would find no local folder or tar. Remote ones are not checked."""
    path = split if os.path.isabs(split) else root or split
    if not is_shards(split) and "://" not in path and not os.path.isfile(os.path.expanduser(path)):
        open_tree(path)


def _class_folders(tree: FolderTree | TarTree, folder: str, names: list[str]) -> list[str]:
    """The class of each file, named by its folder; an empty list if there are no class folders."""
    depth = len(PurePosixPath(folder).parts)
    if not tree.folders(folder):
        return []
    loose = [name for name in names if len(PurePosixPath(name).parts) == depth + 1]
    if loose:
        raise UserError(f"{tree.path(loose[0])} is outside the class folders beside it; move or remove it.")
    found = [PurePosixPath(name).parts[depth] for name in names]
    empty = sorted(set(tree.folders(folder)) - set(found))
    if empty:
        raise UserError(
            f"{tree.path(folder)} has class folders without images: {', '.join(empty[:5])}"
            f"{' …' if len(empty) > 5 else ''}; fill or remove them."
        )
    return found
