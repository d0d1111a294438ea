"""Load a checkpoint into a model: every tensor fits, or an error says which do not."""

import logging

from torch import Tensor, nn

from ..errors import UserError
from .checkpoint import Checkpoint
from .converting import to_ours
from .reading import read_checkpoint

logger = logging.getLogger(__name__)

# Options of `build_backbone` that change the features but not the shapes of the tensors.
SHAPELESS_OPTIONS = ("shortcut", "stride_in_1x1")


def load_weights(backbone: nn.Module, source: str) -> None:
    """Load the checkpoint at `source` into a backbone, and set its `preprocessing` to the checkpoint's.

    It may be a classifier's (its head is dropped), a backbone's, or a whole detector's (only its `backbone.` part is
    loaded). If the backbone has an FPN and the checkpoint does not, only the body is loaded. The log says what was
    loaded, dropped and left random. Raises `UserError` for a checkpoint of another architecture, naming the tensors
    that do not fit.
    """
    fit_weights(backbone, read_ours(source), source)


def fit_weights(backbone: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """`load_weights` for a checkpoint that is already read, under our names; `source` is for messages."""
    check_architecture(backbone, checkpoint, source)
    backbone.preprocessing = checkpoint.preprocessing()
    state = checkpoint.state
    if any(name.startswith("backbone.") for name in state):
        state = below("backbone.", state)
    has_fpn = any(name.startswith("body.") for name in state)
    if has_fpn and not hasattr(backbone, "body"):
        state = below("body.", state)
    target = backbone if has_fpn or not hasattr(backbone, "body") else backbone.body

    children = dict(target.named_children())
    tail = getattr(target, "tail", ())  # the layers that a torchvision network has behind its last stage
    dropped = [name for name in state if name.split(".")[0] not in children or name.startswith(tail)]
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    load_state_dict(target, _initial_offsets(target) | kept, source)
    logger.info(
        "%s: loaded %d of its %d tensors%s%s",
        source,
        len(kept),
        len(checkpoint.state),
        f", dropped {', '.join(dropped)}" if dropped else "",
        "" if target is backbone else "; the FPN keeps its random weights",
    )


def read_ours(source: str) -> Checkpoint:
    """Read a checkpoint of any library, renamed to our names and changed to take RGB images; the log lists the steps.

    Raises `UserError` as `read_checkpoint` does.
    """
    checkpoint = read_checkpoint(source)
    try:
        checkpoint, steps, skipped = to_ours(checkpoint)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if steps:
        unnamed = f"; skipped {len(skipped)} tensors without a name here: {', '.join(skipped[:5])}" if skipped else ""
        logger.info("%s: %s%s", source, "; ".join(steps), unnamed)
    return checkpoint


def check_architecture(backbone: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """Raise `UserError` if the checkpoint's metadata names another network, or options that give other features.

    Does nothing if the checkpoint has no architecture or the backbone was not built by `build_backbone`.
    """
    built, stated = getattr(backbone, "architecture", None), checkpoint.metadata.get("architecture")
    if built is None or stated is None:
        return
    name = stated.get("name", built["name"])
    if name != built["name"]:
        raise UserError(f"{source} holds a {name}, but the backbone is {built['name']}; give one of the two.")
    for option in SHAPELESS_OPTIONS:
        theirs, ours = (known.get("options", {}).get(option) or None for known in (stated, built))
        if theirs != ours:
            raise UserError(
                f"{source} holds a {name} with {option}={theirs}, but the backbone is built with {option}={ours}; "
                "make them the same."
            )


def load_state_dict(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """`model.load_state_dict` with an error that explains: every tensor must match in name and shape.

    Either side may lack BN's step counter `num_batches_tracked`, so that BN and FrozenBN share checkpoints. Raises
    `UserError` naming `source` and the first tensors that do not fit.
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


def _initial_offsets(backbone: nn.Module) -> dict[str, Tensor]:
    """The offsets of deformable convolutions as built, zero, for a checkpoint of the same network without them."""
    return {name: tensor for name, tensor in backbone.state_dict().items() if ".offset." in name}


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with names that start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
