"""`resnet-backbones export`: files that other runtimes read, and what it refuses."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw, write_coco
from helpers import save_detector
from PIL import Image
from test_graphs import pictures, tiny_detector

from resnet_backbones import Predictor, build_backbone
from resnet_backbones.__main__ import main
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.export import VerificationError, export, load, network_of
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.weights import metadata_of, save_safetensors

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
CLASSES = ["red", "white", "platelet"]
PIPED = {"cwd": ROOT, "capture_output": True, "text": True}


@pytest.fixture
def command(capfd):
    """`command(*arguments)` runs `resnet-backbones export` and returns its exit status, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        status = 0
        try:
            main(["export", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The path of a classifier's checkpoint, and the classifier."""
    model = build_classifier("cifar_plain20", 3, preprocessing=Preprocessing(resize=40, size=32)).eval()
    model.classes = CLASSES
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    save_safetensors(path, model.state_dict(), metadata_of(model))
    return path, model


def test_classifier_exports_to_onnx_and_runs_in_the_example_without_torch(classifier, command, tmp_path):
    path, model = classifier
    status, out, err = command(path, "--format", "onnx", "--output", tmp_path / "c.onnx")
    assert (status, err) == (0, "")
    assert "compared on 7 inputs" in out
    assert "images: uint8 (batch, 3, height, width); gives logits" in out
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert (metadata["kind"], metadata["classes"]) == ("classification", CLASSES)
    for shape in ((1, 3, 32, 32), (5, 3, 40, 33), (1, 3, 1, 2)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-4)

    (found,) = run_example(tmp_path / "c.onnx", tmp_path)
    image = draw(90, 60).resize((60, 40), Image.Resampling.BILINEAR).crop((14, 4, 46, 36))
    with torch.no_grad():
        expected = model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]).softmax(1)[0]
    assert found["labels"][0] == CLASSES[expected.argmax()]
    assert found["scores"][0] == pytest.approx(expected.max().item(), abs=1e-4)


def run_example(model: Path, folder: Path, *options: str) -> list[dict]:
    """What the example prints for a synthetic image when neither torch nor this package can be imported."""
    draw(90, 60).save(folder / "image.png")
    blocked = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'torchvision', 'resnet_backbones'])"
    program = f"{blocked}; runpy.run_path('examples/run_onnx.py', run_name='__main__')"
    command = [sys.executable, "-c", program, str(model), str(folder / "image.png"), *options]
    result = subprocess.run(command, **PIPED)
    assert result.returncode == 0, result.stderr
    return list(map(json.loads, result.stdout.splitlines()))


@pytest.mark.slow
def test_pyramid_exports_to_torch(tmp_path):
    model = build_backbone("resnet18_fpn", fpn_channels=16).eval()
    export(model, tmp_path / "fpn.pt2", "torch")
    run, metadata = load(tmp_path / "fpn.pt2")
    assert metadata["kind"] == "features"
    for shape in ((1, 3, 65, 96), (3, 3, 130, 70)):
        images = torch.rand(shape)
        with torch.no_grad():
            expected = model(images)
        for name, feature in run(images).items():
            torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)


