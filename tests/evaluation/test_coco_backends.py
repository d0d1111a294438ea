"""COCO metrics with the backends hotcoco and pycocotools equal pycocotools called directly, to the last bit."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbones.data.cleaning import clean
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.backends import BACKENDS, score_detections
from resnet_backbones.evaluation.coco import evaluate_coco
from resnet_backbones.evaluation.detections import read_detections


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


def reference(truth: dict, found: list[dict], iou_type: str) -> tuple[COCOeval, str]:
    """pycocotools called directly, and the lines it prints. Detections with masks have no boxes, as in detectron2."""
    truth, found = copy.deepcopy((truth, found))
    for p in found:
        del p["segmentation" if iou_type == "bbox" else "bbox"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    lines = "".join(line for line in out.getvalue().splitlines(keepends=True) if line.startswith(" Average"))
    return evaluation, lines


def assert_equals_reference(truth: dict, found: list[dict], iou_type: str, backend: str) -> None:
    expected, lines = reference(truth, found, iou_type)
    data = clean("truth", "coco", None, truth)
    scores = score_detections(data, read_detections(data, found, iou_type), iou_type, backend)
    for name, array in (("stats", expected.stats), *((k, expected.eval[k]) for k in ("precision", "recall"))):
        assert getattr(scores, name).tobytes() == array.tobytes(), name
    metrics, printed = evaluate_coco(truth, found, iou_type, backend)
    assert printed == lines
    precision = expected.eval["precision"][:, :, :, 0, -1]
    per_class = [precision[:, :, k][precision[:, :, k] > -1] for k in range(precision.shape[2])]
    averages = [*expected.stats, *(p.mean() if p.size else -1.0 for p in per_class)]
    assert list(metrics.values()) == [100 * v if v > -1 else -1.0 for v in averages]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_and_summary_equal_pycocotools(seed, iou_type, backend):
    assert_equals_reference(*random_case(seed), iou_type, backend)


def test_metrics_of_many_classes_equal_pycocotools():
    assert_equals_reference(*random_case(7, images=30, classes=400, objects=300), "bbox", "hotcoco")


@pytest.mark.parametrize("count", [1, 2, 100, 257])
@pytest.mark.parametrize("hits", ["1", "10", "01", "111"])
def test_precision_of_few_hits_equals_pycocotools(count, hits):
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
    assert_equals_reference(truth, [p | {"segmentation": None} for p in found], "bbox", "hotcoco")


def renumbered(truth, first):
    for k, o in enumerate(truth["annotations"]):
        o["id"] = first + k


def flattened(truth):
    for o in truth["annotations"]:
        o["bbox"] = [*o["bbox"][:2], 0, 0]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda truth, found: renumbered(truth, -1000),
        lambda truth, found: flattened(truth),
        lambda truth, found: [o.update(ignore=1) for o in truth["annotations"]],
        lambda truth, found: [o.update(category_id=float(o["category_id"])) for o in truth["annotations"]],
        lambda truth, found: [p.update(category_id=10**7) for p in found[::5]],
        lambda truth, found: [p.update(drop=True, lvis_mark=True, ignore=1, iscrowd=1, id=0) for p in found],
        lambda truth, found: [p.update(score=int(3 * p["score"]), bbox=[int(v) for v in p["bbox"]]) for p in found],
    ],
    ids=["negative ids", "boxes without area", "ignore", "float classes", "unknown class", "other keys", "integers"],
)
def test_metrics_of_odd_files_equal_pycocotools(edit, iou_type):
    truth, found = random_case(1)
    edit(truth, found)
    for backend in BACKENDS:
        assert_equals_reference(truth, found, iou_type, backend)


def test_an_annotation_with_id_0_counts_like_any_other():
    truth, found = random_case(1)
    renumbered(truth, 1)
    expected = evaluate_coco(truth, found, "bbox")
    renumbered(truth, 0)
    assert evaluate_coco(truth, found, "bbox") == expected
    assert reference(truth, found, "bbox")[0].stats[0] < expected[0]["bbox/AP"] / 100  # pycocotools counts it as missed


@pytest.mark.parametrize("as_id", [str, float, lambda i: f"img-{i}"], ids=["digits", "float", "text"])
def test_ids_may_be_text_or_floats(as_id):
    truth, found = random_case(3)
    expected = evaluate_coco(truth, found, "bbox")
    for entries, key in ((truth["images"], "id"), (truth["annotations"], "image_id"), (found, "image_id")):
        for entry in entries:
            entry[key] = as_id(entry[key])
    assert evaluate_coco(truth, found, "bbox") == expected


def test_inputs_are_not_changed():
    truth, found = random_case(2)
    before = json.dumps([truth, found])
    for backend in BACKENDS:
        evaluate_coco(truth, found, "segm", backend)
        assert json.dumps([truth, found]) == before


def evaluate(tool, folder, truth: dict, found: list[dict], iou_type: str) -> list[tuple[int, str, str]]:
    """What the command gives with each backend."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    arguments = ["--ground-truth", folder / "truth.json", "--predictions", folder / "found.json"]
    arguments += ["--iou-type", iou_type]
    return [tool("evaluate", *arguments, "--backend", backend) for backend in BACKENDS]


def test_backends_print_the_same(tmp_path, tool):
    results = evaluate(tool, tmp_path, *random_case(5), "bbox")
    assert results[0] == results[1]
    assert (results[0][0], "bbox/AP" in results[0][1]) == (0, True)


def test_the_command_uses_the_given_backend(tmp_path, tool):
    truth, found = random_case(5)
    found[0]["segmentation"]["counts"] = "oooooooooooo0"  # too short for pycocotools only
    hotcoco, pycocotools = evaluate(tool, tmp_path, truth, found, "segm")
    assert hotcoco[0] == 0, hotcoco
    assert pycocotools[0] == 2
    assert "prediction 0 has a mask whose runs do not fill its image" in pycocotools[2]


def test_unknown_backends_are_refused(tool):
    truth, found = random_case(5)
    with pytest.raises(UserError, match="Unknown evaluation.backend 'lvis'"):
        evaluate_coco(truth, found, "bbox", "lvis")
    status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", "evaluation.backend=lvis")
    assert status == 2
    assert "evaluation.backend is lvis" in err
