"""`examples/run_onnx.py` on networks with constant outputs, in the format of `resnet-backbones export`."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw
from helpers import png_of
from PIL import Image

from resnet_backbones.data.images import read_image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
BOXES = [[120, 10, 127, 60], [20, 40, 60, 90], [0, 0, 9, 9]]
SCORES = [0.9, 0.75, 0.2]
DETECTOR = {"kind": "detection", "classes": ["platelet", "cell"], "preprocessing": {"std": [1, 1, 1]}}


def write_detector(path: Path, metadata: dict) -> Path:
    """A network that finds `BOXES` in every image, the first two above the default score."""
    outputs = {
        "boxes": np.array(BOXES, np.float32),
        "labels": np.array([1, 2, 1]),
        "scores": np.array(SCORES, np.float32),
    }
    nodes = [
        onnx.helper.make_node("Constant", [], [k], value=onnx.numpy_helper.from_array(v)) for k, v in outputs.items()
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 3, "height", "width"])
    results = [
        onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in outputs.items()
    ]
    graph = onnx.helper.make_graph(nodes, "constant", [image], results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("run_onnx", ROOT / "examples" / "run_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(example, capsys) -> Callable[..., tuple[int | str, list[dict], list[str]]]:
    """`run(*arguments)` returns the exit status or message, the objects on stdout, and the lines on stderr."""

    def call(*arguments) -> tuple[int | str, list[dict], list[str]]:
        with pytest.raises(SystemExit) as stop:
            example.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return stop.value.code, list(map(json.loads, out.splitlines())), err.splitlines()

    return call


def test_small_image_is_enlarged_with_its_labels_inside(run, tmp_path):
    model = write_detector(tmp_path / "d.onnx", DETECTOR)
    Image.new("RGB", (128, 128)).save(tmp_path / "image.png")
    status, (found,), err = run(model, tmp_path / "image.png", "--output", tmp_path / "drawn")
    assert (status, err) == (0, [])
    assert (found["boxes"], found["labels"]) == (BOXES[:2], ["platelet", "cell"])
    drawn = Image.open(tmp_path / "drawn" / "image.png")
    assert drawn.size == (480, 480)
    cell, platelet = (255, 0, 0), (0, 255, 0)
    top, left = round(10 * 480 / 128), round(120 * 480 / 128)  # of the first box, at the right edge
    label = np.array(drawn)[top - 4, :]
    assert (label[left - 10] == platelet).all()  # its name is wider than the box
    assert (label[-1] == platelet).all()  # and ends at the edge
    assert drawn.getpixel((round(21 * 480 / 128), round(40 * 480 / 128) - 4)) == cell


def test_unreadable_images_do_not_end_the_run(run, tmp_path):
    model = write_detector(tmp_path / "d.onnx", DETECTOR)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 20_000))
    draw().save(tmp_path / "same.png")
    draw().save(tmp_path / "same.jpg")
    bad, good = ["missing.png", "folder.png", "text.png", "huge.png"], ["same.png", "same.jpg"]
    paths = [tmp_path / name for name in bad + good]
    status, found, err = run(model, *paths, "--output", tmp_path / "drawn")
    assert status == 1
    assert [line.split(": ")[:2] for line in err] == [["error", str(tmp_path / name)] for name in bad]
    assert [Path(entry["image"]).name for entry in found] == good
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_invalid_models_and_output_give_a_one_line_error(run, tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    write_detector(tmp_path / "foreign.onnx", {})
    write_detector(tmp_path / "backbone.onnx", {"kind": "features", "preprocessing": None})
    draw().save(tmp_path / "a.png")
    for name in ("missing", "text", "foreign", "backbone"):
        message, found, _ = run(tmp_path / f"{name}.onnx", tmp_path / "a.png")
        assert message.startswith(f"error: {tmp_path / name}.onnx ")
        assert (message.count("\n"), found) == (0, [])
    model = write_detector(tmp_path / "d.onnx", DETECTOR)
    message, _, _ = run(model, tmp_path / "a.png", "--output", tmp_path / "a.png")
    assert message == f"error: --output {tmp_path / 'a.png'} cannot be made: File exists"


@pytest.mark.parametrize("top", [255, 4000, 65535])
def test_16_bit_images_are_read_as_in_the_package(example, tmp_path, top):
    Image.fromarray(np.linspace(0, top, 64 * 48).reshape(48, 64).astype(np.uint16)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(np.asarray(example.read(tmp_path / "gray.png")), read_image(tmp_path / "gray.png"))
