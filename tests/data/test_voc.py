"""PASCAL VOC, as a devkit and as a flat folder: what reaches training, and errors that name the file."""

import codecs

import pytest
from conftest import draw, read_voc, write_voc

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.errors import UserError

BOX = (1, 1, 9, 9)


def file_names(data) -> list[str]:
    return [data.file_name(k) for k in range(len(data))]


def read_flat(root, **options):
    return load_annotations("own", {"own": {"root": str(root), **options}})


def write_flat(root, images: dict) -> None:
    """The layout of LabelImg and Roboflow: each XML beside its image."""
    write_voc(root, images)
    for path in [*(root / "Annotations").iterdir(), *(root / "JPEGImages").iterdir()]:
        (root / path.relative_to(root).as_posix().partition("/")[2]).parent.mkdir(parents=True, exist_ok=True)
        path.rename(root / path.name)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).rmdir()
    (root / "ImageSets/Main/train.txt").unlink()


def test_voc_boxes_are_one_based_and_difficult_objects_are_ignored(tmp_path, caplog):
    objects = [("cat", (11, 9, 30, 28), 0), ("dog", (1, 1, 48, 40), 1), ("cat", (5, 5, 5, 5), 0)]
    write_voc(tmp_path, {"a": objects, "b": [("dog", (2, 2, 3, 3), 0)]})
    with caplog.at_level("WARNING", "resnet_backbones"):
        data = read_voc(tmp_path)
    assert "own: 1 boxes without area, skipped in training (first in JPEGImages/a.jpg)" in caplog.text
    dataset = DetectionDataset([data], train=True, flip=0.0)
    assert dataset.classes == ["cat", "dog"]
    assert dataset[0][1]["boxes"].tolist() == [[10, 8, 30, 28]]
    assert dataset[1][1]["boxes"].tolist() == [[1, 1, 3, 3]]
    assert dataset[1][1]["labels"].tolist() == [2]
    assert [o["iscrowd"] for o in data.objects(0)] == [0, 1, 0]
    assert data.objects(0)[1]["bbox"] == [0, 0, 48, 40]


def test_classes_set_the_label_order_and_drop_other_classes(tmp_path, caplog):
    write_voc(tmp_path, {"a": [("dog", BOX, 0), ("cat", BOX, 0), ("cat", BOX, 0)]})
    data = read_voc(tmp_path, classes=["mouse", "dog"])
    assert data.classes == ["mouse", "dog"]
    assert data.labels.tolist() == [2]
    assert "2 x annotations of classes that are not chosen, left out" in caplog.text
    with pytest.raises(UserError, match="classes is dog, dog; it must name each class once"):
        read_voc(tmp_path, classes=["dog", "dog"])


def test_errors_name_the_bad_voc_file(tmp_path):
    write_voc(tmp_path, {"a": [("dog", BOX, 0)]})
    with pytest.raises(
        UserError, match=r"datasets\.own: split 'val' is neither a list nor .* there: train, Annotations/"
    ):
        read_voc(tmp_path, "val")
    xml = tmp_path / "Annotations" / "a.xml"
    good = xml.read_text()
    xml.write_text(good.replace("<xmin>1<", "<xmin>left<"))
    with pytest.raises(UserError, match=r"a\.xml: an object's xmin is 'left', not a number"):
        read_voc(tmp_path)
    xml.write_text(good.replace("<name>dog</name>", ""))
    with pytest.raises(UserError, match=r"a\.xml: an object has no name"):
        read_voc(tmp_path)
    xml.write_text(good[:60])
    with pytest.raises(UserError, match=r"a\.xml is not valid XML"):
        read_voc(tmp_path)
    xml.unlink()
    with pytest.raises(UserError, match=r"Annotations has no \.xml annotation files"):
        read_voc(tmp_path)
    xml.write_text(good)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 1 images are missing from .*, first JPEGImages/a\.jpg"):
        read_voc(tmp_path)


@pytest.mark.parametrize("box", ["nan", "", None])
def test_voc_objects_without_a_box_are_dropped_and_counted(tmp_path, caplog, box):
    write_voc(tmp_path, {"a": [("dog", (box, 1, 9, 9), 0), ("dog", BOX, 0)]})
    xml = tmp_path / "Annotations/a.xml"
    if box is None:
        xml.write_text(xml.read_text().replace("bndbox", "polygon", 2))
    data = read_voc(tmp_path)
    assert "1 x annotations without a finite box, left out" in caplog.text
    assert "of JPEGImages/a.jpg)" in caplog.text
    assert len(data.objects(0)) == 1


@pytest.mark.parametrize("name", ["a.JPG", "a.PNG", "a.tif", "a.jfif", "a.webp", "a.b.Jpeg", "a 1.jpg", "sub/a.jpg"])
def test_images_may_have_any_name_and_suffix(tmp_path, name):
    stem = name.rpartition(".")[0]
    write_voc(tmp_path, {"x": [("dog", BOX, 0)]})
    for folder, old, new in [("JPEGImages", "x.jpg", name), ("Annotations", "x.xml", f"{stem}.xml")]:
        (tmp_path / folder / new).parent.mkdir(exist_ok=True)
        (tmp_path / folder / old).rename(tmp_path / folder / new)
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"{stem}\n")
    assert file_names(read_voc(tmp_path)) == [f"JPEGImages/{name}"]


