"""Fitting a checkpoint to a model: everything matches, or an error says what did not."""

import logging

from torch import Tensor, nn

from ..errors import UserError
from .converting import to_ours
from .reading import Checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

# Options of `build_backbone` that change what a network computes, but not the shapes of its tensors.
COMPUTATION = ("shortcut", "stride_in_1x1")


def load_weights(backbone: nn.Module, source: str) -> None:
    """Load the checkpoint at `source` into a backbone and give it the checkpoint's `preprocessing`, where it is known.

    It may be a classifier's (its head is dropped), a backbone's, or a whole detector's (its `backbone.` part is
    taken). For an FPN, a checkpoint without one fills the body alone. What was loaded, dropped and left random goes
    into the log. Raises `UserError` for a checkpoint of another architecture, and naming the tensors that do not fit.
    """
    fit_weights(backbone, read_ours(source), source)


def fit_weights(backbone: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """`load_weights` of what is already read, under our names; `source` is for messages."""
    check_architecture(backbone, checkpoint, source)
    backbone.preprocessing = checkpoint.preprocessing()
    state = checkpoint.state
    if any(name.startswith("backbone.") for name in state):
        state = _below("backbone.", state)
    has_fpn = any(name.startswith("body.") for name in state)
    if has_fpn and not hasattr(backbone, "body"):
        state = _below("body.", state)
    target = backbone if has_fpn or not hasattr(backbone, "body") else backbone.body

    children = dict(target.named_children())
    tail = getattr(target, "tail", ())  # what a network of torchvision has behind its last stage
    dropped = [name for name in state if name.split(".")[0] not in children or name.startswith(tail)]
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    load_state_dict(target, _starting_offsets(target) | kept, source)
    logger.info(
        "%s: loaded %d of its %d tensors%s%s",
        source,
        len(kept),
        len(checkpoint.state),
        f", dropped {', '.join(dropped)}" if dropped else "",
        "" if target is backbone else "; the FPN keeps its random weights",
    )


def read_ours(source: str) -> Checkpoint:
    """The checkpoint at `source`, of whichever library, under our names and for RGB images; the log says what was done.

    Raises `UserError` as `read_checkpoint` does.
    """
    checkpoint = read_checkpoint(source)
    try:
        checkpoint, steps, left = to_ours(checkpoint)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if steps:
        unnamed = f"; {len(left)} tensors have no name here: {', '.join(left[:5])}" if left else ""
        logger.info("%s: %s%s", source, "; ".join(steps), unnamed)
    return checkpoint


def check_architecture(backbone: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """Raise `UserError` naming both where the checkpoint says that it is of another network.

    Only a backbone of `build_backbone` knows its own `architecture`; one without is not checked.
    """
    ours, theirs = getattr(backbone, "architecture", None), checkpoint.metadata.get("architecture")
    if ours is None or theirs is None:
        return
    held = theirs.get("name", ours["name"])
    if held != ours["name"]:
        raise UserError(f"{source} holds a {held}, but the backbone is {ours['name']}; give one of the two.")
    for option in COMPUTATION:
        wanted, given = (a.get("options", {}).get(option) or False for a in (theirs, ours))
        if wanted != given:
            raise UserError(
                f"{source} holds a {held} with {option}={wanted or None}, but the backbone is built with "
                f"{option}={given or None}; make them the same."
            )


def load_state_dict(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """`model.load_state_dict` that explains itself: every tensor of both sides must match in name and shape.

    BN's step counter `num_batches_tracked` may be absent on either side, so that BN and FrozenBN share checkpoints.
    Raises `UserError` naming `source` and the first tensors that do not fit.
    """
    wanted = {n: t.shape for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: t.shape for n, t in state.items() if not n.endswith("num_batches_tracked")}
    missing = [n for n in wanted if n not in given]
    unexpected = [n for n in given if n not in wanted]
    reshaped = [
        f"{n} (file {tuple(given[n])}, model {tuple(wanted[n])})"
        for n in wanted
        if n in given and given[n] != wanted[n]
    ]
    problems = [
        f"{len(names)} tensors {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in [
            ("of another shape", reshaped),
            ("missing in the file", missing),
            ("not in the model", unexpected),
        ]
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit the model. {'; '.join(problems)}. Is it another architecture?")
    model.load_state_dict(state, strict=False)


def _starting_offsets(backbone: nn.Module) -> dict[str, Tensor]:
    """The offsets of deformable convolutions as built, at zero, for checkpoints of the same net without them."""
    return {name: tensor for name, tensor in backbone.state_dict().items() if ".offset." in name}


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
