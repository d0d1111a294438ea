"""Datasets with wrong names, numbers and sizes, on purpose or not: each is refused in one line, before it does harm."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from conftest import coco_dataset, read_coco, read_voc, save_coco, write_coco, write_images, write_voc
from PIL import Image

from resnet_backbones.data import load_annotations
from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.files import read_at, scan_tar
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.data.images import read_image
from resnet_backbones.data.masks import decode_mask
from resnet_backbones.data.voc import load_voc
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


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "b/../../a", "x" * 300, "a\0b"])
def test_image_names_that_leave_the_dataset(tmp_path, name):
    assert not stays_below(name)
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text(name)
    with pytest.raises(UserError, match=r"train.txt: image .* leaves the dataset's folder"):
        read_voc(tmp_path)


@pytest.mark.parametrize("split", ["../../../train", "/etc/train", "x" * 300, "a/" * 3000 + "a", "\0", "\ud800"])
def test_splits_that_leave_the_dataset(tmp_path, split):
    write_voc(tmp_path / "own", {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"Dataset own: split .* leaves .*own/ImageSets/Main; name a list in it"):
        load_voc("own", tmp_path / "own", split)


@pytest.mark.parametrize("root", ["x" * 300, "a/" * 3000, "a\0b", "\ud800", "~nobody-of-that-name"])
def test_folders_that_cannot_exist(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path)
    with pytest.raises(UserError, match="train.txt does not exist. Splits there: none"):
        load_voc("own", Path(root), "train")
    for kind, more in {"voc": {"split": "train"}, "coco": {"annotations": "instances.json"}}.items():
        with pytest.raises(UserError, match="Dataset own is missing"):
            load_annotations("own", {"own": {"format": kind, "root": root, **more}})
    with pytest.raises(UserError, match="Dataset own is missing"):
        load_annotations("own", {"own": {"root": "images", "annotations": root}})
    with pytest.raises(UserError, match="The folder or tar of images"):
        load_images(root, "train")
    if not root.startswith("~"):
        with pytest.raises(UserError, match="Dataset own cannot be drawn in"):
            load_annotations("own", {"own": {"format": "shapes", "root": root, "split": "val"}})
        with pytest.raises(UserError, match="The output_dir .* cannot be written"):
            output_folder(root)


def test_a_repeated_name_in_a_long_list_is_found_at_once(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(200_000))) + "\n7\n")
    with pytest.raises(UserError, match="image 7 is listed twice"):
        load_voc("own", tmp_path, "train")


def test_ids_that_numpy_cannot_hold(tmp_path):
    truth = write_coco(tmp_path)
    found = [{"image_id": 100, "category_id": 7, "score": 0.5, "bbox": [10, 8, 20, 20]}]
    for key in ("image_id", "category_id"):
        with pytest.raises(UserError, match=f"Prediction 0 has no '{key}'"):
            coco_metrics(truth, [found[0] | {key: 2**63}], "bbox")
    coco_metrics(truth, [found[0] | {"category_id": 99}], "bbox")  # of an unknown class: ignored
    truth["images"][0]["id"] = 2**63
    with pytest.raises(UserError, match="images have an entry without 'id'"):
        coco_metrics(truth, found, "bbox")


@pytest.mark.parametrize("polygon", [[0, 0, 9e7, 0, 9e7, 9e7], [4.29e8, 0, 4.2950e8, 0, 4.29e8, 9], [0, 0, 9e7, 9e7]])
def test_polygons_far_outside_their_image(tmp_path, polygon):
    """pycocotools takes memory for each pixel along a polygon."""
    truth = write_coco(tmp_path)
    found = [{"image_id": 100, "category_id": 7, "score": 0.5, "segmentation": {"size": [40, 48], "counts": [0, 1920]}}]
    truth["annotations"][0]["segmentation"] = [polygon]
    with pytest.raises(UserError, match="annotations have an entry without 'segmentation'"):
        coco_metrics(truth, found, "segm")
    assert decode_mask({"segmentation": [polygon]}, 40, 48) is None


def test_sizes_that_are_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"its RLE has the size \[2147483648, 2147483648\], the image \[40, 48\]"):
        decode_mask({"segmentation": {"size": [2**31, 2**31], "counts": [2**62]}}, 40, 48)
    truth = write_coco(tmp_path)
    truth["images"][0]["width"] = 10**12
    with pytest.raises(UserError, match="image 100 is 1000000000000 x 40 pixels, a size that polygons cannot"):
        coco_metrics(truth, [], "segm")


def test_a_tar_with_wrong_sizes(tmp_path):
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


def test_names_from_files_stay_on_one_line(tmp_path):
    content = write_coco(tmp_path)
    content["images"][0]["file_name"] = "a\nb\x1b[2J.png"
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="image 100 has the invalid file_name") as caught:
        read_coco(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 300 + "/0.png", "a/" * 3000 + "x"])
def test_file_names_that_no_file_can_have(tmp_path, name):
    content = write_coco(tmp_path)
    content["images"][0]["file_name"] = name
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="image 100"):
        read_coco(tmp_path)


def test_folders_that_link_to_each_other(tmp_path):
    write_images(tmp_path, {"ant": 1, "bee": 1}, ("train",), side=8)
    (tmp_path / "train/cat").symlink_to(tmp_path / "train/bee")
    assert len(load_images(str(tmp_path), "train")) == 3
    for name in ("one", "two"):
        (tmp_path / "train/ant" / name).symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match="is linked more than 8 times below"):
        load_images(str(tmp_path), "train")


def test_files_of_terabytes(tmp_path):
    """Sparse ones, which take no room on the disk."""
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
def test_class_names_that_cannot_be_printed(tmp_path, name):
    content = write_coco(tmp_path)
    content["categories"][0]["name"] = name
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="instances.json: the class name .* has control characters"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="The ground truth: the class name .* has control characters"):
        coco_metrics(content, [], "bbox")
    if name == "a\nb":
        write_voc(tmp_path / "voc", {"a": [(name, (1, 1, 9, 9), 0)]})
        with pytest.raises(UserError, match="Dataset own: the class name .* has control characters"):
            load_voc("own", tmp_path / "voc", "train")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "x" * 300, "a\nb", ""])
def test_dataset_names_that_cannot_name_a_file(name):
    with pytest.raises(UserError, match="Dataset .* needs another name"):
        load_annotations(name, {name: {"root": ".", "annotations": "x"}})


def test_more_objects_than_memory(tmp_path):
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
