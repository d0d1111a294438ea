import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import Classifier, build_classifier
from resnet_backbones.errors import UserError


def test_state_dicts_are_interchangeable_with_torchvision():
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    ours = build_classifier("resnet18", num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-6, atol=1e-6)
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    torchvision.models.resnet18(num_classes=7).load_state_dict(state)


@pytest.mark.parametrize("name", ["seresnet50", "resnet50d"])
def test_names_and_shapes_match_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = build_classifier(name), timm.create_model(name)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_a_strict_load_names_missing_and_unexpected_tensors():
    model = build_classifier("cifar_resnet20", num_classes=10)
    state = model.state_dict()
    del state["fc.bias"], state["bn1.weight"]
    state["more"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"fc\.bias") as error:
        model.load_state_dict(state)
    assert "bn1.weight" in str(error.value)
    assert "more" in str(error.value)
    assert "conv1.weight" in state  # the caller's dict is unchanged


def test_state_dicts_of_copied_and_wrapped_models():
    model = build_classifier("cifar_resnet20", num_classes=10).eval()
    twin = copy.deepcopy(build_classifier("cifar_resnet20", num_classes=10)).eval()
    twin.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(twin(images), model(images))
    wrapped = torch.nn.ModuleDict({"module": model})  # as DistributedDataParallel does
    assert list(wrapped.state_dict()) == [f"module.{key}" for key in model.state_dict()]
    wrapped.load_state_dict({key: torch.zeros_like(value) for key, value in wrapped.state_dict().items()})
    assert not model.fc.weight.any()
    assert not model.backbone.conv1.weight.any()


def test_backbone_loads_a_classifier_checkpoint(tmp_path):
    model = build_classifier("cifar_resnet20", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "pretrained.pth")
    backbone = build_backbone("cifar_resnet20", weights=str(tmp_path / "pretrained.pth"))
    assert torch.equal(backbone.conv1.weight, model.backbone.conv1.weight)


def test_training_returns_the_cross_entropy_and_the_error():
    model = build_classifier("cifar_resnet20", num_classes=10)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 9, 3, 3])
    losses = model(images, labels)
    assert list(losses) == ["loss_classifier", "error"]
    logits = model.fc(list(model.backbone(images).values())[-1].mean((2, 3)))
    torch.testing.assert_close(losses["loss_classifier"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(losses["error"], 100 * (logits.argmax(1) != labels).float().mean())
    losses["loss_classifier"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(images).shape == (4, 10)


def test_training_without_labels_is_an_error():
    with pytest.raises(UserError, match="labels"):
        build_classifier("cifar_resnet20")(torch.rand(1, 3, 32, 32))


def test_a_classifier_uses_the_last_feature():
    assert list(build_classifier("resnet18").backbone.output_shape()) == ["res5"]
    assert list(build_classifier("cifar_resnet20").backbone.output_shape()) == ["res4"]
    model = build_classifier("resnet18", out_features=["res2", "res4"], in_channels=1, num_classes=3)
    assert list(model.backbone.output_shape()) == ["res4"]
    assert model.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 3)
    everything = Classifier(build_backbone("resnet18"), 3)
    assert everything.fc.in_features == 512


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "zfnet"])
def test_classifiers_of_other_families(name):
    model = build_classifier(name, num_classes=5).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_invalid_names_and_options_are_refused():
    with pytest.raises(UserError, match="FPN"):
        build_classifier("resnet18_fpn")
    with pytest.raises(UserError, match="resnet18"):
        build_classifier("resnet_18")
    with pytest.raises(UserError, match="norm"):
        build_classifier("resnet18", norm="XN")
