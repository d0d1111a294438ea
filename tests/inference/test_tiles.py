"""Tiles of a large image, merged as if the detector had seen the whole image."""

import itertools

import numpy as np
import pytest
from pycocotools import mask as rle

from resnet_backbones.inference.detections import Detections
from resnet_backbones.inference.masks import encode
from resnet_backbones.inference.tiles import Tile, merge, tiles_of


@pytest.mark.parametrize(("width", "height", "side"), [(2560, 1920, 640), (641, 100, 640), (1300, 1300, 500)])
def test_tiles_cover_the_image_and_overlap(width, height, side):
    tiles = tiles_of(width, height, side, 0.2)
    seen = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (min(side, width), min(side, height))
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    lefts = sorted({tile.x0 for tile in tiles})
    assert all(a + side - b >= 0.2 * side - 1 for a, b in itertools.pairwise(lefts))


def test_a_small_image_is_one_tile():
    assert tiles_of(640, 480, 640, 0.2) == tiles_of(640, 480, None, 0.2) == [Tile(0, 0, 640, 480)]


def seen_by(tile, objects, size, masks=False, jitter=0.0):
    """What a perfect detector finds of `objects`, (box, label), in a tile: the visible part of each."""
    rng = np.random.default_rng(tile.x0 + 7 * tile.y0)
    boxes, labels, scores, rles = [], [], [], []
    for k, (box, label) in enumerate(objects):
        part = np.array(box, float)
        part[0::2], part[1::2] = part[0::2].clip(tile.x0, tile.x1), part[1::2].clip(tile.y0, tile.y1)
        if (part[2:] - part[:2] >= 4).all():
            boxes.append(part + rng.uniform(-jitter, jitter, 4))
            labels.append(label)
            scores.append(0.9 - 0.01 * k - 0.001 * rng.random())
            x0, y0, x1, y1 = part.astype(int)
            rles.append(encode(np.ones((y1 - y0, x1 - x0), bool), (x0, y0), size))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, np.float32),
        ["a", "b"], size, rles if masks else None,
    )  # fmt: skip


def merged(objects, width=1000, height=700, side=300, overlap=0.2, **options):
    tiles = tiles_of(width, height, side, overlap)
    return merge([seen_by(tile, objects, (height, width), **options) for tile in tiles], tiles)


def test_every_object_is_found_once_and_whole():
    rng = np.random.default_rng(0)
    corners = [(x, y) for x in range(5, 930, 62) for y in range(5, 630, 62)]
    sides = rng.integers(15, 58, (len(corners), 2))
    objects = [((x, y, x + w, y + h), 1 + k % 2) for k, ((x, y), (w, h)) in enumerate(zip(corners, sides, strict=True))]
    found = merged(objects, jitter=1.0)
    assert len(found) == len(objects)
    assert (np.diff(found.scores) <= 0).all()
    for box, label in objects:
        distance = np.abs(found.boxes - np.array(box)).max(1)
        assert distance.min() <= 1.01
        assert found.labels[distance.argmin()] == label


@pytest.mark.parametrize("box", [(100, 100, 560, 180), (20, 20, 900, 600), (250, 30, 320, 660)])
def test_pieces_of_an_object_larger_than_a_tile_are_joined(box):
    found = merged([(box, 1)], masks=True)
    assert found.boxes.tolist() == [list(box)]
    expected = np.zeros((700, 1000), bool)
    expected[box[1] : box[3], box[0] : box[2]] = True
    assert np.array_equal(found.masks[0], expected)


def test_neighbors_and_other_classes_stay_apart():
    objects = [
        ((225, 100, 275, 150), 1),
        ((225, 100, 275, 150), 2),
        ((255, 100, 305, 150), 1),
        ((240, 140, 290, 190), 1),
    ]
    found = merged(objects)
    assert sorted(map(tuple, found.boxes.tolist())) == sorted(box for box, _ in objects)


TWO = [Tile(0, 0, 300, 300), Tile(200, 0, 500, 300)]


def found_in(*rows):
    """Detections (box, score) of class 1 in one tile of `TWO`."""
    boxes, scores = zip(*rows, strict=True) if rows else ((), ())
    columns = np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(rows), np.int64), np.array(scores, np.float32)
    return Detections(*columns, ["a"], (300, 500))


def test_piece_that_an_overlapping_tile_does_not_find_is_dropped():
    assert len(merge([found_in(((240, 10, 300, 60), 0.9)), found_in()], TWO)) == 0
    too_large = found_in(((150, 10, 300, 60), 0.9))  # the other tile sees it from 200 on
    assert merge([too_large, found_in()], TWO).boxes.tolist() == [[150, 10, 300, 60]]
    inside = found_in(((240, 10, 290, 60), 0.9))
    assert merge([inside, found_in()], TWO).boxes.tolist() == [[240, 10, 290, 60]]


def test_piece_is_joined_with_the_best_match_in_the_other_tile():
    left = found_in(((100, 10, 300, 60), 0.9))
    right = [((200, 12, 400, 61), 0.8), ((200, 5, 440, 70), 0.6)]
    assert merge([left, found_in(*right)], TWO).boxes.tolist() == [[100, 10, 400, 61]]
    assert merge([left, found_in(((200, 12, 400, 61), 0.4))], TWO).boxes.tolist() == [[100, 10, 300, 60]]


def test_merging_no_detections():
    found = merged([])
    assert found.boxes.shape == (0, 4)
    assert merged([], masks=True).masks.shape == (0, 700, 1000)


def test_a_region_is_encoded_as_pycocotools_encodes_the_whole_mask():
    rng = np.random.default_rng(0)
    for k in range(200):
        height, width = rng.integers(1, 20, 2)
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        region = rng.random((h, w)) < (k % 5) / 4
        whole = np.zeros((height, width), np.uint8)
        whole[y : y + h, x : x + w] = region
        expected = rle.encode(np.asfortranarray(whole))["counts"].decode()
        assert encode(region, (int(x), int(y)), (int(height), int(width)))["counts"] == expected
