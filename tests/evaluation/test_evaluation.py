"""COCO metrics against pycocotools called directly, and VOC metrics against cases counted by hand."""

import json

import numpy as np
import pytest
from conftest import write_coco
from pycocotools import mask as rle
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
    mask = np.zeros((40, 48), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    encoded = rle.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def pycocotools_stats(truth_file, predictions_file, iou_type) -> list[float]:
    truth = COCO(str(truth_file))
    found = json.loads(predictions_file.read_text())
    if iou_type == "segm":  # given boxes, it would take the areas of detections from them
        found = [{key: value for key, value in p.items() if key != "bbox"} for p in found]
    evaluation = COCOeval(truth, truth.loadRes(found), iou_type)
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
def test_evaluate_tool_prints_and_writes_the_metrics(results, tool, iou_type):
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


def test_no_predictions_score_0_and_empty_area_ranges_score_minus_1(tmp_path):
    metrics = coco_metrics(write_coco(tmp_path), [], "bbox")
    assert metrics["bbox/AP"] == 0
    assert metrics["bbox/APl"] == -1


def found(**changes) -> dict:
    return {"image_id": 100, "category_id": 3, "score": 0.5, "bbox": [0, 0, 1, 1]} | changes


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"a": 1}, "must be a list of COCO results, not a dict"),
        ([{"image_id": 100}], "prediction 0 has no 'category_id'; it has image_id"),
        ([7], "prediction 0 is 7, not a mapping"),
        ([found(image_id=1)], "prediction 0 is of an image that is not in the ground truth"),
        ([found(), found(score=float("nan"))], "prediction 1 has a score that is not a finite number"),
        ([found(score=None)], "prediction 0 has a score that is not a finite number"),
        ([found(bbox=[0, 0, 1])], "prediction 0 has a bbox that is not four finite numbers"),
        ([found(bbox=[0, 0, 1, float("inf")])], "prediction 0 has a bbox that is not four finite numbers"),
    ],
)
def test_errors_name_the_bad_prediction(tmp_path, predictions, message):
    with pytest.raises(UserError, match=message):
        coco_metrics(write_coco(tmp_path), predictions, "bbox")


def folder_without(folder, key, kind=None):
    content = write_coco(folder)
    for entry in content[kind] if kind else [content]:
        del entry[key]
    path = folder / f"without_{key}.json"
    path.write_text(json.dumps(content))
    return path


def test_evaluate_tool_names_the_bad_file(tmp_path, tool):
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
            "without_annotations.json has no annotations to score predictions with; is it a test set?",
        ),
        ((folder_without(tmp_path, "images"), truth), "the list 'images' is missing"),
        ((folder_without(tmp_path, "id", "images"), truth), "without_id.json: the image {'file_name': '0.png'"),
        ((truth, tmp_path / "few.json"), f"{tmp_path}/few.json: prediction 0 has no 'category_id'"),
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
        {"size": [40, 48], "counts": "zz"},
        {"size": [40, 48], "counts": [10]},
        {"size": [48, 40], "counts": [0, 1920]},
        {"size": [2**40, 2**40], "counts": "PY1"},
        {"counts": "PY1"},
        [[1e308, 0, 4, 4, 9, 9]],
        [["a"] * 6],
        None,
    ],
)
def test_invalid_masks_are_refused_in_predictions_and_ignored_in_the_ground_truth(tmp_path, segmentation):
    truth = write_coco(tmp_path, 2)
    square = truth["annotations"][0]["segmentation"]
    whole = {"size": [40, 48], "counts": [0, 40 * 48]}
    detections = [found(image_id=100 + k, category_id=[3, 7][k], segmentation=square) for k in range(2)]
    assert coco_metrics(truth, detections, "segm")["segm/AP"] == pytest.approx(100)
    with pytest.raises(UserError, match="prediction 1 has a segmentation that is not a mask of its image's size"):
        coco_metrics(truth, [detections[0], found(segmentation=segmentation)], "segm")
    truth["annotations"].insert(0, truth["annotations"][0] | {"segmentation": segmentation, "id": 99})
    for backend in ("hotcoco", "pycocotools"):
        assert coco_metrics(truth, detections, "segm", backend)["segm/AP"] == pytest.approx(100)
    assert coco_metrics(truth, [found(segmentation=whole)], "segm")["segm/AP-dog"] == 0


