"""The numbers of a report against plain loops, pycocotools, hotcoco and tidecv, and on planted errors."""

import numpy as np
import pytest
from report_cases import iou, random_case, read

from resnet_backbones.evaluation.backends import hotcoco_evaluation
from resnet_backbones.evaluation.coco import evaluate_coco
from resnet_backbones.report.calibration import calibration
from resnet_backbones.report.classification import classification_numbers
from resnet_backbones.report.comparison import compare
from resnet_backbones.report.confusion import confusion_table
from resnet_backbones.report.curves import POINTS, curves
from resnet_backbones.report.detection import detection_numbers, subset
from resnet_backbones.report.matching import IGNORED, RIGHT, best_threshold, match, worst_images

SIZE = {"width": 100, "height": 100}


def numbers_of(truth: dict, found: list[dict]) -> dict:
    data, detections = read(truth, found)
    evaluation = hotcoco_evaluation(data, detections, "bbox")
    return detection_numbers(data, detections, "bbox", evaluation, match(data, detections, "bbox", evaluation))


def planted() -> tuple[dict, list[dict]]:
    """Six images with an object of the first class, which is in turn: found, misclassified, mislocalized, found twice,
    missed with a false positive elsewhere, missed."""
    box = [10, 10, 40, 40]
    truth = {
        "images": [{"id": k, "file_name": f"{k}.png", **SIZE} for k in range(6)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": k + 1, "image_id": k, "category_id": 1, "bbox": box, "area": 1600} for k in range(6)],
    }
    rows = [(0, 1, box, 0.9), (1, 2, box, 0.8), (2, 1, [10, 28, 40, 40], 0.7), (3, 1, box, 0.6), (3, 1, box, 0.5),
            (4, 1, [70, 70, 20, 20], 0.4)]  # fmt: skip
    keys = ("image_id", "category_id", "bbox", "score")
    return truth, [dict(zip(keys, row, strict=True)) for row in rows]


@pytest.mark.parametrize("seed", [0, 1])
def test_precision_and_recall_integrate_to_pycocotools_ap(seed):
    truth, found = random_case(seed)
    numbers = numbers_of(truth, found)
    metrics, _ = evaluate_coco(truth, found, "bbox", "pycocotools")
    means = [[100 * np.mean(row) for row in curve["classes"] if row] for curve in numbers["precision_recall"]]
    for name, values in zip(("AP", "AP50", "AP75"), means, strict=True):
        assert np.mean(values) == pytest.approx(metrics[f"bbox/{name}"], abs=1e-9)
    for row, ap in zip(numbers["classes"], means[0], strict=True):
        assert row["AP"] == pytest.approx(metrics[f"bbox/AP-{row['class']}"], abs=1e-9)
        assert ap == pytest.approx(row["AP"], abs=1e-9)
    for name in ("APs", "APm"):
        assert numbers["overall"][name] == pytest.approx(metrics[f"bbox/{name}"], abs=1e-9)
    assert metrics["bbox/APl"] == -1
    assert numbers["overall"]["APl"] is None
    assert numbers["overall"]["AR"] == pytest.approx(metrics["bbox/AR100"], abs=1e-9)


def confusion_by_loop(truth: dict, found: list[dict], threshold: float) -> list[list[int]]:
    """By score, each detection of an image takes the free object of any class that it overlaps most. Those that COCO
    ignores are not counted: without a free object of their class, but on a crowd of it."""
    ids = [category["id"] for category in truth["categories"]]
    matrix = np.zeros((len(ids) + 1, len(ids) + 1), int)
    for image in truth["images"]:
        objects = [o for o in truth["annotations"] if o["image_id"] == image["id"]]
        detections = sorted((p for p in found if p["image_id"] == image["id"]), key=lambda p: -p["score"])
        taken, taken_in_class = set(), set()
        for p in detections:
            own = [o for o in objects if o["category_id"] == p["category_id"]]
            near = [o for o in own if not o["iscrowd"] and o["id"] not in taken_in_class and overlap(p, o) >= 0.5]
            if near:
                taken_in_class.add(max(near, key=lambda o: overlap(p, o))["id"])
            elif any(o["iscrowd"] and overlap(p, o) >= 0.5 for o in own):
                continue
            if p["score"] < threshold:
                continue
            free = [o for o in objects if not o["iscrowd"] and o["id"] not in taken and overlap(p, o) >= 0.5]
            best = max(free, key=lambda o: overlap(p, o), default=None)
            row = len(ids) if best is None else ids.index(best["category_id"])
            matrix[row, ids.index(p["category_id"])] += 1
            taken |= {best["id"]} if best else set()
        for o in objects:
            if not o["iscrowd"] and o["id"] not in taken:
                matrix[ids.index(o["category_id"]), len(ids)] += 1
    return matrix.tolist()


def overlap(prediction: dict, o: dict) -> float:
    return iou(prediction["bbox"], o["bbox"], bool(o["iscrowd"]))


@pytest.mark.parametrize("seed", range(4))
def test_confusion_matrix_equals_a_plain_loop(seed):
    truth, found = random_case(seed)
    confusion = numbers_of(truth, found)["confusion"]
    assert confusion["matrix"] == confusion_by_loop(truth, found, confusion["threshold"])
    assert confusion["names"] == ["class 0", "class 1", "class 2", "background"]


def test_confusions_are_sorted_by_count_and_huge_matrices_omitted():
    table = confusion_table(np.array([[5, 2], [7, 1]]), ["a", "b"])
    assert table["pairs"] == [
        {"true": "b", "predicted": "a", "count": 7},
        {"true": "a", "predicted": "b", "count": 2},
    ]
    assert confusion_table(np.eye(1000, dtype=int), [str(k) for k in range(1000)])["matrix"] is None


def test_planted_errors_are_classified():
    numbers = numbers_of(*planted())
    kinds = {row["kind"]: (row["count"], row["cost"]) for row in numbers["errors"]}
    counts = {kind: count for kind, (count, _) in kinds.items()}
    assert counts == {"classification": 1, "localization": 1, "both": 0, "duplicate": 1, "background": 1, "missed": 2}
    assert kinds["both"][1] == 0
    # Of six objects, the first and the third detection of their class find one, which is 17 of the 101 recalls each;
    # with the second corrected, all three do.
    assert numbers["overall"]["AP50"] == pytest.approx(100 * (17 * 1 + 17 * 2 / 3) / 101)
    assert kinds["localization"][1] == pytest.approx(100 * (51 - 17 * 1 - 17 * 2 / 3) / 101)


@pytest.mark.slow  # tidecv is not among the requirements: pip install tidecv
@pytest.mark.parametrize("seed", range(3))
def test_error_costs_match_tidecv(seed):
    """Where a recall equals one of the 101 thresholds up to rounding, tidecv counts it and COCO does not."""
    tidecv = pytest.importorskip("tidecv")
    truth, found = random_case(seed, images=40, crowds=False, ties=False)
    true, predicted = tidecv.Data("true"), tidecv.Data("predicted")
    for data in (true, predicted):
        for image in truth["images"]:
            data.add_image(image["id"], "")
        for category in truth["categories"]:
            data.add_class(category["id"], category["name"])
    for o in truth["annotations"]:
        true.add_ground_truth(o["image_id"], o["category_id"], o["bbox"])
    for p in found:
        predicted.add_detection(p["image_id"], p["category_id"], p["score"], p["bbox"])
    tide = tidecv.TIDE()
    run = tide.evaluate(true, predicted, mode=tidecv.TIDE.BOX)
    theirs = tide.get_main_errors()["predicted"]
    numbers = numbers_of(truth, found)
    assert numbers["overall"]["AP50"] == pytest.approx(run.ap, abs=100 / 101 / 3)
    for row, name in zip(numbers["errors"], ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True):
        assert row["cost"] == pytest.approx(float(theirs[name]), abs=100 / 101 / 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_calibration_matches_hotcoco(seed):
    truth, found = random_case(seed)
    data, detections = read(truth, found)
    evaluation = hotcoco_evaluation(data, detections, "bbox")
    theirs = evaluation.calibration(n_bins=10)
    ours = numbers_of(truth, found)["calibration"]
    assert ours["ece"] == pytest.approx(theirs["ece"], abs=1e-12)
    assert [b["count"] for b in ours["bins"]] == [b["count"] for b in theirs["bins"]]
    for own, other in zip(ours["bins"], theirs["bins"], strict=True):
        assert (own["right"] or 0) == pytest.approx(other["avg_accuracy"])


def test_calibration_of_few_and_no_detections():
    found = calibration(np.array([0.05, 0.95, 1.0, 1.5]), np.array([False, True, True, False]))
    assert [b["count"] for b in found["bins"]] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found["bins"][9]["right"] == pytest.approx(2 / 3)
    assert found["bins"][4]["right"] is None
    assert calibration(np.zeros(0), np.zeros(0, bool))["ece"] is None


@pytest.mark.parametrize("seed", range(3))
def test_best_threshold_equals_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    scores, status = rng.integers(0, 20, 60) / 20, rng.integers(-1, 2, 60)
    best = best_threshold(scores, status, 40)

    def f1(threshold: float) -> float:
        kept = (scores >= threshold) & (status != IGNORED)
        return 2 * (status[kept] == RIGHT).sum() / (kept.sum() + 40)

    assert best["f1"] == pytest.approx(max(map(f1, scores)))
    assert f1(best["threshold"]) == pytest.approx(best["f1"])
    assert best["f1"] == pytest.approx(2 * best["precision"] * best["recall"] / (best["precision"] + best["recall"]))


def test_threshold_is_rounded_without_changing_the_detections():
    status = np.array([RIGHT, 0])
    assert best_threshold(np.array([0.98765, 0.2]), status, 1)["threshold"] == 0.98
    assert best_threshold(np.array([0.98765, 0.9871]), status, 1)["threshold"] == 0.9876
    assert best_threshold(np.array([0.987654321, 0.987654320]), status, 1)["threshold"] == 0.987654321
    assert best_threshold(np.array([0.9, 0.2]), np.array([0, 0]), 1) is None


def test_every_class_has_a_threshold():
    truth, found = planted()
    numbers = numbers_of(truth, found)
    assert numbers["thresholds"] == {"a": 0.6, "b": 0.6}  # no detection of b is right: the threshold of all classes
    assert "best_threshold" not in numbers["classes"][1]
    assert numbers_of(truth, [])["thresholds"] == {"a": 0.5, "b": 0.5}


def test_the_worst_images_come_first():
    truth, found = planted()
    data, detections = read(truth, found)
    matches = match(data, detections, "bbox", hotcoco_evaluation(data, detections, "bbox"))
    order, f1 = worst_images(data, detections, matches, 0.45)
    assert f1.tolist() == pytest.approx([1, 0, 0, 2 / 3, 0, 0])
    assert order.tolist() == [1, 2, 4, 5, 3, 0]  # two errors before one


def test_difference_has_the_bootstrap_interval_over_images():
    """Against the metrics of copies of the drawn images."""
    truth, found = random_case(0, images=10, ties=False)
    data, first = read(truth, found)
    second = subset(first, np.random.default_rng(0).random(len(first.labels)) < 0.8)
    result = compare(data, first, second, "bbox", draws=200)
    of = {row["name"]: row for row in result["rows"]}
    once = [evaluate_coco(data, rows, "bbox")[0] for rows in (found, as_rows(data, second))]
    assert of["AP"]["first"] == pytest.approx(once[0]["bbox/AP"], abs=1e-9)
    assert of["AP50"]["second"] == pytest.approx(once[1]["bbox/AP50"], abs=1e-9)
    assert of["class 1"]["second"] == pytest.approx(once[1]["bbox/AP-class 1"], abs=1e-9)
    assert of["AP"]["difference"] == pytest.approx(of["AP"]["second"] - of["AP"]["first"])

    rng, drawn = np.random.default_rng(0), []
    for _ in range(200):
        chosen = rng.integers(0, 10, 10)
        pair = [redrawn_ap(truth, rows, chosen) for rows in (found, as_rows(data, second))]
        drawn.append(pair[1] - pair[0])
    assert of["AP"]["interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=1e-9)


def as_rows(data, detections) -> list[dict]:
    return [
        {"image_id": data.image_id(k), "category_id": data.categories[label - 1]["id"], "bbox": box, "score": score}
        for k, label, box, score in zip(
            *(getattr(detections, name).tolist() for name in ("image_index", "labels", "boxes", "scores")), strict=True
        )
    ]


def redrawn_ap(truth: dict, found: list[dict], chosen: np.ndarray) -> float:
    images = [{"id": k, "file_name": "", **SIZE} for k in range(len(chosen))]
    parts = []
    for rows in (truth["annotations"], found):
        parts.append([r | {"image_id": k} for k, c in enumerate(chosen) for r in rows if r["image_id"] == 10 + c])
    return evaluate_coco(truth | {"images": images, "annotations": parts[0]}, parts[1], "bbox")[0]["bbox/AP"]


def test_top_1_and_top_5_per_class():
    answers = [
        {"label": 0, "labels": [0, 1], "scores": [0.9, 0.1], "true_score": 0.9, "file_name": "a"},
        {"label": 0, "labels": [1, 0], "scores": [0.7, 0.3], "true_score": 0.3, "file_name": "b"},
        {"label": 1, "labels": [2, 0], "scores": [0.6, 0.4], "true_score": 0.0, "file_name": "c"},
    ]
    numbers = classification_numbers(["x", "y", "z"], answers)
    assert numbers["overall"] == {"top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}
    assert numbers["classes"][0] == {"class": "x", "images": 2, "top1": 50, "top5": 100}
    assert numbers["classes"][2] == {"class": "z", "images": 0, "top1": None, "top5": None}
    assert numbers["confusion"]["matrix"] == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_curves_are_subsampled_and_keep_their_ends():
    rows = [{"step": k, "loss": 1 / (k + 1), "lr": 0.1} for k in range(5000)] + [{"step": 5000, "bbox/AP": 12.5}]
    rows[10]["loss"] = float("nan")
    found = {group["title"]: group["series"] for group in curves(rows)}
    assert list(found) == ["losses", "learning rate", "metrics in percent"]
    loss = found["losses"][0]
    assert len(loss["steps"]) <= POINTS + 1
    assert (loss["steps"][0], loss["steps"][-1]) == (0, 4999)
    assert loss["values"][1] is None  # not finite
    assert found["metrics in percent"] == [{"name": "bbox/AP", "steps": [5000], "values": [12.5]}]
