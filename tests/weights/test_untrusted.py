"""Attacks by name: what each would cost, and that it is refused before."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_coco, save_coco, write_coco, write_images, write_voc
from PIL import Image

from resnet_backbones.config import load_config
from resnet_backbones.data import DetectionDataset, load_annotations
from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.files import read_at, scan_tar
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.data.images import read_image
from resnet_backbones.data.masks import decode_mask
from resnet_backbones.data.shards import ShardImages
from resnet_backbones.data.voc import load_voc
from resnet_backbones.data.xml import parse_xml
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.coco import coco_metrics
from resnet_backbones.paths import output_folder, stays_below
from resnet_backbones.weights import read_checkpoint
from resnet_backbones.weights.reading import load_torch

LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_in_xml(tmp_path, encoding):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "Annotations/a.xml").write_bytes(LAUGHS.encode(encoding))
    spec = {"own": {"format": "voc", "root": str(tmp_path), "split": "train"}}
    with pytest.raises(UserError, match=r"a.xml is not valid XML: it declares a document type or entities"):
        load_annotations("own", spec)


def test_plain_xml_is_read_in_every_encoding_of_expat():
    for encoding in ("utf-8", "utf-16", "iso-8859-1"):
        text = f'<?xml version="1.0" encoding="{encoding}"?><a b="1"><c>ä &amp; &#228;</c><!-- --><d/></a>'
        root = parse_xml(text.encode(encoding))
        assert (root.tag, root.attrib, root.findtext("c"), len(root)) == ("a", {"b": "1"}, "ä & ä", 2)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "b/../../a", "x" * 300, "a\0b"])
def test_names_that_leave_the_data_set(tmp_path, name):
    assert not stays_below(name)
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text(name)
    spec = {"own": {"format": "voc", "root": str(tmp_path), "split": "train"}}
    with pytest.raises(UserError, match=r"train.txt: image .* leaves the data set's folder"):
        load_annotations("own", spec)


@pytest.mark.parametrize("split", ["../../../train", "/etc/train", "x" * 300, "a/" * 3000 + "a", "\0", "\ud800"])
def test_splits_that_leave_the_data_set(tmp_path, split):
    write_voc(tmp_path / "own", {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"Data set own: split .* leaves .*own/ImageSets/Main; name a list"):
        load_voc("own", tmp_path / "own", split)


@pytest.mark.parametrize("root", ["x" * 300, "a/" * 3000, "a\0b", "\ud800", "~nobody-of-that-name"])
def test_folders_that_cannot_be(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path)
    with pytest.raises(UserError, match="train.txt does not exist. Splits there: none"):
        load_voc("own", Path(root), "train")
    for kind, more in {"voc": {"split": "train"}, "coco": {"annotations": "instances.json"}}.items():
        with pytest.raises(UserError, match="Data set own is not there"):
            load_annotations("own", {"own": {"format": kind, "root": root, **more}})
    with pytest.raises(UserError, match="Data set own is not there"):
        load_annotations("own", {"own": {"root": "images", "annotations": root}})
    with pytest.raises(UserError, match="The folder or tar of images"):
        load_images(root, "train")
    if not root.startswith("~"):
        with pytest.raises(UserError, match="Data set own cannot be drawn in"):
            load_annotations("own", {"own": {"format": "shapes", "root": root, "split": "val"}})
        with pytest.raises(UserError, match="The output_dir .* cannot be written"):
            output_folder(root)


def test_a_long_list_with_a_repeated_name_is_refused_at_once(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(200_000))) + "\n7\n")
    with pytest.raises(UserError, match="image 7 is listed twice"):
        load_voc("own", tmp_path, "train")


def doubled(start: str, template: str) -> str:
    """YAML whose every line is made of the one before, nine times."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    return start + "".join(f"{b}: &{b} {template.format(','.join(['*' + a] * 9))}\n" for a, b in pairs)


