"""Metrics against pycocotools called directly, and VOC's against hand-counted cases."""

import json

import numpy as np
import pytest
from conftest import write_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.coco import METRICS, coco_metrics
from resnet_backbones.evaluation.voc import area_ap, eleven_point_ap, recall_precision, voc_metrics


@pytest.fixture
def results(tmp_path):
    """Ground truth of 12 images and noisy predictions of it, as files."""
    rng = np.random.default_rng(0)
    truth = write_coco(tmp_path, 12)
    predictions = []
    for o in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = np.array(o["bbox"]) + rng.normal(0, 2, 4)
            x0, y0, x1, y1 = (int(v) for v in (max(x, 0), max(y, 0), max(x, 0) + max(w, 1), max(y, 0) + max(h, 1)))
            predictions.append(
                {
                    "image_id": o["image_id"],
                    "category_id": int(rng.choice([3, 7])),
                    "bbox": [x, y, max(w, 1), max(h, 1)],
                    "score": float(rng.uniform()),
                    "segmentation": _box_rle(x0, y0, min(x1, 48), min(y1, 40)),
                }
            )
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    return tmp_path, truth, predictions


def _box_rle(x0, y0, x1, y1) -> dict:
    from pycocotools import mask as rle

    mask = np.zeros((40, 48), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    encoded = rle.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def pycocotools_stats(truth_file, predictions_file, iou_type) -> list[float]:
    truth = COCO(str(truth_file))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions_file)), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_metrics_equal_pycocotools_to_the_last_digit(results, iou_type):
    folder, truth, predictions = results
    stats = pycocotools_stats(folder / "instances.json", folder / "predictions.json", iou_type)
    metrics = coco_metrics(truth, predictions, iou_type)
    expected = [100 * s if s > -1 else -1.0 for s in stats]
    assert [metrics[f"{iou_type}/{name}"] for name in METRICS] == expected
    assert 0 < metrics[f"{iou_type}/AP"] < 100
    classes = [metrics[f"{iou_type}/AP-{name}"] for name in ("cat", "dog")]
    assert np.mean(classes) == pytest.approx(metrics[f"{iou_type}/AP"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_tool_prints_and_writes_them(results, tool, iou_type):
    folder, truth, predictions = results
    arguments = ["--ground-truth", folder / "instances.json", "--predictions", folder / "predictions.json"]
    status, out, _ = tool("evaluate", *arguments, "--iou-type", iou_type, "--output", folder / "metrics.json")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert status == 0
    assert metrics == coco_metrics(truth, predictions, iou_type)
    ap = metrics[f"{iou_type}/AP"]
    assert f"(AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {ap / 100:.3f}" in out
    assert f"AP {ap:.2f}" in out
    assert json.loads(out.splitlines()[-1]) == metrics


def test_perfect_predictions_score_100(tmp_path):
    truth = write_coco(tmp_path)
    found = [
        o | {"score": 0.9, "segmentation": _box_rle(10, 8, 30, 28)} for o in truth["annotations"] if not o["iscrowd"]
    ]
    assert coco_metrics(truth, found, "bbox")["bbox/AP"] == pytest.approx(100)
    assert coco_metrics(truth, found, "segm")["segm/AP"] == pytest.approx(100)


def test_no_predictions_score_0_and_absent_sizes_stay_minus_one(tmp_path):
    metrics = coco_metrics(write_coco(tmp_path), [], "bbox")
    assert metrics["bbox/AP"] == 0
    assert metrics["bbox/APl"] == -1


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"a": 1}, "must be a list"),
        ([{"image_id": 100}], "Prediction 0 has no 'category_id'"),
        (
            [{"image_id": 1, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}],
            "image 1, which is not in the ground truth",
        ),
    ],
)
def test_bad_predictions_are_named(tmp_path, predictions, message):
    with pytest.raises(UserError, match=message):
        coco_metrics(write_coco(tmp_path), predictions, "bbox")


def folder_without(folder, key, kind=None):
    content = write_coco(folder)
    for entry in content[kind] if kind else [content]:
        del entry[key]
    path = folder / f"without_{key}.json"
    path.write_text(json.dumps(content))
    return path


