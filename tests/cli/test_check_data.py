"""`resnet-backbones check-data`: findings as text and JSON, and faults that would waste a training run."""

import json

import numpy as np
import pytest
from conftest import coco_overrides, draw, save_coco, write_coco
from PIL import Image

from resnet_backbones.__main__ import main
from resnet_backbones.data.similarity import SIMILAR, most_similar, thumbnail


@pytest.fixture
def check(tmp_path, capfd):
    """`check(*overrides)` returns the exit status, the report as JSON, and stdout or the error."""

    def run(*overrides: str) -> tuple[int, dict, str]:
        report = tmp_path / "report.json"
        with pytest.raises(SystemExit) as stop:
            main(["check-data", "quickstart_mask_rcnn.yaml", "--output", str(report), "data.num_workers=1", *overrides])
        out, err = capfd.readouterr()
        return stop.value.code, json.loads(report.read_text()) if report.exists() else {}, out or err

    return run


def halves(folder) -> list[str]:
    spec = f"root: {folder / 'images'}, annotations: {folder / 'instances.json'}"
    return [f"datasets.{name}={{{spec}, split: {split}}}" for name, split in (("a", "0.5"), ("b", "rest"))] + [
        "data.train=[a]",
        "data.test=[b]",
    ]


def test_clean_data_is_counted_and_passes(tmp_path, check):
    write_coco(tmp_path, 8)
    status, report, text = check(*halves(tmp_path))
    assert status == 0, text
    assert report["faults"] == []
    found = report["sets"]["a"]
    assert (found["images"], found["objects"], found["objects_to_train_on"], found["crowds"]) == (4, 8, 4, 4)
    assert sum(row["objects"] for row in found["classes"].values()) == 8
    assert found["image_sizes"] == [{"size": [48, 40], "images": 4}]
    assert found["box_sizes"] == {"small": 8, "medium": 0, "large": 0}
    assert "a:\n  coco: 4 images, 8 objects, of which 4 to train on, 4 crowds, 8 with a mask\n" in text
    assert "image sizes: 48 x 40 (4)" in text
    assert "nothing found that would waste a training run" in text


def test_bad_images_and_annotations_are_counted_and_named(tmp_path, check):
    content = write_coco(tmp_path, 8)
    content["annotations"][0]["bbox"] = [10, 8, 0, 20]
    content["annotations"][2]["bbox"] = [100, 8, 20, 20]
    content["annotations"][4]["image_id"] = 999
    content["annotations"] = [o for o in content["annotations"] if o["image_id"] != 107]
    save_coco(tmp_path, content)
    Image.open(tmp_path / "images/5.png").save(tmp_path / "images/4.png")  # a copy
    (tmp_path / "images/6.png").write_bytes((tmp_path / "images/6.png").read_bytes()[:200])
    (tmp_path / "images/7.png").unlink()
    spec = coco_overrides(tmp_path)
    status, report, text = check(*spec)
    found = report["sets"]["own"]
    for key, examples in {
        "boxes_without_area": ["0.png"],
        "boxes_outside_the_image": ["1.png"],
        "images_without_objects": ["7.png"],
        "missing_images": ["7.png"],
        "near_identical_images": [["5.png", "4.png"]],
    }.items():
        assert found[key] == {"count": len(examples), "examples": examples}, key
    assert found["unreadable_images"]["count"] == 2
    assert [row["count"] for row in found["repairs"]] == [1]
    assert status == 1
    for line in (
        "boxes without area: 1 (first 0.png)",
        "nearly identical images: 1 (first 5.png and 4.png)",
        "1 x annotations of an image that is not listed",
        "own: 1 images are missing",
        "own: 1 images cannot be read; data.max_unreadable allows 0",
        "own: 8 of 8 images are in own as well, or nearly identical; metrics would be too good",
    ):
        assert line in text
    assert "cannot be read" not in " ".join(check(*spec, "data.max_unreadable=1")[1]["faults"])


def test_data_that_would_waste_a_training_run_fails_the_check(tmp_path, check):
    content = write_coco(tmp_path, 8)
    for o in content["annotations"]:
        o.pop("segmentation")
    save_coco(tmp_path, content)
    status, report, _ = check(*halves(tmp_path))
    assert (status, report["faults"]) == (1, ["a: there is no object with a mask to train on"])
    assert check(*halves(tmp_path), "detector.name=faster_rcnn")[0] == 0
    for o in content["annotations"]:  # dogs in the first half of the images, cats in the second
        o["category_id"] = 3 if o["image_id"] < 104 else 7
    save_coco(tmp_path, content)
    spec = halves(tmp_path)
    (tmp_path / "images/first.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "images/last.txt").write_text("4\n5\n6\n7\n")
    lists = ["datasets.a.split=first", "datasets.b.split=last", "detector.name=faster_rcnn"]
    status, report, _ = check(*spec, *lists)
    assert (status, report["faults"]) == (1, ["b: 4 objects are of cat, which has none to train on"])
    assert check(*spec, *lists, "datasets.b.classes=[dog]")[1]["faults"][0].startswith("b has other classes than a")


def test_unknown_datasets_and_malformed_json_exit_with_2(tmp_path, check):
    write_coco(tmp_path)
    assert check("data.train=[nothing]")[0] == 2
    (tmp_path / "instances.json").write_text("{")
    status, _, text = check(*coco_overrides(tmp_path))
    assert (status, text.count("\n")) == (2, 1)
    assert "instances.json is not valid JSON" in text


def test_resized_and_reencoded_copies_count_as_similar(tmp_path):
    yy, xx = np.mgrid[:120, :160]
    photos = [
        np.stack([127 + 120 * np.sin(xx / a + k) * np.cos(yy / b)] * 3, axis=2).astype(np.uint8)
        for k, (a, b) in enumerate([(9, 14), (23, 8), (31, 40), (12, 12)])
    ]
    others = []
    for photo in photos:
        file = tmp_path / "a.jpg"
        Image.fromarray(photo).resize((100, 75)).save(file, quality=60)
        others.append(np.asarray(Image.open(file)) // 2 + 40)  # darker, too
    flat = [np.full((40, 48, 3), value, np.uint8) for value in (0, 255)]
    originals = np.stack([thumbnail(pixels) for pixels in [*photos, *flat]])
    copies = np.stack([thumbnail(pixels) for pixels in [*others, *flat, np.asarray(draw())]])
    indices, correlations = most_similar(copies, originals)
    assert indices[:4].tolist() == [0, 1, 2, 3]
    assert (correlations > SIMILAR).tolist() == [True] * 4 + [False] * 3
    assert (most_similar(originals)[1] < SIMILAR).all()
