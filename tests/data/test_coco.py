"""COCO files: what reaches training, and errors that name the file and the entry."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from conftest import coco_dataset, read_coco, save_coco, write_coco
from pycocotools import mask as rle

from resnet_backbones.errors import UserError


def test_coco_targets(tmp_path):
    write_coco(tmp_path)
    dataset = coco_dataset(tmp_path, masks=True)
    image, target = dataset[1]
    assert (image.shape, image.dtype) == ((3, 40, 48), torch.uint8)
    assert dataset.classes == ["dog", "cat"]  # ids 3 and 7
    assert target["boxes"].tolist() == [[10, 8, 30, 28]]  # without the crowd
    assert target["labels"].tolist() == [2]
    assert target["image_id"] == 101
    mask = target["masks"][0]
    assert mask.sum() == 400
    assert mask[8:28, 10:30].all()


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([10, 8, 0, 20], "without area"),
        ([10, 8, 20, -3], "without area"),
        ([100, 8, 20, 20], "outside the image"),
    ],
)
def test_unusable_boxes_are_skipped_and_counted(tmp_path, caplog, bbox, reason):
    content = write_coco(tmp_path)
    content["annotations"][0]["bbox"] = content["annotations"][2]["bbox"] = bbox
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco_dataset(tmp_path)
    assert len(dataset) == 2
    assert f"own: 2 boxes {reason}, skipped in training (first in 0.png)" in caplog.text


def test_boxes_are_clipped_to_the_image(tmp_path):
    content = write_coco(tmp_path)
    content["annotations"][0]["bbox"] = [-5, 30, 20, 90]
    save_coco(tmp_path, content)
    assert coco_dataset(tmp_path)[0][1]["boxes"].tolist() == [[0, 30, 15, 40]]


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
        (edit("id", 101, "images"), "two entries have the image id 101, 0.png and 1.png"),
        (edit("id", 3, "categories"), "two entries have the category id 3, cat and dog"),
        (edit("id", None, "images"), "the image .*0.png.* has no id; it must be a whole number or text"),
        (edit("id", [1], "images"), r"the image .* has the id \[1\]; it must be a whole number or text"),
        (edit("file_name", None, "images"), "the image .* has no file_name"),
        (edit("file_name", 7, "images"), "the image .* has the file_name 7; it must be text"),
        (edit("file_name", "../x.png", "images"), r"the file_name of image 100 leaves the image folder: \.\./x\.png"),
        (edit("file_name", "gone.png", "images"), "1 of 4 images .* first gone.png; it has 4 files, first 0.png"),
    ],
)
def test_errors_name_the_bad_coco_entry(tmp_path, change, message):
    content = write_coco(tmp_path)
    change(content)
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("stated", "actual", "refusal"),
    [
        ("images/a.png", "a.png", "1 of 4 images are missing"),
        ("../../upload/1/a.png", "a.png", "leaves the image folder"),
        ("/home/someone/images/a.png", "a.png", "leaves the image folder"),
        ("C:\\Users\\me\\a.png", "a.png", "1 of 4 images are missing"),
        ("data/sub/a.JPG", "sub/a.jpg", "1 of 4 images are missing"),
        ("a", "a.jpg", "1 of 4 images are missing"),
        ("a.png ", "a.png", "1 of 4 images are missing"),
        ("größe.png", unicodedata.normalize("NFD", "größe.png"), "1 of 4 images are missing"),
    ],
)
def test_images_are_found_by_the_end_of_their_file_name(tmp_path, caplog, stated, actual, refusal):
    content = write_coco(tmp_path)
    (tmp_path / "images" / actual).parent.mkdir(exist_ok=True)
    (tmp_path / "images/0.png").rename(tmp_path / "images" / actual)
    content["images"][0]["file_name"] = stated
    save_coco(tmp_path, content)
    data = read_coco(tmp_path)
    assert data.path(0) == tmp_path / "images" / actual
    shown = stated.replace("\\", "/")
    assert f"datasets.own: 1 images are not where their file_name says (first {shown}, taken" in caplog.text
    content["images"][1]["file_name"] = actual  # another entry claims the file
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match=refusal):
        read_coco(tmp_path)


def test_lvis_images_are_found_by_coco_url(tmp_path):
    content = write_coco(tmp_path)
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/images/{image.pop('file_name')}"
    save_coco(tmp_path, content)
    assert read_coco(tmp_path).path(3) == tmp_path / "images/3.png"


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00", '{"images": 3}'])
def test_error_for_corrupt_json_names_the_file(tmp_path, text):
    write_coco(tmp_path)
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(UserError, match=r"instances\.json"):
        read_coco(tmp_path)


def test_annotation_ids_start_from_one_for_pycocotools(tmp_path):
    content = write_coco(tmp_path)
    for k, o in enumerate(content["annotations"]):
        o["id"] = k
    save_coco(tmp_path, content)
    assert [o["id"] for o in read_coco(tmp_path).as_coco()["annotations"]] == list(range(1, 9))


def test_boxes_that_vanish_in_float32_are_skipped(tmp_path, caplog):
    content = write_coco(tmp_path)
    for k, box in enumerate(([1, 1, 1e-9, 5], [47.9999999, 39.9999999, 5, 5], [10, 8, 0.001, 0.001])):
        content["annotations"][2 * k]["bbox"] = box
    save_coco(tmp_path, content)
    with caplog.at_level("WARNING", "resnet_backbones"):
        dataset = coco_dataset(tmp_path, keep_empty=True)
    assert [len(dataset[k][1]["boxes"]) for k in range(4)] == [0, 0, 1, 1]
    assert "own: 1 boxes without area, skipped in training (first in 0.png)" in caplog.text
    assert "own: 1 boxes outside the image, skipped in training (first in 1.png)" in caplog.text


def test_file_and_class_names_may_have_any_printable_characters(tmp_path):
    content = write_coco(tmp_path)
    name = "Bildschirmfoto\u202f猫\u00a01\u200d.png"  # spaces and joiners that str.isprintable() rejects
    (tmp_path / "images/0.png").rename(tmp_path / "images" / name)
    content["images"][0]["file_name"] = content["categories"][0]["name"] = name
    save_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path)
    assert dataset.path(0) == str(tmp_path / "images" / name)
    assert dataset.classes == ["dog", name]


def test_annotations_are_returned_as_they_were_written(tmp_path):
    content = write_coco(tmp_path, 3)
    content["annotations"][0]["segmentation"] = [[1.5, 2, 3, 4, 5, 6.25], [7, 8, 9, 10, 11, 12]]
    del content["annotations"][2]["segmentation"]
    text = rle.frPyObjects(content["annotations"][1]["segmentation"], 40, 48)["counts"].decode()
    for o in content["annotations"][1::2]:
        o["segmentation"] = {"size": [40, 48], "counts": text}
    shuffled = [content["annotations"][k] for k in (4, 0, 2, 5, 1, 3)]
    save_coco(tmp_path, content | {"annotations": shuffled})
    data = read_coco(tmp_path)
    assert [o for k in range(len(data)) for o in data.objects(k)] == content["annotations"]
    assert [data.image(k) for k in range(3)] == content["images"]
    assert np.array_equal(data.starts, [0, 2, 4, 6])
    assert data.repairs == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_any_unicode_encoding(tmp_path, encoding):
    content = write_coco(tmp_path)
    content["categories"][0]["name"] = "größe"
    (tmp_path / "instances.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert read_coco(tmp_path).classes == ["dog", "größe"]
