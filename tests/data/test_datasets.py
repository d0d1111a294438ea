"""Datasets as a loader reads them: by name, concatenated, flipped, and the built-in shapes."""

import json

import pytest
import torch
from conftest import coco_dataset, read_coco, read_voc, save_coco, write_coco, write_voc

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.formats import shapes
from resnet_backbones.errors import UserError


def test_flip_moves_image_boxes_and_masks_together(tmp_path):
    write_coco(tmp_path)
    plain, flipped = coco_dataset(tmp_path, masks=True)[0], coco_dataset(tmp_path, masks=True, flip=1.0)[0]
    assert torch.equal(flipped[0], plain[0].flip(-1))
    assert torch.equal(flipped[1]["masks"], plain[1]["masks"].flip(-1))
    assert flipped[1]["boxes"].tolist() == [[18, 8, 38, 28]]


def test_sample_seed_fixes_augmentation_and_leaves_the_global_rng_alone(tmp_path):
    write_coco(tmp_path)
    dataset = coco_dataset(tmp_path, flip=0.5)
    torch.manual_seed(7)
    images = [dataset[(0, seed)][0] for seed in range(20)]
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(dataset[(0, seed)][0], images[seed]) for seed in range(20))
    assert 0 < sum(torch.equal(image, images[0]) for image in images) < 20


def test_keep_empty_keeps_training_images_without_objects(tmp_path):
    content = write_coco(tmp_path)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 100]
    save_coco(tmp_path, content)
    assert len(coco_dataset(tmp_path)) == 3
    kept = coco_dataset(tmp_path, keep_empty=True, masks=True)
    assert len(kept) == 4
    assert kept[0][1]["boxes"].shape == (0, 4)
    assert kept[0][1]["masks"].shape == (0, 40, 48)
    assert len(coco_dataset(tmp_path, train=False)) == 4


def test_the_error_for_a_missing_dataset_names_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    for name, path, site, step in [
        ("coco_2017_train", "coco/train2017", "https://cocodataset.org", "unpack its archives in {}/coco, or"),
        ("voc_2007_test", "VOC2007", "http://host.robots.ox.ac.uk", "move VOCdevkit/VOC2007 to {}/VOC2007, or"),
    ]:
        with pytest.raises(UserError, match=f"{name} is missing: {tmp_path}/{path} does not.*download it from {site}.*"
                           + step.format(tmp_path)):  # fmt: skip
            load_annotations(name)
    own = {"own": {"format": "voc", "root": str(tmp_path / "gone"), "split": "train"}}
    message = r"gone does not exist; correct datasets\.own in the config"
    with pytest.raises(UserError, match=rf"{message}, or set RESNET_BACKBONES_DATASETS to .* contains gone/\."):
        load_annotations("own", own)
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=rf"{message}\.$"):
        load_annotations("own", own)


def test_tilde_in_paths_is_expanded(tmp_path, monkeypatch):
    write_coco(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = {"own": {"root": "~/images", "annotations": "~/instances.json", "split": "0.5"}}
    assert len(load_annotations("own", own)) == 2


def test_errors_for_unknown_names_and_keys_list_the_valid_ones():
    with pytest.raises(UserError, match="Unknown dataset 'coco_2017_vall'. Did you mean coco_2017_val"):
        load_annotations("coco_2017_vall")
    for spec, message in [
        (
            {"format": "yollo", "root": "x"},
            r"datasets\.own: Unknown format 'yollo'\. Did you mean yolo\? Available: coco, cvat, labelme, shapes, voc",
        ),
        ({"format": "coco"}, r"datasets\.own needs 'root', the folder of its images"),
        ({"root": "x", "split": "y", "clases": "z"}, r"datasets\.own: Unknown key 'clases'\. Did you mean classes\?"),
        (
            {"format": "shapes", "root": "x", "split": "val", "annotations": "z"},
            "the shapes format takes no 'annotations'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            load_annotations("own", {"own": spec})


def test_sets_with_different_classes_are_refused(tmp_path):
    write_voc(tmp_path / "a", {"a": [("dog", (1, 1, 9, 9), 0)]})
    write_voc(tmp_path / "b", {"b": [("cat", (1, 1, 9, 9), 0)]})
    with pytest.raises(UserError, match="have different classes: dog and cat"):
        DetectionDataset([read_voc(tmp_path / "a"), read_voc(tmp_path / "b")], train=True)


def test_two_sets_are_concatenated(tmp_path):
    write_coco(tmp_path / "a", 2)
    write_coco(tmp_path / "b", 3)
    dataset = DetectionDataset([read_coco(tmp_path / "a"), read_coco(tmp_path / "b")], train=True)
    assert len(dataset) == 5
    assert [str(tmp_path / "a") in dataset[k][1]["file_name"] for k in range(5)] == [True] * 2 + [False] * 3


def test_shapes_are_written_as_coco(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        shapes.write_shapes(tmp_path / folder, 5, seed=4)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["000001.png", "000002.png", "000003.png", "000004.png", "000005.png", "instances.json"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "other" / f).read_bytes() for f in files)
    spec = {"root": str(tmp_path / "one"), "annotations": str(tmp_path / "one/instances.json")}
    data = load_annotations("own", {"own": spec})
    dataset = DetectionDataset([data], train=True, masks=True, flip=0.0)
    for image, target in (dataset[k] for k in range(5)):
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = torch.where(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert image.shape == (3, 128, 128)
    assert json.loads((tmp_path / "one/instances.json").read_text())["categories"][0]["name"] == "disc"


def test_shapes_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"val": (3, 2)})
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    assert len(load_annotations("shapes_val")) == 3
    written = (tmp_path / "shapes/val/instances.json").stat().st_mtime_ns
    load_annotations("shapes_val")
    assert (tmp_path / "shapes/val/instances.json").stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "shapes").iterdir()] == ["val"]
