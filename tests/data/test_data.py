"""COCO and VOC data sets: what reaches training, and errors that name the file and the entry."""

import json

import numpy as np
import pytest
import torch
from conftest import read_coco, save_coco, write_coco, write_voc

from resnet_backbones.data import DetectionDataset, load_annotations
from resnet_backbones.data.masks import decode_mask
from resnet_backbones.data.outlines import pack_outlines
from resnet_backbones.errors import UserError


def coco(folder, **dataset_options) -> DetectionDataset:
    return DetectionDataset([read_coco(folder)], **{"train": True, "flip": 0.0} | dataset_options)


def read_voc(root, split="train", **spec):
    return load_annotations("own", {"own": {"format": "voc", "root": str(root), "split": split, **spec}})


def test_coco_targets(tmp_path):
    write_coco(tmp_path)
    dataset = coco(tmp_path, masks=True)
    image, target = dataset[1]
    assert (image.shape, image.dtype) == ((3, 40, 48), torch.uint8)
    assert dataset.classes == ["dog", "cat"]  # ids 3 and 7
    assert target["boxes"].tolist() == [[10, 8, 30, 28]]  # the crowd is left out
    assert target["labels"].tolist() == [2]
    assert target["image_id"] == 101
    mask = target["masks"][0]
    assert mask.sum() == 400
    assert mask[8:28, 10:30].all()


def test_compressed_and_uncompressed_rle_agree_with_the_polygon(tmp_path):
    from pycocotools import mask as rle

    content = write_coco(tmp_path, 3)
    square = np.zeros((40, 48), np.uint8, order="F")
    square[8:28, 10:30] = 1
    compressed = rle.encode(square)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], square.flatten("F"), [1]])))
    content["annotations"][2]["segmentation"] = {"size": [40, 48], "counts": compressed["counts"].decode()}
    counts = np.diff(np.concatenate([[0], runs, [square.size]])).tolist()
    content["annotations"][4]["segmentation"] = {"size": [40, 48], "counts": counts}
    save_coco(tmp_path, content)
    dataset = coco(tmp_path, masks=True)
    masks = [dataset[k][1]["masks"] for k in range(3)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_flip_moves_image_boxes_and_masks_together(tmp_path):
    write_coco(tmp_path)
    plain, flipped = coco(tmp_path, masks=True)[0], coco(tmp_path, masks=True, flip=1.0)[0]
    assert torch.equal(flipped[0], plain[0].flip(-1))
    assert torch.equal(flipped[1]["masks"], plain[1]["masks"].flip(-1))
    assert flipped[1]["boxes"].tolist() == [[18, 8, 38, 28]]


def test_a_seed_fixes_the_augmentation_and_leaves_the_global_draws(tmp_path):
    write_coco(tmp_path)
    dataset = coco(tmp_path, flip=0.5)
    torch.manual_seed(7)
    images = [dataset[(0, seed)][0] for seed in range(20)]
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(dataset[(0, seed)][0], images[seed]) for seed in range(20))
    assert 0 < sum(torch.equal(image, images[0]) for image in images) < 20


def test_images_without_objects_are_kept_by_choice(tmp_path):
    content = write_coco(tmp_path)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 100]
    save_coco(tmp_path, content)
    assert len(coco(tmp_path)) == 3
    kept = coco(tmp_path, keep_empty=True, masks=True)
    assert len(kept) == 4
    assert kept[0][1]["boxes"].shape == (0, 4)
    assert kept[0][1]["masks"].shape == (0, 40, 48)
    assert len(coco(tmp_path, train=False)) == 4


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([10, 8, 0, 20], "of no area"),
        ([10, 8, 20, -3], "of no area"),
        ([100, 8, 20, 20], "outside the image"),
        ([float("nan"), 8, 20, 20], "not finite"),
        ([10, 8, float("inf"), 20], "not finite"),
        ([10, 8, 1e300, 20], "not finite"),
        ([10, 8, 10**400, 20], "not finite"),
    ],
)
def test_unusable_boxes_are_skipped_and_counted(tmp_path, caplog, bbox, reason):
    content = write_coco(tmp_path)
    content["annotations"][0]["bbox"] = content["annotations"][2]["bbox"] = bbox
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco(tmp_path)
    assert len(dataset) == 2
    assert f"own: skipped 2 boxes {'that are ' * (reason == 'not finite')}{reason} (first in 0.png)" in caplog.text