def test_filename_in_the_xml_is_used_if_no_image_shares_its_stem(tmp_path):
    write_flat(tmp_path, {"a": [("dog", BOX, 0)], "b": [("dog", BOX, 0)]})
    (tmp_path / "b.jpg").rename(tmp_path / "photo 7.JPG")
    for name, stated in [("a", "photo 7.JPG"), ("b", "C:\\pictures\\photo 7.jpg")]:  # that of a is out of date
        xml = tmp_path / f"{name}.xml"
        xml.write_text(xml.read_text().replace("<size>", f"<filename>{stated}</filename><size>"))
    assert file_names(read_flat(tmp_path)) == ["a.jpg", "photo 7.JPG"]


def test_stray_files_are_ignored_and_classes_come_from_all_splits(tmp_path):
    write_voc(tmp_path, {"a": [("dog", BOX, 0)], "b": [("cat", BOX, 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    for stray in ("._a.xml", ".hidden.xml", "draft.xml", "__MACOSX/a.xml"):
        (tmp_path / "Annotations" / stray).parent.mkdir(exist_ok=True)
        (tmp_path / "Annotations" / stray).write_bytes(b"\0\5\26\7")
    (tmp_path / "JPEGImages/._a.jpg").write_bytes(b"\0")
    data = read_voc(tmp_path)
    assert file_names(data) == ["JPEGImages/a.jpg"]
    assert data.classes == ["cat", "dog"]  # from all splits, so that their labels agree


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_lists_and_xml_are_read_in_any_unicode_encoding(tmp_path, mark):
    encoding = {b"": "utf-8", codecs.BOM_UTF8: "utf-8"}.get(mark, "utf-16-le" if mark[:1] == b"\xff" else "utf-16-be")
    write_voc(tmp_path, {"a": [("dög", BOX, 0)], "ä 1": [("dög", BOX, 0)]})
    for path in [tmp_path / "ImageSets/Main/train.txt", tmp_path / "Annotations/a.xml"]:
        path.write_bytes(mark + path.read_text().replace("\n", "\r\n").encode(encoding))
    data = read_voc(tmp_path)
    assert file_names(data) == ["JPEGImages/a.jpg", "JPEGImages/ä 1.jpg"]
    assert data.classes == ["dög"]


@pytest.mark.parametrize(
    ("declared", "encoding"), [("gb2312", "gb2312"), ("iso-8859-1", "latin-1"), ("utf-16", "utf-8")]
)
def test_xml_with_an_encoding_declaration_is_read(tmp_path, declared, encoding):
    name = "猫" if encoding == "gb2312" else "dög"
    write_voc(tmp_path, {"a": [(name, BOX, 0)]})
    xml = tmp_path / "Annotations/a.xml"
    text = f'\n<?xml version="1.0" encoding="{declared}"?>\n{xml.read_text()}'  # .NET declares UTF-16 in UTF-8 files
    xml.write_bytes(text.encode(encoding))
    assert read_voc(tmp_path).classes == [name]


def test_error_for_a_list_not_in_utf8_names_the_file(tmp_path):
    write_voc(tmp_path, {"a": [("dog", BOX, 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"list of images .*train\.txt is not text in UTF-8 .* 0xe4\); save it as UTF-8"
    ):
        read_voc(tmp_path)


def test_flat_folder_is_detected_and_read_like_a_devkit(tmp_path, caplog):
    objects = {"a": [("dog", (11, 9, 30, 28), 0), ("cat", (5, 5, 20, 20), 1)], "b": [("cat", BOX, 0)]}
    write_flat(tmp_path / "flat", objects)
    draw().save(tmp_path / "flat/not_labeled.png")
    write_voc(tmp_path / "devkit", objects)
    with caplog.at_level("INFO", "resnet_backbones"):
        flat = read_flat(tmp_path / "flat")
    assert "own: read as PASCAL VOC (found a.xml)" in caplog.text
    assert "1 images without a .xml file are left out" in caplog.text
    devkit = read_voc(tmp_path / "devkit")
    assert flat.format == devkit.format == "voc"
    assert [flat.objects(k) for k in range(2)] == [devkit.objects(k) for k in range(2)]


def test_xml_and_images_may_be_in_separate_folders(tmp_path, caplog):
    write_voc(tmp_path, {"a": [("dog", BOX, 0)]})
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    (tmp_path / "Annotations").rename(tmp_path / "labels")
    apart = read_flat(tmp_path / "images", annotations=str(tmp_path / "labels"))
    assert file_names(apart) == ["a.jpg"]
    assert file_names(read_flat(tmp_path)) == ["images/a.jpg"]  # both folders in one, as on Kaggle
    (tmp_path / "labels/notes.xml").write_text("<notes/>")
    assert file_names(read_flat(tmp_path)) == ["images/a.jpg"]
    assert "notes.xml is left out: its root is <notes>, not VOC's <annotation>" in caplog.text


def test_two_xml_files_for_one_image_are_refused(tmp_path):
    write_flat(tmp_path, {"a": [("dog", BOX, 0)]})
    (tmp_path / "a.jpg.xml").write_text((tmp_path / "a.xml").read_text())
    with pytest.raises(UserError, match=r"a\.jpg\.xml and a\.xml are both for image a\.jpg; remove one"):
        read_flat(tmp_path)


def test_bccd_is_read_as_published(shared, caplog):
    data = read_voc(shared / "bccd", "trainval", classes=["RBC", "WBC", "Platelets"])
    assert len(data) == 292
    assert "2 boxes without area, skipped in training (first in JPEGImages/BloodImage_00338.jpg)" in caplog.text
