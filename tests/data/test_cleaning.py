"""The cleaning of records of any format: what remains, what is counted, and that scoring agrees."""

import numpy as np
import pytest
from conftest import coco_dataset, read_coco, save_coco, write_coco

from resnet_backbones.data.cleaning import clean
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation import coco_metrics


def cleaned(content, **options):
    return clean("own", "coco", None, content, **options)


def repairs(data) -> dict[str, int]:
    return {what: count for what, count, _ in data.repairs}


def perfect(data) -> list[dict]:
    """Detections equal to the objects."""
    objects = [data.object(j) for j in np.flatnonzero(data.crowds == 0)]
    return [{"score": 0.9, **{key: o[key] for key in ("image_id", "category_id", "bbox")}} for o in objects]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"area": None}, None),
        ({"area": float("nan")}, "annotations whose area is negative or not finite, given that of their box"),
        ({"area": float("-inf")}, "annotations whose area is negative or not finite, given that of their box"),
        ({"area": -400}, "annotations whose area is negative or not finite, given that of their box"),
        ({"area": "400"}, None),
        ({"iscrowd": None}, None),
        ({"iscrowd": False}, None),
        ({"iscrowd": "0"}, None),
        ({"iscrowd": "false"}, None),
        ({"id": None}, None),
        ({"id": 2}, None),  # the id of another annotation
        ({"id": "a"}, None),
        ({"image_id": 100.0}, None),
        ({"image_id": "100"}, None),
        ({"category_id": "3"}, None),
        ({"bbox": [10, 8, "20", 20.0]}, None),
        ({"bbox": None}, "annotations without a box, given that of their segmentation"),
        ({"bbox": [10, 8, 20]}, "annotations without a box, given that of their segmentation"),
        ({"bbox": [float("nan"), 8, 20, 20]}, "annotations without a box, given that of their segmentation"),
    ],
)
def test_malformed_annotations_are_repaired(tmp_path, change, what):
    content = write_coco(tmp_path)
    expected = cleaned(content)
    content["annotations"][0] |= change
    data = cleaned(content)
    assert data.as_coco() == expected.as_coco()
    assert repairs(data) == ({what: 1} if what else {})
    assert coco_metrics(content, perfect(data), "bbox")["bbox/AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image_id": 55}, "annotations of an image that is not listed, left out"),
        ({"image_id": None}, "annotations of an image that is not listed, left out"),
        ({"image_id": [100]}, "annotations of an image that is not listed, left out"),
        ({"category_id": 9}, "annotations of a category that is not listed, left out"),
        ({"category_id": None}, "annotations of a category that is not listed, left out"),
        (
            {"bbox": [10, 8, 1e300, 20], "segmentation": []},
            "annotations without a finite box, left out",
        ),
        (
            {"bbox": [10, 8, 10**400, 1], "segmentation": 7},
            "annotations without a finite box, left out",
        ),
        ({"bbox": "10 8 20 20", "segmentation": None}, "annotations without a finite box, left out"),
    ],
)
def test_unusable_annotations_are_left_out_and_counted_once(tmp_path, caplog, change, what):
    content = write_coco(tmp_path)
    without = content | {"annotations": content["annotations"][1:]}
    expected = cleaned(without)
    content["annotations"][0] |= change
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_coco(tmp_path)
    assert data.as_coco() == expected.as_coco() | {"info": {"description": "own"}}
    assert repairs(data) == {what: 1}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"own: 1 x {what} (first ")
    assert ("of 0.png)" in message) == ("image" not in what)
    assert coco_metrics(content, perfect(data), "bbox")["bbox/AP"] == pytest.approx(100)


@pytest.mark.parametrize("ids", [["img-1", "img-2", "é", "4"], [0, -1, 2.0, 2**70], ["1", 1.5e3, 7, "x"]])
def test_image_ids_may_have_any_type_in_training_and_scoring(tmp_path, ids):
    content = write_coco(tmp_path)
    new = dict(zip([image["id"] for image in content["images"]], ids, strict=True))
    for image in content["images"]:
        image["id"] = new[image["id"]]
    for o in content["annotations"]:
        o["image_id"] = new[o["image_id"]]
    save_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path)
    assert [dataset[k][1]["image_id"] for k in range(4)] == ids
    assert coco_metrics(content, perfect(dataset.sets[0]), "bbox")["bbox/AP"] == pytest.approx(100)


def test_missing_or_invalid_sizes_are_read_from_the_images(tmp_path):
    content = write_coco(tmp_path)
    for image, size in zip(content["images"], [(48.0, 40.0), (None, 40), (0, 0), (48.5, "40")], strict=True):
        image["width"], image["height"] = size
    del content["images"][1]["width"]
    save_coco(tmp_path, content)
    data = read_coco(tmp_path)
    assert data.sizes.tolist() == [[48, 40]] * 4
    assert repairs(data) == {"images without a size, read from the file": 3}
    assert cleaned(content).sizes.tolist() == [[48, 40]] * 4  # from the RLE of the crowds