def test_boxes_are_clipped_to_the_image(tmp_path):
    content = write_coco(tmp_path)
    content["annotations"][0]["bbox"] = [-5, 30, 20, 90]
    save_coco(tmp_path, content)
    assert coco(tmp_path)[0][1]["boxes"].tolist() == [[0, 30, 15, 40]]


def edit(key, value, entry="annotations", index=0):
    def apply(content):
        if value is None:
            del content[entry][index][key]
        else:
            content[entry][index][key] = value

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "the list 'categories' is missing"),
        (edit("id", 2), "two entries have the annotation id 2"),
        (edit("id", 101, "images"), "two entries have the image id 101"),
        (edit("id", 3, "categories"), "two entries have the category id 3"),
        (edit("image_id", 55), "annotation 1 is of image 55, which is not listed"),
        (edit("category_id", 9), "annotation 1 is of category 9, which is not listed"),
        (edit("bbox", None), "has no 'bbox' of type list"),
        (edit("bbox", [1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\], not four numbers"),
        (edit("bbox", [1, 2, 3, "4"]), "not four numbers"),
        (edit("file_name", None, "images"), "has no 'file_name' of type str"),
        (edit("width", 0, "images"), "image 100 is 0 x 40 pixels"),
        (edit("file_name", "../0.png", "images"), "image 100 leaves the image folder"),
        (edit("file_name", "gone.png", "images"), "1 of 4 images are missing from .*images, first gone.png"),
    ],
)
def test_bad_coco_entries_are_named(tmp_path, change, message):
    content = write_coco(tmp_path)
    change(content)
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00", '{"images": 3}'])
def test_corrupt_json_is_named(tmp_path, text):
    write_coco(tmp_path)
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(UserError, match=r"instances\.json"):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [40, 47], "counts": [1880]}, "size .40, 47., the image of .40, 48."),
        ({"size": [40, 48], "counts": [7]}, "counts do not sum to 40 x 48"),
        ({"size": [40, 48], "counts": ""}, "has no counts"),
        ({"size": [40, 48], "counts": "zzzz"}, "holds 'z'"),
        ({"size": [40, 48], "counts": "P"}, "is cut short"),
        ({"size": [40, 48]}, "has no counts"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, segmentation, message):
    content = write_coco(tmp_path)
    content["annotations"][0]["segmentation"] = segmentation
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match=f"annotation 1 of 0.png has no usable mask: its RLE.*{message}"):
        coco(tmp_path, masks=True)[0]


def test_objects_without_a_polygon_are_counted_and_left_out_of_masks(tmp_path, caplog):
    content = write_coco(tmp_path)
    for k, outline in enumerate(([], [[1, 2, 3, 4]], [[10, 8, 30, 8, 30, float("nan")]])):
        content["annotations"][2 * k]["segmentation"] = outline
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco(tmp_path, masks=True)
    assert "own: 3 objects have a segmentation without a polygon; masks skip them (first annotation 1)" in caplog.text
    assert [len(dataset[k][1]["masks"]) for k in range(4)] == [0, 0, 0, 1]


def test_compressed_counts_are_read_as_pycocotools_reads_them():
    from pycocotools import mask as rle

    from resnet_backbones.data.masks import rle_counts

    rng = np.random.default_rng(0)
    for side in (1, 7, 60, 300):
        mask = np.asfortranarray(rng.integers(0, 2, (side, side), dtype=np.uint8))
        counts = rle_counts(rle.encode(mask)["counts"].decode())
        assert sum(counts) == side * side
        runs = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(runs, mask.flatten("F"))


def test_annotations_are_numbered_from_one_for_pycocotools(tmp_path):
    content = write_coco(tmp_path)
    for k, o in enumerate(content["annotations"]):
        o["id"] = k
    save_coco(tmp_path, content)
    assert [o["id"] for o in read_coco(tmp_path).as_coco()["annotations"]] == list(range(1, 9))


def test_an_object_without_segmentation_needs_faster_rcnn(tmp_path):
    content = write_coco(tmp_path)
    del content["annotations"][0]["segmentation"]
    save_coco(tmp_path, content)
    assert coco(tmp_path)[0][1]["boxes"].shape == (1, 4)
    with pytest.raises(UserError, match="annotation 1 of 0.png has no segmentation, which mask_rcnn needs"):
        coco(tmp_path, masks=True)[0]