def test_the_tool_names_bad_files(tmp_path, tool):
    write_coco(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "few.json").write_text('[{"image_id": 100}]')
    truth = tmp_path / "instances.json"
    for arguments, message in [
        ((truth, tmp_path / "bad.json"), "bad.json is not valid JSON"),
        ((truth, tmp_path / "gone.json"), "gone.json does not exist"),
        ((tmp_path / "bad.json", truth), "bad.json is not valid JSON"),
        ((truth, truth), "must be a list"),
        (
            (folder_without(tmp_path, "annotations"), truth),
            f"{tmp_path}/without_annotations.json: The ground truth has no list 'annotations'",
        ),
        ((truth, tmp_path / "few.json"), f"{tmp_path}/few.json: Prediction 0 has no 'category_id'"),
        ((folder_without(tmp_path, "area", "annotations"), truth), "annotations have an entry without 'area'"),
    ]:
        status, _, err = tool("evaluate", "--ground-truth", arguments[0], "--predictions", arguments[1])
        assert status == 2
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40, 48], "counts": "PPPP"},
        {"size": [40, 48], "counts": [10]},
        {"size": [2**40, 2**40], "counts": "PY1"},
        {"counts": "PY1"},
        [[1e308, 0, 4, 4, 9, 9]],
        [["a"] * 6],
    ],
)
@pytest.mark.parametrize("side", ["ground truth", "prediction"])
def test_wrong_segmentations_are_named_before_pycocotools_reads_them(tmp_path, segmentation, side):
    truth = write_coco(tmp_path)
    whole = {"size": [40, 48], "counts": [0, 40 * 48]}
    if side == "ground truth":
        truth["annotations"][0]["segmentation"] = segmentation
    found = [{"image_id": 100, "category_id": 7, "score": 0.5}]
    found[0]["segmentation"] = whole if side == "ground truth" else segmentation
    with pytest.raises(UserError, match=f"(?i){side}.*'segmentation'"):
        coco_metrics(truth, found, "segm")


def voc_object(image, box, difficult=0, **extra) -> dict:
    return {
        "id": hash((image, *box)),
        "image_id": image,
        "category_id": 1,
        "bbox": list(box),
        "iscrowd": difficult,
    } | extra


def test_voc_matching_by_hand():
    objects = [
        voc_object(1, (0, 0, 10, 10)),
        voc_object(1, (20, 0, 10, 10)),
        voc_object(2, (0, 0, 10, 10), difficult=1),
    ]
    found = [
        voc_object(1, (0, 0, 10, 9), score=0.9),  # true
        voc_object(1, (0, 0, 10, 10), score=0.8),  # the object is taken: false
        voc_object(2, (0, 0, 10, 10), score=0.7),  # difficult: ignored
        voc_object(2, (50, 0, 10, 10), score=0.6),  # nothing there: false
        voc_object(1, (21, 0, 10, 10), score=0.5),  # true
    ]
    recall, precision = recall_precision(objects, found)
    assert recall.tolist() == [0.5, 0.5, 0.5, 1.0]
    assert precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])
    assert eleven_point_ap(recall, precision) == pytest.approx((6 * 1 + 5 * 0.5) / 11)
    assert area_ap(recall, precision) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    truth = {"annotations": objects, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "none"}]}
    assert voc_metrics(truth, found) == {
        "voc/AP50_11point": pytest.approx(100 * 8.5 / 11),
        "voc/AP50_area": pytest.approx(75),
        "voc/AP50_area-cat": pytest.approx(75),
    }


def test_voc_iou_is_that_of_the_devkit_for_inclusive_pixels():
    # Pixels 1 … 10 and 1 … 20 of a row: 10 / 20 is not above 0.5, with 1 … 11 it is.
    truth = [voc_object(1, (0, 0, 20, 5))]
    assert recall_precision(truth, [voc_object(1, (0, 0, 10, 5), score=1)])[0].tolist() == [0]
    assert recall_precision(truth, [voc_object(1, (0, 0, 11, 5), score=1)])[0].tolist() == [1]


def test_voc_ap_without_detections_is_0():
    truth = {"annotations": [voc_object(1, (0, 0, 9, 9))], "categories": [{"id": 1, "name": "cat"}]}
    assert voc_metrics(truth, [])["voc/AP50_area"] == 0
