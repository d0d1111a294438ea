"""Synthetic data, the real data where it is available, and the tools called as a user calls them."""

import importlib.util
import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_backbones.__main__ import main
from resnet_backbones.data.annotations import Annotations
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

# Overrides that turn any YAML into the smallest detector with every part.
TINY = [
    "backbone.name=resnet18_fpn",
    "backbone.norm=BN",
    "backbone.freeze_at=0",
    "backbone.weights=null",
    "backbone.fpn_channels=32",
    "detector.min_size=[64]",
    "detector.max_size=64",
    "detector.anchor_sizes=[[8],[16],[32],[64],[128]]",
    "detector.rpn_pre_nms_top_n_train=100",
    "detector.rpn_post_nms_top_n_train=50",
    "detector.rpn_pre_nms_top_n_test=50",
    "detector.rpn_post_nms_top_n_test=20",
    "detector.box_batch_size_per_image=16",
    "detector.box_head_width=32",
    "detector.mask_head_width=16",
    "detector.mask_head_depth=1",
    "solver.batch_size=2",
    "solver.max_iter=4",
    "solver.steps=[3]",
    "solver.warmup_iters=2",
    "solver.log_period=1",
    "evaluation.period=0",
    "data.num_workers=0",
]


# The smallest net of each family. Tests that take seconds run on these, and on every name in `make test-slow`.
REPRESENTATIVES = [
    "resnet18", "resnext50_32x4d", "preact_resnet18", "seresnet18", "resnet18d", "plain18", "vgg11_bn", "zfnet",
    "googlenet", "densenet121", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "swin_t",
]  # fmt: skip


def pytest_terminal_summary(terminalreporter, config):
    """Print how many fuzzed inputs of each family were accepted and refused."""
    reports = [report for group in terminalreporter.stats.values() for report in group if hasattr(report, "when")]
    rows = [value for r in reports if r.when == "call" for name, value in r.user_properties if name == "fuzz"]
    if rows:
        terminalreporter.section(f"fuzzed inputs, seed {config.getoption('hypothesis_seed') or 'derandomized'}")
        rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
        for family, accepted, refused in rows:
            terminalreporter.write_line(f"{family:18} {accepted + refused:6}: {accepted} accepted, {refused} refused")


@pytest.fixture(autouse=True)
def _fixed_seed_and_clean_global_state():
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    logging.getLogger("resnet_backbones").handlers.clear()  # left by a run in this process; their stdout is closed


@pytest.fixture
def shared():
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real data in ../shared/data is not available")
    return SHARED


@pytest.fixture
def tool(capfd):
    """`tool("train_net", *arguments)` runs a tool in this process and returns its exit status, stdout and stderr."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        status = 0
        try:
            module.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def detector_weights(tmp_path_factory):
    """The file of a small Mask R-CNN that has learned nothing."""
    from helpers import save_detector  # here, since helpers imports this file

    torch.manual_seed(0)
    return save_detector(tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture
def predict(tmp_path, detector_weights, capfd, monkeypatch):
    """Runs the command into tmp_path/out; returns its exit status, stdout and stderr."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored, since the command lifts it

    def run(*arguments, weights=detector_weights):
        status = 0
        try:
            main(["predict", weights, "--output", str(tmp_path / "out"), *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def standard_input(monkeypatch):
    """Puts bytes on standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def draw(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_coco(folder: Path, count: int = 4) -> dict:
    """Write a COCO dataset of `count` images with a square and a crowd each; returns the content of its JSON."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    for k in range(count):
        file_name = f"{k}.png"
        draw(seed=k).save(folder / "images" / file_name)
        content["images"].append({"id": 100 + k, "file_name": file_name, "width": 48, "height": 40})
        square = [[10, 8, 30, 8, 30, 28, 10, 28]]
        crowd = {"size": [40, 48], "counts": [0, 80, 40 * 48 - 80]}
        content["annotations"] += [
            {"id": 2 * k + 1, "image_id": 100 + k, "category_id": 7 if k % 2 else 3, "bbox": [10, 8, 20, 20],
             "area": 400, "iscrowd": 0, "segmentation": square},
            {"id": 2 * k + 2, "image_id": 100 + k, "category_id": 7, "bbox": [0, 0, 2, 40],
             "area": 80, "iscrowd": 1, "segmentation": crowd},
        ]  # fmt: skip
    save_coco(folder, content)
    return content


def save_coco(folder: Path, content: dict) -> None:
    (folder / "instances.json").write_text(json.dumps(content))


def read_coco(folder: Path) -> Annotations:
    """The dataset of `write_coco(folder)`, loaded as a user's own."""
    spec = {"format": "coco", "root": str(folder / "images"), "annotations": str(folder / "instances.json")}
    return load_annotations("own", {"own": spec})


def coco_dataset(folder: Path, **options) -> DetectionDataset:
    """The dataset of `write_coco(folder)` as a training set without flips."""
    return DetectionDataset([read_coco(folder)], **{"train": True, "flip": 0.0} | options)


def read_voc(root: Path, split: str = "train", **options) -> Annotations:
    """The dataset of `write_voc(root)`, loaded as a user's own."""
    return load_annotations("own", {"own": {"format": "voc", "root": str(root), "split": split, **options}})


def coco_overrides(folder: Path) -> list[str]:
    """Overrides that train and test on the dataset of `write_coco(folder)`."""
    spec = f"{{format: coco, root: {folder / 'images'}, annotations: {folder / 'instances.json'}}}"
    return [f"datasets.own={spec}", "data.train=[own]", "data.test=[own]"]


def write_images(
    root: Path, counts: dict[str, int], splits: tuple[str, ...] = ("train", "val"), side: int = 40
) -> None:
    """Write a SPLIT/CLASS/K.jpg tree; the images of a class share a color, plus noise."""
    for s, split in enumerate(splits):
        for c, (name, count) in enumerate(counts.items()):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                noise = np.random.default_rng([s, c, k]).integers(0, 120, (side, side + 8, 3))
                noise[:, :, c % 3] += 120
                Image.fromarray(noise.astype(np.uint8)).save(root / split / name / f"{k}.jpg", quality=95)


VOC_XML = """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}</annotation>"""
VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_voc(root: Path, images: dict[str, list[tuple[str, tuple, int]]], size: tuple[int, int] = (48, 40)) -> None:
    """Write a devkit with one split "train" of `images`: name -> [(class, (xmin, ymin, xmax, ymax), difficult)]."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(images) + "\n")
    for k, (name, objects) in enumerate(images.items()):
        draw(*size, seed=k).save(root / "JPEGImages" / f"{name}.jpg")
        text = "".join(VOC_OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
        (root / "Annotations" / f"{name}.xml").write_text(VOC_XML.format(width=size[0], height=size[1], objects=text))
