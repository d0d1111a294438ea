"""Splits: the images of a list, of a folder, or of a fraction that no other split shares."""

import random

import pytest
from conftest import coco_overrides, draw, save_coco, write_coco, write_voc

from resnet_backbones.config import load_config
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.splits import Split, shuffled
from resnet_backbones.errors import UserError

NAMES = [f"{k}.png" for k in range(10)]


def names_of(own: dict, name: str) -> list[str]:
    data = load_annotations(name, own)
    return [data.file_name(k) for k in range(len(data))]


def entry(folder, split: str, **more) -> dict:
    return {"root": str(folder / "images"), "annotations": str(folder / "instances.json"), "split": split, **more}


def listed(folder, text: str, names: list[str]) -> list[str]:
    (folder / "list.txt").write_text(text)
    return Split("datasets.own", folder, "list").choose(names)


def test_fractions_and_the_rest_are_disjoint_and_complete(tmp_path):
    content = write_coco(tmp_path, 10)
    own = {"a": entry(tmp_path, "0.5"), "other": entry(tmp_path, "0.5", split_seed=1), "b": entry(tmp_path, "0.2"),
           "c": entry(tmp_path, "rest")}  # fmt: skip
    a, other, b, c = (names_of(own, name) for name in own)
    assert [len(a), len(b), len(c)] == [5, 2, 3]
    assert sorted(a + b + c) == NAMES
    assert other != a
    assert len(load_annotations("b", own).labels) == 4  # without the objects of other images
    random.shuffle(content["images"])
    save_coco(tmp_path, content)
    assert sorted(names_of(own, "a")) == a
    assert sorted(names_of({"a": own["a"]}, "a")) == a


def test_adding_an_image_or_a_folder_prefix_does_not_reorder_the_others():
    before, after = shuffled(NAMES, 0), shuffled([*NAMES, "x.png"], 0)
    assert [name for name in after if name != "x.png"] == before
    assert shuffled([f"images/{name}" for name in NAMES], 0) == [f"images/{name}" for name in before]


def test_fractions_may_be_set_in_the_config(tmp_path):
    write_coco(tmp_path, 10)
    more = [f"datasets.own.{key}" for key in ("split=0.3", "split_seed=2")]
    config = load_config("quickstart_mask_rcnn.yaml", [*coco_overrides(tmp_path), *more])
    assert len(load_annotations("own", config.datasets)) == 3
    with pytest.raises(UserError, match=r"datasets\.own\.split_seed is -1; it must be from 0"):
        load_config("quickstart_mask_rcnn.yaml", [*coco_overrides(tmp_path), "datasets.own.split_seed=-1"])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["0.8", "0.3"], r"The splits datasets\.0 \(0\.8\) \+ datasets\.1 \(0\.3\) sum to 1\.1, above 1"),
        (["rest"], r"datasets\.0: split: rest needs another entry of the same root"),
        (["rest", "0.5", "rest"], r"datasets\.0 and datasets\.2 both take the rest; give one a fraction"),
        (["rest", "0.7", "0.3"], r"datasets\.0: there is no rest: .* take everything"),
        (["0.001"], r"datasets\.0: split 0\.001 has none of the 10 images"),
        (["1.5"], r"datasets\.0: split '1\.5' is neither a list nor a folder in .*images, nor a fraction such as 0\.8"),
    ],
)
def test_impossible_fractions_are_refused(tmp_path, splits, message):
    write_coco(tmp_path, 10)
    own = {str(k): entry(tmp_path, split) for k, split in enumerate(splits)}
    with pytest.raises(UserError, match=message):
        load_annotations("0", own)


def test_lists_may_name_images_in_many_ways(tmp_path):
    names = ["images/train/a.jpg", "images/train/b 1.JPG", "images/val/a.jpg", "images/val/c.d.png"]
    text = "/old/place/images/train/a.jpg\r\n\r\n./b 1\r\nimages\\val\\a\r\n../val/c.d.png\r\n"
    assert listed(tmp_path, text, names) == names
    assert listed(tmp_path, "images/val/c.d", names) == names[3:]
    assert listed(tmp_path, "a.png\n", ["a.jpg", "a.png"]) == ["a.png"]
    assert listed(tmp_path, "val/c.d.xml\n./images/train/a.jpg ./xml/train/a.xml", names) == [names[3], names[0]]
    for text, message in [
        ("a.jpg", r"list\.txt: 'a\.jpg' fits images/train/a\.jpg and images/val/a\.jpg; write the names as they are"),
        ("test/c.d", r"list\.txt: 'test/c\.d' is none of the 4 annotated images"),
        ("c.d\nval/c.d.png", r"list\.txt: image images/val/c\.d\.png is listed twice"),
        ("c.d 1", r"'c\.d 1' is none of"),  # only the lists of devkits have flags
        ("\n", r"list\.txt lists no image"),
    ]:
        with pytest.raises(UserError, match=message):
            listed(tmp_path, text, names)


def test_flags_in_devkit_class_lists_are_ignored(tmp_path):
    write_voc(tmp_path, {name: [("dog", (1, 1, 9, 9), 0)] for name in ("a", "b", "c 1", "c")})
    (tmp_path / "ImageSets/Main/dog_train.txt").write_text("a  1\nb -1\nc 1\nc  0\n")
    own = {"own": {"root": str(tmp_path), "split": "dog_train"}}
    assert names_of(own, "own") == [f"JPEGImages/{name}.jpg" for name in ("a", "b", "c 1", "c")]
    own["own"]["split"] = "dog_train.txt"
    assert len(names_of(own, "own")) == 4


def test_a_split_may_be_a_folder(tmp_path):
    write_coco(tmp_path, 2)
    for name in ("train/x.png", "valid/y.png"):
        (tmp_path / "images" / name).parent.mkdir()
        draw().save(tmp_path / "images" / name)
    content = {"images": [{"id": 1, "file_name": "train/x.png"}, {"id": 2, "file_name": "valid/y.png"}],
               "annotations": [], "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    save_coco(tmp_path, content)
    assert names_of({"own": entry(tmp_path, "valid")}, "own") == ["valid/y.png"]
