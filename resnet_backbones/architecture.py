"""What a checkpoint says of its architecture, from anybody: checked before a network is built of it."""

import warnings

import torch

from .backbones import RandomFrozenWarning, build_backbone, valid_options
from .errors import UserError, reason, unknown
from .weights import Checkpoint


def told_architecture(checkpoint: Checkpoint, source: str, name: str | None = None) -> tuple[str | None, dict]:
    """The `name` and `options` of `build_backbone` that a checkpoint tells; None and {} where it tells none.

    Args:
        source: the file, for messages.
        name: what the user calls it, in place of what the file does.

    Raises `UserError` naming the file and the key for what `build_backbone` does not take, and for a network larger
    than the file.
    """
    told = checkpoint.metadata.get("architecture", {})
    given, options = name, told.get("options", {})
    name = given or told.get("name")
    if name is None:
        return None, options
    try:
        valid = valid_options(name) | {"norm"}
    except UserError as error:
        raise error if given else UserError(f"{source} tells its architecture.name wrongly: {error}") from error
    for option in options:
        if option not in valid:
            raise UserError(
                f"{source} tells architecture.options wrongly: " + unknown(f"option of {name}", option, valid)
            )
    try:
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory, whatever the widths
            warnings.simplefilter("ignore", RandomFrozenWarning)
            wanted = sum(p.numel() for p in build_backbone(name, **options).parameters())
    except Exception as error:  # whatever torch makes of widths, groups and norms that are none
        raise UserError(
            f"{source} tells architecture.options of which no {name} can be built: {reason(error)}"
        ) from error
    held = sum(tensor.numel() for tensor in checkpoint.state.values())
    if wanted > 2 * held:  # what a file may lack, such as the offsets of deformable convolutions, is not the most of it
        raise UserError(f"{source} tells that it is a {name} of {wanted:,} parameters, but holds {held:,} numbers.")
    return name, options
