"""The studies of `resnet-backbones analyze`: output files, resuming and errors."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY as TINY_DETECTOR
from conftest import coco_overrides, write_coco, write_images
from helpers import randomize_statistics, save_detector
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from resnet_backbones.__main__ import main
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.config import load_config
from resnet_backbones.preprocessing import IMAGENET_STD, Preprocessing
from resnet_backbones.weights import metadata_of, save_safetensors


@pytest.fixture
def data(tmp_path):
    write_images(tmp_path / "images", {"ant": 5, "bee": 3, "cat": 3})
    return str(tmp_path / "images")


@pytest.fixture
def analyze(tmp_path, data, capfd):
    """Runs a study on the tiny images into tmp_path/out; returns status, stdout and stderr."""

    def run(*arguments: str, data: str = data) -> tuple[int, str, str]:
        status = 0
        try:
            options = ["--data", data, "--output", f"{tmp_path}/out", "--num-workers", "0"]
            main(["analyze", *arguments, *options])
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return run


def read(tmp_path, study: str) -> dict:
    assert np.asarray(Image.open(tmp_path / "out" / f"{study}.png")).std() > 0
    return json.loads((tmp_path / "out" / f"{study}.json").read_text())


def save_classifier(path, name: str, classes=("ant", "bee", "cat"), std=IMAGENET_STD, **options):
    """A classifier with random weights, and the path of its file."""
    model = build_classifier(name, 3, preprocessing=Preprocessing(std=std, size=32, resize=32), **options).eval()
    randomize_statistics(model)
    model.backbone.preprocessing = model.preprocessing
    save_safetensors(path, model.state_dict(), metadata_of(model) | {"classes": list(classes)})
    return model, str(path)


def test_lesion_errors_match_evaluation_with_the_block_zeroed(analyze, tool, tmp_path, data):
    model, weights = save_classifier(tmp_path / "a.safetensors", "cifar_resnet20")
    status, out, err = analyze("lesions", "--weights", weights, "--draws", "1", "--split", "train")
    assert status == 0, err
    (label,) = (found := read(tmp_path, "lesions")["networks"])
    found, rows = found[label], found[label]["experiments"]
    assert label == f"cifar_resnet20, {weights}"
    options = ["--eval-only", f"weights={weights}", "preprocessing.size=null", "preprocessing.resize=null"]
    options += ["preprocessing.image_mean=null", "preprocessing.image_std=null", "data.num_workers=0"]

    def error_of(weights: str) -> float:
        config = ["--config", "cifar10_resnet20_quick.yaml", f"data.root={data}", "data.val=train"]
        assert tool("pretrain", *config, *options, f"weights={weights}", f"output_dir={tmp_path}/eval")[0] == 0
        return 100 - json.loads((tmp_path / "eval/metrics.json").read_text())["top1"]

    assert rows[0] == {"kind": "baseline"} | {k: rows[0][k] for k in ("error", "top5_error")}
    assert rows[0]["error"] == pytest.approx(error_of(weights))
    nn.init.zeros_(model.backbone.layer1[0].bn2.weight)
    nn.init.zeros_(model.backbone.layer1[0].bn2.bias)
    save_safetensors(
        tmp_path / "b.safetensors", model.state_dict(), metadata_of(model) | {"classes": ["ant", "bee", "cat"]}
    )
    assert rows[1]["blocks"] == ["backbone.layer1.0"]
    assert rows[1]["error"] == pytest.approx(error_of(str(tmp_path / "b.safetensors")))
    assert f"backbone.layer1.0           {rows[1]['error']:>8.2f}" in out
    assert [row["length"] for row in found["paths"]] == list(range(10))


def test_a_study_resumes_only_with_the_same_settings_and_weights(analyze, tmp_path):
    _, weights = save_classifier(tmp_path / "a.safetensors", "cifar_plain20")
    assert analyze("lesions", "--weights", weights, "--draws", "1")[0] == 0
    path = tmp_path / "out/lesions.json"
    whole = json.loads(path.read_text())
    (label,) = whole["networks"]
    unfinished = json.loads(path.read_text())
    del unfinished["networks"][label]["experiments"][3:]
    unfinished["networks"][label]["experiments"][1]["error"] = 12.5  # not measured again
    path.write_text(json.dumps(unfinished))
    assert analyze("lesions", "--weights", weights, "--draws", "1")[0] == 0
    whole["networks"][label]["experiments"][1]["error"] = 12.5
    assert json.loads(path.read_text()) == whole
    status, _, err = analyze("lesions", "--weights", weights, "--draws", "2")
    assert status == 2
    assert f"{path} was made with draws 1, not 2; choose another --output, or remove the file." in err
    whole["networks"][label]["experiments"][1]["blocks"] = ["layer9"]
    path.write_text(json.dumps(whole))
    assert "is not from an earlier study, or damaged" in analyze("lesions", "--weights", weights, "--draws", "1")[2]
    save_classifier(tmp_path / "a.safetensors", "cifar_plain20")
    assert f"{weights} has changed since" in analyze("lesions", "--weights", weights, "--draws", "1")[2]
    path.write_text("{")
    assert "is not from an earlier study, or damaged" in analyze("lesions", "--weights", weights)[2]


def test_responses_and_gradients_of_several_networks(analyze, tmp_path):
    _, weights = save_classifier(tmp_path / "a.safetensors", "cifar_preact_resnet20")
    names = ["--name", "cifar_plain20", "cifar_resnet20"]
    assert analyze("responses", *names)[0] == 0
    found = read(tmp_path, "responses")["networks"]
    assert list(found) == ["cifar_plain20, untrained", "cifar_resnet20, untrained"]
    assert len(found["cifar_plain20, untrained"]) == 19
    status, out, _ = analyze("gradients", "--weights", weights)
    assert status == 0
    found = read(tmp_path, "gradients")["networks"]
    assert list(found) == ["cifar_preact_resnet20, untrained", f"cifar_preact_resnet20, {weights}"]
    for rows in found.values():
        assert max(row["constant_error"] or 0 for row in rows) < 1e-5
    assert f"norm at backbone.layer1.0 {found[f'cifar_preact_resnet20, {weights}'][0]['norm']:.4g}" in out


def test_lesions_and_gradients_of_a_detector(analyze, tmp_path):
    write_coco(tmp_path)
    _, weights = save_detector(tmp_path, "faster_rcnn")
    config = load_config("coco_faster_rcnn_R50.yaml", [*TINY_DETECTOR, *coco_overrides(tmp_path)])
    (tmp_path / "data.yaml").write_text(OmegaConf.to_yaml(config))
    data = str(tmp_path / "data.yaml")
    assert analyze("lesions", "--weights", weights, "--draws", "0", data=data)[0] == 0
    (label,) = (networks := read(tmp_path, "lesions")["networks"])
    assert label == f"faster_rcnn of resnet18_fpn, {weights}"
    rows = networks[label]["experiments"]
    assert [row["kind"] for row in rows] == ["baseline"] + 8 * ["single"]
    assert all("bbox/AP" in row for row in rows)
    assert analyze("gradients", "--weights", weights, data=data)[0] == 0
    (_, trained) = read(tmp_path, "gradients")["networks"].values()
    assert [row["block"].split(".")[-2:] for row in trained] == [[f"layer{k}", i] for k in (1, 2, 3, 4) for i in "01"]
    assert all(row["norm"] > 0 for row in trained)


def test_shortcuts_study_counts_the_parameters_of_each_option(analyze, tmp_path):
    a = save_classifier(tmp_path / "a.safetensors", "cifar_resnet20", shortcut="A")[1]
    c = save_classifier(tmp_path / "c.safetensors", "cifar_resnet20", shortcut="C")[1]
    status, _, err = analyze("shortcuts", "--weights", a, c)
    assert status == 0, err
    rows = list(read(tmp_path, "shortcuts")["networks"].values())
    assert rows[0]["parameters"] == 269_722 - 7 * 65  # Table 6 has 10 classes
    projections = 3 * (16 * 16 + 32) + (16 * 32 + 64) + 2 * (32 * 32 + 64) + (32 * 64 + 128) + 2 * (64 * 64 + 128)
    assert rows[1]["parameters"] - rows[0]["parameters"] == projections


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lesions", "--name", "vgg11"], "vgg11, untrained: This network has no blocks: its stages are single layers."),
        (["gradients", "--name", "resnet1"], "Unknown backbone 'resnet1'"),
        (["responses"], "Give --weights FILE, or --name NAME for an untrained network."),
        (["responses", "--name", "resnet18", "--images", "0"], "--images is 0; it must be at least 1."),
        (["responses", "--name", "resnet18", "shortcat=A"], "Unknown option of resnet18 'shortcat'"),
        (["responses", "--name", "resnet18", "--split", "test"], "There are no images in"),
        (["responses", "--name", "resnet18", "drop_path=abc"], "cannot be built with {'drop_path': 'abc'}"),
        (["responses", "--name", "resnet18", "weights=a.pt"], "Unknown option of resnet18 'weights'"),
        (["responses", "--name", "resnet18", "--seed", "-1"], "--seed is -1; it must be from 0 to 4294967295."),
        (["shortcuts", "--name", "resnet18", "shortcut=B"], "leave shortcut= out."),
        (["shortcuts", "--name", "resnet18", "--images", "8"], "--images does not apply"),
        (["shortcuts", "--name", "swin_t"], "swin_t has no option shortcut; choose a residual network."),
        (["lesions", "--name", "densenet121"], "densenet121, untrained: No block can be removed"),
    ],
)
def test_impossible_studies_give_a_one_line_error(analyze, arguments, message):
    status, _, err = analyze(*arguments)
    assert status == 2
    assert message in err
    assert err.strip().count("\n") == 0


def test_nothing_is_written_if_one_network_is_unsupported(analyze, tmp_path):
    status, _, err = analyze("gradients", "--name", "cifar_resnet20", "vgg11")
    assert status == 2
    assert "vgg11, untrained: This network has no blocks" in err
    assert not (tmp_path / "out").exists()


def test_empty_data_is_refused(analyze):
    err = analyze("responses", "--name", "resnet18", data="")[2]
    assert err == "error: --data is empty; give what to run the networks on.\n"


def test_weights_of_an_unstated_network_need_its_name(analyze, tmp_path):
    torch.save({"conv1.weight": torch.ones(16, 3, 3, 3)}, tmp_path / "bare.pth")
    err = analyze("responses", "--weights", str(tmp_path / "bare.pth"))[2]
    assert "bare.pth does not say which network it holds; give its backbone with --name." in err


def test_some_but_not_all_names_are_refused(analyze, tmp_path):
    _, weights = save_classifier(tmp_path / "a.safetensors", "cifar_resnet20")
    err = analyze("responses", "--weights", weights, weights, "--name", "cifar_resnet20")[2]
    assert "--name has 1 for the 2 of --weights; give one for each, or none." in err


def test_data_of_other_classes_is_refused(analyze, tmp_path):
    _, weights = save_classifier(tmp_path / "a.safetensors", "cifar_resnet20")
    write_images(tmp_path / "other", {"wasp": 2, "bee": 2})
    err = analyze("responses", "--weights", weights, data=str(tmp_path / "other"))[2]
    assert "a.safetensors has 3 classes" in err


def test_the_options_of_the_weights_file_apply_to_its_name(analyze, tmp_path):
    _, weights = save_classifier(tmp_path / "b.safetensors", "cifar_resnet20", shortcut="B")
    assert analyze("responses", "--weights", weights, "--name", "cifar_resnet20")[0] == 0
    assert list(read(tmp_path, "responses")["networks"]) == [f"cifar_resnet20 shortcut=B, {weights}"]


def test_the_untrained_twin_has_the_options_of_the_weights_file(analyze, tmp_path):
    weights = [save_classifier(tmp_path / f"{k}.safetensors", "cifar_resnet20", shortcut=k)[1] for k in "BC"]
    assert analyze("gradients", "--weights", *weights, "--batch-size", "4")[0] == 0
    found = read(tmp_path, "gradients")["networks"]
    labels = [
        f"cifar_resnet20 shortcut={k}, {end}"
        for k, file in zip("BC", weights, strict=True)
        for end in ("untrained", file)
    ]
    assert list(found) == labels
    assert found[labels[0]][0]["norm"] != found[labels[2]][0]["norm"]


def test_the_untrained_twin_has_the_classes_and_preprocessing_of_the_weights_file(analyze, tmp_path):
    norms = []
    for k, more in enumerate([{}, {}, {"classes": ["cat", "bee", "ant"]}, {"std": (0.1, 0.1, 0.1)}]):
        _, weights = save_classifier(tmp_path / f"{k}.safetensors", "cifar_resnet20", **more)
        assert analyze("gradients", "--weights", weights, "--images", "4")[0] == 0
        norms.append(read(tmp_path, "gradients")["networks"]["cifar_resnet20, untrained"][0]["norm"])
        (tmp_path / "out/gradients.json").unlink()
    assert norms[0] == norms[1]
    assert len({*norms}) == 3


def test_non_finite_weights_are_refused(analyze, tmp_path):
    model, weights = save_classifier(tmp_path / "a.safetensors", "cifar_resnet20")
    state = model.state_dict()
    state["layer2.0.conv1.weight"][0] = float("nan")
    save_safetensors(tmp_path / "a.safetensors", state, metadata_of(model) | {"classes": ["ant", "bee", "cat"]})
    status, _, err = analyze("responses", "--weights", weights)
    assert status == 2
    assert f"{weights}: layer2.0.conv1.weight has values that are not finite; nothing can be measured with it." in err
