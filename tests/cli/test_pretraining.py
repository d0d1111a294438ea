"""Pretraining from the command line: output files, resuming, evaluation and errors."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, write_images
from PIL import Image
from safetensors import safe_open

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import load_classifier
from resnet_backbones.data.views import build_views
from resnet_backbones.detectors.torchvision import faster_rcnn
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.classification import score_classifiers, view_probabilities

TINY = [
    "augmentation.size=32",
    "augmentation.padding=2",
    "preprocessing.resize=32",
    "preprocessing.size=32",
    "solver.batch_size=4",
    "solver.lr=0.05",
    "solver.epochs=null",
    "solver.warmup_epochs=0",
    "solver.max_iter=4",
    "solver.log_period=1",
    "evaluation.batch_size=5",
    "evaluation.period=2",
    "data.num_workers=0",
]
COUNTS = {"ant": 5, "bee": 3, "cat": 3}


@pytest.fixture
def pretrain(tool, tmp_path):
    """Trains a small classifier on three classes, into tmp_path/out; returns status, stdout and stderr."""
    write_images(tmp_path / "images", COUNTS)

    def run(*arguments: str, config: str = "cifar10_resnet20_quick.yaml") -> tuple[int, str, str]:
        settings = [*TINY, f"data.root={tmp_path}/images", f"output_dir={tmp_path}/out", *arguments]
        return tool("pretrain", "--config", config, *settings)

    return run


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metadata_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return {key: json.loads(v) for key, v in file.metadata().items() if key != "format"}


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def one_line_error(result: tuple[int, str, str]) -> str:
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2, err
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_a_run_writes_metrics_curves_report_and_weights(pretrain, tmp_path):
    status, out, err = pretrain()
    assert status == 0, err
    folder = tmp_path / "out"
    metrics = metrics_of(folder)
    assert set(metrics) == {"top1", "top5"}
    assert metrics["top5"] == 100  # of three classes
    assert "top1" in out.splitlines()[-2]
    rows = rows_of(folder)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "top1" in row] == [2, 4]
    assert all(0 <= row["error"] <= 100 and 0 <= row["data_wait"] <= 1 for row in rows if "loss" in row)
    assert rows[0]["loss"] == rows[0]["loss_classifier"]
    assert Image.open(folder / "curves.png").size == (1320, 540)
    report = json.loads((folder / "report.json").read_text())
    assert report["overall"] == pytest.approx(metrics)
    assert {row["class"]: row["images"] for row in report["classes"]} == COUNTS
    page = (folder / "report.html").read_text()
    assert page.count('"picture":"data:image/jpeg;base64,') == sum(COUNTS.values())
    assert '"name":"loss_classifier"' in page

    metadata = metadata_of(folder / "model.safetensors")
    assert metadata["architecture"] == {"name": "cifar_resnet20", "options": {"norm": "BN"}}
    assert metadata["features"]["res4"] == {"channels": 64, "stride": 4}
    assert metadata["classes"] == ["ant", "bee", "cat"]
    assert metadata["metrics"] == metrics
    assert metadata["preprocessing"] == {
        "mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262], "channel_order": "RGB", "input_range": 1.0,
        "resize": 32, "size": 32, "interpolation": "bilinear",
    }  # fmt: skip
    assert metadata["recipe"]["solver"]["lr"] == 0.05


def test_eval_only_reproduces_the_metrics_of_the_run(pretrain, tmp_path):
    pretrain()
    status, _, err = pretrain(
        "--eval-only", f"weights={tmp_path}/out/model.safetensors", f"output_dir={tmp_path}/scored",
        "preprocessing.image_mean=null", "preprocessing.image_std=null",
    )  # fmt: skip
    assert status == 0, err
    assert metrics_of(tmp_path / "scored") == metrics_of(tmp_path / "out")
    assert not (tmp_path / "scored" / "last.pt").exists()


def test_a_resumed_run_ends_with_the_same_weights(pretrain, tmp_path):
    options = ["solver.ema_decay=0.5", "augmentation.mixup=0.2", "augmentation.lighting=0.1", "data.max_unreadable=3"]
    (tmp_path / "images/train/bee/1.jpg").write_bytes(b"broken")
    status, out, err = pretrain(*options, f"output_dir={tmp_path}/whole")
    assert status == 0, err
    assert "bee/1.jpg cannot be decoded" in out

    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    (tmp_path / "out/last-1.pt").replace(tmp_path / "out/last.pt")
    assert torch.load(tmp_path / "out/last.pt", weights_only=True)["step"] == 2
    assert pretrain(*options, "--resume")[0] == 0
    assert equal(weights(tmp_path / "out/last.pt"), weights(tmp_path / "whole/last.pt"))
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "whole")
    final = [load_classifier(f"{tmp_path}/{run}/model.safetensors").state_dict() for run in ("out", "whole")]
    assert equal(*final)
    assert not torch.equal(final[0]["fc.weight"], weights(tmp_path / "whole/last.pt")["fc.weight"])  # the EMA


@pytest.mark.slow
def test_every_recipe_takes_a_step(pretrain, tmp_path):
    for name in ("imagenet_resnet18", "imagenet_resnet50_large_batch", "imagenet_resnet50_v2", "imagenet_resnet50_a2",
                 "cifar10_resnet110"):  # fmt: skip
        backbone = [] if name.startswith("cifar") else ["backbone.name=resnet18", "augmentation.shorter_side=[32,40]"]
        if name.endswith("a2"):
            pytest.importorskip("timm")
        status, _, err = pretrain(
            *backbone, "solver.step_epochs=[]", "solver.max_iter=1", "solver.accumulate=1", "solver.amp=none",
            "solver.steps=[]", "evaluation.period=0", config=name,
        )  # fmt: skip
        assert status == 0, (name, err)
        (loss,) = [row["loss"] for row in rows_of(tmp_path / "out") if "loss" in row]
        assert 0 < loss < math.inf, name


def test_the_degradation_experiment_plots_a_curve_per_network(pretrain, tmp_path):
    status, _, err = pretrain("compare=[cifar_plain20,cifar_resnet20]", "solver.steps=[]", config="cifar10_degradation")
    assert status == 0, err
    for name in ("cifar_plain20", "cifar_resnet20"):
        assert metadata_of(tmp_path / "out" / name / "model.safetensors")["architecture"]["name"] == name
    picture = np.asarray(Image.open(tmp_path / "out" / "comparison.png").convert("RGB"))
    for color in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two colors: one curve per network
        assert (np.abs(picture.astype(int) - color).sum(2) < 30).sum() > 100


def test_compare_accepts_backbone_options(pretrain, tmp_path):
    entries = ["cifar_resnet29", "cifar_resnet29 groups=32 width_per_group=4", "cifar_resnet20 shortcut=C"]
    status, out, err = pretrain(f"compare=[{','.join(entries)}]", "solver.schedule=steps", config="cifar10_cardinality")
    assert status == 0, err
    rows = json.loads((tmp_path / "out/comparison.json").read_text())["networks"]
    assert [row["name"] for row in rows] == entries
    for row in rows:
        folder = tmp_path / "out" / row["name"].replace(" ", "-")
        log = rows_of(folder)
        assert row["error"] == pytest.approx(100 - metrics_of(folder)["top1"])
        assert row["training_error"] == [line["error"] for line in log if "error" in line][-1]
        assert row["seconds"] == pytest.approx(sum(4 / v["images_per_second"] for v in log if "error" in v))
        assert row["name"] in out
    assert [row["flops"] for row in rows[:2]] == [pytest.approx(47.1e6, rel=0.01), pytest.approx(48.7e6, rel=0.01)]
    assert metadata_of(folder / "model.safetensors")["architecture"]["options"]["shortcut"] == "C"
    status, _, err = pretrain("compare=[cifar_resnet20 shortcat=B]", config="cifar10_cardinality")
    assert status == 2
    assert "shortcat" in err
    assert len(err.strip().splitlines()) == 1


def test_per_pixel_mean_is_the_mean_of_the_training_crops(pretrain, tmp_path):
    assert pretrain("preprocessing.per_pixel_mean=true", "preprocessing.image_mean=null")[0] == 0
    mean = np.array(metadata_of(tmp_path / "out/model.safetensors")["preprocessing"]["mean"])
    crops = []
    for path in sorted((tmp_path / "images/train").glob("*/*")):
        resized = torchvision.transforms.v2.functional.resize(
            torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1), [32]
        )
        crops.append(torchvision.transforms.v2.functional.center_crop(resized, [32, 32]).numpy())
    np.testing.assert_allclose(mean, np.mean(crops, 0) / 255, atol=1e-6)
    backbone = build_backbone("cifar_resnet20", weights=str(tmp_path / "out/model.safetensors"))
    rgb, _ = backbone.preprocessing.as_rgb()
    np.testing.assert_allclose(rgb, mean.mean((1, 2)), rtol=1e-6)


def test_views_match_a_plain_loop_over_crops(pretrain, tmp_path):
    pretrain("preprocessing.resize=40")
    file = tmp_path / "out" / "model.safetensors"
    model = load_classifier(str(file)).eval()
    images = [
        (torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1), ["ant", "bee", "cat"].index(path.parent.name))
        for path in sorted((tmp_path / "images/val").glob("*/*"))
    ]
    images[0] = (images[0][0].permute(0, 2, 1).contiguous(), 0)  # one portrait image among landscape ones
    Image.fromarray(images[0][0].permute(1, 2, 0).numpy()).save(tmp_path / "images/val/ant/0.png")
    (tmp_path / "images/val/ant/0.jpg").unlink()
    resize = torchvision.transforms.v2.functional.resize

    def ten(image):
        image = resize(image, [40])
        h, w = image.shape[1:]
        corners = [(0, 0), (0, w - 32), (h - 32, 0), (h - 32, w - 32), (round((h - 32) / 2), round((w - 32) / 2))]
        crops = [image[:, y : y + 32, x : x + 32] for y, x in corners]
        return [*crops, *(crop.flip(-1) for crop in crops)]

    def scales(image):
        sizes = [resize(image, [side]) for side in (24, 33, 64)]
        return [*sizes, *(size.flip(-1) for size in sizes)]

    for name, loop in (("ten_crop", ten), ("multi_scale", scales)):
        make = build_views(name, [24, 33, 64], model.preprocessing)
        with torch.no_grad():
            theirs = torch.stack([sum(model(v[None])[0].softmax(0) for v in loop(i)) / len(loop(i)) for i, _ in images])
            batches = [images[:5], images[5:]] if name == "ten_crop" else [[pair] for pair in images]
            ours = torch.cat([view_probabilities(model, [make(i) for i, _ in b], torch.device("cpu")) for b in batches])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        status, _, err = pretrain(
            "--eval-only", f"weights={file}", "preprocessing.resize=40",
            f"evaluation.views={name}", "evaluation.scales=[24,33,64]",
        )  # fmt: skip
        assert status == 0, err
        hits = sum(int(p.argmax()) == label for p, (_, label) in zip(theirs, images, strict=True))
        assert metrics_of(tmp_path / "out")["top1"] == pytest.approx(100 * hits / len(images))


def test_an_ensemble_averages_the_probabilities_of_its_models(pretrain, tmp_path):
    pretrain(f"output_dir={tmp_path}/a")
    pretrain(f"output_dir={tmp_path}/b", "backbone.name=cifar_plain20", "seed=1")
    a, b = (str(tmp_path / run / "model.safetensors") for run in "ab")
    models = [load_classifier(source).eval() for source in (a, b)]
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        mean = (models[0](images).softmax(1) + models[1](images).softmax(1)) / 2
    labels = mean.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    loader = [([[image[None]] for image in images], {"labels": labels})]
    assert score_classifiers(models, loader)["top1"] == pytest.approx(500 / 6)
    assert score_classifiers(models[:1] * 3, loader) == score_classifiers(models[:1], loader)

    assert pretrain("--eval-only", f"weights={a}", f"ensemble=[{a}]")[0] == 0
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "a")
    assert pretrain("--eval-only", f"weights={a}", f"ensemble=[{b}]")[0] == 0


def on_two_ranks(tmp_path, *arguments: str) -> dict:
    """The metrics of `pretrain` on two ranks, in tmp_path/two."""
    command = [sys.executable, "tools/pretrain.py", "--num-gpus", "2"]
    settings = ["--config", "cifar10_resnet20_quick.yaml", *TINY, f"data.root={tmp_path}/images", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *settings, f"output_dir={tmp_path}/two"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return metrics_of(tmp_path / "two")


@pytest.mark.slow
def test_evaluation_on_two_ranks_matches_one_process(pretrain, tmp_path):
    (tmp_path / "images/val/cat/1.jpg").write_bytes(b"broken")  # 10 images, not a multiple of ranks x batch
    pretrain()
    weights_file = f"weights={tmp_path}/out/model.safetensors"
    assert on_two_ranks(tmp_path, "--eval-only", weights_file, "evaluation.batch_size=2") == metrics_of(
        tmp_path / "out"
    )


@pytest.mark.slow
def test_per_pixel_mean_on_two_ranks_matches_one_process(pretrain, tmp_path):
    options = ["preprocessing.per_pixel_mean=true", "preprocessing.image_mean=null", "evaluation.precise_bn=1"]
    assert pretrain(*options)[0] == 0
    on_two_ranks(tmp_path, *options)
    means = [metadata_of(tmp_path / run / "model.safetensors")["preprocessing"]["mean"] for run in ("out", "two")]
    np.testing.assert_allclose(*means, rtol=1e-12)


def test_fine_tuning_on_other_classes_replaces_only_fc(pretrain, tmp_path):
    pretrain()
    file = tmp_path / "out" / "model.safetensors"
    more = ["data.classes=[ant,bee,cat,dog]", "solver.lr=1e-30", f"output_dir={tmp_path / 'more'}"]
    status, out, err = pretrain(f"weights={file}", *more)
    assert status == 0, err
    assert "has 3 classes, but the data has 4; fc keeps its random weights" in out
    one, other = load_classifier(str(file)), load_classifier(str(tmp_path / "more" / "model.safetensors"))
    assert torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)
    assert other.classes == ["ant", "bee", "cat", "dog"]
    assert other.fc.out_features == 4


def test_a_detector_loads_backbone_and_preprocessing_from_the_file(pretrain, tmp_path, caplog, monkeypatch):
    pretrain("backbone.name=resnet18", "preprocessing.image_mean=[0.4,0.5,0.6]")
    monkeypatch.setattr(logging.getLogger("resnet_backbones"), "propagate", True)  # a run turns it off
    file = str(tmp_path / "out" / "model.safetensors")
    with caplog.at_level("INFO", "resnet_backbones"):
        backbone = build_backbone("resnet18_fpn", norm="FrozenBN", freeze_at=2, weights=file)
    assert "loaded 120 of its 122 tensors, dropped fc.bias, fc.weight; the FPN keeps its random weights" in caplog.text
    assert torch.equal(backbone.body.conv1.weight, load_classifier(file).backbone.conv1.weight)
    model = faster_rcnn(backbone, 2, min_size=[64])
    image = torch.full((3, 64, 64), 0.5)
    normalized = model.transform([image])[0].tensors[0]
    expected = (0.5 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.247, 0.243, 0.262])
    torch.testing.assert_close(normalized[:, 0, 0], expected)
    with pytest.raises(UserError, match=r"image_mean is \[0.5, 0.5, 0.5\].*were trained with \[0.4, 0.5, 0.6\]"):
        faster_rcnn(backbone, 2, image_mean=[0.5, 0.5, 0.5])
    same = faster_rcnn(backbone, 2, min_size=[64], image_mean=[0.4, 0.5, 0.6])
    assert torch.equal(same.transform([image])[0].tensors, model.transform([image])[0].tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["weights={file}", "--eval-only", "backbone.name=cifar_plain20"],
            "holds a cifar_resnet20, but the backbone is",
        ),
        (["weights={file}", "--eval-only", "data.classes=[ant,bee,cat,dog]"], "has 3 classes, but"),
        (["weights={file}", "preprocessing.image_mean=[0,0,0]"], "image_mean is [0.0, 0.0, 0.0], but the backbone's"),
        (["--eval-only"], "--eval-only needs the weights to score: weights=FILE"),
        (["solver.lr=1e30"], "The loss is not finite at step "),
        (["solver.epochs=3"], "solver.epochs is 3.0; it must be null or max_iter null (4)"),
        (["loss.name=hinge"], "loss.name is hinge; it must be cross_entropy or bce"),
        (["data.val=test"], "There are no images in"),
        (["backbone.name=resnet18_fpn"], "remove _fpn from its name"),
        (["evaluation.views=multi_scale", "preprocessing.per_pixel_mean=true"], "must be false unless images have one"),
        (["augmentation.mixxup=1"], "unknown key augmentation.mixxup. Did you mean mixup?"),
    ],
)
def test_bad_arguments_give_a_one_line_error(pretrain, tmp_path, arguments, message):
    if any("{file}" in argument for argument in arguments):
        assert pretrain(f"output_dir={tmp_path}/first")[0] == 0
    file = tmp_path / "first" / "model.safetensors"
    assert message in one_line_error(pretrain(*(argument.format(file=file) for argument in arguments)))


def test_a_config_for_the_other_command_is_refused(tool):
    error = one_line_error(tool("train_net", "--config", "imagenet_resnet50"))
    assert "imagenet_resnet50.yaml is a config for `resnet-backbones pretrain`, not for train" in error
    error = one_line_error(tool("pretrain", "--config", "coco_fcos_R50"))
    assert "coco_fcos_R50.yaml is a config for `resnet-backbones train`, not for pretrain" in error


def test_too_many_unreadable_images_are_an_error(pretrain, tmp_path):
    for path in (tmp_path / "images/train/ant").iterdir():
        path.write_bytes(b"broken")
    message = one_line_error(pretrain("data.max_unreadable=2"))
    assert "cannot be decoded" in message
    assert "This is unreadable image 3; data.max_unreadable allows 2" in message
