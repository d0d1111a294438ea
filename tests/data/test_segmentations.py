"""Masks from polygons and RLE."""

import numpy as np
import pytest
import torch
from conftest import coco_dataset, save_coco, write_coco
from pycocotools import mask as rle

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.masks import decode_mask
from resnet_backbones.data.rle import fill_exactly
from resnet_backbones.data.segmentations import pack_segmentations
from resnet_backbones.errors import UserError


def test_compressed_and_uncompressed_rle_agree_with_the_polygon(tmp_path):
    content = write_coco(tmp_path, 3)
    square = np.zeros((40, 48), np.uint8, order="F")
    square[8:28, 10:30] = 1
    compressed = rle.encode(square)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], square.flatten("F"), [1]])))
    content["annotations"][2]["segmentation"] = {"size": [40, 48], "counts": compressed["counts"].decode()}
    counts = np.diff(np.concatenate([[0], runs, [square.size]])).tolist()
    content["annotations"][4]["segmentation"] = {"size": [40, 48], "counts": counts}
    save_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path, masks=True)
    masks = [dataset[k][1]["masks"] for k in range(3)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


SQUARE, LINE, ABSURD = [10, 8, 30, 8, 30, 28, 10, 28], [10, 8, 30, 8], [10, 8, 1e9, 8, 30, 28]
PAIRS = [[10, 8], [30, 8], [30, 28], [10, 28]]
RUNS = {"size": [40, 48], "counts": [0, 80, 40 * 48 - 80]}
TEXT = rle.frPyObjects(RUNS, 40, 48)["counts"].decode()


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([SQUARE], [SQUARE]),
        ([SQUARE, SQUARE], [SQUARE, SQUARE]),
        (SQUARE, [SQUARE]),  # a flat list
        ([LINE, SQUARE], [SQUARE]),
        ([SQUARE, []], [SQUARE]),
        ([ABSURD, SQUARE], [SQUARE]),
        ([[float("nan")] * 6, SQUARE], [SQUARE]),
        ([[128.0, 128.0], SQUARE], [SQUARE]),
        (["x", None, SQUARE], [SQUARE]),
        (PAIRS, [SQUARE]),  # [x, y] pairs
        ([PAIRS], [SQUARE]),
        ([PAIRS, PAIRS], [SQUARE, SQUARE]),
        ([[SQUARE]], [SQUARE]),
        ([[[[SQUARE]]]], None),
        (PAIRS[:2], None),
        ([list(map(str, SQUARE))], [SQUARE]),
        (RUNS, {"size": [40, 48], "counts": TEXT}),
        ({"size": [40.0, 48.0], "counts": [0.0, 80.0, 1840.0]}, {"size": [40, 48], "counts": TEXT}),
        ([RUNS], {"size": [40, 48], "counts": TEXT}),
        ([RUNS, RUNS], None),
        ({"size": [40, 48], "counts": TEXT}, {"size": [40, 48], "counts": TEXT}),
        (None, None),
        ([], None),
        ([[]], None),
        ([LINE], None),
        ([ABSURD], None),
        ([SQUARE[:7]], None),
        ([["a"] * 6], None),
        ("30 8", None),
        (7, None),
        ({"size": [40, 47], "counts": [1880]}, None),  # the wrong size
        ({"size": [48, 40], "counts": [1920]}, None),
        ({"size": [40, 48], "counts": [7]}, None),  # does not fill the image
        ({"size": [40, 48], "counts": [-1, 1921]}, None),
        ({"size": [40, 48], "counts": [1.5, 1918.5]}, None),
        ({"size": [40, 48], "counts": TEXT[:-1]}, None),
        ({"size": [40, 48], "counts": ""}, None),
        ({"size": [40, 48], "counts": "zzzz"}, None),
        ({"size": [40, 48], "counts": "P"}, None),
        ({"size": [40, 48]}, None),
    ],
)
def test_segmentations_are_cleaned_and_masks_decode(segmentation, expected):
    packed, repairs = pack_segmentations([[SQUARE], segmentation, RUNS], np.array([[48, 40]] * 3))
    assert packed.as_coco(0, 48, 40) == [SQUARE]
    assert packed.as_coco(2, 48, 40) == {"size": [40, 48], "counts": TEXT}
    found = packed.as_coco(1, 48, 40)
    assert found == expected
    assert packed.present.tolist() == [True, expected is not None, True]
    assert (decode_mask(found, 40, 48) is not None) == (expected is not None)
    is_repaired = any(rows[1] for rows in repairs.values())
    as_text = segmentation == RUNS or segmentation == [list(map(str, SQUARE))]
    assert is_repaired == (found != segmentation and not as_text and segmentation != [])
    assert not any(rows[0] or rows[2] for rows in repairs.values())