def test_voc_pixels_count_from_one_and_difficult_is_ignored(tmp_path, caplog):
    objects = [("cat", (11, 9, 30, 28), 0), ("dog", (1, 1, 48, 40), 1), ("cat", (5, 5, 5, 5), 0)]
    write_voc(tmp_path, {"a": objects, "b": [("dog", (2, 2, 3, 3), 0)]})
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(tmp_path)
    assert "own: skipped 1 boxes of no area (first in JPEGImages/a.jpg)" in caplog.text
    dataset = DetectionDataset([data], train=True, flip=0.0)
    assert dataset.classes == ["cat", "dog"]
    assert dataset[0][1]["boxes"].tolist() == [[10, 8, 30, 28]]
    assert dataset[1][1]["boxes"].tolist() == [[1, 1, 3, 3]]
    assert dataset[1][1]["labels"].tolist() == [2]
    assert [o["iscrowd"] for o in data.objects(0)] == [0, 1, 0]
    assert data.objects(0)[1]["bbox"] == [0, 0, 48, 40]


def test_voc_class_order_can_be_given_and_unknown_classes_are_named(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    assert read_voc(tmp_path, classes=["dog", "cat"]).classes == ["dog", "cat"]
    with pytest.raises(UserError, match=r"a\.xml: Unknown class 'dog'\. Did you mean dogs\? Available: cats, dogs"):
        read_voc(tmp_path, classes=["dogs", "cats"])


def test_bad_voc_files_are_named(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    with pytest.raises(UserError, match=r"ImageSets/Main/val\.txt does not exist\. Splits there: train\."):
        read_voc(tmp_path, "val")
    xml = tmp_path / "Annotations" / "a.xml"
    good = xml.read_text()
    xml.write_text(good.replace("<xmin>1<", "<xmin>left<"))
    with pytest.raises(UserError, match=r"a\.xml: an object's xmin is 'left', not a number"):
        read_voc(tmp_path)
    xml.write_text(good.replace("<name>dog</name>", ""))
    with pytest.raises(UserError, match=r"a\.xml: an object has no name"):
        read_voc(tmp_path)
    with pytest.raises(UserError, match="own: classes lists a name twice: dog, dog"):
        read_voc(tmp_path, classes=["dog", "dog"])
    xml.write_text(good[:60])
    with pytest.raises(UserError, match=r"a\.xml is not valid XML"):
        read_voc(tmp_path)
    xml.unlink()
    with pytest.raises(UserError, match=r"a\.xml cannot be read: No such file"):
        read_voc(tmp_path, classes=["dog"])
    xml.write_text(good)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 1 images are missing from .*, first JPEGImages/a\.jpg"):
        read_voc(tmp_path)


def test_an_image_listed_twice_is_named(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\na\n")
    with pytest.raises(UserError, match=r"train\.txt: image a is listed twice"):
        read_voc(tmp_path)


def test_nan_voc_boxes_are_skipped_and_counted(tmp_path, caplog):
    write_voc(tmp_path, {"a": [("dog", ("nan", 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 0)]})
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(tmp_path)
    assert "skipped 1 boxes that are not finite" in caplog.text
    assert len(data.objects(0)) == 1


def test_a_missing_data_set_says_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    for name, place in [("coco_2017_train", "coco/train2017"), ("voc_2007_test", "VOC2007")]:
        with pytest.raises(UserError, match=f"{name} is not there: {tmp_path}/{place} does not.*datasets/README.md"):
            load_annotations(name)
    own = {"own": {"format": "voc", "root": str(tmp_path / "gone"), "split": "train"}}
    with pytest.raises(UserError, match=r"gone does not exist; correct datasets\.own in the config"):
        load_annotations("own", own)


def test_unknown_names_and_keys_list_what_exists():
    with pytest.raises(UserError, match="Unknown data set 'coco_2017_vall'. Did you mean coco_2017_val"):
        load_annotations("coco_2017_vall")
    for spec, message in [
        (
            {"format": "yolo", "root": "x"},
            "datasets.own: Unknown format 'yolo'. Available: coco, shapes, voc",
        ),
        ({"format": "coco", "root": "x"}, "datasets.own: the coco format needs 'annotations'"),
        (
            {"format": "voc", "root": "x", "split": "y", "annotations": "z"},
            "voc format takes no 'annotations'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            load_annotations("own", {"own": spec})


def test_sets_of_different_classes_do_not_mix(tmp_path):
    write_voc(tmp_path / "a", {"a": [("dog", (1, 1, 9, 9), 0)]})
    write_voc(tmp_path / "b", {"b": [("cat", (1, 1, 9, 9), 0)]})
    with pytest.raises(UserError, match="have different classes: dog and cat"):
        DetectionDataset([read_voc(tmp_path / "a"), read_voc(tmp_path / "b")], train=True)


def test_two_sets_are_drawn_from_as_one(tmp_path):
    write_coco(tmp_path / "a", 2)
    write_coco(tmp_path / "b", 3)
    dataset = DetectionDataset([read_coco(tmp_path / "a"), read_coco(tmp_path / "b")], train=True)
    assert len(dataset) == 5
    assert [str(tmp_path / "a") in dataset[k][1]["file_name"] for k in range(5)] == [True] * 2 + [False] * 3


def test_bccd_is_read_as_published(shared, caplog):
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(shared / "bccd", "trainval", classes=["RBC", "WBC", "Platelets"])
    assert len(data) == 292
    assert "skipped 2 boxes of no area (first in JPEGImages/BloodImage_00338.jpg)" in caplog.text


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


def test_json_of_the_shapes_is_coco(tmp_path, monkeypatch):
    from resnet_backbones.data.shapes import write_shapes

    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write_shapes(tmp_path / folder, 5, seed=4)
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
    from resnet_backbones.data import shapes

    monkeypatch.setattr(shapes, "SPLITS", {"val": (3, 2)})
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    assert len(load_annotations("shapes_val")) == 3
    written = (tmp_path / "shapes/val/instances.json").stat().st_mtime_ns
    load_annotations("shapes_val")
    assert (tmp_path / "shapes/val/instances.json").stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "shapes").iterdir()] == ["val"]


def test_what_an_outline_encloses_is_what_a_mask_is_made_of():
    square, line, absurd = [10, 8, 30, 8, 30, 28, 10, 28], [10, 8, 30, 8], [10, 8, 1e9, 8, 30, 28]
    rle = {"size": [40, 48], "counts": [0, 80, 40 * 48 - 80]}
    drawn = [rle, [square], [line, square], [absurd, square], [square, "x"], ["x", None, square]]
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
    outlines = pack_outlines([*drawn, *nothing])
    assert outlines.enclosing().tolist() == [True] * len(drawn) + [False] * len(nothing)
    assert outlines.present.tolist() == [True] * len(drawn) + [False] + [True] * (len(nothing) - 1)
    for segmentation in drawn + nothing:
        mask = decode_mask({"segmentation": segmentation}, 40, 48)
        assert (mask is not None) == (segmentation in drawn)


def test_boxes_that_float32_makes_none_of_are_left_out(tmp_path, caplog):
    content = write_coco(tmp_path)
    for k, box in enumerate(([1, 1, 1e-9, 5], [47.9999999, 39.9999999, 5, 5], [10, 8, 0.001, 0.001])):
        content["annotations"][2 * k]["bbox"] = box
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco(tmp_path, keep_empty=True)
    assert [len(dataset[k][1]["boxes"]) for k in range(4)] == [0, 0, 1, 1]
    assert "own: skipped 1 boxes of no area (first in 0.png)" in caplog.text
    assert "own: skipped 1 boxes outside the image (first in 1.png)" in caplog.text


def test_names_of_people_and_screenshots_are_names(tmp_path):
    content = write_coco(tmp_path)
    name = "Bildschirmfoto\u202f猫\u00a01\u200d.png"  # spaces and joiners that no isprintable() takes
    (tmp_path / "images/0.png").rename(tmp_path / "images" / name)
    content["images"][0]["file_name"] = content["categories"][0]["name"] = name
    save_coco(tmp_path, content)
    dataset = coco(tmp_path)
    assert dataset.place(0) == str(tmp_path / "images" / name)
    assert dataset.classes == ["dog", name]
