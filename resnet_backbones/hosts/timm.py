"""Our backbones in timm: `import resnet_backbones.hosts.timm` registers every NAME as `rb_NAME`.

`timm.create_model("rb_preact_resnet50", …)` takes timm's `features_only`, `out_indices`, `in_chans`, `output_stride`,
`num_classes`, `global_pool`, `drop_rate` and `drop_path_rate`, and also the options of `build_backbone`. So does
everything that asks timm for its networks: `smp.Unet("tu-rb_preact_resnet50")`, transformers' `TimmBackbone`.

`pretrained=True` loads the weights that torchvision publishes under that name (`timm.list_pretrained("rb_*")`; a tag
chooses among them, as in "rb_resnet50.IMAGENET1K_V1"), or those at `pretrained_cfg_overlay={"file": SOURCE}`, where
SOURCE is what `build_backbone` takes as `weights`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torchvision
from torch import nn

from ..backbones import CIFAR_RESNETS, allow_random_frozen, build_backbone, list_backbones, valid_options
from ..errors import UserError, unknown
from ..models.preact import PreActResNet
from ..optional import import_timm
from ..preprocessing import Preprocessing
from ..weights import fit_weights, last_layer, load_state_dict, read_ours
from ..weights.published import torchvision_preprocessing
from .timm_modules import Classifier, Features, indices_of

timm = import_timm()

PREFIX = "rb_"
TIMM_OPTIONS = {
    *("features_only", "out_indices", "in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate"),
    *("norm", "freeze_at", "weights"),
}
RENAMED = {"in_channels", "out_features", "drop_path"}  # our options for which timm has its own names

__all__ = ["Classifier", "Features"]  # register_model adds the entry functions


def create(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict | None = None,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    weights: str | None = None,
    **options,
) -> Features | Classifier:
    """What `timm.create_model(f"rb_{name}", …)` gives."""
    cfg = timm.models.resolve_pretrained_cfg(PREFIX + name, pretrained_cfg, pretrained_cfg_overlay)
    if out_indices is not None and not features_only:
        raise UserError("out_indices is for feature maps; add features_only=True.")
    options = checked_options(name, options, drop_path_rate)
    if pretrained and weights is None:
        weights = source_of(cfg)

    levels = levels_of(name, options)
    taken = indices_of(levels, out_indices, "out_indices")
    built = {level["feature"]: level["module"] for level in levels[: taken[-1] + 1]}
    with nullcontext() if weights is None else allow_random_frozen():  # they are loaded below
        net = build_backbone(name, in_channels=in_chans, out_features=built, **options)
    if features_only:
        model = Features(net, timm.models.FeatureInfo(levels, tuple(taken)))
    else:
        num_classes = cfg.num_classes if num_classes is None else num_classes
        model = Classifier(net, levels, num_classes, global_pool, drop_rate)
    if weights is not None:
        load(model, weights)

    model.pretrained_cfg = cfg.to_dict() | input_of(net.preprocessing) | {"first_conv": first_conv(net)}
    model.default_cfg = model.pretrained_cfg
    return model


def checked_options(name: str, options: dict[str, Any], drop_path_rate: float) -> dict[str, Any]:
    """`options` for `build_backbone(name)`, without those that are None. Raises `UserError` for unknown ones."""
    options = {option: value for option, value in options.items() if value is not None}
    valid = valid_options(name)
    allowed = valid - RENAMED | TIMM_OPTIONS
    for option, given in (("output_stride", "output_stride" in options), ("drop_path_rate", drop_path_rate)):
        if given and option.removesuffix("_rate") not in valid:
            raise UserError(f"{PREFIX}{name} has no {option}; only the residual networks have.")
    for option in options:
        if option not in allowed:
            raise UserError(unknown(f"option of {PREFIX}{name}", option, allowed))
    return options | ({"drop_path": drop_path_rate} if drop_path_rate else {})


def source_of(cfg: "timm.models.PretrainedCfg") -> str:
    """The weights that `pretrained=True` loads. Raises `UserError` if there are none."""
    if cfg.file or cfg.url:
        return cfg.file or cfg.url
    raise UserError(
        f"{cfg.architecture} has no published weights; use pretrained=False (in segmentation_models_pytorch "
        'encoder_weights=None), or give weights of your own: pretrained_cfg_overlay={"file": FILE}.'
    )


def levels_of(name: str, options: dict[str, Any]) -> list[dict]:
    """What timm's feature_info says about every level of a network, and "feature", our name for it."""
    shaping = {option: value for option, value in options.items() if option not in ("norm", "freeze_at")}
    with torch.device("meta"):
        net = build_backbone(name, **shaping)
    modules = {feature: modules[-1] for feature, modules in net.stages.items()}
    modules["conv1"] = "conv1" if isinstance(net, PreActResNet) else "relu"
    shapes = {feature: shape for feature, shape in net.shapes.items() if feature != "stem"}
    return [
        {"num_chs": shape.channels, "reduction": shape.stride, "module": modules[feature], "feature": feature}
        for feature, shape in shapes.items()
    ]


