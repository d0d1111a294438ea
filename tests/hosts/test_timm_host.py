"""Our backbones through timm.create_model: parity with timm's own networks, every name, weights and errors."""

import importlib
import warnings

import pytest
import torch
import torchvision
from conftest import REPRESENTATIVES
from helpers import assert_close, outputs_of, randomize_statistics
from torch import nn

from resnet_backbones import build_backbone, list_backbones
from resnet_backbones.backbones import CIFAR_RESNETS, RESNETS
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.weights import metadata_of, save_safetensors

timm = pytest.importorskip("timm", reason="timm is not installed")

from resnet_backbones.hosts import timm as host  # noqa: E402

NAMES = [name for name in list_backbones() if not name.endswith("_fpn")]
# Names that timm also has, with the same parameters.
SHARED = [
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnet18d", "resnet50d", "resnet50c", "seresnet50",
]  # fmt: skip


def twins(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """`rb_NAME` and timm's own, with the same weights."""
    theirs = timm.create_model(name, **options)
    randomize_statistics(theirs)
    ours = timm.create_model(f"rb_{name}", **options)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


# --- parity with timm's own networks


@pytest.mark.parametrize("name", SHARED)
def test_features_match_timm(name):
    ours, theirs = twins(name, features_only=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for method in ("channels", "reduction"):
        assert getattr(ours.feature_info, method)() == getattr(theirs.feature_info, method)()
    assert ours.feature_info.module_name()[1:] == theirs.feature_info.module_name()[1:]
    images = torch.rand(1, 3, 65, 70)
    for x, expected in zip(outputs_of(ours, images), outputs_of(theirs, images), strict=True):
        assert_close(x, expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d"])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_features_match_timm_with_dilation_and_other_channels(name, output_stride, in_chans):
    indices = (1, 2, -1)
    ours, theirs = twins(name, features_only=True, output_stride=output_stride, in_chans=in_chans, out_indices=indices)
    assert ours.feature_info.reduction() == [theirs.feature_info[i]["reduction"] for i in indices]
    images = torch.rand(1, in_chans, 64, 64)
    for x, expected in zip(outputs_of(ours, images), outputs_of(theirs, images), strict=True):
        assert_close(x, expected)


@pytest.mark.parametrize(("indices", "levels"), [((0,), [0]), ((-1, 1), [1, 4]), (2, [3, 4]), ([3], [3])], ids=str)
def test_out_indices_select_levels(indices, levels):
    net = timm.create_model("rb_resnet18", features_only=True, out_indices=indices).eval()
    whole = timm.create_model("rb_resnet18", features_only=True).eval()
    whole.load_state_dict(net.state_dict(), strict=False)
    assert net.feature_info.get_dicts() == [whole.feature_info[i] for i in levels]
    images = torch.rand(1, 3, 64, 64)
    expected = outputs_of(whole, images)
    assert all(torch.equal(x, expected[i]) for x, i in zip(outputs_of(net, images), levels, strict=True))
    assert ("layer4" in dict(net.net.named_children())) == (4 in levels)  # layers that no level needs are not built


@pytest.mark.parametrize("name", SHARED)
def test_logits_match_timm(name):
    ours, theirs = twins(name, num_classes=7)
    images = torch.rand(2, 3, 64, 64)
    assert_close(outputs_of(ours, images), outputs_of(theirs, images))


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_heads_match_timm(pool):
    ours, theirs = twins("resnet18", num_classes=0, global_pool=pool)
    images = torch.rand(2, 3, 64, 64)
    assert_close(outputs_of(ours, images), outputs_of(theirs, images))
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    for model in (ours, theirs):
        model.reset_classifier(5, "catavgmax")
    ours.load_state_dict(theirs.state_dict())
    features = ours.forward_features(images)
    assert_close(features, theirs.forward_features(images))
    for pre_logits in (False, True):
        assert_close(ours.forward_head(features, pre_logits), theirs.forward_head(features, pre_logits))
    assert ours.get_classifier().weight.shape == (5, 1024)
    assert ours.head_hidden_size == theirs.head_hidden_size == 1024


@pytest.mark.parametrize("indices", [None, 2, [0, -2]], ids=str)
def test_intermediates_match_timm(indices):
    ours, theirs = twins("resnet18")
    images = torch.rand(1, 3, 64, 64)
    for model_output, expected in zip(
        ours.forward_intermediates(images, indices), theirs.forward_intermediates(images, indices), strict=True
    ):
        torch.testing.assert_close(model_output, expected)
    only = ours.forward_intermediates(images, indices, intermediates_only=True)
    torch.testing.assert_close(only, theirs.forward_intermediates(images, indices, intermediates_only=True))


def test_dropout_and_drop_path_apply_only_in_training():
    model = timm.create_model("rb_resnet18", num_classes=3, drop_rate=0.5, drop_path_rate=0.5)
    pooled = model.forward_head(torch.ones(4, 512, 1, 1), pre_logits=True)
    assert 0.4 < (pooled == 0).float().mean() < 0.6
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("features_only", [True, False])
def test_checkpointing_keeps_gradients(features_only):
    model = timm.create_model("rb_resnet18", features_only=features_only)
    images = torch.rand(2, 3, 32, 32)
    grads = []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        output = model(images)
        (output[-1] if features_only else output).sum().backward()
        grads.append(model.net.conv1.weight.grad.clone())
        kinds = {type(model.net.get_submodule(f"layer{i}")) for i in range(1, 5)}
        assert (nn.Sequential in kinds) != enable
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


# --- every name


def test_every_name_without_a_pyramid_is_listed():
    assert set(timm.list_models("rb_*")) == {f"rb_{name}" for name in NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(host)
    assert len(timm.list_models("rb_*")) == len(NAMES)


def check_shapes(name: str, device: str, **options) -> None:
    """`feature_info` matches the outputs of the features and the classifier of `rb_NAME`."""
    side, classes = 96, 4
    with torch.device(device):
        features = timm.create_model(f"rb_{name}", features_only=True, **options).eval()
        classifier = timm.create_model(f"rb_{name}", num_classes=classes, **options).eval()
        images = torch.rand(2, 3, side, side)
    info = features.feature_info
    strides = [4, 8, 16, 32] if name not in RESNETS else [2, 4, 8, 16, 32]
    assert info.reduction() == (strides if name not in CIFAR_RESNETS else [1, 2, 4])
    assert classifier.num_features == info.channels()[-1]
    assert [level["num_chs"] for level in classifier.feature_info] == info.channels()
    sizes = []
    for module in info.module_name():
        features.net.get_submodule(module).register_forward_hook(lambda *args: sizes.append(sorted(args[-1].shape)))
    outputs = features(images)
    assert sizes == [sorted(x.shape) for x in outputs]  # sorted, since Swin's modules give channels last
    for (channels, stride), x in zip(zip(info.channels(), info.reduction(), strict=True), outputs, strict=True):
        assert x.shape[:2] == (2, channels)
        assert abs(x.shape[2] - side / stride) <= (2 if name == "alexnet" else 0)
    assert classifier(images).shape == (2, classes)
    assert {name for name in classifier.state_dict() if not name.startswith("fc.")} == set(features.state_dict())


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "cifar_resnet20"])
def test_features_have_the_shapes_in_feature_info(name):
    check_shapes(name, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_features_of_every_name_have_the_shapes_in_feature_info(name):
    check_shapes(name, "meta")


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet50", "vgg11_bn", "cifar_resnet20"])
def test_state_dicts_have_our_tensor_names(name):
    with torch.device("meta"):
        model = timm.create_model(f"rb_{name}", num_classes=6)
        features = timm.create_model(f"rb_{name}", features_only=True)
        assert list(model.state_dict()) == list(build_classifier(name, 6).state_dict())
        assert list(features.state_dict()) == list(build_backbone(name).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "alexnet", "densenet121"])
def test_modules_named_in_feature_info_give_the_features(name):
    model = timm.create_model(f"rb_{name}", features_only=True).eval()
    modules, seen = model.feature_info.module_name(), []
    for module in modules:
        model.net.get_submodule(module).register_forward_hook(lambda module, inputs, output: seen.append(output))
    for x, expected in zip(seen, outputs_of(model, torch.rand(1, 3, 64, 64)), strict=False):
        torch.testing.assert_close(x, expected)
    assert len(seen) == len(modules)


def test_options_of_this_package_pass_through():
    model = timm.create_model("rb_preact_resnet18", features_only=True, norm="GN", shortcut="A", out_indices=(3,))
    assert isinstance(model.net.bn1, nn.GroupNorm)
    assert not any("downsample" in name for name in model.state_dict())
    with pytest.warns(UserWarning, match="random weights"):
        timm.create_model("rb_resnet18", freeze_at=2)


# --- weights


@pytest.fixture
def trained(tmp_path):
    """A weights file of a classifier of three classes, images, and their logits."""
    model = build_classifier("preact_resnet18", 3).eval()
    randomize_statistics(model)
    path = tmp_path / "model.safetensors"
    preprocessing = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "resize": 40, "size": 32}
    save_safetensors(
        path, model.state_dict(), metadata_of(model) | {"preprocessing": preprocessing, "classes": ["a", "b", "c"]}
    )
    images = torch.rand(1, 3, 64, 64)
    return str(path), images, outputs_of(model, images)


@pytest.mark.parametrize("how", ["weights", "file", "checkpoint_path"])
def test_a_file_of_this_package_loads_with_its_head(trained, how):
    path, images, expected = trained
    options = {
        "weights": {"weights": path, "freeze_at": 2},
        "file": {"pretrained": True, "pretrained_cfg_overlay": {"file": path}},
        "checkpoint_path": {"checkpoint_path": path},
    }[how]
    model = timm.create_model("rb_preact_resnet18", num_classes=3, **options).eval()
    assert_close(outputs_of(model, images), expected)
    if how != "checkpoint_path":
        config = timm.data.resolve_model_data_config(model)
        assert config["mean"] == pytest.approx((0.1, 0.2, 0.3))
        assert config["input_size"] == (3, 32, 32)
        assert config["crop_pct"] == 0.8


def test_weights_adapt_to_other_classes_and_channels(trained):
    path, images, _ = trained
    ten = timm.create_model("rb_preact_resnet18", num_classes=10, weights=path).eval()
    features = timm.create_model("rb_preact_resnet18", features_only=True, weights=path, out_indices=(0, 4)).eval()
    assert_close(ten.forward_features(images), features(images)[-1])
    gray = timm.create_model("rb_preact_resnet18", features_only=True, weights=path, in_chans=1).eval()
    grays = images[:, :1]
    assert_close(gray(grays)[-1], features(grays.expand(-1, 3, -1, -1))[-1])


def test_preprocessing_of_published_weights_is_known():
    names = timm.list_pretrained("rb_*")
    assert "rb_resnet50.IMAGENET1K_V1" in names
    assert not any("preact" in name for name in names)
    first, second = (timm.create_model(f"rb_resnet50.IMAGENET1K_V{i}", features_only=True) for i in (1, 2))
    assert timm.data.resolve_model_data_config(first)["crop_pct"] == 0.875
    assert timm.data.resolve_model_data_config(second)["crop_pct"] == pytest.approx(224 / 232)
    assert timm.data.resolve_model_data_config(timm.create_model("rb_resnet50"))["crop_pct"] == pytest.approx(224 / 232)
    small = timm.data.resolve_model_data_config(timm.create_model("rb_cifar_resnet20"))
    assert small["input_size"] == (3, 32, 32)


def test_pretrained_loads_torchvisions_published_weights(tmp_path, monkeypatch):
    """From torch's cache, where a download would be stored."""
    published = torchvision.models.ResNet18_Weights.DEFAULT
    theirs = torchvision.models.resnet18().eval()
    randomize_statistics(theirs)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache / published.url.rpartition("/")[2])
    images = torch.rand(1, 3, 64, 64)
    ours = timm.create_model("rb_resnet18", pretrained=True).eval()
    assert_close(outputs_of(ours, images), outputs_of(theirs, images))


