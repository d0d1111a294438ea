"""Anchors by k-means, on boxes with a known answer."""

import numpy as np
import pytest
from conftest import coco_overrides, draw, save_coco

from resnet_backbones.analysis.anchors import anchor_fit, k_means, propose_anchors
from resnet_backbones.cli.anchors import main


def boxes_around(sizes, ratios, count=50):
    """`count` widths and heights within 5 % of each pair of size and ratio."""
    rng = np.random.default_rng(0)
    shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
    return np.concatenate([np.array(shape) * rng.uniform(0.95, 1.05, (count, 2)) for shape in shapes])


def test_k_means_finds_planted_centers():
    rng = np.random.default_rng(0)
    planted = np.array([-3.0, 1.0, 1.8, 9.0])
    values = np.concatenate([center + rng.uniform(-0.1, 0.1, 100 * (k + 1)) for k, center in enumerate(planted)])
    np.testing.assert_allclose(k_means(rng.permutation(values), 4), planted, atol=0.03)


def test_sizes_and_ratios_of_planted_boxes_are_found():
    shapes = boxes_around([20, 70, 75], [0.4, 1.0, 2.5])
    sizes, ratios = propose_anchors(shapes, [[16], [64], [256]], [0.5, 1.0, 2.0])
    assert sizes == [[20], [72], [256]]  # the mean of 70 and 75 on the second level; nothing is near the third
    assert ratios == pytest.approx([0.4, 1.0, 2.5], abs=0.03)
    sizes, _ = propose_anchors(shapes, [[16], [64, 90]], [0.5, 1.0, 2.0])
    assert sizes == [[20], [70, 75]]


def test_fit_is_the_iou_of_centered_boxes():
    shapes = np.array([[10.0, 10], [20, 10], [40, 40]])
    fit = anchor_fit(shapes, [[10], [20]], [1.0])
    assert fit.mean_iou == pytest.approx((1 + 0.5 + 400 / 1600) / 3)
    assert fit == pytest.approx((fit.mean_iou, 2 / 3, 1 / 3))
    assert anchor_fit(np.array([[20.0, 10]]), [[200**0.5]], [0.5]).mean_iou == pytest.approx(1)


def test_command_prints_overrides_that_fit_better(tmp_path, capsys):
    boxes = [[10, 10, 30, 60], [50, 20, 32, 58], [90, 20, 31, 61]]
    rows = [{"id": k + 1, "image_id": 1, "category_id": 3, "bbox": box} for k, box in enumerate(boxes)]
    images = [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}]
    save_coco(tmp_path, {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cat"}]})
    (tmp_path / "images").mkdir()
    draw(200, 100).save(tmp_path / "images/a.png")
    overrides = [*coco_overrides(tmp_path), "detector.min_size=[200]", "detector.max_size=400"]
    main(["coco_faster_rcnn_R50.yaml", *overrides, "detector.aspect_ratios=[1.0]"])
    out = capsys.readouterr().out
    before, after = (float(line.split()[1]) for line in out.splitlines()[2:4])
    assert after > 0.9 > before
    assert "3 boxes, shorter side resized to 200 pixels" in out
    assert "detector.anchor_sizes=[[32],[86],[128],[256],[512]] detector.aspect_ratios=[1.92]" in out
    with pytest.raises(SystemExit):
        main(["coco_fcos_R50.yaml", *overrides])
    assert "detector.name is fcos, which has no anchors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["coco_faster_rcnn_R50.yaml", *overrides, "detector.anchor_sizes=[[16],[32]]"])
    assert "detector.anchor_sizes has 2 levels, but the backbone gives 5" in capsys.readouterr().err
