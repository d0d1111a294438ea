import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import build_classifier, load_classifier
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_backbones.weights import save_safetensors


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(1)
    return torchvision.models.resnet18().state_dict()


def same(backbone, state) -> bool:
    return all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


def test_every_file_format_loads(tmp_path, published):
    save_file(published, tmp_path / "r18.safetensors")
    torch.save(published, tmp_path / "r18.pth")
    torch.save({"model": {f"module.{k}": v for k, v in published.items()}}, tmp_path / "r18.pt")
    for name in ("r18.safetensors", "r18.pth", "r18.pt"):
        assert same(build_backbone("resnet18", weights=str(tmp_path / name)), published)


def test_a_url_loads(tmp_path, published, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))  # where iopath keeps its downloads
    torch.save(published, tmp_path / "r18.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert same(build_backbone("resnet18", weights=f"{address}/r18.pth"), published)
        with pytest.raises(UserError, match=r"weights file http.*gone.pth cannot be fetched: HTTP Error 404"):
            build_backbone("resnet18", weights=f"{address}/gone.pth")
        server.shutdown()


def test_classifier_weights_fill_the_body_of_an_fpn(tmp_path, published, caplog):
    torch.save(published, tmp_path / "r18.pth")
    with caplog.at_level("INFO", "resnet_backbones"):
        backbone = build_backbone("resnet18_fpn", norm="FrozenBN", freeze_at=2, weights=str(tmp_path / "r18.pth"))
    assert same(backbone.body, published)
    assert "dropped fc.weight, fc.bias; the FPN keeps its random weights" in caplog.text


def test_backbone_loads_from_a_detector_checkpoint(tmp_path):
    detector = faster_rcnn(build_backbone("resnet18_fpn"), num_classes=2)
    torch.save({"model": detector.state_dict()}, tmp_path / "last.pt")
    whole = build_backbone("resnet18_fpn", weights=str(tmp_path / "last.pt"))
    assert same(whole, detector.backbone.state_dict())
    body = build_backbone("resnet18", weights=str(tmp_path / "last.pt"))
    assert same(body, detector.backbone.body.state_dict())


def test_torchvision_weights_resolve_through_its_own_api(tmp_path, monkeypatch, published):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(published, cache / os.path.basename(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url))
    backbone = build_backbone("resnet18", weights="torchvision://resnet18/IMAGENET1K_V1")
    assert same(backbone, published)
    assert backbone.preprocessing == Preprocessing(IMAGENET_MEAN, IMAGENET_STD, resize=256, size=224)
    assert len(load_classifier("torchvision://resnet18/IMAGENET1K_V1").classes) == 1000
    with pytest.raises(UserError, match="holds a resnet18, but the backbone is resnet18d"):
        build_backbone("resnet18d", weights="torchvision://resnet18/IMAGENET1K_V1")


def test_timm_weights_resolve_through_its_own_api(tmp_path, monkeypatch, published):
    timm = pytest.importorskip("timm")
    constants = pytest.importorskip("huggingface_hub").constants
    folder = tmp_path / "models--timm--resnet18.a1_in1k"  # the layout of huggingface_hub's cache
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    save_file(published, folder / "snapshots" / ("1" * 40) / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    backbone = build_backbone("resnet18", weights="timm://resnet18.a1_in1k")
    assert same(backbone, published)
    given = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert backbone.preprocessing.interpolation == given.interpolation == "bicubic"
    assert (backbone.preprocessing.mean, backbone.preprocessing.size) == (given.mean, 224)
    assert backbone.preprocessing.resize == int(224 / given.crop_pct)
    with pytest.raises(
        UserError, match=r"timm://resnet18.a9: Unknown timm weights 'resnet18.a9'. Did you mean resnet18"
    ):
        build_backbone("resnet18", weights="timm://resnet18.a9")


def test_our_files_store_architecture_and_preprocessing(tmp_path):
    one = build_backbone("resnet50", stride_in_1x1=True)
    path = tmp_path / "r50.safetensors"
    preprocessing = {"mean": [104, 117, 124], "std": [1, 1, 1], "channel_order": "BGR", "input_range": 255}
    save_safetensors(path, one.state_dict(), {"architecture": one.architecture, "preprocessing": preprocessing})
    backbone = build_backbone("resnet50_fpn", stride_in_1x1=True, weights=str(path))
    assert same(backbone.body, one.state_dict())
    torch.testing.assert_close(backbone.preprocessing.as_rgb()[0], [124 / 255, 117 / 255, 104 / 255])
    with pytest.raises(
        UserError, match="holds a resnet50 with stride_in_1x1=True, but the backbone is built with stri"
    ):
        build_backbone("resnet50", weights=str(path))
    with pytest.raises(UserError, match="holds a resnet50, but the backbone is seresnet50"):
        build_backbone("seresnet50", weights=str(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("preprocessing", {"mean": [0.5], "std": [1, 1, 1]}, "preprocessing.mean and std is"),
        ("preprocessing", {"mean": ["1", "1", "1"]}, "preprocessing.mean and std is"),
        ("preprocessing", {"std": [0, 0, 0]}, "preprocessing.mean and std is"),
        ("preprocessing", {"input_range": 0}, "preprocessing.input_range is 0"),
        ("preprocessing", {"size": 10**9}, "preprocessing.size is 1000000000"),
        ("preprocessing", {"interpolation": "x"}, "preprocessing.interpolation is x"),
        ("preprocessing", {"color": "RGB"}, "unexpected keyword argument 'color'"),
        ("preprocessing", "RGB", "must be a mapping"),
        ("architecture", "r50", "architecture is r50; it must be a dict of a name and options"),
        ("architecture", {"name": 50}, "architecture is .*'name': 50"),
        ("architecture", {"name": "resnet50", "options": ["norm"]}, "architecture is .*'options'"),
        ("classes", [1, 2], r"classes is \[1, 2\]; it must be a list of names"),
    ],
)
def test_metadata_with_wrong_types_or_values_is_refused(tmp_path, published, key, value, message):
    save_safetensors(tmp_path / "r18.safetensors", published, {key: value})
    with pytest.raises(UserError, match=rf"The metadata of the weights file .*r18.safetensors is invalid: .*{message}"):
        build_backbone("resnet18", weights=str(tmp_path / "r18.safetensors"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "resnet81"}, "architecture.name in its metadata is wrong: .*Did you mean resnet18"),
        ({"options": {"x": 1}}, "architecture.options: Unknown option of resnet18 'x'"),
        ({"options": {"weights": "other.pth"}}, "architecture.options: Unknown option of resnet18 'weights'"),
        ({"options": {"freeze_at": 5}}, "architecture.options: Unknown option of resnet18 'freeze_at'"),
        ({"options": {"norm": 5}}, "no resnet18 can be built with its architecture.options: Unknown norm"),
        ({"options": {"in_channels": -3}}, "no resnet18 can be built with its architecture.options: "),
    ],
)
def test_metadata_with_an_impossible_architecture_is_refused(tmp_path, architecture, message):
    path, state = tmp_path / "own.safetensors", build_classifier("resnet18", num_classes=2).state_dict()
    save_safetensors(path, state, {"architecture": {"name": "resnet18"} | architecture})
    with pytest.raises(UserError, match=f"own.safetensors: {message}"):
        load_classifier(str(path))