def test_rle_without_a_size_takes_that_of_its_image():
    packed, _ = pack_segmentations([{"counts": TEXT}, {"counts": [7], "size": None}], np.array([[48, 40]] * 2))
    assert packed.all_as_coco(np.array([[48, 40]] * 2)) == [{"size": [40, 48], "counts": TEXT}, None]


def test_only_compressed_rle_that_fills_its_image_is_accepted():
    rng = np.random.default_rng(0)
    texts, pixels, valid = [], [], []
    for k in range(300):
        side = int(rng.choice([1, 7, 60, 300]))
        text = rle.encode(np.asfortranarray(rng.random((side, side)) < rng.random(), np.uint8))["counts"]
        texts += [text, text, text[:-1] + bytes([text[-1] ^ 1]), text + b"0"[: k % 2] + b"5"]
        pixels += [side * side, side * side + 1, side * side, side * side]
        valid += [True, False, False, False]
    assert fill_exactly(texts, np.array(pixels)).tolist() == valid


def test_objects_without_a_mask_are_skipped_and_counted(tmp_path, caplog):
    content = write_coco(tmp_path)
    for k, segmentation in enumerate(([], [[1, 2, 3, 4]], [[10, 8, 30, 8, 30, float("nan")]])):
        content["annotations"][2 * k]["segmentation"] = segmentation
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco_dataset(tmp_path, masks=True, keep_empty=True)
    assert "own: 2 x a segmentation that no mask can be drawn from, left out (first {'id': 3" in caplog.text
    assert [len(dataset[k][1]["masks"]) for k in range(4)] == [0, 0, 0, 1]
    assert len(coco_dataset(tmp_path, masks=True)) == 1
    assert len(coco_dataset(tmp_path)) == 4


@pytest.mark.parametrize("segmentation", ["absent", None, [[1, 2, 3, 4]], [[100, 100, 120, 100, 120, 120]]])
def test_a_set_without_any_mask_cannot_train_mask_rcnn(tmp_path, segmentation):
    content = write_coco(tmp_path)
    for o in content["annotations"]:
        o["segmentation"] = segmentation
        if segmentation == "absent":
            del o["segmentation"]
    save_coco(tmp_path, content)
    assert len(coco_dataset(tmp_path)) == 4
    for keep_empty in (False, True):
        with pytest.raises(UserError, match="own has nothing to train masks on: no mask can be drawn for any of its 8"):
            coco_dataset(tmp_path, masks=True, keep_empty=keep_empty)


def test_nuclei_polygons_and_rle_decode(shared):
    root = shared / "nuclei"
    spec = {"root": str(root / "images/val"), "annotations": str(root / "annotations/instances_val.json")}
    data = load_annotations("own", {"own": {"format": "coco", **spec}})
    kinds = {type(o["segmentation"]) for o in data.as_coco()["annotations"]}
    assert kinds == {list, dict}
    dataset = DetectionDataset([data], train=True, masks=True, flip=0.0)
    for k in range(5):
        _, target = dataset[k]
        areas = target["masks"].flatten(1).sum(1)
        true = [o["area"] for o in data.objects(k)]
        np.testing.assert_allclose(areas.tolist(), true, rtol=0.25, atol=20)
        assert target["labels"].unique().tolist() == [1]
