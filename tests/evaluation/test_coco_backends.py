"""COCO's metrics by faster-coco-eval equal those of pycocotools to the last bit, on random data of every odd kind."""

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbones.errors import UserError
from resnet_backbones.evaluation import backends
from resnet_backbones.evaluation.coco import evaluate_coco


def random_case(seed: int, images: int = 12, classes: int = 3, objects: int = 80) -> tuple[dict, list[dict]]:
    """Crowds, tied scores, classes and images without objects, all areas, more than 100 detections in an image."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [
            {"id": int(i) + 10**9, "height": int(rng.integers(40, 400)), "width": int(rng.integers(40, 400))}
            for i in rng.permutation(3 * images)[:images]
        ],
        "categories": [{"id": int(k), "name": f"class {k}"} for k in rng.permutation(2 * classes)[:classes]],
        "annotations": [],
    }
    found = []

    def add_found(image, category_id, box):
        score = float(rng.random()) if seed % 2 else round(float(rng.random()), 1)
        segmentation = encoded(region(rng, image, box))
        entry = {"image_id": image["id"], "category_id": category_id, "bbox": box, "score": score}
        found.append(entry | {"segmentation": segmentation})

    ids = rng.permutation(3 * objects)[:objects] + 1
    for k in range(objects):
        image = truth["images"][int(rng.integers(max(1, images - 2)))]
        category_id = truth["categories"][int(rng.integers(max(1, classes // 2)))]["id"]
        w, h = np.exp(rng.normal(3.5, 1, 2))
        box = [float(v) for v in (rng.uniform(-5, image["width"]), rng.uniform(-5, image["height"]), w, h)]
        segmentation = [polygon(rng, image) for _ in range(1 + k % 2)] if k % 3 else encoded(region(rng, image, box))
        area = float(rng.choice([w * h, 32**2, 96**2, 96**2 + 1e-9]))
        o = {"id": int(ids[k]), "image_id": image["id"], "category_id": category_id, "bbox": box, "area": area}
        truth["annotations"].append(o | {"iscrowd": int(rng.random() < 0.15), "segmentation": segmentation})
        for _ in range(rng.integers(0, 5)):
            moved = np.array(box) + rng.normal(0, 0.1, 4) * [w, h, w, h]
            other = truth["categories"][int(rng.integers(classes))]["id"]
            add_found(image, category_id if rng.random() < 0.8 else other, [float(v) for v in moved])
    for _ in range(150):
        box = [float(v) for v in (*rng.uniform(0, 40, 2), *rng.uniform(1, 100, 2))]
        add_found(truth["images"][0], truth["categories"][0]["id"], box)
    return truth, [found[i] for i in rng.permutation(len(found))]


def polygon(rng, image) -> list[float]:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    center, radius = rng.uniform(0, 1, 2) * [image["width"], image["height"]], rng.uniform(2, 60, len(angles))
    return (center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).ravel().tolist()


def region(rng, image, box) -> np.ndarray:
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    x, y, w, h = (int(v) for v in box)
    mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask & (rng.random(mask.shape) < 0.9).astype(np.uint8)


def encoded(mask) -> dict:
    e = rle.encode(np.asfortranarray(mask))
    return {"size": e["size"], "counts": e["counts"].decode()}


def reference(truth: dict, found: list[dict], iou_type: str) -> tuple[list[float], list[float], str]:
    """The twelve metrics, per-class AP in the order of ids, and the printed lines, from pycocotools called directly."""
    truth, found = copy.deepcopy((truth, found))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [precision[:, :, k][precision[:, :, k] > -1] for k in range(precision.shape[2])]
    lines = "".join(line for line in out.getvalue().splitlines(keepends=True) if line.startswith(" Average"))
    return evaluation.stats.tolist(), [float(p.mean()) if p.size else -1.0 for p in per_class], lines


def assert_equals_reference(truth: dict, found: list[dict], iou_type: str, backend: str = "faster_coco_eval") -> None:
    stats, per_class, lines = reference(truth, found, iou_type)
    metrics, printed = evaluate_coco(truth, found, iou_type, backend)
    assert list(metrics.values()) == [100 * v if v > -1 else -1.0 for v in stats + per_class]
    assert printed == lines


@pytest.fixture
def scored_in_cpp(caplog):
    """Whether faster-coco-eval scores this ground truth, and so far had no reason to leave it to pycocotools."""
    with caplog.at_level("DEBUG", backends.__name__):
        excuses = ("cannot score", "not installed")
        yield lambda truth, iou_type: backends.is_plain(truth, iou_type) and not any(e in caplog.text for e in excuses)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_metrics_and_lines_equal_pycocotools(seed, iou_type, scored_in_cpp):
    truth, found = random_case(seed)
    assert_equals_reference(truth, found, iou_type)
    without_boxes = [{k: v for k, v in p.items() if k != "bbox"} for p in found]
    if iou_type == "segm":  # sizes then come from the masks
        assert_equals_reference(truth, without_boxes, iou_type)
    assert scored_in_cpp(truth, iou_type)


def test_many_classes(scored_in_cpp):
    truth, found = random_case(7, images=30, classes=400, objects=300)
    assert_equals_reference(truth, found, "bbox")
    assert scored_in_cpp(truth, "bbox")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100, 101, 199, 200, 201, 256, 257, 1000])
@pytest.mark.parametrize("hits", ["1", "11", "10", "01", "101", "110", "111"])
def test_a_single_first_hit_has_the_precision_of_pycocotools(count, hits, scored_in_cpp):
    """tp / (tp + fp + 2^-52) is less than 1 for the first detection only, for any number of objects."""
    objects = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": [20 * k, 0, 10, 10], "area": 100, "iscrowd": 0}
        for k in range(count)
    ]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": objects}
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [20 * k, 0 if hit == "1" else 50, 10, 10], "score": 1 - k / 10}
        for k, hit in enumerate(hits)
    ]
    assert_equals_reference(truth, found, "bbox")
    assert scored_in_cpp(truth, "bbox")


def edit(truth, found, kind):
    objects = truth["annotations"]
    for k, o in enumerate(objects):
        if kind == "ids from 0":
            o["id"] = k
        elif kind == "negative ids":
            o["id"] = -k - 1
        elif kind == "doubled ids":
            o["id"] = k // 2 + 1
        elif kind == "broken crowds":
            o["iscrowd"] = 0.5 * (k % 2)
        elif kind == "crowds by ignore":
            o["ignore"] = 1
        elif kind == "unknown class":
            o["category_id"] = 10**6 if k % 3 else o["category_id"]
        elif kind == "float classes":
            o["category_id"] = float(o["category_id"])
        elif kind == "boxes of nothing":
            o["bbox"] = [*o["bbox"][:2], 0, 0]
        elif kind == "flat polygons" and isinstance(o["segmentation"], list):
            o["segmentation"] = [[1, 2, 10, 2, 5, 2], [3.0, 3, 30, 3, 30, 40, 7]]
    for k, p in enumerate(found):
        if kind == "keys of another meaning":
            p |= {"drop": True, "lvis_mark": True, "ignore": 1, "iscrowd": 1, "id": 0}
        elif kind == "integers":
            p["score"], p["bbox"] = int(3 * p["score"]), [int(v) for v in p["bbox"]]
        elif kind == "unknown class" and k % 5 == 0:
            p["category_id"] = 10**7
    if kind == "no objects":
        objects.clear()
    if kind == "doubled class":
        truth["categories"].append(dict(truth["categories"][0]))


KINDS = {  # whether faster-coco-eval scores it
    "ids from 0": False, "negative ids": False, "doubled ids": False, "broken crowds": False, "float classes": False,
    "doubled class": False, "crowds by ignore": True, "unknown class": True, "boxes of nothing": True,
    "flat polygons": True, "keys of another meaning": True, "integers": True, "no objects": True,
}  # fmt: skip


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("kind", KINDS)
def test_odd_files_have_the_metrics_of_pycocotools(kind, iou_type, scored_in_cpp):
    truth, found = random_case(1)
    edit(truth, found, kind)
    if kind == "doubled class":
        stats, _, lines = reference(truth, found, iou_type)
        metrics, printed = evaluate_coco(truth, found, iou_type)
        assert ([metrics[f"{iou_type}/AP"], printed]) == [100 * stats[0], lines]
    else:
        assert_equals_reference(truth, found, iou_type)
    assert scored_in_cpp(truth, iou_type) == KINDS[kind]


def test_inputs_are_not_changed():
    truth, found = random_case(2)
    before = json.dumps([truth, found])
    for backend in backends.BACKENDS:
        evaluate_coco(truth, found, "segm", backend)
        assert json.dumps([truth, found]) == before


def test_polygons_of_two_corners_are_refused_by_both_backends():
    truth, found = random_case(3)
    truth["annotations"][1]["segmentation"] = [[1, 2, 10, 20]]
    for backend in backends.BACKENDS:
        with pytest.raises(UserError, match="pycocotools cannot score these segm predictions"):
            evaluate_coco(truth, found, "segm", backend)


def test_pycocotools_is_used_if_the_other_is_not_installed(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    truth, found = random_case(4)
    assert_equals_reference(truth, found, "bbox")
    (record,) = caplog.records
    assert "pip install faster-coco-eval" in record.getMessage()


def test_the_backend_is_chosen_by_flag_and_config(tmp_path, tool, monkeypatch, caplog):
    truth, found = random_case(5)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = ["--ground-truth", tmp_path / "truth.json", "--predictions", tmp_path / "found.json"]
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    outputs = [tool("evaluate", *arguments, "--backend", "pycocotools")[1]]
    assert not caplog.records
    outputs.append(tool("evaluate", *arguments, "--backend", "faster_coco_eval")[1])
    assert "faster-coco-eval is not installed" in caplog.text
    monkeypatch.undo()
    outputs.append(tool("evaluate", *arguments)[1])
    assert outputs[0] == outputs[1] == outputs[2]
    with pytest.raises(UserError, match="Unknown evaluation.backend 'lvis'"):
        evaluate_coco(truth, found, "bbox", "lvis")
    status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", "evaluation.backend=lvis")
    assert status == 2
    assert "evaluation.backend is lvis" in err
