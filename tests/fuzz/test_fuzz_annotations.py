"""Fuzzed annotations, images and results: named attacks one by one, then damaged files of every format."""

import io
import json
import shutil

import attacks
import numpy as np
import pytest
from conftest import draw, write_coco, write_voc
from fuzzing import JUNK, fuzz, limits, mutated, mutated_bytes, outcome
from hypothesis import strategies as st
from PIL import Image

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.data.images import decode_image, image_size, read_image
from resnet_backbones.data.json_file import read_json
from resnet_backbones.data.unreadable import Unreadable
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.backends import BACKENDS
from resnet_backbones.evaluation.coco import IOU_TYPES, evaluate_coco

WRONG = st.sampled_from([*attacks.SEGMENTATIONS.values(), *attacks.FILE_NAMES.values(), *attacks.NUMBERS.values()])
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-7", "cp037", "utf-32"])
FOUND = [
    {"image_id": 100, "category_id": 3, "bbox": [10, 8, 20, 20], "score": 0.9},
    {"image_id": 101, "category_id": 7, "bbox": [9, 8, 20, 20], "score": 0.5},
]


def load_all(root, **options) -> None:
    """Read a dataset and all of its images, as training with masks does."""
    data = load_annotations("own", {"own": {"root": str(root), **options}})
    dataset = DetectionDataset([data], train=True, masks=bool(data.segmentations.present.any()), keep_empty=True)
    for k in range(len(dataset)):
        sample = dataset[k]
        if isinstance(sample, Unreadable):
            raise UserError(sample.reason)
        assert len(sample[1]["boxes"]) == len(sample[1]["labels"])


