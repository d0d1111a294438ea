"""Fitting a state_dict to a model: everything matches, or an error says which tensors did not."""

import logging

from torch import Tensor, nn

from ..errors import UserError
from .reading import read_state_dict
from .renaming import from_timm_preact

logger = logging.getLogger(__name__)


def load_weights(backbone: nn.Module, source: str) -> None:
    """Load the checkpoint at `source` into a backbone.

    It may be a classifier's (its head is dropped), a backbone's, or a whole detector's (its `backbone.` part is
    taken). For an FPN, a checkpoint without one fills the body alone. Raises `UserError` naming the tensors that do
    not fit.
    """
    state = from_timm_preact(read_state_dict(source))
    if any(name.startswith("backbone.") for name in state):
        state = _below("backbone.", state)
    has_fpn = any(name.startswith("body.") for name in state)
    if has_fpn and not hasattr(backbone, "body"):
        state = _below("body.", state)
    target = backbone if has_fpn or not hasattr(backbone, "body") else backbone.body

    children = dict(target.named_children())
    tail = getattr(target, "tail", ())  # what a network of torchvision has behind its last stage
    dropped = [name for name in state if name.split(".")[0] not in children or name.startswith(tail)]
    state = _starting_offsets(target) | state
    load_state_dict(target, {name: t for name, t in state.items() if name not in dropped}, source)
    logger.info(
        "%s: loaded %d tensors%s%s",
        source,
        len(state) - len(dropped),
        f", dropped {', '.join(dropped)}" if dropped else "",
        "" if target is backbone else "; the FPN keeps its random weights",
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
