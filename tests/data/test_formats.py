"""YOLO, labelme, CVAT and COCO as their tools write them: the same objects in each, and errors that say where."""

import base64
import io
import json

import numpy as np
import pytest
from conftest import draw, save_coco, write_coco
from PIL import Image

from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.masks import decode_mask
from resnet_backbones.errors import UserError

POLYGON = [10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]
TRIANGLE = [1.0, 2.0, 21.0, 2.0, 1.0, 12.0]
BOX = [4.0, 5.0, 12.0, 20.0]  # x, y, width, height


def read(root, **options):
    return load_annotations("own", {"own": {"root": str(root), **options}})


def found(data) -> dict[str, list]:
    """The class, box, area and polygons of each object by the stem of its image, rounded."""
    return {
        data.file_name(k).rpartition("/")[2].partition(".")[0]: [
            (
                data.classes[data.labels[j] - 1],
                np.round(data.boxes[j], 3).tolist(),
                round(float(data.areas[j]), 3),
                np.round(data.segmentation(j) or [], 3).tolist(),
            )
            for j in range(data.starts[k], data.starts[k + 1])
        ]
        for k in range(len(data))
    }


OBJECTS = {
    "a": [("dog", [10, 8, 20, 20], 400, [POLYGON]), ("cat", [1, 2, 20, 10], 100, [TRIANGLE])],
    "b": [("cat", BOX, 240, [])],
}


