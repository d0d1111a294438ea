"""The networks of other families against torchvision's and timm's: weights and features."""

import sys

import pytest
import torch
from helpers import assert_equal_features, randomize_statistics
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from resnet_backbones import FrozenBatchNorm2d, ShapeSpec
from resnet_backbones.errors import UserError
from resnet_backbones.models.extractors import EXTRACTORS, timm_backbone
from resnet_backbones.models.freezing import freeze_stages

NAMES = [name for name in EXTRACTORS if name != "zfnet"]
FEATURES = ["res2", "res3", "res4", "res5"]
SMALL = [
    "alexnet", "vgg11_bn", "googlenet", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
    "convnext_tiny", "regnet_x_400mf", "regnet_y_400mf", "swin_t", "swin_v2_t",
]  # fmt: skip
SMALL_FIRST = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in SMALL)]


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return EXTRACTORS[name](**options)


def torchvision_net(name: str) -> nn.Module:
    options = {"init_weights": False} if name == "googlenet" else {}
    return getattr(models, name)(**options)


def torchvision_features(name: str, net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The last map at each of the four largest strides, by running torchvision's modules one by one."""
    if name == "googlenet":
        chain = [m for n, m in net.named_children() if n.startswith(("conv", "maxpool", "inception"))]
    elif name.startswith("regnet"):
        chain = [net.stem, *net.trunk_output]
    elif name.startswith("densenet"):
        chain = [*net.features, nn.ReLU()]
    else:
        chain = net.features[:-1] if name.startswith("efficientnet") else net.features
    last = {}
    for module in chain:
        x = module(x)
        nchw = x.permute(0, 3, 1, 2) if name.startswith("swin") else x
        last[nchw.shape[2:]] = nchw.clone()
    return dict(zip(FEATURES, list(last.values())[-4:], strict=True))


def without_tail(state: dict, tail: tuple[str, ...]) -> dict:
    return {key: value for key, value in state.items() if not key.startswith(tail)}


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_features_match_torchvision(name):
    theirs = torchvision_net(name).eval()
    randomize_statistics(theirs)
    for key, parameter in theirs.named_parameters():
        if key.endswith("layer_scale"):  # 1e-6 at initialization, which would hide ConvNeXt's blocks
            nn.init.uniform_(parameter, 0.1, 0.5)
    ours = EXTRACTORS[name]().eval()
    ours.load_state_dict(without_tail(theirs.state_dict(), ours.tail), strict=True)
    with torch.no_grad():
        for size in ((64, 96), (97, 131)):
            image = torch.randn(1, 3, *size)
            assert_equal_features(ours(image), torchvision_features(name, theirs, image))


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_torchvision_state_dict_without_its_tail_loads_strictly(name, monkeypatch):
    compute = BlockParams.from_init_params

    def on_cpu(**options):  # torchvision's RegNet reads its widths from a tensor
        with torch.device("cpu"):
            return compute(**options)

    monkeypatch.setattr(BlockParams, "from_init_params", on_cpu)
    ours = on_meta(name)
    with torch.device("meta"):
        theirs = torchvision_net(name)
    ours.load_state_dict(without_tail(theirs.state_dict(), ours.tail), strict=True)


@pytest.mark.parametrize(
    ("name", "heights"),
    {
        "alexnet": [23, 11, 5, 2],
        "zfnet": [25, 13, 7, 4],
        "vgg11": [24, 12, 6, 3],
        "googlenet": [24, 12, 6, 3],
        "densenet121": [25, 12, 6, 3],
        "efficientnet_b0": [25, 13, 7, 4],
        "convnext_tiny": [24, 12, 6, 3],
        "regnet_x_400mf": [25, 13, 7, 4],
        "swin_t": [24, 12, 6, 3],
    }.items(),
)
def test_odd_sizes_round_as_documented(name, heights):
    features = on_meta(name)(torch.empty(1, 3, 97, 192, device="meta"))
    assert [map_.shape[2] for map_ in features.values()] == heights


@pytest.mark.parametrize("name", ["zfnet", *SMALL])
def test_out_features_come_in_order_and_later_stages_are_not_built(name):
    ours = on_meta(name, out_features=["res4", "res2"])
    features = ours(torch.empty(1, 3, 64, 96, device="meta"))
    assert list(features) == list(ours.output_shape()) == list(ours.out_features) == ["res2", "res4"]
    sum(map_.square().mean() for map_ in features.values()).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    whole = on_meta(name)
    behind = tuple(f"{module}." for module in whole.stages["res5"])
    assert set(ours.state_dict()) == {key for key in whole.state_dict() if not key.startswith(behind)}


@pytest.mark.parametrize("name", ["zfnet", *SMALL])
@pytest.mark.parametrize("in_channels", [4])
def test_in_channels_changes_only_the_first_convolution(name, in_channels):
    ours, rgb = on_meta(name, in_channels=in_channels), on_meta(name)
    assert len(ours(torch.empty(1, in_channels, 64, 96, device="meta"))) == 4
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    changed = {key for key, value in rgb.state_dict().items() if value.shape != shapes[key]}
    first = next(key for key, value in rgb.state_dict().items() if value.ndim == 4)
    assert changed == {first}
    assert list(shapes) == list(rgb.state_dict())


@pytest.mark.parametrize(("freeze_at", "trainable"), {0: 10, 1: 8, 2: 8, 3: 6, 4: 0, 5: 0}.items())
@pytest.mark.parametrize("name", ["alexnet", "zfnet"])
def test_number_of_trainable_tensors_per_freeze_at(name, freeze_at, trainable):
    ours = on_meta(name)
    freeze_stages(ours, freeze_at)
    assert sum(p.requires_grad for p in ours.parameters()) == trainable


@pytest.mark.parametrize("name", ["googlenet", "densenet121", "efficientnet_b0", "regnet_y_400mf"])
def test_converting_norms_keeps_the_features(name):
    ours = EXTRACTORS[name]().eval()
    randomize_statistics(ours)
    frozen, synced = EXTRACTORS[name](norm="FrozenBN"), EXTRACTORS[name](norm="SyncBN").eval()
    for other, kind in ((frozen, FrozenBatchNorm2d), (synced, nn.SyncBatchNorm)):
        other.load_state_dict(ours.state_dict(), strict=True)
        eps = {n: m.eps for n, m in ours.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert {n: m.eps for n, m in other.named_modules() if isinstance(m, kind)} == eps
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = ours(image)
        assert_equal_features(frozen.eval()(image), expected)
        assert_equal_features(synced(image), expected)


@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny", "swin_t", "zfnet"])
@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_norm_does_not_change_networks_without_batch_norm(name, norm):
    assert str(on_meta(name, norm=norm)) == str(on_meta(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"norm": "GN"},
            "norm is 'GN', but networks taken from torchvision or timm come with their own norms; choose BN",
        ),
        ({"norm": "none"}, "choose BN .*, FrozenBN or SyncBN"),
        ({"norm": "FrozenBM"}, "Unknown norm 'FrozenBM'. Did you mean FrozenBN"),
        ({"out_features": ["res6"]}, "Unknown feature 'res6'"),
        ({"out_features": []}, "out_features is empty"),
    ],
)
@pytest.mark.parametrize("name", ["zfnet", "alexnet"])
def test_invalid_arguments_name_the_valid_ones(name, options, message):
    with pytest.raises(UserError, match=message):
        on_meta(name, **options)


