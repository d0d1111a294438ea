"""Load a checkpoint into a model: every tensor fits, or an error says which do not."""

import logging
from collections.abc import Collection

from torch import Tensor, nn

from ..errors import UserError
from ..models.fpn import ConvP6P7
from .checkpoint import Checkpoint
from .converting import to_ours
from .matching import adapt_input, below, contents, find_prefix, layers_below, shapes_of
from .reading import read_file
from .zero_padding import find_zero_padding

logger = logging.getLogger(__name__)

# Options of `build_backbone` that change the features but not the shapes of the tensors.
SHAPELESS_OPTIONS = ("shortcut", "stride_in_1x1")


def load_weights(backbone: nn.Module, source: str) -> None:
    """Load the checkpoint at `source` into a backbone, and set its `preprocessing` to the checkpoint's.

    The backbone is found by its names and shapes wherever it is in the file: in a classifier, whose head is dropped,
    in a detector, or behind any prefix that a trainer adds (`matching.find_prefix` says which of several). If the
    backbone has an FPN and the file does not, only the body is loaded. The first convolution is adapted to other
    `in_channels`. The log says what was loaded, dropped and left random. Raises `UserError` for a checkpoint of another
    architecture, naming the tensors that do not fit and those that the file holds.
    """
    fit_weights(backbone, read_ours(source), source)


def fit_weights(backbone: nn.Module, checkpoint: Checkpoint, source: str, used: Collection[str] = ()) -> None:
    """`load_weights` for a checkpoint that has already been read, under our names.

    `source` is for messages, as is `used`, the names of what is loaded elsewhere.
    """
    check_architecture(backbone, checkpoint, source)
    fit_p6(backbone, checkpoint.state, source)
    prefix = find_prefix(shapes_of(backbone), checkpoint.state)
    has_pyramid = any(name.startswith(f"{prefix}fpn.") for name in checkpoint.state)
    if has_pyramid or not hasattr(backbone, "body"):
        fit(backbone, checkpoint.state, source, used)
    else:
        fit(backbone.body, checkpoint.state, source, used, note="; the FPN keeps its random weights")
    backbone.preprocessing = checkpoint.preprocessing()
    if "name" not in checkpoint.metadata.get("architecture", {}):
        find_zero_padding(backbone, source)


def fit(
    model: nn.Module,
    state: dict[str, Tensor],
    source: str,
    used: Collection[str] = (),
    kept: Collection[str] = (),
    note: str = "",
) -> None:
    """Load the tensors of `model` in `state`, behind some prefix (`matching.find_prefix`); the log says which.

    Args:
        state: under our names, of a whole file.
        source, used, note: for messages: the file, names that are loaded elsewhere, and what else to say.
        kept: names of `model` that keep their own weights.

    Raises `UserError` unless every other tensor of `model` is there, and no further ones in its children.
    """
    wanted = shapes_of(model)
    prefix = find_prefix({name: shape for name, shape in wanted.items() if name not in kept}, state)
    tail = getattr(model, "tail", ())  # the layers that a torchvision network has behind its last stage
    layers = layers_below(prefix, wanted, state)
    taken = {name: t for name, t in layers.items() if name not in kept and not name.startswith(tail)}
    adapted, own = adapted_input(model, taken), model.state_dict()
    # Offsets of deformable convolutions start at zero if the file has the same network without them.
    initial = {name: tensor for name, tensor in own.items() if ".offset." in name or name in kept}
    load_state_dict(model, initial | taken | adapted, source, contents(state))
    dropped = [name for name in below(prefix, state) if name not in taken and prefix + name not in used]
    steps = [
        f"loaded {len(taken)} of its {len(state)} tensors" + (f", those of {prefix}" if prefix else ""),
        *(f"adapted {name} to {weight.shape[1]} channels" for name, weight in adapted.items()),
        *([f"dropped {listed(dropped)}"] if dropped else []),
        *([f"{listed(kept)} keep their random weights"] if kept else []),
    ]
    logger.info("%s: %s%s", source, ", ".join(steps), note)


def listed(names: Collection[str], longest: int = 4) -> str:
    rest = f" and {len(names) - longest} more" if len(names) > longest else ""
    return ", ".join(list(names)[:longest]) + rest


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next((item for item in model.named_modules() if isinstance(item[1], nn.Conv2d)), None)


def adapted_input(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first convolution of a file for RGB or gray images, if `model` takes another number of channels."""
    name, conv = first_convolution(model) or ("", None)
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 4 or weight.shape[1] not in (1, 3) or weight.shape[1] == conv.in_channels:
        return {}
    return {f"{name}.weight": adapt_input(weight, conv.in_channels)}


def fit_p6(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Make a pyramid's p6 from the same as in the file, res5 or p5, if the number of channels tells which.

    torchvision's `retinanet_resnet50_fpn` uses p5, its second version res5.
    """
    pyramid = getattr(backbone, "fpn", None)
    top = getattr(pyramid, "extra_blocks", None)
    given = state.get(f"{find_prefix(shapes_of(backbone), state)}fpn.extra_blocks.p6.weight")
    if not isinstance(top, ConvP6P7) or given is None or given.ndim != 4 or given.shape[1] == top.p6.in_channels:
        return
    sources = {pyramid.inner_blocks[-1][0].in_channels: "res5", top.p6.out_channels: "p5"}
    if given.shape[1] in sources:
        pyramid.extra_blocks = ConvP6P7(sources[given.shape[1]], given.shape[1], top.p6.out_channels)
        logger.info("%s: p6 is made from %s, as in the file", source, sources[given.shape[1]])


def read_ours(source: str) -> Checkpoint:
    """`read_file` of any library's file, renamed to our names and changed to take RGB images; the log lists the steps.

    Prefixes in a file, such as "model." or "module.", are kept. Raises `UserError` as `read_file` does.
    """
    checkpoint = read_file(source)
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
        raise UserError(f"{source} holds a {name}, but the backbone is {built['name']}; make them the same.")
    for option in SHAPELESS_OPTIONS:
        theirs, ours = (known.get("options", {}).get(option) or None for known in (stated, built))
        if theirs != ours:
            raise UserError(
                f"{source} holds a {name} with {option}={theirs}, but the backbone is built with {option}={ours}; "
                "make them the same."
            )


def load_state_dict(model: nn.Module, state: dict[str, Tensor], source: str, held: str = "") -> None:
    """`model.load_state_dict` with a helpful error: every tensor must match in name and shape.

    Either side may lack BN's step counter `num_batches_tracked`, so that BN and FrozenBN share checkpoints. Raises
    `UserError` naming `source`, the first tensors that do not fit, and what the file holds (`held`).
    """
    wanted = shapes_of(model)
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
        held = f" The file holds {held}." if held else ""
        raise UserError(f"{source} does not fit the model. {'; '.join(problems)}. Is it another architecture?{held}")
    model.load_state_dict(state, strict=False)