REFERENCES = "datasets:\n" + "".join(f"  a{k}: {{root: '{f'${{datasets.a{k + 1}.root}}' * 2}'}}\n" for k in range(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (doubled("a: &a [x]\n", "[{}]"), "unfolds to more than 50000 values"),
        (doubled("a: &a {x: 1}\n", "{{<<: [{}]}}"), "unfolds to more than 50000 values"),
        ("a: &a [*a]", "unfolds to more than"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ("[" * 5000, "nested too deeply"),
        ("seed: 0x" + "f" * 9000, "a number has 9002 digits"),
        ("output_dir: ${oc.create:x}", "a reference may be"),
        (REFERENCES, "60 references to other keys; 12 are allowed"),
    ],
)
def test_yaml_that_unfolds(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=f"bad.yaml is not valid YAML: .*{message}"):
        load_config(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        load_config("coco_mask_rcnn_R50", [f"datasets={{a: {'[' * 100}{']' * 100}}}"])


def test_ids_that_numpy_cannot_hold(tmp_path):
    truth = write_coco(tmp_path)
    found = [{"image_id": 100, "category_id": 7, "score": 0.5, "bbox": [10, 8, 20, 20]}]
    for key in ("image_id", "category_id"):
        with pytest.raises(UserError, match=f"Prediction 0 has no '{key}'"):
            coco_metrics(truth, [found[0] | {key: 2**63}], "bbox")
    coco_metrics(truth, [found[0] | {"category_id": 99}], "bbox")  # of no class here: counts for nothing
    truth["images"][0]["id"] = 2**63
    with pytest.raises(UserError, match="images hold an entry without 'id'"):
        coco_metrics(truth, found, "bbox")


@pytest.mark.parametrize("polygon", [[0, 0, 9e7, 0, 9e7, 9e7], [4.29e8, 0, 4.2950e8, 0, 4.29e8, 9], [0, 0, 9e7, 9e7]])
def test_polygons_of_gigabytes(tmp_path, polygon):
    truth = write_coco(tmp_path)
    found = [{"image_id": 100, "category_id": 7, "score": 0.5, "segmentation": {"size": [40, 48], "counts": [0, 1920]}}]
    truth["annotations"][0]["segmentation"] = [polygon]
    with pytest.raises(UserError, match="annotations hold an entry without 'segmentation'"):
        coco_metrics(truth, found, "segm")
    if len(polygon) == 6 and max(polygon) < 1e8:
        with pytest.raises(ValueError, match="longer than 4000000 pixels"):
            decode_mask({"segmentation": [polygon]}, 40, 48)


def test_rle_and_images_that_lie_about_their_size(tmp_path):
    with pytest.raises(ValueError, match="RLE is of more than"):
        decode_mask({"segmentation": {"size": [2**31, 2**31], "counts": [2**62]}}, 40, 48)
    with pytest.raises(ValueError, match="its image is 1000000 x 1000000"):
        decode_mask({"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}, 10**6, 10**6)
    truth = write_coco(tmp_path)
    truth["images"][0]["width"] = 10**12
    with pytest.raises(UserError, match="image 100 is 1000000000000 x 40 pixels, in which polygons cannot be scored"):
        coco_metrics(truth, [], "segm")


def test_shards_beyond_number(tmp_path):
    for pattern in (
        "x{0..999999999999}.tar",
        "{a..z}" * 9 + ".tar",
        "{0,1}" * 60 + ".tar",
        "{0..999}{0,{0..9999}}.tar",
    ):
        with pytest.raises(UserError, match="it names more than 1000000 shards"):
            ShardImages(f"{tmp_path}/{pattern}")


def test_a_tar_that_goes_backwards_or_lies(tmp_path):
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
        with pytest.raises(UserError, match="is not a whole, uncompressed tar"):
            scan_tar(str(tmp_path / f"{k}.tar"))


def test_torch_files_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24.0)
    content = {
        "model": OrderedDict(a=base.reshape(4, 6).t(), b=base[3:9:2], c=torch.tensor(True), d=torch.zeros(0, 3)),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "others": [torch.zeros(2, dtype=kind) for kind in (torch.bfloat16, torch.complex64, torch.int8)],
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict(),
        "random": [{"cpu": torch.get_rng_state()}],
        "step": 3, "best": -float("inf"), "size": torch.Size([1, 2]), "text": ("ä", None, b"\0\xff"),
    }  # fmt: skip
    for modern in (True, False):
        if modern:  # over untyped storages
            content["others"].append(torch.arange(5).to(torch.uint16)[1:3])
        else:
            content["others"].pop()
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=modern)
        ours, theirs = load_torch(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True)
        torch.testing.assert_close(ours["model"], dict(theirs["model"]), rtol=0, atol=0)
        torch.testing.assert_close(ours["others"], theirs["others"], rtol=0, atol=0)
        assert torch.equal(ours["parameter"], theirs["parameter"])
        assert torch.equal(ours["random"][0]["cpu"], theirs["random"][0]["cpu"])
        assert all(ours[key] == theirs[key] for key in ("optimizer", "step", "best", "size", "text"))
        assert ours["model"]["a"].untyped_storage().data_ptr() == ours["model"]["b"].untyped_storage().data_ptr()


def rezip(path, change, packing=zipfile.ZIP_STORED) -> None:
    """`path` written anew, with the pickle in it as `change` makes it."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", packing) as result:
        for name in source.namelist():
            result.writestr(name, change(source.read(name)) if name.endswith("data.pkl") else source.read(name))


def test_torch_files_that_ask_for_more_than_they_hold(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    rezip(path, lambda data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it unpacks to more than it is"):
        read_checkpoint(str(path))
    many = b"M\xe8\x03"  # 1000, first as the storage's length and then as the tensor's
    for change, message in [
        (lambda data: data.replace(many, b"J\x00\x00\x00\x40"), "storage 0 is not of the size"),
        (lambda data: data[::-1].replace(many[::-1], b"\x40\x00\x00\x00J", 1)[::-1], "tensor larger than its storage"),
        (
            lambda data: b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
            "asks to run code, builtins.bytearray,",
        ),
        (lambda data: b"\x80\x02}" + b")" + b"\x85" * 99 + b"K\x01s.", "it has a tuple as a key"),
        (lambda data: b"\x80\x02}X\x01\x00\x00\x00aN2" + b"2\x86" * 70 + b"s.", "is damaged"),
    ]:
        torch.save({"a": torch.zeros(1000)}, path)
        rezip(path, change)
        with pytest.raises(UserError, match=message):
            read_checkpoint(str(path))
    torch.save({"a": torch.zeros(1).expand(2**30)}, path)
    with pytest.raises(UserError, match="tensor larger than its storage"):
        read_checkpoint(str(path))


def test_a_legacy_file_that_asks_for_more_than_it_holds(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"M\xe8\x03", b"J\x00\x00\x00\x40"))
    with pytest.raises(UserError, match="storages larger than the file"):
        read_checkpoint(str(path))
    path.write_bytes(data.replace(struct.pack("<q", 1000), struct.pack("<q", 999)))
    with pytest.raises(UserError, match="ends before its last storage does"):
        read_checkpoint(str(path))


def test_pickles_of_arrays_that_ask_for_more_than_they_hold(tmp_path):
    path = tmp_path / "a.pkl"
    zeros = pickle.dumps({"a": np.zeros(1000, "f4")}, 2)
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    for content, message in [
        (b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x7f\x85R.", "it makes a ndarray of its own"),
        (zeros.replace(b"M\xe8\x03\x85", b"J\x00\x00\x00\x7f\x85"), "not of its shape"),
        (b"\x80\x02" + reconstruct + b"J\x00\x00\x00\x7f\x85C\x01b\x87R}b.", "is damaged"),
        (b"\x80\x02Nr\xff\xff\xff\xff]" + b"2a" * 3 + b".", "weights file"),
        (pickle.dumps({"a": np.array([{}, None])}, 2), "an array of type 'O"),
    ]:  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_checkpoint(str(path))


def test_names_from_files_stay_on_one_line(tmp_path):
    content = write_coco(tmp_path)
    content["images"][0]["file_name"] = "a\nb\x1b[2J.png"
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="image 100 has the unusable file_name") as caught:
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
    with pytest.raises(UserError, match="is met more than 8 times below"):
        load_images(str(tmp_path), "train")


def test_files_of_terabytes(tmp_path):
    """Sparse ones, which take no room on the disk."""
    content = write_coco(tmp_path / "coco")
    write_images(tmp_path, {"ant": 1}, ("train",), side=8)
    write_voc(tmp_path / "voc", {"a": [("dog", (1, 1, 9, 9), 0)]})
    image, jpeg = tmp_path / "coco/images" / content["images"][0]["file_name"], tmp_path / "train/ant/0.jpg"
    for file in (image, jpeg, tmp_path / "voc/Annotations/a.xml"):
        os.truncate(file, 2**42)
    with pytest.raises(UserError, match="0.png cannot be read: it is larger than 1024 MiB"):
        read_image(image)
    sample = ClassificationDataset(load_images(str(tmp_path), "train"), lambda image: image)[0]
    assert sample.reason == f"Image {jpeg} cannot be read: it is larger than 1024 MiB."
    with pytest.raises(UserError, match="a.xml cannot be read: it is larger than 16 MiB"):
        load_voc("own", tmp_path / "voc", "train")
    with pytest.raises(OSError, match="a member is larger than 1024 MiB"):
        read_at(str(image), 0, 2**41)


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[2J"])
def test_class_names_that_cannot_be_shown(tmp_path, name):
    content = write_coco(tmp_path)
    content["categories"][0]["name"] = name
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="instances.json: the class .* has control characters in its name"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="The ground truth: the class .* has control characters in its name"):
        coco_metrics(content, [], "bbox")
    if name == "a\nb":
        write_voc(tmp_path / "voc", {"a": [(name, (1, 1, 9, 9), 0)]})
        with pytest.raises(UserError, match="Data set own: the class .* has control characters in its name"):
            load_voc("own", tmp_path / "voc", "train")


def test_classes_beyond_number(tmp_path):
    content = write_coco(tmp_path)
    content["categories"] += [{"id": 100 + k, "name": str(k)} for k in range(20_000)]
    save_coco(tmp_path, content)
    with pytest.raises(UserError, match="there are 20002 classes; at most 20000 can be scored"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="there are 20002 classes; at most 20000 can be scored"):
        coco_metrics(content, [], "bbox")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "x" * 300, "a\nb", ""])
def test_data_sets_whose_results_would_lie_elsewhere(name):
    with pytest.raises(UserError, match="Data set .* cannot be called so"):
        load_annotations(name, {name: {"root": ".", "annotations": "x"}})


def test_more_objects_than_memory(tmp_path):
    content = write_coco(tmp_path)
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 1000 + k} for k in range(10_001)]
    save_coco(tmp_path, content)
    data = load_annotations("own", {"own": {"root": f"{tmp_path}/images", "annotations": f"{tmp_path}/instances.json"}})
    with pytest.raises(UserError, match="0.png has 10002 objects, more than the 10000 that can be trained on"):
        DetectionDataset([data], train=True)
    assert len(DetectionDataset([data], train=False)) == 4
    Image.new("L", (9000, 8000)).save(tmp_path / "images/0.png")
    content["images"][0] |= {"width": 9000, "height": 8000}
    content["annotations"] = [first | {"id": 1 + k} for k in range(100)]
    save_coco(tmp_path, content)
    data = load_annotations("own", {"own": {"root": f"{tmp_path}/images", "annotations": f"{tmp_path}/instances.json"}})
    with pytest.raises(UserError, match="0.png has 100 objects on 9000 x 8000 pixels, whose masks take gigabytes"):
        DetectionDataset([data], train=True, masks=True)[0]
    with pytest.raises(ValueError, match="more than 300000 elements"):
        parse_xml(b"<a>" + b"<b/>" * 300_000 + b"</a>")
