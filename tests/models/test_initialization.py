"""Networks built for a checkpoint: the same as those built with random weights and then loaded, only sooner."""

import pytest
import torch
from conftest import TINY
from torch import nn

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import build_classifier, load_classifier
from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector
from resnet_backbones.models.initialization import SkipRandomInit

FAMILIES = ["resnet18", "preact_resnet18", "seresnet18", "resnet18d", "vgg11_bn", "efficientnet_b0", "swin_t", "zfnet"]


@pytest.fixture
def memory_of_nan(monkeypatch):
    """What is left as it comes from memory is NaN, and so cannot pass for weights."""
    empty = torch.empty

    def of_nan(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(torch, "empty", of_nan)


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Also the buffers that no checkpoint holds."""
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    ours, theirs = whole_state(ours), whole_state(theirs)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("name", FAMILIES)
def test_backbones_get_all_of_it_from_the_checkpoint(name, norm, tmp_path, memory_of_nan):
    source = build_backbone(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    built = build_backbone(name, norm=norm, weights=str(tmp_path / "weights.pth"))
    held = source.state_dict()
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, held[key]), key
    built, source = built.eval(), source.eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(built(image).values(), source(image).values(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_a_backbones_checkpoint_lacks_is_initialised(tmp_path, memory_of_nan):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "weights.pth")
    options = {"out_features": ["p3", "p7"], "fpn_norm": "BN", "deform_on": ["res5"]}
    built = whole_state(build_backbone("resnet18_fpn", weights=str(tmp_path / "weights.pth"), **options))
    reference = whole_state(build_backbone("resnet18_fpn", **options))
    assert all(torch.isfinite(tensor).all() for tensor in built.values())
    for name in (name for name in reference if name.startswith("fpn.") or ".offset." in name):
        if reference[name].numel() > 1 and reference[name].std() > 0:  # drawn
            assert built[name].std() == pytest.approx(float(reference[name].std()), rel=0.1), name
        else:
            assert torch.equal(built[name], reference[name]), name


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_whole_detectors(name, tmp_path, memory_of_nan):
    overrides = [*TINY, f"detector.name={name}"]
    if name in ("retinanet", "fcos"):
        overrides.append("backbone.out_features=[p3,p4,p5,p6,p7]")
    config = load_config("quickstart_mask_rcnn.yaml", overrides)
    if name in ("retinanet", "fcos"):
        config.detector.anchor_sizes = [[8], [16], [32], [64], [128]]
    source = build_detector(config, 3)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    config.weights = str(tmp_path / "weights.pth")
    built = build_detector(config, 3)
    assert_same(built, source)
    images = [torch.rand(3, 60, 50), torch.rand(3, 40, 64)]
    for ours, theirs in zip(built.eval()(images), source.eval()(images), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_classifiers(tmp_path, memory_of_nan):
    source = build_classifier("resnet18", 5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert_same(load_classifier(str(tmp_path / "weights.pth"), "resnet18"), source)


def test_no_random_number_is_drawn_for_a_residual_net(tmp_path):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "weights.pth")
    before = torch.get_rng_state()
    build_backbone("resnet18", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(torch.get_rng_state(), before)


def test_constants_are_set_and_the_mode_ends():
    with SkipRandomInit():
        norm, conv = nn.BatchNorm2d(3), nn.Conv2d(1, 1, 1)
        nn.init.zeros_(conv.weight)
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.running_var.tolist() == [1, 1, 1]
    assert norm.num_batches_tracked == 0
    assert conv.weight.item() == 0
    assert nn.init.normal_(conv.weight).item() != 0
