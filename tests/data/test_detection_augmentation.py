"""Augmentation for detection: where pixels, boxes and masks end up, and how its parameters are drawn."""

import itertools

import pytest
import torch
from conftest import coco_dataset, read_coco, save_coco, write_coco
from torchvision.ops import box_iou

from resnet_backbones.config import load_config
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.detection_augmentation import paste_objects, train_transform
from resnet_backbones.data.images import read_image
from resnet_backbones.data.loader import build_train_loader
from resnet_backbones.errors import UserError

ALL = {"flip": 0.5, "photometric": True, "scale_jitter": [0.4, 1.5], "copy_paste": 0.9}


def planted(size: tuple[int, int], *boxes: tuple[int, int, int, int], background: int = 10, bright: int = 250):
    """A dark image (3, H, W) with bright rectangles, labels 1, 2, …, and a mask each."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    image = torch.full((3, *size), background, dtype=torch.uint8)
    image[:, masks.bool().any(0)] = bright
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return image, {"boxes": corners, "labels": torch.arange(1, 1 + len(boxes)), "masks": masks}


def bounds(shown: torch.Tensor) -> torch.Tensor:
    """(4,): the box around the true pixels of (H, W)."""
    ys, xs = torch.where(shown)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


def test_default_augmentation_is_only_a_flip_drawn_from_the_sample_seed(tmp_path):
    write_coco(tmp_path, 2)
    dataset = DetectionDataset([read_coco(tmp_path)], train=True, masks=True)
    for k, seed in itertools.product(range(2), range(8)):
        image, target = dataset[(k, seed)]
        file = torch.from_numpy(read_image(tmp_path / f"images/{k}.png", (48, 40), 3)).permute(2, 0, 1)
        flipped = torch.rand(1, generator=torch.Generator().manual_seed(seed)) < 0.5
        assert torch.equal(image, file.flip(-1) if flipped else file)
        assert target["boxes"].tolist() == [[18, 8, 38, 28] if flipped else [10, 8, 30, 28]]
        assert torch.equal(bounds(target["masks"][0]), target["boxes"][0])
        assert set(target) == {"image_id", "file_name", "boxes", "labels", "masks", "seed"}
        assert {type(v) for v in (image, target["boxes"], target["masks"], target["labels"])} == {torch.Tensor}
    plain = coco_dataset(tmp_path, masks=True, copy_paste=0.0, repeat_threshold=None, photometric=False)
    assert torch.equal(plain.order(torch.Generator().manual_seed(3)), torch.randperm(2, generator=torch.manual_seed(3)))


@pytest.mark.parametrize("factor", [0.25, 0.6, 1.0, 1.5])
def test_scale_jitter_scales_objects_by_the_factor(factor):
    image, target = planted((80, 120), (48, 32, 72, 56))
    jitter = train_transform(flip=0.0, scale_jitter=[factor, factor])
    for _ in range(5):
        scaled, found = jitter(image, target)
        if factor > 1:  # the detector resizes the window to the size of the whole image
            assert scaled.shape == (3, round(80 / factor), round(120 / factor))
            assert len(found["boxes"]) == 1
            assert found["boxes"][0].tolist() == bounds(scaled[0] > 130).tolist() == bounds(found["masks"][0]).tolist()
            continue
        assert scaled.shape == image.shape
        expected = torch.tensor([[48.0, 32, 72, 56]]) * factor
        torch.testing.assert_close(found["boxes"], expected)
        assert box_iou(expected, bounds(scaled[0] > 130)[None]) > 0.7
        assert box_iou(expected, bounds(found["masks"][0])[None]) > 0.7
        mean = image[0].float().mean().round()
        assert (scaled[:, round(80 * factor) :] == mean).all()
        assert (scaled[:, :, round(120 * factor) :] == mean).all()


def test_scale_jitter_draws_factors_uniformly_and_drops_objects_cropped_away():
    image, target = planted((60, 60), (0, 0, 2, 60), (20, 0, 60, 20))
    factors, kept = [], set()
    jitter = train_transform(flip=0.0, scale_jitter=[0.2, 2.0])
    for _ in range(400):
        scaled, found = jitter(image, target)
        factors.append(60 / scaled.shape[1] if scaled.shape[1] < 60 else (found["boxes"][-1, 2] / 60).item())
        kept.add(tuple(found["labels"].tolist()))
        assert (found["masks"].flatten(1).sum(1) > 0).all()
        assert (found["boxes"][:, 2:] - found["boxes"][:, :2] >= 1).all()
        assert len(found["boxes"]) == len(found["labels"]) == len(found["masks"])
    assert torch.tensor(factors).quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == pytest.approx(
        [0.2, 0.65, 1.1, 1.55, 2.0], abs=0.1
    )
    assert kept == {(), (1,), (2,), (1, 2)}


def test_copy_paste_keeps_masks_disjoint_and_boxes_tight():
    below = planted((40, 60), (2, 2, 20, 20), (30, 4, 36, 10), (40, 20, 58, 38), bright=100)
    above = planted((40, 60), (10, 12, 30, 30), (28, 2, 38, 12), (44, 30, 50, 36), bright=250)
    below[1]["boxes"][0, 0] = 1.5  # as annotated, a little beside the mask
    counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, found = paste_objects(*below, *above)
        masks, boxes = found["masks"].bool(), found["boxes"]
        pasted = (image[0] == 250) & masks.any(0)
        assert masks.sum(0).max() == 1
        assert masks.any(0).sum() == (below[1]["masks"].any(0) | pasted).sum()
        assert torch.equal(image[0], torch.where(pasted, above[0][0], below[0][0]))
        for mask, box in zip(masks, boxes, strict=True):
            whole = box.tolist() == [1.5, 2, 20, 20] and mask.sum() == 18 * 18
            assert whole or torch.equal(box, bounds(mask))
        counts.add(tuple(mask.sum().item() for mask in masks))
    # The second object is covered by the second pasted one; the first and the third lose their overlaps.
    first, third = {18 * 18, 18 * 18 - 10 * 8}, {18 * 18, 18 * 18 - 6 * 6}
    expected = set()
    for chosen in itertools.product([False, True], repeat=3):
        left = [min(first) if chosen[0] else max(first), *([] if chosen[1] else [36])]
        left.append(min(third) if chosen[2] else max(third))
        expected.add((*left, *itertools.compress((360, 100, 36), chosen)))
    assert counts == expected


def test_objects_of_a_larger_image_are_resized_before_pasting():
    image, target = planted((40, 60))
    source, objects = planted((160, 160), (0, 0, 80, 40), (100, 120, 140, 160), bright=200)
    torch.manual_seed(1)
    for _ in range(100):  # each object is pasted half of the time
        mixed, found = paste_objects(image, target, source, objects)
        if len(found["boxes"]) == 2:
            break
    assert mixed.shape == image.shape
    assert found["boxes"].tolist() == [[0, 0, 20, 10], [25, 30, 35, 40]]
    assert [bounds(m).tolist() for m in found["masks"]] == found["boxes"].tolist()
    assert (mixed[0][found["masks"].bool().any(0)] > 100).all()


def test_samples_depend_only_on_their_seed(tmp_path):
    content = write_coco(tmp_path, 5)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in (102, 103)]
    save_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path, masks=True, keep_empty=True, repeat_threshold=0.9, **ALL)

    def batches(num_workers: int, seed: int = 0, start: int = 0) -> list:
        torch.manual_seed(num_workers)
        loader = build_train_loader(dataset, 2, num_workers=num_workers, seed=seed, start=start)
        batches = list(itertools.islice(loader, 6 - start))
        return [pair for images, targets in batches for pair in zip(images, targets, strict=True)]

    def same(one: list, other: list) -> list[bool]:
        keys = ("boxes", "labels", "masks")
        return [
            torch.equal(a, b) and all(torch.equal(s[key], t[key]) for key in keys)
            for (a, s), (b, t) in zip(one, other, strict=True)
        ]

    samples = batches(0)
    assert all(same(samples, batches(2)))
    assert all(same(samples[6:], batches(0, start=3)))
    assert not any(same(samples, batches(0, seed=1)))
    assert {len(target["boxes"]) for _, target in samples} == {0, 1, 2}


def test_scale_jitter_handles_tiny_and_non_rgb_images():
    for channels, size in itertools.product([1, 3, 5], [(1, 1), (2, 90), (5, 4)]):
        image = torch.randint(256, (channels, *size), dtype=torch.uint8)
        target = {"boxes": torch.tensor([[0.0, 0, size[1], size[0]]]), "labels": torch.tensor([1])}
        for _ in range(10):
            changed, found = train_transform(scale_jitter=[0.1, 4.0])(image, target)
            assert changed.shape[0] == channels
            assert min(changed.shape) > 0
            assert (found["boxes"][:, 2:] <= torch.tensor([changed.shape[2], changed.shape[1]])).all()


def test_photometric_distortion_changes_only_colors():
    image, target = planted((30, 40), (5, 5, 20, 20))
    image[1] //= 2
    seen = [train_transform(flip=0.0, photometric=True)(image, target) for _ in range(20)]
    assert all(torch.equal(found["boxes"], target["boxes"]) for _, found in seen)
    assert sum(torch.equal(distorted, image) for distorted, _ in seen) < 8
    for distorted, _ in seen:  # the two areas stay two areas
        assert len(distorted.flatten(1).unique(dim=1).T) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.copy_paste=0.5"], "copy_paste is 0.5; it must be 0 where detector.name is faster_rcnn: objects"),
        (["data.copy_paste=1.5"], "data.copy_paste is 1.5; it must be from 0 to 1"),
        (["data.photometric=true", "backbone.in_channels=1"], "photometric is True; it must be false where .* but 1"),
        (["data.scale_jitter=[2.0,0.1]"], r"scale_jitter is \[2.0, 0.1\]; it must be two numbers, the smaller first"),
        (["data.scale_jitter=[0.5]"], r"data.scale_jitter is \[0.5\]; it must be two numbers"),
        (["data.scale_jitter=[0,2]"], "data.scale_jitter is 0.0; it must be from 0.01 to 100"),
        (["data.repeat_threshold=0"], "data.repeat_threshold is 0.0; it must be from"),
    ],
)  # fmt: skip
def test_errors_for_invalid_settings_name_the_key_and_the_fix(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("coco_faster_rcnn_R50", overrides)