# --- errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"features_only": True, "out_indices": (1, 5)},
         r"out_indices is \[1, 5\]; the network has 0 relu \(stride 2\), 1 layer1 .*4 layer4 \(stride 32\)"),
        ("vgg16", {"features_only": True, "out_indices": (-5,)}, r"0 features.15 \(stride 4\).*3 features.30"),
        ("cifar_resnet20", {"features_only": True, "out_indices": 4}, r"2 layer3 \(stride 4\)\.$"),
        ("resnet18", {"features_only": True, "out_indices": ()}, r"out_indices is \[\]"),
        ("resnet18", {"out_indices": (1,)}, "add features_only=True"),
        ("vgg16", {"output_stride": 16}, "rb_vgg16 has no output_stride; only the residual networks have"),
        ("vgg16", {"drop_path_rate": 0.1}, "rb_vgg16 has no drop_path_rate"),
        ("cifar_resnet20", {"output_stride": 8}, "output_stride is 8; it must be .* of a net whose stem has stride 4"),
        ("resnet18", {"output_strides": 8}, "Unknown option of rb_resnet18 'output_strides'. Did you mean output"),
        ("resnet18", {"in_channels": 4}, "Unknown option of rb_resnet18 'in_channels'. Did you mean in_chans"),
        ("resnet18", {"num_classes": -1}, "num_classes is -1; it must be at least 0"),
        ("resnet18", {"global_pool": "mean"}, "Unknown global_pool 'mean'.* avg"),
        ("resnet18", {"norm": "LN"}, "Unknown norm 'LN'"),
        ("preact_resnet50", {"pretrained": True}, "rb_preact_resnet50 has no published weights; use pretrained=False"),
        ("resnet18", {"weights": "missing.safetensors"}, "missing.safetensors"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_arguments_give_a_one_line_error(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        timm.create_model(f"rb_{name}", **options)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(trained):
    with pytest.raises(UserError, match="holds a preact_resnet18, but the backbone is resnet18"):
        timm.create_model("rb_resnet18", weights=trained[0])


def test_a_head_of_another_shape_is_refused(trained):
    with pytest.raises(UserError, match=r"no fc of shape \(3, 1024\) for its 3 classes; use num_classes=0"):
        timm.create_model("rb_preact_resnet18", num_classes=3, global_pool="catavgmax", weights=trained[0])


def test_checkpointing_other_families_is_refused():
    with pytest.raises(UserError, match="only residual networks"):
        timm.create_model("rb_alexnet", features_only=True).set_grad_checkpointing()
