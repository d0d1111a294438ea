"""Weights in files of other programs: under any prefix, in any nesting, with other heads, classes and channels."""

import argparse
import itertools
import re
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import assert_close, randomize_statistics
from torch import nn

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import load_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.weights import save_safetensors


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    net = torchvision.models.resnet18(num_classes=7)
    randomize_statistics(net)
    return net.eval()


@pytest.fixture(scope="module")
def body(net):
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture
def save(tmp_path):
    """`save(content)` writes a torch file and returns its path."""

    def write(content, name="file.pth") -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def shifted(state: dict) -> dict:
    return {name: tensor + 1 for name, tensor in state.items()}


def is_loaded(backbone: nn.Module, state: dict) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())


FILES = {
    "torch.compile": lambda s: under("_orig_mod.", s),
    "DDP over torch.compile": lambda s: {"model": under("module._orig_mod.", s)},
    "Lightning": lambda s: {"state_dict": under("model.backbone.", s), "epoch": 1},
    "MoCo: the query encoder, not the momentum encoder": lambda s: {
        "state_dict": under("module.encoder_q.", s) | under("module.encoder_k.", shifted(s)) | {"queue": torch.ones(2)}
    },
    "DINO: the teacher": lambda s: {"student": under("module.backbone.", shifted(s)), "teacher": under("backbone.", s)},
    "Soft Teacher": lambda s: {"state_dict": under("student.backbone.", shifted(s)) | under("teacher.backbone.", s)},
    "timm: the EMA": lambda s: {"state_dict": shifted(s), "state_dict_ema": s},
    "mmengine, which swaps EMA and model": lambda s: {"state_dict": s, "ema_state_dict": under("module.", shifted(s))},
    "DETR": lambda s: {"model": under("backbone.0.body.", s) | {"class_embed.weight": torch.zeros(3, 4)}},
    "a list of nets, one of which fits": lambda s: {"nets": [torchvision.models.resnet34().state_dict(), {"net": s}]},
    "a larger teacher": lambda s: {"teacher": torchvision.models.resnet50().state_dict(), "student": s},
    "a training state": lambda s: {
        "model_state_dict": s, "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))]).state_dict(), "args":
        argparse.Namespace(lr=0.1, data=Path("images"), inner=argparse.Namespace())
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_backbone_is_found_in_any_layout(save, body, kind):
    assert is_loaded(build_backbone("resnet18", weights=save(FILES[kind](body))), body)


def test_backbone_loads_from_a_pickled_module(save, net, body):
    assert is_loaded(build_backbone("resnet18", weights=save({"model": net}, "whole.pkl")), body)


def test_log_lists_loaded_and_dropped_tensors(save, body, caplog):
    content = {"state_dict": under("module.encoder_q.", body | {"fc.weight": torch.zeros(9, 512)})}
    with caplog.at_level("INFO", "resnet_backbones"):
        build_backbone("resnet18", weights=save(content))
    assert "loaded 120 of its 121 tensors, those of state_dict.module.encoder_q., dropped fc.weight" in caplog.text


def test_incomplete_file_error_lists_missing_and_present_tensors(save, body):
    part = {name: tensor for name, tensor in body.items() if not name.startswith("layer4.1.")}
    with pytest.raises(UserError) as error:
        build_backbone("resnet18", weights=save({"net": under("encoder.", part)}))
    assert re.search(
        r"10 tensors missing in the file: layer4.1.conv1.weight, .* The file holds 108 tensors: ", str(error.value)
    )
    assert "24 of net.encoder.layer1, such as net.encoder.layer1.0.conv1.weight" in str(error.value)
    with pytest.raises(UserError, match="The file holds 3 tensors: weight; bias; 1 of deep, such as deep.er.x"):
        build_backbone(
            "resnet18", weights=save({"weight": torch.ones(1), "bias": torch.ones(1), "deep.er.x": torch.ones(1)})
        )


@pytest.mark.parametrize("architecture", ["ResNetModel", "ResNetForImageClassification", "ResNetBackbone"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_transformers_resnets_give_the_same_features(tmp_path, architecture, kind):
    transformers = pytest.importorskip("transformers")
    widths, name = ([64, 128, 256, 512], "resnet18") if kind == "basic" else ([256, 512, 1024, 2048], "resnet50")
    depths = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
    features = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.ResNetConfig(
        layer_type=kind, hidden_sizes=widths, depths=depths, num_labels=5, out_features=features
    )
    theirs = getattr(transformers, architecture)(config).eval()
    randomize_statistics(theirs)
    theirs.save_pretrained(tmp_path)
    weights, images = str(tmp_path / "model.safetensors"), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours = build_backbone(name, weights=weights).eval()(images)
        result = theirs(images, output_hidden_states=True)
        for feature, expected in zip(ours.values(), result.hidden_states[-4:], strict=True):
            assert_close(feature, expected)
        if architecture == "ResNetForImageClassification":
            assert_close(load_classifier(weights, name).eval()(images), result.logits)


@pytest.mark.parametrize("last", ["linear", "classifier", "classifier.1", "head.fc", "head"])
def test_last_layer_of_a_classifier_may_have_any_name(save, net, body, last):
    content = body | {f"{last}.weight": net.fc.weight, f"{last}.bias": net.fc.bias}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model = load_classifier(save({"net": under("module.", content), "acc": 9.0}), "resnet18").eval()
        assert torch.equal(model(images), net(images))


def test_last_layer_may_be_in_a_separate_dict(save, net, body):
    content = {"backbone": body, "head": {"weight": net.fc.weight, "bias": net.fc.bias}}
    assert torch.equal(load_classifier(save(content), "resnet18").fc.weight, net.fc.weight)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_classifier_with_a_multi_layer_head_is_refused(save, net, body, name):
    head = {"head.0.weight": torch.zeros(512, 512), "head.2.weight": net.fc.weight, "head.2.bias": net.fc.bias}
    content = body | head if name == "resnet18" else torchvision.models.convnext_tiny(num_classes=3).state_dict()
    with pytest.raises(UserError, match="holds no classifier of a backbone and one linear layer"):
        load_classifier(save(content), name)


@pytest.mark.parametrize(("given", "channels"), [(3, 1), (3, 2), (3, 4), (3, 6), (1, 3)])
def test_in_channels_are_adapted_as_in_timm(save, body, given, channels, caplog):
    timm = pytest.importorskip("timm")
    weight = torch.randn(64, given, 7, 7)
    with caplog.at_level("INFO", "resnet_backbones"):
        path = save(body | {"conv1.weight": weight})
        backbone = build_backbone("resnet18_fpn", in_channels=channels, weights=path)
    expected = timm.models.adapt_input_conv(channels, weight) if given == 3 else weight.expand(-1, 3, -1, -1) / 3
    torch.testing.assert_close(backbone.body.conv1.weight, expected)
    assert f"adapted conv1.weight to {channels} channels" in caplog.text


def test_gray_classifier_averages_the_rgb_mean_and_std(tmp_path, net):
    path = tmp_path / "rgb.safetensors"
    preprocessing = {"mean": [0.2, 0.4, 0.6], "std": [0.1, 0.2, 0.3]}
    save_safetensors(path, net.state_dict(), {"architecture": {"name": "resnet18"}, "preprocessing": preprocessing})
    model = load_classifier(str(path), in_channels=1)
    assert model.preprocessing.mean + model.preprocessing.std == pytest.approx([0.4, 0.2])
    assert model.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "module.backbone."])
def test_detectron2_names_load_under_any_prefix(save, body, prefix):
    convolutions = {"conv1": ("stem.conv1", "bn1")}
    for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
        ours, theirs = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
        convolutions |= {f"{ours}.conv{k}": (f"{theirs}.conv{k}", f"{ours}.bn{k}") for k in (1, 2)}
        if stage > 1 and block == 0:
            convolutions[f"{ours}.downsample.0"] = (f"{theirs}.shortcut", f"{ours}.downsample.1")
    state = {}
    for ours, (theirs, norm) in convolutions.items():
        state[f"{theirs}.weight"] = body[f"{ours}.weight"]
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{theirs}.norm.{key}"] = body[f"{norm}.{key}"]
    assert is_loaded(build_backbone("resnet18", weights=save({"model": under(prefix, state)})), body)
