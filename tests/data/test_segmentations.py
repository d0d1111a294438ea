"""Masks from polygons and RLE."""

import numpy as np
import pytest
import torch
from conftest import coco_dataset, save_coco, write_coco
from pycocotools import mask as rle

from resnet_backbones.data import DetectionDataset, load_annotations
from resnet_backbones.data.masks import decode_mask, rle_counts
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


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [40, 47], "counts": [1880]}, "size .40, 47., the image .40, 48."),
        ({"size": [40, 48], "counts": [7]}, "counts do not sum to 40 x 48"),
        ({"size": [40, 48], "counts": ""}, "has no counts"),
        ({"size": [40, 48], "counts": "zzzz"}, "has the invalid character 'z'"),
        ({"size": [40, 48], "counts": "P"}, "is cut short"),
        ({"size": [40, 48]}, "has no counts"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, segmentation, message):
    content = write_coco(tmp_path)
    content["annotations"][0]["segmentation"] = segmentation
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match=f"annotation 1 of 0.png has an invalid segmentation: its RLE.*{message}"):
        coco_dataset(tmp_path, masks=True)[0]


def test_objects_without_a_polygon_are_counted_and_have_no_mask(tmp_path, caplog):
    content = write_coco(tmp_path)
    for k, segmentation in enumerate(([], [[1, 2, 3, 4]], [[10, 8, 30, 8, 30, float("nan")]])):
        content["annotations"][2 * k]["segmentation"] = segmentation
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco_dataset(tmp_path, masks=True)
    assert "own: 3 objects have a segmentation without a polygon; masks skip them (first annotation 1)" in caplog.text
    assert [len(dataset[k][1]["masks"]) for k in range(4)] == [0, 0, 0, 1]


def test_compressed_counts_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for side in (1, 7, 60, 300):
        mask = np.asfortranarray(rng.integers(0, 2, (side, side), dtype=np.uint8))
        counts = rle_counts(rle.encode(mask)["counts"].decode())
        assert sum(counts) == side * side
        runs = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(runs, mask.flatten("F"))


def test_an_object_without_segmentation_needs_faster_rcnn(tmp_path):
    content = write_coco(tmp_path)
    del content["annotations"][0]["segmentation"]
    save_coco(tmp_path, content)
    assert coco_dataset(tmp_path)[0][1]["boxes"].shape == (1, 4)
    with pytest.raises(UserError, match="annotation 1 of 0.png has no segmentation, which mask_rcnn needs"):
        coco_dataset(tmp_path, masks=True)[0]


def test_drawable_segmentations_are_those_that_decode_to_a_mask():
    square, line, absurd = [10, 8, 30, 8, 30, 28, 10, 28], [10, 8, 30, 8], [10, 8, 1e9, 8, 30, 28]
    runs = {"size": [40, 48], "counts": [0, 80, 40 * 48 - 80]}
    drawn = [runs, [square], [line, square], [absurd, square], [square, "x"], ["x", None, square]]
    nothing = [
        None,
        [],
        [[]],
        [line],
        [absurd],
        [square[:7]],
        [["a"] * 6],
        "30 8",
        7,
        ["x"],
        [None, [float("nan")] * 6],
    ]
    segmentations = pack_segmentations([*drawn, *nothing])
    assert segmentations.drawable().tolist() == [True] * len(drawn) + [False] * len(nothing)
    assert segmentations.present.tolist() == [True] * len(drawn) + [False] + [True] * (len(nothing) - 1)
    for segmentation in drawn + nothing:
        mask = decode_mask({"segmentation": segmentation}, 40, 48)
        assert (mask is not None) == (segmentation in drawn)


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
