"""`resnet-backbones export`: files that other runtimes read, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw
from helpers import save_detector
from PIL import Image
from test_graphs import pictures, tiny_detector

from resnet_backbones import build_backbone
from resnet_backbones.__main__ import main
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.export import VerificationError, export, load, network_of
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.weights import metadata_of, save_safetensors

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
CLASSES = ["red", "white", "platelet"]


@pytest.fixture
def command(capfd):
    """`command(*arguments)` runs `resnet-backbones export`; gives its exit status, stdout and stderr."""

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
    """The checkpoint of a classifier, and the classifier."""
    model = build_classifier("cifar_plain20", 3, preprocessing=Preprocessing(resize=40, size=32)).eval()
    model.classes = CLASSES
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    save_safetensors(path, model.state_dict(), metadata_of(model))
    return path, model


def test_a_classifier_as_onnx_which_the_example_runs_without_torch(classifier, command, tmp_path):
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
    """What the example prints of a drawn image, where neither torch nor this package can be imported."""
    draw(90, 60).save(folder / "image.png")
    blocked = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'torchvision', 'resnet_backbones'])"
    program = f"{blocked}; runpy.run_path('examples/run_onnx.py', run_name='__main__')"
    command = [sys.executable, "-c", program, str(model), str(folder / "image.png"), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(map(json.loads, result.stdout.splitlines()))


@pytest.mark.slow
def test_a_pyramid_as_a_program_of_torch(tmp_path):
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


def test_a_file_that_differs_is_not_written(classifier, tmp_path):
    _, model = classifier
    network = network_of(model)
    network.eager = lambda images: {"logits": network.module(images)["logits"] + 1}
    with pytest.raises(VerificationError, match=r"not written.*input 1, .*logits differs by"):
        export(network, tmp_path / "c.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--output", "c.pt2"], "c.pt2 has no suffix of --format onnx; call it c.onnx."),
        (["--format", "onnx", "--output", "no/c.onnx"], "the folder no does not exist; create it."),
        (["--format", "onnx", "--output", "c.onnx", "--precision", "bf16"], "use --format openvino."),
        (["--format", "openvino", "--output", "c.xml", "--precision", "int8"], "--data YAML"),
        (["--format", "torch", "--output", "c.pt2", "--name", "resnet51"], "Did you mean resnet50"),
        (["--format", "torch", "--output", "c.pt2", "--images", "empty"], "--images empty has no images"),
        (["--format", "torch", "--output", "c.pt2", "--data", "bccd_faster_rcnn_R18"], "--data is for detectors"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(arguments, message, classifier, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    status, out, err = command(classifier[0], *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(("library", "format"), [("onnxscript", "onnx"), ("openvino", "openvino")])
def test_a_missing_library_is_named_with_its_remedy(library, format, classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    with pytest.raises(UserError, match=rf"needs {library}.*pip install 'resnet_backbones\[{format}\]'"):
        export(classifier[1], tmp_path / f"c{suffix}", format)


def test_weights_that_say_nothing_of_a_detector(command, tmp_path):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "plain.pth")
    status, _, err = command(tmp_path / "plain.pth", "--format", "torch", "--output", tmp_path / "d.pt2")
    assert (status, err.count("\n")) == (2, 1)
    assert "give --config YAML of its detector, or --name" in err


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch", "openvino"])
@pytest.mark.parametrize("label", ["faster_rcnn", "mask_rcnn", "mask_rcnn C4", "retinanet", "fcos"])
def test_every_detector_in_every_format(label, format, tmp_path):
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
def test_from_a_checkpoint_to_the_example(command, tmp_path):
    model, path = save_detector(tmp_path)
    draw(64, 48).save(tmp_path / "other.png")
    status, out, err = command(*(path, "--format", "onnx", "--output", tmp_path / "d.onnx", "--images", tmp_path))
    assert (status, err) == (0, "")
    assert "compared on 2 images" in out  # with the blank one
    (found,) = run_example(tmp_path / "d.onnx", tmp_path, "--min-score", "0", "--output", str(tmp_path / "drawn"))
    image = torch.from_numpy(np.array(draw(90, 60))).permute(2, 0, 1)
    with torch.no_grad():
        (expected,) = model([image])
    assert len(expected["boxes"]) == 7
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
    assert found["labels"] == [["dog", "cat"][label - 1] for label in expected["labels"]]
    assert Image.open(tmp_path / "drawn" / "image.png").size == (90, 60)