def test_rle_may_hold_floats(tmp_path):
    truth = write_coco(tmp_path)
    square = rle.frPyObjects(truth["annotations"][0]["segmentation"], 40, 48)[0]["counts"].decode()
    expected = coco_metrics(truth, [found(segmentation={"size": [40, 48], "counts": square})], "segm")
    column = {"size": [40.0, 48.0], "counts": [0.0, 80.0, 1840.0]}
    assert coco_metrics(truth, [found(segmentation={"size": [40.0, 48.0], "counts": square})], "segm") == expected
    assert coco_metrics(truth, [found(segmentation=column)], "segm")["segm/AP-dog"] == 0
    assert expected["segm/AP-dog"] > 0


def test_masks_need_the_image_size_and_boxes_do_not(tmp_path, tool):
    truth = write_coco(tmp_path, 1)
    truth["annotations"].pop()  # the RLE of its crowd would give the size
    del truth["images"][0]["width"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    square = {"segmentation": truth["annotations"][0]["segmentation"], "bbox": [10, 8, 20, 20]}
    (tmp_path / "found.json").write_text(json.dumps([found(**square)]))
    arguments = ["--ground-truth", tmp_path / "truth.json", "--predictions", tmp_path / "found.json"]
    status, out, err = tool("evaluate", *arguments)
    assert (status, json.loads(out.splitlines()[-1])["bbox/AP-dog"]) == (0, pytest.approx(100))
    assert "outside the image" not in out + err
    status, _, err = tool("evaluate", *arguments, "--iou-type", "segm")
    assert status == 2
    assert "image 100 of the ground truth has no width and height, which masks need; give the folder" in err


def test_a_mask_whose_runs_do_not_fill_its_image_is_refused(tmp_path):
    truth = write_coco(tmp_path)
    runs = rle.frPyObjects({"size": [40, 49], "counts": [0, 1960]}, 40, 49)["counts"].decode()
    too_long = found(segmentation={"size": [40, 48], "counts": runs})
    with pytest.raises(UserError, match="prediction 0 has a mask whose runs do not fill its image"):
        coco_metrics(truth, [too_long], "segm", "pycocotools")


def test_sizes_missing_from_the_ground_truth_are_read_from_the_images(results, tool):
    folder, truth, _ = results
    expected = coco_metrics(truth, json.loads((folder / "predictions.json").read_text()), "segm")
    for image in truth["images"]:
        del image["width"]
        image["height"] = None
    (folder / "sizeless.json").write_text(json.dumps(truth))
    arguments = ["--ground-truth", folder / "sizeless.json", "--predictions", folder / "predictions.json"]
    _, out, _ = tool("evaluate", *arguments, "--iou-type", "segm", "--images", folder / "images")
    assert json.loads(out.splitlines()[-1]) == expected


def voc_object(image, box, difficult=0, **extra) -> dict:
    return {
        "id": hash((image, *box)),
        "image_id": image,
        "category_id": 1,
        "bbox": list(box),
        "iscrowd": difficult,
    } | extra


def test_voc_matching_equals_a_case_counted_by_hand():
    objects = [
        voc_object(1, (0, 0, 10, 10)),
        voc_object(1, (20, 0, 10, 10)),
        voc_object(2, (0, 0, 10, 10), difficult=1),
    ]
    found = [
        voc_object(1, (0, 0, 10, 9), score=0.9),  # true positive
        voc_object(1, (0, 0, 10, 10), score=0.8),  # the object is already matched: false positive
        voc_object(2, (0, 0, 10, 10), score=0.7),  # difficult: ignored
        voc_object(2, (50, 0, 10, 10), score=0.6),  # no object there: false positive
        voc_object(1, (21, 0, 10, 10), score=0.5),  # true positive
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


def test_voc_iou_matches_the_devkits_inclusive_pixels():
    # Pixels 1 … 10 and 1 … 20 of a row: 10 / 20 is not above 0.5, with 1 … 11 it is.
    truth = [voc_object(1, (0, 0, 20, 5))]
    assert recall_precision(truth, [voc_object(1, (0, 0, 10, 5), score=1)])[0].tolist() == [0]
    assert recall_precision(truth, [voc_object(1, (0, 0, 11, 5), score=1)])[0].tolist() == [1]


def test_voc_ap_without_detections_is_0():
    truth = {"annotations": [voc_object(1, (0, 0, 9, 9))], "categories": [{"id": 1, "name": "cat"}]}
    assert voc_metrics(truth, [])["voc/AP50_area"] == 0
