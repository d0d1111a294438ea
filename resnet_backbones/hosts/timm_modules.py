"""The modules that `timm.create_model("rb_NAME")` gives: feature maps, and a classifier with timm's methods."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from ..models.naming import hide_child
from ..models.resnet import LAYERS, ResNet
from ..models.variants import checkpoint_stages
from ..optional import import_timm

if TYPE_CHECKING:
    import timm

POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")


class TimmModule(nn.Module):
    """One of our backbones, `net`, whose tensors keep their names in the state_dict, with timm's switches."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        hide_child(self, "net")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the stages in the backward pass.

        Raises `UserError` for networks other than the residual ones.
        """
        if not isinstance(self.net, ResNet):
            if enable:
                raise UserError("set_grad_checkpointing: only residual networks can checkpoint their stages.")
            return
        stages = list(self.net.stages)[1:]
        if enable:
            checkpoint_stages(self.net, stages)
        else:
            for layer in map(LAYERS.get, stages):
                children = self.net.get_submodule(layer).named_children()
                self.net.set_submodule(layer, nn.Sequential(OrderedDict(children)))


class Features(TimmModule):
    """Images (N, C, H, W) to the list of feature maps that `feature_info` describes, the finest first.

    `feature_info` is timm's: `channels()`, `reduction()`, `module_name()` (of modules in `net`), `get_dicts()`.
    """

    def __init__(self, net: nn.Module, feature_info: "timm.models.FeatureInfo") -> None:
        super().__init__(net)
        self.feature_info = feature_info
        # As in timm's own; transformers' TimmBackbone sets it for all hidden states.
        self.return_layers = {level["module"]: str(level["index"]) for level in feature_info.get_dicts()}

    def forward(self, images: Tensor) -> list[Tensor]:
        return [x for module, x in self.net(images).items() if module in self.return_layers]


class Classifier(TimmModule):
    """logits = fc(dropout(global_pool(last feature))), with the methods that timm's classifiers have.

    Args:
        net: a backbone; its features are those of `feature_info`.
        feature_info: dicts of "num_chs", "reduction", "module", as timm's classifiers have.
        num_classes: 0 for no `fc`.
        global_pool: "avg", "max", "avgmax", "catavgmax", or "" for none.
        drop_rate: dropout in front of `fc`.

    Raises `UserError` for fewer than 0 classes and an unknown pooling.
    """

    def __init__(
        self,
        net: nn.Module,
        feature_info: list[dict],
        num_classes: int,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(net)
        self.feature_info = feature_info
        self.num_features = feature_info[-1]["num_chs"]
        self.drop_rate = drop_rate
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head with random weights; the pooling stays if `global_pool` is None."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes < 0:
            raise UserError(f"num_classes is {num_classes}; it must be at least 0, for no classifier.")
        if pool not in POOLS:
            raise UserError(unknown("global_pool", pool, POOLS))
        self.num_classes = num_classes
        self.global_pool, fc = import_timm().layers.create_classifier(self.num_features, num_classes, pool_type=pool)
        weight = next(self.net.parameters())
        self.fc = fc.to(weight.device, weight.dtype).train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature (N, num_features, H / stride, W / stride)."""
        *_, last = self.net(images).values()
        return last

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last feature; with `pre_logits` what `fc` takes."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature and the features `indices`, or these alone; None for all, an int for the last ones.

        `norm` and `stop_early` change nothing here. Raises `UserError` for a format other than NCHW and for indices
        out of range.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt is {output_fmt!r}; these networks give NCHW.")
        features = list(self.net(x).values())
        taken = [features[i] for i in indices_of(self.feature_info, indices, "indices")]
        return taken if intermediates_only else (features[-1], taken)


def indices_of(levels: list[dict], indices: int | Sequence[int] | None, option: str) -> list[int]:
    """The chosen levels, counted from 0, the finest first; an int chooses the last ones, None all.

    Raises `UserError` if one is out of range, or none is chosen.
    """
    count = len(levels)
    if isinstance(indices, int):
        indices = range(-indices, 0)
    chosen = range(count) if indices is None else indices
    if not chosen or any(not -count <= i < count for i in chosen):
        existing = ", ".join(f"{i} {level['module']} (stride {level['reduction']})" for i, level in enumerate(levels))
        raise UserError(f"{option} is {list(chosen)}; the network has {existing}.")
    return sorted({i % count for i in chosen})
