"""Malformed or malicious names, numbers and sizes in datasets: refused in one line, before they do harm."""

import io
import os
import tarfile

import pytest
from conftest import coco_dataset, read_coco, read_voc, save_coco, write_coco, write_images, write_voc
from PIL import Image

from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.files import read_at, scan_tar
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.data.images import read_image
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.coco import coco_metrics
from resnet_backbones.paths import output_folder, stays_below


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("doctype", ['[<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]', 'SYSTEM "file:///etc/passwd"'])
def test_xml_with_a_doctype_is_refused(tmp_path, doctype, encoding):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    xml = tmp_path / "Annotations/a.xml"
    xml.write_text(f"<!DOCTYPE a {doctype}>{xml.read_text().replace('dog', '&b;')}", encoding=encoding)
    with pytest.raises(UserError, match=r"a\.xml has a DOCTYPE, which can declare entities; remove it\."):
        read_voc(tmp_path)


@pytest.mark.parametrize("name", ["../b", "/etc/passwd", "b/../../c", "x" * 300, "a\0b"])
def test_image_names_outside_the_dataset_are_refused(tmp_path, name):
    assert not stays_below(name)
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text(name)
    with pytest.raises(UserError, match=r"train\.txt: .* is none of the 1 annotated images"):
        read_voc(tmp_path)


@pytest.mark.parametrize("split", ["../../../train", "/etc/train", "x" * 300, "a/" * 3000 + "a", "\0", "\ud800"])
def test_splits_outside_the_dataset_are_refused(tmp_path, split):
    write_voc(tmp_path / "own", {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"datasets\.own: split .* points outside .*own; name a list or a folder in it"):
        read_voc(tmp_path / "own", split)


@pytest.mark.parametrize("root", ["x" * 300, "a/" * 3000, "a\0b", "\ud800", "~nobody-of-that-name"])
def test_impossible_folder_names_are_refused(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path)
    for kind, more in {"voc": {"split": "train"}, "coco": {"annotations": "instances.json"}}.items():
        with pytest.raises(UserError, match="Dataset own is missing"):
            load_annotations("own", {"own": {"format": kind, "root": root, **more}})
    with pytest.raises(UserError, match="Dataset own is missing"):
        load_annotations("own", {"own": {"root": "images", "annotations": root}})
    with pytest.raises(UserError, match="The folder or tar of images"):
        load_images(root, "train")
    if not root.startswith("~"):
        with pytest.raises(UserError, match="datasets.own: the shapes cannot be drawn in"):
            load_annotations("own", {"own": {"format": "shapes", "root": root, "split": "val"}})
        with pytest.raises(UserError, match="The output folder .* cannot be written"):
            output_folder(root)


def test_a_duplicate_in_a_long_list_is_refused(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n" * 200_000)
    with pytest.raises(UserError, match=r"image a\.jpg is listed twice"):
        read_voc(tmp_path)


def test_ids_beyond_int64_are_handled(tmp_path):
    truth = write_coco(tmp_path)
    found = [{"image_id": 100, "category_id": 3, "score": 0.5, "bbox": [10, 8, 20, 20]}]
    with pytest.raises(UserError, match="prediction 0 is of an image that is not in the ground truth"):
        coco_metrics(truth, [found[0] | {"image_id": 2**63}], "bbox")
    expected = coco_metrics(truth, found, "bbox")
    of_an_unknown_class = found[0] | {"category_id": 2**63, "score": 0.9}
    assert coco_metrics(truth, [of_an_unknown_class, *found], "bbox") == expected
    for entry in (truth["images"][0], *truth["annotations"][:2], found[0]):
        entry["id" if "file_name" in entry else "image_id"] = 2**70
    assert coco_metrics(truth, found, "bbox") == expected


@pytest.mark.parametrize("polygon", [[0, 0, 9e7, 0, 9e7, 9e7], [4.29e8, 0, 4.2950e8, 0, 4.29e8, 9], [0, 0, 9e7, 9e7]])
def test_polygons_far_outside_the_image_are_dropped(tmp_path, polygon):
    """pycocotools allocates memory for each pixel along a polygon."""
    truth = write_coco(tmp_path)
    truth["annotations"][0]["segmentation"] = [polygon]
    save_coco(tmp_path, truth)
    assert read_coco(tmp_path).segmentation(0) is None


def test_wrong_image_sizes_are_read_from_the_file_or_refused(tmp_path):
    content = write_coco(tmp_path)
    content["images"][0]["width"] = 10**12
    save_coco(tmp_path, content)
    assert read_coco(tmp_path).sizes.tolist() == [[48, 40]] * 4  # read from the image
    content["annotations"] = content["annotations"][::2]  # without the crowds, whose RLEs state the size
    with pytest.raises(UserError, match="image 100 of the ground truth has no width and height"):
        coco_metrics(content, [], "segm")


def test_a_tar_with_invalid_member_sizes_is_refused(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a.jpg", "b.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    for k, size in enumerate([b"\xff" * 11 + b"\x00", b"77777777777\0"]):  # -256 bytes, 8 GiB
        data = bytearray(file.getvalue())
        data[512 + 124 : 512 + 136] = size
        data[512 + 148 : 512 + 156] = b" " * 8
        data[512 + 148 : 512 + 156] = b"%06o\0 " % sum(data[512:1024])
        (tmp_path / f"{k}.tar").write_bytes(data)
        with pytest.raises(UserError, match="is not a complete, uncompressed tar"):
            scan_tar(str(tmp_path / f"{k}.tar"))


def test_errors_escape_control_characters_in_file_names(tmp_path):
    content = write_coco(tmp_path)
    content["images"][0]["file_name"] = "a\nb\x1b[2J.png"
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="image 100 has the invalid file_name") as caught:
        read_coco(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 300 + "/gone.png", "a/" * 3000 + "x"])
def test_impossible_file_names_are_refused(tmp_path, name):
    content = write_coco(tmp_path)
    content["images"][0]["file_name"] = name
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="image 100"):
        read_coco(tmp_path)