def write_images(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        draw().save(folder / name)


def relative(values: list[float]) -> str:
    return " ".join(f"{value / (40 if k % 2 else 48):.7f}" for k, value in enumerate(values))


def write_yolo(root, names: str = "names: [cat, dog]", split: str = "train") -> None:
    write_images(root / "images" / split, "a.jpg", "b.PNG", "no_label.jpg")
    (root / "labels" / split).mkdir(parents=True)
    (root / "data.yaml").write_text(f"path: ../datasets/not/here\ntrain: images/{split}\n{names}\n")
    center = [BOX[0] + BOX[2] / 2, BOX[1] + BOX[3] / 2, *BOX[2:]]
    (root / "labels" / split / "a.txt").write_text(f"1 {relative(POLYGON)}\n0 {relative(TRIANGLE)}\n")
    (root / "labels" / split / "b.txt").write_text(f"0 {relative(center)}\n\n")


YOLO_NAMES = ["names: [cat, dog]", "names: {1: dog, 0: cat}", "names:\n- cat\n- dog\nnc: 2"]


@pytest.mark.parametrize("names", YOLO_NAMES)
def test_yolo_is_detected_and_read(tmp_path, names, caplog):
    write_yolo(tmp_path, names)
    with caplog.at_level("INFO", "resnet_backbones"):
        assert found(read(tmp_path, split="train")) == {**OBJECTS, "no_label": []}
    assert "own: read as YOLO (found data.yaml)" in caplog.text
    assert found(read(tmp_path)) == {**OBJECTS, "no_label": []}
    assert "1 of 3 images have no label file, and so no objects" in caplog.text
    assert len(read(tmp_path, split="0.34")) == 1
    chosen = read(tmp_path, split="train", classes=["dog"])
    assert chosen.classes == ["dog"]
    assert len(chosen.labels) == 1


@pytest.mark.parametrize(
    "train",
    [
        "../train/images",
        "[train/images]",
        "train.txt",
        "{root}/train/images",
        "{root}/train.txt",
        "/content/set/train/images",
        "C:\\set\\train\\images",
    ],
)
def test_yolo_splits_come_from_data_yaml(tmp_path, train):
    write_yolo(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "images/train").rename(tmp_path / "train/images")  # Roboflow's layout
    (tmp_path / "labels/train").rename(tmp_path / "train/labels")
    (tmp_path / "train.txt").write_text("./train/images/a.jpg\ntrain/images/b.PNG\n")
    (tmp_path / "data.yaml").write_text(f"train: {train.format(root=tmp_path)}\nval: nowhere\nnames: [cat, dog]\n")
    objects = found(read(tmp_path, split="train"))
    assert {name: objects[name] for name in ("a", "b")} == OBJECTS
    with pytest.raises(UserError, match=r"data\.yaml: val: nowhere does not exist \(looked for .*nowhere\)"):
        read(tmp_path, split="valid")
    with pytest.raises(UserError, match="split 'minival' is neither a list nor a folder"):
        read(tmp_path, split="minival")


def test_yolo_images_may_be_outside_the_folder_of_data_yaml(tmp_path):
    write_yolo(tmp_path / "images_are_here")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/data.yaml").write_text(f"train: {tmp_path}/images_are_here/images\nnames: [cat, dog]\n")
    assert found(read(tmp_path / "settings", split="train")) == {**OBJECTS, "no_label": []}


def test_darknet_class_files_and_separate_label_folders_are_read(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')  # Label Studio's
    for file in ("classes.txt", "obj.names", "labels/classes.txt", "labels/train/classes.txt"):
        (tmp_path / file).write_text("cat\ndog\n")
        assert found(read(tmp_path)) == {**OBJECTS, "no_label": []}
        apart = read(tmp_path / "images/train", annotations=str(tmp_path / "labels/train"), format="yolo")
        assert found(apart) == {**OBJECTS, "no_label": []}
        (tmp_path / file).unlink()
    with pytest.raises(UserError, match=r"has neither data\.yaml nor classes\.txt, obj\.names or _darknet\.labels"):
        read(tmp_path, format="yolo")


def test_yolo_confidences_and_keypoints_are_ignored(tmp_path, caplog):
    write_yolo(tmp_path)
    label = tmp_path / "labels/train/b.txt"
    label.write_text(label.read_text().strip() + " 0.97\n")
    assert found(read(tmp_path))["b"] == OBJECTS["b"]
    assert "1 boxes have a confidence, as predictions do; it is ignored (first in" in caplog.text
    label.write_text(label.read_text().replace(" 0.97", " 0.5 0.5 2 0.1 0.1 2"))
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [2, 3]\n")
    assert found(read(tmp_path))["b"] == OBJECTS["b"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels/train/b.txt", "0 0.5 0.5 0.1", r"b\.txt: line 1 has 3 numbers after the class, neither the four"),
        ("labels/train/b.txt", "\ncat 1 1 1 1", r"b\.txt: line 2 is 'cat 1 1 1 1', not a class and coordinates"),
        ("labels/train/b.txt", "2 1 1 1 1", r"b\.txt: line 1 is of class 2, but there are names for 0 to 1 only"),
        ("data.yaml", "train: x\nnames: 3", r"data\.yaml has `names` '3'; give a list of classes or a mapping of"),
        ("data.yaml", "names: {cat: 0}", r"data\.yaml: `names` has a key that is not a number"),
        ("data.yaml", "names: [", r"data\.yaml is not valid YAML"),
        ("data.yaml", "names: [a]\npath: [b]", r"data\.yaml: `path` is not the name of a folder"),
    ],
)
def test_yolo_errors_say_where(tmp_path, file, text, message):
    write_yolo(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path, format="yolo")


def test_yaml_class_names_are_kept_as_text(tmp_path):
    write_yolo(tmp_path, "names: [no, 01]")
    assert read(tmp_path).classes == ["no", "01"]


def shape(label: str, kind: str, points: list[float], **more) -> dict:
    return {"label": label, "points": np.reshape(points, (-1, 2)).tolist(), "shape_type": kind, "flags": {}, **more}


def write_labelme(folder, name: str, shapes: list[dict], **more) -> None:
    content = {"version": "5.4.1", "shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 40, "imageWidth": 48}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content | more))


def test_labelme_is_detected_and_read(tmp_path, caplog):
    write_images(tmp_path, "a.jpg", "b.jpg", "not_labeled.jpg")
    write_labelme(tmp_path, "a", [shape("dog", "polygon", POLYGON), shape("cat", "polygon", TRIANGLE, group_id=None)])
    x, y, w, h = BOX
    write_labelme(
        tmp_path, "b", [shape("cat", "rectangle", [x + w, y, x, y + h])], imageData="QUFB", imagePath="../x.jpg"
    )
    with caplog.at_level("INFO", "resnet_backbones"):
        data = read(tmp_path)
    rectangle = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assert found(data) == {**OBJECTS, "b": [("cat", BOX, 240, rectangle)]}
    assert "own: read as labelme (found a.json)" in caplog.text
    assert "1 images without a .json file are left out" in caplog.text


def test_labelme_shapes_are_converted(tmp_path, caplog):
    square = np.zeros((5, 7), bool)
    square[1:4, 2:6] = True
    png = io.BytesIO()
    Image.fromarray(square).save(png, "PNG")
    write_images(tmp_path / "images", "a.jpg")
    shapes = [
        shape("ring", "circle", [20, 20, 26, 28]),
        shape("parts", "polygon", POLYGON, group_id=1),
        shape("parts", "polygon", TRIANGLE, group_id=1),
        shape("parts", "polygon", TRIANGLE, group_id=2),
        shape("mask", "mask", [30, 10, 36, 14], mask=base64.b64encode(png.getvalue()).decode()),
        shape("tip", "point", [3, 3]),
        shape("edge", "linestrip", [3, 3, 9, 9]),
        shape(" ring ", "rotation", TRIANGLE),  # X-AnyLabeling's
    ]
    write_labelme(tmp_path / "labels", "a", shapes, imagePath="..\\images\\a.jpg")
    data = read(tmp_path)
    assert data.classes == ["mask", "parts", "ring"]
    assert np.round(data.boxes).tolist() == [
        [10, 10, 20, 20],
        [1, 2, 29, 26],
        [1, 2, 20, 10],
        [32, 11, 4, 3],
        [1, 2, 20, 10],
    ]
    assert data.areas.round(-1).tolist() == [310, 500, 100, 10, 100]
    assert len(data.segmentation(1)) == 2
    mask = decode_mask(data.segmentation(3), 40, 48)
    assert (mask[11:14, 32:36] == 1).all()
    assert mask.sum() == 12
    assert "datasets.own: skipped shapes without an area: 1 linestrip, 1 point" in caplog.text


@pytest.mark.parametrize(
    ("shapes", "more", "message"),
    [
        ([{"points": [[1, 1], [2, 2], [3, 1]]}], {}, r"a\.json: a shape is not as labelme writes it: it has no label"),
        ([shape("x", "circle", [1, 1])], {}, r"a\.json: a shape is not as labelme writes it"),
        ([shape("x", "mask", [1, 1, 2, 2], mask="AAAA")], {}, r"a\.json: a shape .* Image of a mask cannot be decoded"),
        (["x"], {}, r"a\.json: a shape is not as labelme writes it"),
    ],
)
def test_labelme_errors_name_the_file(tmp_path, shapes, more, message):
    write_images(tmp_path, "a.jpg")
    write_labelme(tmp_path, "a", shapes, **more)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>dog</name><type>any</type></label><label><name>cat</name></label><label><name>unused</name></label>
<label><name>nose</name><parent>dog</parent></label></labels></task></meta>
<image id="0" name="a.jpg" subset="default" width="48" height="40">
<polygon label="dog" points="10.00,8.00;30.00,8.00;30.00,28.00;10.00,28.00" z_order="0"/>
<polygon label="cat" points="1.00,2.00;21.00,2.00;1.00,12.00"/><points label="nose" points="1,1"/>
<tag label="cat"/></image>
<image id="1" name="b.jpg" width="48" height="40">
<box label="cat" xtl="4.00" ytl="5.00" xbr="16.00" ybr="25.00"/>
<box label="dog" outside="1" xtl="4.00" ytl="5.00" xbr="16.00" ybr="25.00"/>{more}</image></annotations>"""


def test_cvat_is_detected_and_read(tmp_path, caplog):
    write_images(tmp_path / "images/default", "a.jpg", "b.jpg")
    (tmp_path / "annotations.xml").write_text(CVAT.replace("{more}", ""))
    with caplog.at_level("INFO", "resnet_backbones"):
        data = read(tmp_path)
    assert found(data) == OBJECTS
    assert data.classes == ["dog", "cat", "unused"]
    assert data.file_name(0) == "images/default/a.jpg"
    assert "own: read as CVAT (found annotations.xml)" in caplog.text
    assert "datasets.own: skipped shapes without an area: 1 points" in caplog.text
    assert found(read(tmp_path / "images/default", annotations=str(tmp_path / "annotations.xml"))) == OBJECTS


def test_cvat_rotations_ellipses_and_masks_are_converted(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    more = """<box label="dog" rotation="90" xtl="10" ytl="10" xbr="30" ybr="20"/>
    <ellipse label="dog" rotation="90" cx="20" cy="20" rx="10" ry="5"/>
    <mask label="dog" rle="1, 2, 3" left="46" top="3" width="3" height="2"/>"""
    (tmp_path / "annotations.xml").write_text(CVAT.replace("{more}", more))
    data = read(tmp_path)
    assert np.round(data.boxes[3:]).tolist() == [[15, 5, 10, 20], [15, 10, 10, 20], [47, 3, 1, 1]]
    mask = decode_mask(data.segmentation(5), 40, 48)
    assert (mask.sum(), mask[3, 47]) == (1, 1)  # the second pixel is outside the image


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('xtl="4.00"', 'xtl="left"', r"annotations\.xml: a box of b\.jpg: xtl is 'left', not a number"),
        ("1.00,12.00", "1.00", r"a polygon of a\.jpg has an x without y in its points"),
        ('label="cat" xtl', "xtl", r"a box of b\.jpg has no label"),
        ("{more}", '<mask label="dog" rle="7" left="1" top="1" width="2" height="2"/>', r"its runs do not fill 2 x 2"),
        ("<version>", "<track/><version>", r"annotations\.xml is not in the format 'CVAT for images'"),
        ("b.jpg", "a.jpg", r"annotations\.xml: two images have the same name"),
    ],
)
def test_cvat_errors_say_where(tmp_path, old, new, message):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "annotations.xml").write_text(CVAT.replace(old, new).replace("{more}", ""))
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_coco_files_beside_their_images_are_found(tmp_path, caplog):
    for split in ("train", "valid"):
        write_coco(tmp_path / split, 2)
        for image in (tmp_path / split / "images").iterdir():
            image.rename(tmp_path / split / image.name)
        (tmp_path / split / "instances.json").rename(tmp_path / split / "_annotations.coco.json")
    with caplog.at_level("INFO", "resnet_backbones"):
        data = read(tmp_path, split="valid")
    assert "own: read as COCO (found train/_annotations.coco.json)" in caplog.text
    assert data.path(0) == tmp_path / "valid/0.png"
    assert len(read(tmp_path / "train", split="0.5")) == 1
    with pytest.raises(UserError, match="has no COCO file; set `annotations` to one, or `split` to the folder"):
        read(tmp_path)
    save_coco(tmp_path / "train", json.loads((tmp_path / "train/_annotations.coco.json").read_text()))
    with pytest.raises(UserError, match=r"has several COCO files, _annotations\.coco\.json, instances\.json; set"):
        read(tmp_path / "train")


def test_a_folder_of_unknown_or_ambiguous_format_is_refused(tmp_path):
    write_images(tmp_path / "images", "a.jpg", "b.jpg", "._c.jpg")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(UserError, match=r"datasets\.own: .* is of no known format; it has 1 \.txt, images/\. Set"):
        read(tmp_path)
    write_yolo(tmp_path / "own")
    write_labelme(tmp_path / "own", "a", [])
    with pytest.raises(UserError, match=r"files of several formats: a\.json \(labelme\) and data\.yaml \(yolo\)"):
        read(tmp_path / "own")
    assert len(read(tmp_path / "own", format="yolo")) == 3