def write_yolo(root) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    draw().save(root / "images/a.png")
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (root / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.4 0.1 0.4 0.5\n")


def write_labelme(root) -> None:
    draw().save(root / "a.png")
    shapes = [{"label": "cat", "shape_type": "polygon", "points": [[1, 2], [20, 2], [1, 12]]}]
    shapes += [{"label": "dog", "shape_type": "rectangle", "points": [[4, 5], [16, 25]]}]
    content = {"shapes": shapes, "imagePath": "a.png", "imageWidth": 48, "imageHeight": 40}
    (root / "a.json").write_text(json.dumps(content))


def write_cvat(root) -> None:
    draw().save(root / "a.png")
    box = '<box label="cat" xtl="1" ytl="2" xbr="20" ybr="12" occluded="0"/>'
    polygon = '<polygon label="dog" points="1.0,2.0;20.0,2.0;1.0,12.0"/>'
    mask = '<mask label="dog" rle="2, 3, 4" left="1" top="2" width="3" height="3"/>'
    image = f'<image id="0" name="a.png" width="48" height="40">{box}{polygon}{mask}</image>'
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")


def write_devkit(root) -> None:
    write_voc(root, {"a": [("dog", (2, 2, 9, 9), 0)], "b": [("cat", (1, 1, 9, 9), 0)]})


# For each format: how to write it, the file to damage, and the named attacks on such a file.
FORMATS = {
    "coco": (lambda root: write_coco(root, 2), "instances.json", attacks.JSON),
    "voc": (write_devkit, "Annotations/a.xml", attacks.XML),
    "voc list": (write_devkit, "ImageSets/Main/train.txt", attacks.FILE_NAMES),
    "yolo": (write_yolo, "labels/a.txt", attacks.LINES),
    "yolo settings": (write_yolo, "data.yaml", attacks.FILE_NAMES),
    "labelme": (write_labelme, "a.json", attacks.JSON),
    "cvat": (write_cvat, "annotations.xml", attacks.XML),
}


def options_of(kind: str, root) -> dict[str, str]:
    options = {"format": kind.split()[0]}
    if kind == "coco":
        options |= {"root": str(root / "images"), "annotations": str(root / "instances.json")}
    return {"root": str(root), **options} | ({"split": "train"} if kind.startswith("voc") else {})


ALLOWED = {("voc", "a wrong declared encoding"), ("voc list", "a line break")}  # which separates two names


@pytest.mark.parametrize(("kind", "attack"), [(kind, name) for kind, row in FORMATS.items() for name in row[2]])
def test_attacks_on_annotation_files_are_read_or_refused(tmp_path, kind, attack):
    write, name, named = FORMATS[kind]
    write(tmp_path)
    content = named[attack]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with limits():
        verdict = outcome(lambda options: load_all(**options), options_of(kind, tmp_path))
    assert verdict == ("accepted" if (kind, attack) in ALLOWED else "refused")


@pytest.mark.parametrize("attack", attacks.SEGMENTATIONS)
def test_attacks_on_segmentations_are_left_out_or_refused(tmp_path, attack):
    content = write_coco(tmp_path, 2)
    content["annotations"][0]["segmentation"] = attacks.SEGMENTATIONS[attack]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = [FOUND[0] | {"segmentation": attacks.SEGMENTATIONS[attack]}]
    with limits():
        load_all(**options_of("coco", tmp_path))  # the object is left out
        metrics, _ = evaluate_coco(content, [], "segm")
        verdicts = [outcome(lambda backend: evaluate_coco(content, found, "segm", backend), b) for b in BACKENDS]
    assert (metrics["segm/AP-dog"], metrics["segm/AP-cat"]) == (-1, 0)  # the only dog is left out
    assert verdicts == ["accepted" if attack == "an unterminated run" else "refused", "refused"]


@pytest.mark.parametrize("attack", attacks.images("x"))
def test_attacks_disguised_as_images_are_refused(tmp_path, attack):
    path = tmp_path / "a.jpg"
    path.write_bytes(attacks.images(tmp_path / "canary")[attack])
    with limits():
        assert outcome(read_image, path) == "refused"
        verdict = outcome(image_size, path)
    with_size = ("a truncated PPM", "a TIFF whose directory points to itself")
    assert verdict == ("accepted" if attack in with_size else "refused")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_annotation_files_are_read_or_refused(tmp_path, record_property, kind):
    write, name, named = FORMATS[kind]
    write(tmp_path)
    file, whole = tmp_path / name, (tmp_path / name).read_bytes()
    named = [content if isinstance(content, bytes) else content.encode() for content in named.values()]
    texts = [mutated_bytes(whole), mutated_bytes(whole, most=1), st.sampled_from(named)]
    texts.append(ENCODINGS.map(lambda encoding: whole.decode().encode(encoding)))
    if name.endswith(".json"):
        for most in (1, 3):
            values = mutated(lambda: json.loads(whole), WRONG, most=most)
            texts.append(values.map(lambda value: json.dumps(value).encode()))

    def read(text: bytes) -> None:
        file.write_bytes(text)
        load_all(**options_of(kind, tmp_path))

    fuzz(kind, record_property, tmp_path, st.one_of(texts), read)


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    draw(24, 20).convert(mode).save(file, kind, **options)
    return file.getvalue()


def test_damaged_images_are_read_or_refused(tmp_path, record_property):
    whole = [encoded(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")]
    whole += [encoded("JPEG", "CMYK"), encoded("PNG", "I;16"), encoded("TIFF", "F"), encoded("PNG", "P")]
    whole += [encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="jpeg"), encoded("GIF", "P")]
    examples = st.one_of(
        st.sampled_from(whole).flatmap(mutated_bytes),
        st.sampled_from(whole).flatmap(lambda content: mutated_bytes(content, most=1)),
        st.sampled_from(list(attacks.images(tmp_path / "canary").values())),
    )
    path = tmp_path / "a.jpg"

    def read(example: tuple[bytes, tuple | None]) -> None:
        content, size = example
        path.write_bytes(content)
        pixels = read_image(path, size)
        assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
        assert sorted(image_size(path)) == sorted(pixels.shape[:2])
        assert decode_image(content, "a").shape[:2] in (pixels.shape[:2], pixels.shape[1::-1])

    sizes = st.sampled_from([None, (24, 20), (20, 24), (1, 1), (2**31, 2**31)])
    fuzz("images", record_property, tmp_path, st.tuples(examples, sizes), read)


def test_damaged_results_are_scored_or_refused(tmp_path, record_property):
    truth = write_coco(tmp_path, 2)
    shutil.rmtree(tmp_path / "images")
    found = [p | {"segmentation": {"size": [40, 48], "counts": "P;X1"}} for p in FOUND]
    texts = (json.dumps(truth), json.dumps(found))
    both = st.one_of(
        st.tuples(mutated(lambda: json.loads(texts[0]), WRONG), st.just(found)),
        st.tuples(st.just(truth), mutated(lambda: json.loads(texts[1]), WRONG)),
        st.tuples(JUNK, JUNK),
    )

    def score(example: tuple[tuple, str]) -> None:
        for name, value in zip(("truth.json", "found.json"), example[0], strict=True):
            (tmp_path / name).write_text(json.dumps(value))
        truth, found = (read_json(str(tmp_path / name)) for name in ("truth.json", "found.json"))
        metrics, _ = evaluate_coco(truth, found, example[1])
        assert all(-1 <= value <= 100 for value in metrics.values())

    fuzz("results to score", record_property, tmp_path, st.tuples(both, st.sampled_from(IOU_TYPES)), score)


def test_undamaged_images_are_read_exactly(tmp_path):
    for k, kind in enumerate(("PNG", "BMP", "TIFF", "PPM")):
        (tmp_path / f"{k}").write_bytes(encoded(kind))
        assert np.array_equal(read_image(tmp_path / f"{k}"), np.asarray(Image.open(io.BytesIO(encoded(kind)))))