def test_symlink_cycles_are_refused(tmp_path):
    write_images(tmp_path, {"ant": 1, "bee": 1}, ("train",), side=8)
    (tmp_path / "train/cat").symlink_to(tmp_path / "train/bee")
    assert len(load_images(str(tmp_path), "train")) == 3
    for name in ("one", "two"):
        (tmp_path / "train/ant" / name).symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match="is linked more than 8 times below"):
        load_images(str(tmp_path), "train")


def test_files_of_terabytes_are_refused(tmp_path):
    """They are sparse and take no disk space."""
    content = write_coco(tmp_path / "coco")
    write_images(tmp_path, {"ant": 1}, ("train",), side=8)
    image, jpeg = tmp_path / "coco/images" / content["images"][0]["file_name"], tmp_path / "train/ant/0.jpg"
    for file in (image, jpeg):
        os.truncate(file, 2**42)
    with pytest.raises(UserError, match="0.png cannot be read: it is larger than 1024 MiB"):
        read_image(image)
    sample = ClassificationDataset(load_images(str(tmp_path), "train"), lambda image: image)[0]
    assert sample.reason == f"Image {jpeg} cannot be read: it is larger than 1024 MiB."
    with pytest.raises(OSError, match="a member is larger than 1024 MiB"):
        read_at(str(image), 0, 2**41)


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[2J"])
def test_unprintable_class_names_are_refused(tmp_path, name):
    content = write_coco(tmp_path)
    content["categories"][0]["name"] = name
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="the class name .* has control characters"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="the class name .* has control characters"):
        coco_metrics(content, [], "bbox")
    if name == "a\nb":
        write_voc(tmp_path / "voc", {"a": [(name, (1, 1, 9, 9), 0)]})
        with pytest.raises(UserError, match="the class name .* has control characters"):
            read_voc(tmp_path / "voc")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "x" * 300, "a\nb", ""])
def test_dataset_names_that_cannot_be_file_names_are_refused(name):
    with pytest.raises(UserError, match="Dataset .* needs another name"):
        load_annotations(name, {name: {"root": ".", "annotations": "x"}})


def test_too_many_objects_for_memory_are_refused(tmp_path):
    content = write_coco(tmp_path)
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 1000 + k} for k in range(10_001)]
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="0.png has 10002 objects, more than the limit of 10000 for training"):
        coco_dataset(tmp_path)
    assert len(coco_dataset(tmp_path, train=False)) == 4
    Image.new("L", (3000, 3000)).save(tmp_path / "images/0.png")
    content["images"][0] |= {"width": 3000, "height": 3000}
    content["annotations"] = [first | {"id": 1 + k} for k in range(500)]
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="0.png has 500 objects on 3000 x 3000 pixels, whose masks take gigabytes"):
        coco_dataset(tmp_path, masks=True)[0]
