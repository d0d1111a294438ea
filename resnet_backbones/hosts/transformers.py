"""Our backbones in transformers: `import resnet_backbones.hosts.transformers` registers them with `AutoBackbone`.

Every model of transformers that takes a `backbone_config` and asks `AutoBackbone` for it takes `config(name, …)`: DETR
and its relatives, RT-DETR, D-FINE, MaskFormer, Mask2Former, UperNet. Their losses also need scipy.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .. import backbones
from ..errors import UserError, reason, unknown
from ..models.freezing import freeze_stages

try:
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming
    from transformers.modeling_outputs import BackboneOutput
    from transformers.utils import can_return_tuple
except ImportError as error:
    raise UserError(
        f'hosts.transformers needs transformers 5: pip install "transformers>=5" ({reason(error)})'
    ) from None

__all__ = ["ResidualBackbone", "ResidualBackboneConfig", "backbone", "config"]


@functools.cache
def stage_names(name: str) -> list[str]:
    """The features that `name` can return, from the finest to the coarsest."""
    if name.startswith("timm:"):
        raise UserError(f"{name}: transformers has timm's networks itself; use its TimmBackboneConfig.")
    with torch.device("meta"):
        shapes = backbones.build_backbone(name).shapes
    # Without conv1 the stem has index 0, as in transformers' own ResNet, and out_indices mean the same there and here.
    return [feature for feature in shapes if feature != "conv1"]


class ResidualBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """What `build_backbone` should build.

    Args:
        name: a name of `list_backbones()`.
        options: options of `build_backbone(name)` such as {"norm": "FrozenBN", "freeze_at": 2}, as JSON can hold them.
        weights: as in `build_backbone`, for models that are built from the config. It is not saved with the config, as
            a saved model has its own.
        out_features: which of `stage_names` the backbone returns, in their order; the last by default.
        out_indices: the same by their indices.

    Raises `UserError` for an unknown name, and for a feature or an index that the backbone does not have.
    """

    # Not with "resnet" in it: DETR and its relatives then freeze layers that they know by the names of transformers'
    # own ResNet. All of ours would be frozen; here freeze_at says what is.
    model_type = "residual_backbone"

    name: str = "resnet50"
    options: dict | None = None
    weights: str | None = None

    def __post_init__(self, out_features: list | None = None, out_indices: list | None = None, **kwargs) -> None:
        self.options = dict(self.options or {})
        self.stage_names = list(stage_names(self.name))
        for option in {"norm", "freeze_at", *backbones.valid_options(self.name)} & set(kwargs):
            raise UserError(f"{option} is an option of build_backbone: options={{{option!r}: {kwargs[option]!r}}}.")
        self.set_output_features_output_indices(out_features, out_indices)
        super().__post_init__(**kwargs)

    def set_output_features_output_indices(self, out_features: list | None, out_indices: list | None) -> None:
        out_features, out_indices = (None if x is None else list(x) for x in (out_features, out_indices))
        if [] in (out_features, out_indices):
            raise UserError(f"out_features or out_indices is empty; choose from {', '.join(self.stage_names)}.")
        for feature in out_features or ():
            if feature not in self.stage_names:
                raise UserError(unknown(f"feature of {self.name}", feature, self.stage_names))
        count = len(self.stage_names)
        for index in out_indices or ():
            if not -count <= index < count:
                raise UserError(
                    f"out_indices has {index}, but {self.name} has {count} features: {', '.join(self.stage_names)}."
                )
        super().set_output_features_output_indices(out_features, out_indices)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "weights"}


class ResidualBackbone(BackboneMixin, PreTrainedModel):
    """One of our backbones, `net`, under the contract of transformers' backbones.

    `feature_maps` are those of `out_features`; `hidden_states` all features up to the last of these. Files of
    `save_pretrained` have the names of the net's own state_dict, so that `load_weights` and other libraries read them.
    """

    config_class = ResidualBackboneConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: ResidualBackboneConfig) -> None:
        super().__init__(config)
        self.on_meta = torch.get_default_device().type == "meta"
        self.net = _build_random(config) if self.on_meta else _build(config, config.weights)
        self.num_features = list(self.out_feature_channels.values())
        self.post_init()

    @property
    def out_feature_channels(self) -> dict[str, int]:
        return {name: shape.channels for name, shape in self.net.output_shape().items()}

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        features = self.net(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BackboneOutput(
            feature_maps=tuple(features[name] for name in self.out_features),
            hidden_states=tuple(features.values()) if output_hidden_states else None,
        )

    @torch.no_grad()
    def _initialize_weights(self, module: nn.Module, *args) -> None:
        """transformers calls this for every module when the model is built, and again when a file is loaded into it.

        A net is built with its initial weights. Only `from_pretrained` builds it on the meta device: what the file
        lacks gets its initial value now, and the new parameters are frozen as the config says.
        """
        if module is not self or not self.on_meta:
            return
        tensors = dict([*self.net.named_parameters(), *self.net.named_buffers()])
        lacking = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if lacking:
            initial = _build_random(self.config)
            values = dict([*initial.named_parameters(), *initial.named_buffers()])
            for name in lacking:
                tensors[name].copy_(values[name])
        freeze_stages(getattr(self.net, "body", self.net), self.config.options.get("freeze_at", 0))


def _build(config: ResidualBackboneConfig, weights: str | None) -> nn.Module:
    last = config.stage_names.index(config.out_features[-1])
    # Every feature up to the last wanted costs nothing, but levels of a pyramid do.
    features = config.out_features if config.name.endswith("_fpn") else config.stage_names[: last + 1]
    return backbones.build_backbone(config.name, weights=weights, out_features=features, **config.options)


def _build_random(config: ResidualBackboneConfig) -> nn.Module:
    """For `from_pretrained`, which loads the weights afterwards, so there is no need to warn about frozen ones."""
    with backbones.allow_random_frozen():
        return _build(config, None)


def config(
    name: str,
    *,
    weights: str | None = None,
    out_features: list[str] | None = None,
    out_indices: list[int] | None = None,
    **options,
) -> ResidualBackboneConfig:
    """The config of `build_backbone(name, weights=weights, **options)`, for the `backbone_config` of a model."""
    return ResidualBackboneConfig(
        name=name, options=options, weights=weights, out_features=out_features, out_indices=out_indices
    )


def backbone(name: str, **options) -> ResidualBackbone:
    """The backbone of `config(name, **options)`."""
    return ResidualBackbone(config(name, **options))


AutoConfig.register(ResidualBackboneConfig.model_type, ResidualBackboneConfig)
AutoBackbone.register(ResidualBackboneConfig, ResidualBackbone)
register_checkpoint_conversion_mapping(
    ResidualBackboneConfig.model_type, [WeightRenaming(r"^(?!net\.)(.+)", r"net.\1")]
)