def test_zfnet_matches_the_paper():
    ours = on_meta("zfnet")
    assert ours.output_shape() == {
        "res2": ShapeSpec(96, 4), "res3": ShapeSpec(256, 8), "res4": ShapeSpec(256, 16), "res5": ShapeSpec(256, 32)
    }  # fmt: skip
    kernels = [(3, 96, 7), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    assert sum(p.numel() for p in ours.parameters()) == sum(i * o * k * k + o for i, o, k in kernels) == 3_726_464
    for feature, map_ in ours(torch.empty(1, 3, 224, 225, device="meta")).items():
        stride = ours.output_shape()[feature].stride
        assert map_.shape[2:] == (224 // stride, 225 // stride + 1)


# timm -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm, which is optional, is not installed")


def timm_on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm_backbone(name, **options)


@pytest.mark.parametrize(
    ("name", "indices", "size"),
    [
        ("resnet18d", (1, 2, 3, 4), (97, 131)),
        ("convnext_atto", (0, 1, 2, 3), (97, 131)),
        ("swin_tiny_patch4_window7_224", (0, 1, 2, 3), (224, 224)),
        ("efficientnet_lite0", (1, 2, 3, 4), (97, 131)),
    ],
)
def test_timm_features_match_features_only(timm, name, indices, size):
    theirs = timm.create_model(name, features_only=True, out_indices=indices).eval()
    randomize_statistics(theirs)
    ours = timm_backbone(f"timm:{name}").eval()
    ours.net.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = [x.permute(0, 3, 1, 2) if name.startswith("swin") else x for x in theirs(image)]
        assert_equal_features(ours(image), dict(zip(FEATURES, maps, strict=True)))
    assert [map_.shape[1] for map_ in maps] == [shape.channels for shape in ours.output_shape().values()]
    assert list(ours.net.state_dict()) == list(theirs.state_dict())


def test_fixed_size_timm_transformers_take_any_image_size(timm):
    features = timm_on_meta("timm:swin_tiny_patch4_window7_224")(torch.empty(1, 3, 97, 131, device="meta"))
    assert [tuple(map_.shape[2:]) for map_ in features.values()] == [(25, 33), (13, 17), (7, 9), (4, 5)]


@pytest.mark.parametrize("name", ["resnet18d", "efficientnet_lite0", "cspnext_l", "xception41"])
@pytest.mark.parametrize("freeze_at", [0, 3, 5])
def test_timm_gradients_reach_exactly_the_unfrozen_stages(timm, name, freeze_at):
    with torch.device("meta"):
        ours = timm_backbone(f"timm:{name}").train()
        freeze_stages(ours, freeze_at)
    features = ours(torch.empty(2, 3, 64, 96, device="meta", requires_grad=True))
    sum(map_.square().mean() for map_ in features.values()).backward()
    frozen = tuple(f"{n}." for names in list(ours.stages.values())[:freeze_at] for n in names)
    for key, parameter in ours.named_parameters():
        assert (parameter.grad is None) == key.startswith(frozen), key
    live = {key for key, module in ours.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert not any(f"{key}.".startswith(frozen) for key in live)
    assert bool(live) == (freeze_at < 5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18d"])
def test_timm_norms_with_an_activation_keep_it_when_frozen(timm, name):
    ours, frozen, synced = (timm_backbone(f"timm:{name}", norm=norm).eval() for norm in ("BN", "FrozenBN", "SyncBN"))
    randomize_statistics(ours)
    frozen.load_state_dict(ours.state_dict(), strict=True)
    synced.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = ours(image)
        assert_equal_features(frozen(image), expected)
        assert_equal_features(synced(image), expected)
        freeze_stages(ours, 5)
        assert_equal_features(ours.train()(image), expected)


@pytest.mark.parametrize("name", ["resnet18d", "efficientnet_lite0", "convnext_atto"])
def test_timm_has_no_unused_parameters_and_takes_other_in_channels(timm, name):
    ours = timm_on_meta(f"timm:{name}", out_features=["res4", "res2"], in_channels=4)
    features = ours(torch.empty(2, 4, 64, 96, device="meta"))
    assert list(features) == list(ours.output_shape()) == ["res2", "res4"]
    assert list(ours.stages) == ["stem", "res2", "res3", "res4"]
    sum(map_.square().mean() for map_ in features.values()).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_timm_vit_has_one_feature_and_cannot_be_frozen_by_stages(timm):
    with pytest.raises(UserError, match="Unknown feature 'res2'.* Available: res4"):
        timm_on_meta("timm:vit_tiny_patch16_224", out_features=["res2"])
    vit = timm_on_meta("timm:vit_tiny_patch16_224")
    assert vit.output_shape() == {"res4": ShapeSpec(192, 16)}
    freeze_stages(vit, 0)
    with pytest.raises(UserError, match="vit_tiny_patch16_224 cannot be frozen by stages"):
        freeze_stages(vit, 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet50q", {}, "Unknown timm model 'resnet50q'. Did you mean resnet50"),
        ("timm:convmixer_768_32", {}, "features of stride 7 only"),
        ("timm:resnet18d", {"norm": "GN"}, "come with their own norms"),
        ("timm:resnet18d", {"norm": "batch"}, "Unknown norm 'batch'"),
        ("timm:resnet18d", {"out_features": ["res6"]}, "Unknown feature 'res6'"),
    ],
)
def test_invalid_timm_arguments_name_the_valid_ones(timm, name, options, message):
    with pytest.raises(UserError, match=message):
        timm_on_meta(name, **options)


def test_missing_timm_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="need timm, which is not installed: pip install timm"):
        timm_backbone("timm:resnet50d")