def test_classifier_exports_to_torch(classifier, command, tmp_path):
    path, model = classifier
    (tmp_path / "images").mkdir()
    draw().save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_text("text")
    (tmp_path / "c.bin").write_bytes(bytes(10**7))  # left by another export
    status, out, err = command(
        path, "--format", "torch", "--output", tmp_path / "c.pt2", "--images", tmp_path / "images"
    )
    assert status == 0
    assert re.findall("fp32, (.*) MB", out) == [f"{(tmp_path / 'c.pt2').stat().st_size / 1e6:.1f}"]
    assert "compared on 2 inputs" in out  # including the blank one
    assert err.count("\n") == 2
    assert "b.png cannot be decoded" in err
    assert "1 of 2 images of --images are left out" in err

    run, _ = load(tmp_path / "c.pt2")
    image = np.array(draw())
    logits = run(image[:, :, ::-1].transpose(2, 0, 1)[None])["logits"]  # a view with the channels reversed
    with torch.no_grad():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None].flip(1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_full_disk_keeps_the_earlier_file(classifier, command, tmp_path):
    """A file size limit stands in for the full disk."""
    path = tmp_path / "c.pt2"
    path.write_text("earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        status, out, err = command(classifier[0], "--format", "torch", "--output", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "c.pt2 cannot be written: " in err
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt2"]
    assert path.read_text() == "earlier"


def test_unusable_evaluation_data_is_refused_before_the_export(command, tmp_path):
    content = write_coco(tmp_path)
    _, path = save_detector(tmp_path)
    (tmp_path / "d.pt2").write_text("earlier")
    config = {
        "datasets": {"own": {"root": str(tmp_path / "images"), "annotations": str(tmp_path / "instances.json")}},
        "data": {"train": ["own"], "test": ["own"]},
    }
    (tmp_path / "data.yaml").write_text(json.dumps(config))

    def message() -> str:
        output = ["--format", "torch", "--output", tmp_path / "d.pt2", "--data", tmp_path / "data.yaml"]
        status, out, err = command(path, *output)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    (tmp_path / "images" / "0.png").write_text("text")
    assert "0.png cannot be decoded" in message()
    content["categories"][0]["name"] = "horse"
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert "own of --data has the classes dog, horse, but the detector has dog, cat." in message()
    (tmp_path / "instances.json").unlink()
    assert "instances.json" in message()
    assert (tmp_path / "d.pt2").read_text() == "earlier"


@pytest.mark.slow
def test_metrics_before_and_after_are_those_of_the_exported_detector(command, tmp_path):
    """Even if the config of the data names a detector with masks and evaluates with test-time augmentation."""
    content = write_coco(tmp_path)
    _, path = save_detector(tmp_path, "faster_rcnn")
    best = Predictor(path, score_threshold=0.0)([tmp_path / "images" / i["file_name"] for i in content["images"]])
    for found, o in zip(best, content["annotations"][::2], strict=True):  # so that the random weights find some objects
        x0, y0, x1, y1 = found.boxes[0].tolist()
        o |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": {"dog": 3, "cat": 7}[found.names[0]]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    config = {
        "detector": {"name": "mask_rcnn"},
        "datasets": {"own": {"root": str(tmp_path / "images"), "annotations": str(tmp_path / "instances.json")}},
        "data": {"train": ["own"], "test": ["own"], "num_workers": 0},
        "evaluation": {"tta_flip": True},
    }
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    output = ["--format", "torch", "--output", tmp_path / "d.pt2", "--data", tmp_path / "data.yaml"]
    status, out, _ = command(path, *output)
    assert status == 0
    before_and_after = re.findall("^(.*): (.*) before, (.*) after$", out, re.MULTILINE)
    assert [name for name, _, _ in before_and_after] == ["bbox/AP", "bbox/AP50"]
    assert all(before == after and float(before) > 0 for _, before, after in before_and_after)


def test_deformable_convolutions_are_refused_for_openvino(tmp_path):
    pytest.importorskip("openvino")
    model = build_backbone("resnet18", deform_on=["res5"]).eval()
    with pytest.raises(UserError, match="OpenVINO has no deformable convolutions"):
        export(model, tmp_path / "b.xml", "openvino")
    assert not list(tmp_path.iterdir())


def test_detector_with_detectron2_heads_is_refused():
    pytest.importorskip("detectron2")
    from resnet_backbones.detectors.detectron2 import faster_rcnn

    with pytest.raises(UserError, match="cannot be exported, only .* with detector.library=torchvision"):
        network_of(faster_rcnn(build_backbone("resnet18_fpn"), 2).eval())


@pytest.mark.slow
def test_nothing_is_sent_over_the_network(tmp_path):
    """OpenVINO and NNCF send telemetry by default."""
    pytest.importorskip("nncf")
    program = f"""
import os, sys
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        os.write(2, f"{{event}} {{arguments}}\\n".encode())
sys.addaudithook(watch)
import torch
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.export import export
images = [torch.rand(1, 3, 32, 32)]
export(build_classifier("cifar_plain20", 3).eval(), {str(tmp_path / "c.xml")!r}, "openvino", "int8", images, images)
"""
    result = subprocess.run([sys.executable, "-c", program], env=os.environ | {"HOME": str(tmp_path)}, **PIPED)
    assert result.returncode == 0, result.stderr
    assert "socket." not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.bin", "c.xml"]


def test_file_that_fails_verification_is_not_written(classifier, tmp_path):
    _, model = classifier
    network = network_of(model)
    network.eager = lambda images: {"logits": network.module(images)["logits"] + 1}
    with pytest.raises(VerificationError, match=r"not written.*input 1, .*logits differs by"):
        export(network, tmp_path / "c.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--output", "c.pt2"], "does not have the suffix of --format onnx; call it c.onnx."),
        (["--format", "onnx", "--output", "no/c.onnx"], "the folder no does not exist; create it."),
        (["--format", "onnx", "--output", "c.onnx", "--precision", "bf16"], "needs --format openvino"),
        (["--format", "openvino", "--output", "c.xml", "--precision", "int8"], "--data YAML"),
        (["--format", "torch", "--output", "c.pt2", "--name", "resnet51"], "Did you mean resnet50"),
        (["--format", "onnx", "--output", ""], "'.' does not have the suffix of --format onnx; call it model.onnx."),
        (["--format", "torch", "--output", "folder.pt2"], "folder.pt2 cannot be written: it is a folder"),
        (["--format", "torch", "--output", "c.pt2", "--images", "empty"], "--images empty has no images"),
        (["--format", "torch", "--output", "c.pt2", "--images", "no"], "--images no does not exist."),
        (["--format", "torch", "--output", "c.pt2", "--images", "broken/a.png"], "broken/a.png is not a folder."),
        (
            ["--format", "torch", "--output", "c.pt2", "--images", "broken"],
            "broken has no image that can be read: Image",
        ),
        (["--format", "torch", "--output", "c.pt2", "--classes", "a,b"], "has 3 classes, but 2 names are given"),
        (["--format", "torch", "--output", "c.pt2", "--classes", "a,b,a"], "classes has 'a' more than once"),
        (
            ["--format", "torch", "--output", "c.pt2", "--classes", ","],
            "classes is ['', '']; it must be a list of names",
        ),
        (["--format", "torch", "--output", "c.pt2", "--classes", "a", "--name", "resnet18"], "leave them out"),
        (["--format", "torch", "--output", "c.pt2", "--data", "bccd_faster_rcnn_R18"], "--data is for detectors"),
    ],
)
def test_invalid_arguments_give_a_one_line_error(arguments, message, classifier, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "broken", "folder.pt2"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_text("text")
    status, out, err = command(classifier[0], *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(("library", "format"), [("onnxscript", "onnx"), ("openvino", "openvino")])
def test_missing_library_error_says_how_to_install_it(library, format, classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    with pytest.raises(UserError, match=rf"needs {library}.*pip install .*{library}"):
        export(classifier[1], tmp_path / f"c{suffix}", format)


def test_weights_without_detector_metadata_are_refused(command, tmp_path):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "plain.pth")
    status, _, err = command(tmp_path / "plain.pth", "--format", "torch", "--output", tmp_path / "d.pt2")
    assert (status, err.count("\n")) == (2, 1)
    assert "give the YAML that it was trained with" in err
    assert "To export a backbone alone, give --name." in err


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch", "openvino"])
@pytest.mark.parametrize("label", ["faster_rcnn", "mask_rcnn", "mask_rcnn C4", "retinanet", "fcos"])
def test_every_detector_exports_to_every_format(label, format, tmp_path):
    model = tiny_detector(label, box_detections_per_img=20)
    path = tmp_path / f"d{dict(onnx='.onnx', torch='.pt2', openvino='.xml')[format]}"
    difference = export(model, path, format)
    assert difference.found > 20
    run, metadata = load(path)
    assert (metadata["kind"], metadata["classes"]) == ("detection", CLASSES)
    for image in pictures()[:4]:
        with torch.no_grad():
            expected = model([image[0]])[0]
        torch.testing.assert_close(run(image)["scores"], expected["scores"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_exported_checkpoint_runs_in_the_example(command, tmp_path):
    model, path = save_detector(tmp_path)
    draw(64, 48).save(tmp_path / "other.png")
    status, out, err = command(*(path, "--format", "onnx", "--output", tmp_path / "d.onnx", "--images", tmp_path))
    assert (status, err) == (0, "")
    assert "compared on 2 images" in out  # including the blank one
    (found,) = run_example(tmp_path / "d.onnx", tmp_path, "--min-score", "0", "--output", str(tmp_path / "drawn"))
    image = torch.from_numpy(np.array(draw(90, 60))).permute(2, 0, 1)
    with torch.no_grad():
        (expected,) = model([image])
    assert len(expected["boxes"]) == 7
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
    assert found["labels"] == [["dog", "cat"][label - 1] for label in expected["labels"]]
    assert Image.open(tmp_path / "drawn" / "image.png").size == (720, 480)