def test_metadata_with_more_classes_than_logits_is_refused(tmp_path):
    path, state = tmp_path / "own.safetensors", build_classifier("resnet18", num_classes=2).state_dict()
    save_safetensors(path, state, {"architecture": {"name": "resnet18"}, "classes": ["a", "b", "c"]})
    with pytest.raises(UserError, match=r"own.safetensors names 3 classes, but its fc.weight has 2 outputs"):
        load_classifier(str(path))


def test_plain_torchvision_reads_our_file(tmp_path):
    model = build_classifier("resnet18", num_classes=7)
    save_safetensors(tmp_path / "r18.safetensors", model.state_dict(), {"classes": list("abcdefg")})
    theirs = torchvision.models.resnet18(num_classes=7)
    theirs.load_state_dict(load_file(tmp_path / "r18.safetensors"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), model.eval()(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "torchvision://resnet19/IMAGENET1K_V1",
            "Unknown torchvision model 'resnet19'. Did you mean resnet1",
        ),
        (
            "torchvision://resnet50/V3",
            "Unknown weights of resnet50 'V3'.*Available: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        ("nowhere.pth", "weights file nowhere.pth does not exist"),
        (".", "weights file . is a folder or device, not a file"),
    ],
)
def test_invalid_sources_are_refused(source, message):
    with pytest.raises(UserError, match=message):
        build_backbone("resnet18", weights=source)


def test_mismatched_architecture_error_names_the_tensors(tmp_path, published):
    torch.save(published, tmp_path / "r18.pth")
    with pytest.raises(UserError, match=r"r18.pth does not fit.*of another shape: layer1.0.conv1.weight \(file \(64, "):
        build_backbone("resnet50", weights=str(tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"missing in the file: layer1.2.conv1.weight"):
        build_backbone("resnet34", weights=str(tmp_path / "r18.pth"))
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    with pytest.raises(UserError, match=r"not in the model: layer1.2.conv1.weight"):
        build_backbone("resnet18", weights=str(tmp_path / "r34.pth"))


def test_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth holds no state_dict"):
        build_backbone("resnet18", weights=str(tmp_path / "other.pth"))