def test_duplicate_image_entries_are_merged(tmp_path):
    content = write_coco(tmp_path)
    content["images"].append(dict(content["images"][0]))
    data = cleaned(content)
    assert len(data) == 4
    assert repairs(data) == {"image entries that are listed twice, taken once": 1}


def test_duplicate_category_names_are_made_unique(tmp_path):
    content = write_coco(tmp_path)
    content["categories"] = [{"id": 7, "name": "wheel"}, {"id": 3, "name": "wheel"}, {"id": 5}, {"id": 9, "name": 4}]
    data = cleaned(content)
    assert data.classes == ["wheel (3)", "5", "wheel", "4"]
    wrong = [p | {"bbox": [30, 30, 5, 5]} if p["category_id"] == 7 else p for p in perfect(data)]
    metrics = coco_metrics(content, wrong, "bbox")
    assert metrics["bbox/AP-wheel (3)"] == pytest.approx(100)
    assert metrics["bbox/AP-wheel"] == 0


def test_classes_select_and_order_coco_categories(tmp_path):
    content = write_coco(tmp_path)
    data = cleaned(content, classes=["cat"])
    assert (data.classes, data.categories) == (["cat"], [{"id": 7, "name": "cat"}])
    assert set(data.labels) == {1}
    assert repairs(data) == {"annotations of classes that are not chosen, left out": 2}
    assert cleaned(content, classes=["cat", "dog"]).classes == ["cat", "dog"]
    content["categories"][0]["name"] = "cat\r\n"
    assert cleaned(content, classes=["cat"]).classes == ["cat"]
    with pytest.raises(UserError, match="Unknown class 'cart'. Did you mean cat"):
        cleaned(content, classes=["cart"])
    with pytest.raises(UserError, match="classes is cat, cat; it must name each class once"):
        cleaned(content, classes=["cat", "cat"])


@pytest.mark.parametrize("annotations", [None, "absent"])
def test_an_unlabeled_set_loads_but_cannot_train_or_score(tmp_path, annotations):
    content = write_coco(tmp_path) | {"annotations": annotations}
    if annotations == "absent":
        del content["annotations"]
    save_coco(tmp_path, content)
    data = read_coco(tmp_path)
    assert (len(data), data.is_labeled, data.classes) == (4, False, ["dog", "cat"])
    assert len(DetectionDataset([data], train=False)) == 4
    with pytest.raises(UserError, match="own has nothing to train on: its 4 images have no objects"):
        DetectionDataset([data], train=True)
    with pytest.raises(UserError, match="has no annotations to score predictions with"):
        coco_metrics(content, [], "bbox")


def test_error_for_an_empty_set_lists_what_was_left_out(tmp_path):
    content = write_coco(tmp_path) | {"categories": []}
    save_coco(tmp_path, content)
    message = r"its 4 images have no objects \(8 annotations of a category that is not listed, left out\)"
    with pytest.raises(UserError, match=message):
        coco_dataset(tmp_path)


@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("box", [[10, 8, 0, 0], [500, 500, 9, 9]])
def test_training_on_a_set_without_usable_objects_is_refused(tmp_path, box, keep_empty):
    content = write_coco(tmp_path)
    for o in content["annotations"]:
        o["bbox"] = box
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="all of its 8 objects are crowds, flat or outside the image"):
        coco_dataset(tmp_path, keep_empty=keep_empty)


def test_loader_and_metrics_agree_on_a_file_with_many_faults(tmp_path):
    content = write_coco(tmp_path)
    objects = content["annotations"]
    objects[0] |= {"area": None, "segmentation": [[10.0, 8.0], objects[0]["segmentation"][0]]}
    objects[2] |= {"segmentation": objects[2]["segmentation"][0], "iscrowd": None}
    objects[4] |= {"bbox": None}
    objects += [objects[6] | {"image_id": "gone"}, objects[6] | {"category_id": 1000}]
    save_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path, masks=True)
    data = dataset.sets[0]
    masks = [dataset[k][1]["masks"].sum().item() for k in range(4)]
    assert masks == [400] * 4
    found = [p | {"segmentation": data.segmentation(j)} for p, j in zip(perfect(data), range(0, 8, 2), strict=True)]
    for iou_type in ("bbox", "segm"):
        assert coco_metrics(content, found, iou_type) == coco_metrics(data, found, iou_type)
        assert coco_metrics(content, found, iou_type)[f"{iou_type}/AP"] == pytest.approx(100)