def load(model: Features | Classifier, source: str) -> None:
    """Load the backbone's weights, and those of `fc` if it has their shape.

    As in timm, weights for RGB are adapted to other `in_chans`, and a head for other classes stays random. Raises
    `UserError` for weights that do not fit, and for a head that does not fit despite having as many classes.
    """
    checkpoint = read_ours(source)
    weight, bias = last_layer(model.net, checkpoint.state) or (None, None)
    fit_weights(model.net, checkpoint, source)
    if isinstance(model, Features) or not model.num_classes:
        return
    if weight is not None and checkpoint.state[weight].shape == model.fc.weight.shape:
        load_state_dict(model.fc, {"weight": checkpoint.state[weight], "bias": checkpoint.state[bias]}, source)
    elif model.num_classes == len(checkpoint.metadata.get("classes") or ()):
        raise UserError(
            f"{source} has no fc of shape {tuple(model.fc.weight.shape)} for its {model.num_classes} classes; use "
            "num_classes=0, and reset_classifier for a new head."
        )


def first_conv(net: nn.Module) -> str:
    return next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def input_of(preprocessing: Preprocessing | None) -> dict[str, Any]:
    """The entries of timm's pretrained_cfg that say what images a network takes; none if it is unknown."""
    if preprocessing is None:
        return {}
    mean, std = map(tuple, preprocessing.for_host("timm"))
    entries = {"mean": mean, "std": std, "interpolation": preprocessing.interpolation}
    if preprocessing.size and preprocessing.resize:
        size = preprocessing.size
        entries |= {"input_size": (3, size, size), "crop_pct": size / preprocessing.resize}
    return entries


def cfgs_of(name: str) -> dict[str, dict]:
    """timm's pretrained_cfg of `rb_NAME`, one for each of the weights that torchvision publishes."""
    usual = {"interpolation": "bilinear", "classifier": "fc", "crop_pct": 0.875, "input_size": (3, 224, 224)}
    if name in CIFAR_RESNETS:
        usual |= {"input_size": (3, 32, 32), "crop_pct": 1.0}
    if name not in PUBLISHED:
        return {PREFIX + name: usual}
    return {
        f"{PREFIX}{name}.{weights.name}{'*' if weights is PUBLISHED[name].DEFAULT else ''}": usual
        | input_of(torchvision_preprocessing(weights.transforms()))
        | {"url": f"torchvision://{name}/{weights.name}"}
        for weights in PUBLISHED[name]
    }


def entry_of(name: str) -> Callable[..., Features | Classifier]:
    """The function that timm registers under its `__name__`."""

    def entry(pretrained: bool = False, **options) -> Features | Classifier:
        return create(name, pretrained, **options)

    entry.__name__ = entry.__qualname__ = PREFIX + name
    return entry


NAMES = [name for name in list_backbones() if not name.endswith("_fpn")]
PUBLISHED = {
    name: torchvision.models.get_model_weights(name)
    for name in torchvision.models.list_models(module=torchvision.models)
    if name in NAMES
}
# Read by register_model.
default_cfgs = timm.models.generate_default_cfgs({key: cfg for name in NAMES for key, cfg in cfgs_of(name).items()})
for _name in NAMES:
    if not timm.is_model(PREFIX + _name):  # as after a reload
        globals()[PREFIX + _name] = timm.models.register_model(entry_of(_name))
