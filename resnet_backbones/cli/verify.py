"""Whether converted weights give the same features: in our network before and after, and in the other library's own."""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from .. import backbones
from ..errors import UserError
from ..models.blocks import BasicBlock, Bottleneck
from ..optional import import_timm
from ..preprocessing import Normalize, Preprocessing
from ..weights import Checkpoint, fit_weights, read_checkpoint, read_ours

DETECTRON2_DEPTHS = {
    (BasicBlock, (2, 2, 2, 2)): 18, (BasicBlock, (3, 4, 6, 3)): 34, (Bottleneck, (3, 4, 6, 3)): 50,
    (Bottleneck, (3, 4, 23, 3)): 101, (Bottleneck, (3, 8, 36, 3)): 152,
}  # fmt: skip
TOLERANCE = 1e-4  # relative to the largest value of a feature; float32 leaves about 1e-6


def architecture_of(state: dict[str, Tensor]) -> str | None:
    """The name of the one residual net whose tensors are those of `state`, of a backbone or within a detector."""
    body, found = body_of(state), []
    given = {
        k: tuple(t.shape) for k, t in body.items() if k.startswith(("conv1", "bn1", "layer")) and ".offset." not in k
    }
    depths = tuple(len({k.split(".")[1] for k in given if k.startswith(f"layer{s}.")} - {"bn"}) for s in range(1, 5))
    rows = backbones.RESNETS | backbones.CIFAR_RESNETS
    for name in [name for name, row in rows.items() if row["depths"] == depths[: len(row["depths"])]]:
        with torch.device("meta"):
            wanted = {k: tuple(t.shape) for k, t in backbones.build_backbone(name).state_dict().items()}
        if _without_counters(wanted) == _without_counters(given):
            found.append(name)
    return found[0] if len(found) == 1 else None


def body_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The residual net's own part of a state_dict in our names."""
    prefixes = ("backbone.body.", "body.", "backbone.")
    prefix = next((p for p in prefixes if any(name.startswith(f"{p}conv1.") for name in state)), "")
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def verify(
    before: Checkpoint, output: str, form: str, name: str, options: dict, own_resnet: Callable | None
) -> list[str]:
    """Compare the features res2 … res5 of an image before and after, and those of the library `form` itself.

    Args:
        before: in our names.
        output: the converted file.
        name, options: of `build_backbone`.
        own_resnet: detectron2's, of `detectors.detectron2`; None where detectron2 is not installed.

    Returns a line for each comparison. Raises `UserError` where one differs by more than `TOLERANCE`, unless the
    folded mean explains it.
    """
    image = torch.randint(256, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    after, raw = read_ours(output), read_checkpoint(output)
    expected = _our_features(before, name, options, image)
    folded = after.preprocessing() is not None and not any(after.preprocessing().per_channel().mean)
    lines = [_compare(expected, _our_features(after, name, options, image), "here, read back", folded)]
    makers = {"torchvision": _torchvision_features, "timm": _timm_features}
    if own_resnet is not None:
        makers["detectron2"] = partial(_detectron2_features, own_resnet)
    prepared = Normalize(raw.preprocessing() or Preprocessing())(image)[None]
    features = makers[form](name, options, raw.state, prepared) if form in makers else None
    if features is not None:
        return [*lines, _compare(expected, features, f"in {form}'s own network", folded)]
    if form == "resnet_backbones":
        return lines
    return [*lines, f"not compared with a network of {form} itself: it cannot be built here"]


def _our_features(checkpoint: Checkpoint, name: str, options: dict, image: Tensor) -> list[Tensor]:
    backbone = backbones.build_backbone(name, **options)
    fit_weights(backbone, Checkpoint(body_of(checkpoint.state), checkpoint.metadata), "the converted weights")
    prepared = Normalize(checkpoint.preprocessing() or Preprocessing())(image)[None]
    with torch.no_grad():
        return list(backbone.eval()(prepared).values())


def _torchvision_features(name: str, options: dict, state: dict[str, Tensor], image: Tensor) -> list[Tensor] | None:
    if name not in torchvision.models.list_models(module=torchvision.models) or not _plain(options):
        return None
    net = torchvision.models.get_model(name, weights=None)
    net.fc = nn.Identity()
    net.load_state_dict(body_of(state), strict=False)
    features = [net.eval().maxpool(net.relu(net.bn1(net.conv1(image))))]
    with torch.no_grad():
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            features.append(layer(features[-1]))
    return features[1:]


def _timm_features(name: str, options: dict, state: dict[str, Tensor], image: Tensor) -> list[Tensor] | None:
    timm = import_timm()
    theirs = name.replace("preact_resnet", "resnetv2_")
    if theirs not in timm.list_models() or not _plain(options):
        return None
    net = timm.create_model(theirs, num_classes=0)
    net.load_state_dict(body_of(state), strict=False)
    with torch.no_grad():  # of pre-activation nets timm's res2 … res4 are raw sums, ours are normalised and activated
        return [None, None, None, net.eval().forward_features(image)]


def _detectron2_features(own_resnet: Callable, name: str, options: dict, state: dict, image: Tensor) -> list | None:
    row = backbones.RESNETS.get(name, {})
    depth = DETECTRON2_DEPTHS.get((row.get("block"), row.get("depths")))
    if depth is None or set(row) - {"block", "depths", "groups", "width_per_group"}:
        return None
    if not _plain({k: v for k, v in options.items() if k != "stride_in_1x1"}):
        return None
    settings = {"NUM_GROUPS": row.get("groups", 1), "WIDTH_PER_GROUP": row.get("width_per_group", 64)}
    net = own_resnet(depth, STRIDE_IN_1X1=bool(options.get("stride_in_1x1")), **settings)
    prefix = next(
        (p for p in ("backbone.bottom_up.", "bottom_up.", "backbone.") if f"{p}stem.conv1.weight" in state), ""
    )
    net.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}, strict=False)
    with torch.no_grad():
        return list(net(image).values())


def _compare(expected: list[Tensor], features: list[Tensor], where: str, folded: bool) -> str:
    pairs = [(a, b) for a, b in zip(expected, features, strict=True) if b is not None]
    ratios = [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]
    told = f"features {where}: largest difference {max(ratios):.1e} of the largest value"
    if max(ratios) > TOLERANCE and not folded:
        raise UserError(f"The converted weights do not give the same {told}.")
    return told + (", at the border, where the mean was padded" if folded else "")


def _plain(options: dict) -> bool:
    """Whether a network is built as its name says, with BN."""
    return options.get("norm", "BN") in ("BN", "FrozenBN", "SyncBN") and not any(
        value for option, value in options.items() if option != "norm"
    )


def _without_counters(shapes: dict) -> dict:
    return {k: shape for k, shape in shapes.items() if not k.endswith("num_batches_tracked")}
