"""VOC devkits: what reaches training, and errors that name the file."""

import pytest
from conftest import read_voc, write_voc

from resnet_backbones.data import DetectionDataset
from resnet_backbones.errors import UserError


def test_voc_pixels_count_from_one_and_difficult_is_ignored(tmp_path, caplog):
    objects = [("cat", (11, 9, 30, 28), 0), ("dog", (1, 1, 48, 40), 1), ("cat", (5, 5, 5, 5), 0)]
    write_voc(tmp_path, {"a": objects, "b": [("dog", (2, 2, 3, 3), 0)]})
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(tmp_path)
    assert "own: skipped 1 boxes without area (first in JPEGImages/a.jpg)" in caplog.text
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
    with pytest.raises(UserError, match="own: classes has a name twice: dog, dog"):
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


def test_an_image_that_is_listed_twice_is_named(tmp_path):
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


def test_bccd_is_read_as_published(shared, caplog):
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(shared / "bccd", "trainval", classes=["RBC", "WBC", "Platelets"])
    assert len(data) == 292
    assert "skipped 2 boxes without area (first in JPEGImages/BloodImage_00338.jpg)" in caplog.text
