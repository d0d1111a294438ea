"""Fuzzed annotations, images and results."""

import io
import json
import shutil
import struct

import numpy as np
from conftest import draw, write_coco, write_voc
from fuzzing import JUNK, fuzz, mutated, mutated_bytes
from helpers import png_of
from hypothesis import strategies as st
from PIL import Image

from resnet_backbones.data import DetectionDataset, load_annotations
from resnet_backbones.data.coco import read_json
from resnet_backbones.data.images import decode_image, image_size, read_image
from resnet_backbones.data.unreadable import Unreadable
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.coco import IOU_TYPES, evaluate_coco

SEGMENTATIONS = st.sampled_from([
    {"size": [40, 48], "counts": [0, 2**32 + 1920]},
    {"size": [40, 48], "counts": [-1, 1921]},
    {"size": [40, 48], "counts": "oooooooooooo0"},
    {"size": [40, 48], "counts": "PPPP"},
    {"size": [2**40, 2**40], "counts": [2**80]},
    {"size": [2**31, 2**31], "counts": [2**62]},
    {"size": [65536, 65536], "counts": [2**32]},
    {"size": [True, 1920], "counts": [0, 1920]},
    {"size": [40, 48], "counts": [1.5, 1918.5]},
    {"size": [40, 48], "counts": []},
    [[0, 0, 1e8, 0, 1e8, 1e8]],
    [[4.29e8, 0, 4.2950e8, 0, 4.29e8, 9]],
    [[0, 0, 5e6, 5e6] * 100],
    [[10, 8, 30, 8, 30, 28, 10]],
    [[10, 8, 30, 8]],
    [[10, 8, 1e7, 1e7]],
    [[]],
    "30 8",
])  # fmt: skip
NAMES = st.sampled_from(
    ["../0.png", "a/../../x", "/etc/passwd", "..\\0.png", "0.png\0", "", "./0.png", "x" * 300, "a\nb"]
)
NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, 2**63 - 1, -(2**63) - 1, 2**70, 1e308, float("nan"), float("inf"), 1.5]
)
WRONG = SEGMENTATIONS | NAMES | NUMBERS


def square_rle() -> dict:
    return {"size": [40, 48], "counts": [0, 80, 40 * 48 - 80]}


def test_coco_files(tmp_path, record_property):
    content = json.dumps(write_coco(tmp_path, 2))
    file = tmp_path / "instances.json"
    spec = {"own": {"root": str(tmp_path / "images"), "annotations": str(file)}}
    texts = st.one_of(
        mutated(lambda: json.loads(content), WRONG).map(lambda value: json.dumps(value).encode()),
        mutated(lambda: json.loads(content), WRONG, most=1).map(lambda value: json.dumps(value).encode()),
        mutated_bytes(content.encode()),
        st.sampled_from([b"[" * 100_000, b'{"a":' * 5000, b'"\\ud800"', b"9" * 5000, b"\xff\xfe{}", b"nul"]),
    )

    def read(example: tuple[bytes, bool]) -> None:
        text, masks = example
        file.write_bytes(text)
        dataset = DetectionDataset([load_annotations("own", spec)], train=True, masks=masks, keep_empty=True)
        for k in range(len(dataset)):
            sample = dataset[k]
            if isinstance(sample, Unreadable):
                raise UserError(sample.reason)
            assert len(sample[1]["boxes"]) == len(sample[1]["labels"])

    fuzz("COCO annotations", record_property, tmp_path, st.tuples(texts, st.booleans()), read)


ENTITIES = [
    '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>',
    '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY % b SYSTEM "http://127.0.0.1/x"> %b;]>',
]
ENCODINGS = st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-7", "cp037", "utf-32"])


@st.composite
def voc_files(draw, good: str, listing: bytes) -> tuple[bytes, bytes]:
    """An annotation file and the list of a split, at most one of them damaged."""
    kind = draw(st.sampled_from(["bytes", "values", "entities", "encoding", "deep", "listing"]))
    xml, names = good.encode(), listing
    if kind == "bytes":
        xml = draw(mutated_bytes(xml))
    elif kind == "values":
        old = draw(st.sampled_from(["<xmin>2", "<ymax>9", "<width>48", "<height>40", "<name>dog", "<difficult>0"]))
        new = draw(
            st.sampled_from(["nan", "inf", "-1", "9" * 5000, str(2**70), "1e400", "", "&#0;", "&b;", "<a/>", "\n5 "])
        )
        xml = good.replace(old, old[: old.index(">") + 1] + new).encode()
    elif kind == "entities":
        xml = (draw(st.sampled_from(ENTITIES)) + good.replace("dog", "&b;")).encode(draw(ENCODINGS))
    elif kind == "encoding":
        declared, real = draw(ENCODINGS), draw(ENCODINGS)
        xml = (f'<?xml version="1.0" encoding="{declared}"?>' + good).encode(real)
    elif kind == "deep":
        xml = b"<annotation>" + b"<object>" * draw(st.sampled_from([10, 100, 100_000]))
    else:
        lists = [b"../a", b"/etc/passwd", b"a\0", b"x" * 300, b"a\na", b"", b"\xff", b"a/../a", b"..\\a", b"."]
        names = draw(st.sampled_from(lists) | mutated_bytes(listing))
    return xml, names


def test_voc_devkits(tmp_path, record_property):
    write_voc(tmp_path, {"a": [("dog", (2, 2, 9, 9), 0)], "b": [("cat", (1, 1, 9, 9), 0)]})
    xml, names = tmp_path / "Annotations/a.xml", tmp_path / "ImageSets/Main/train.txt"
    spec = {"own": {"format": "voc", "root": str(tmp_path), "split": "train"}}

    def read(example: tuple[bytes, bytes]) -> None:
        xml.write_bytes(example[0])
        names.write_bytes(example[1])
        dataset = DetectionDataset([load_annotations("own", spec)], train=True, keep_empty=True)
        for k in range(len(dataset)):
            dataset[k]

    fuzz("VOC devkits", record_property, tmp_path, voc_files(xml.read_text(), names.read_bytes()), read)


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    draw(24, 20).convert(mode).save(file, kind, **options)
    return file.getvalue()


def disguised(canary) -> list[bytes]:
    """Files of other kinds, some of which contain programs."""
    script = f"(%pipe%touch {canary}) (w) file closefile ({canary}) (w) file closefile showpage\n"
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n%%EndComments\n{script}%%EOF\n".encode()
    return [
        eps,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20) + eps,
        f"%!PS\n{script}".encode(),
        b"%PDF-1.4\n1 0 obj <</Type/Catalog/OpenAction<</S/Launch/F(touch)>>>> endobj\n%%EOF",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"#define x_width 65535\n#define x_height 65535\nstatic char x_bits[] = {0};",
        b"P6 99999 99999 255\n", b"P5 24 20 99999999999\n", b"P3 24 20 255\n1 2 3",
        b"GIF89a\xff\xff\xff\xff\xf7\0\0,", b"BM" + bytes(8) + struct.pack("<IIii", 54, 40, 2**31 - 1, -(2**31)),
        png_of(60000, 60000), png_of(2**31 - 1, 2**31 - 1), png_of(20000, 6000, bytes(1000)), b"", b"\0" * 4096,
    ]  # fmt: skip


def test_images(tmp_path, record_property):
    whole = [encoded(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")]
    whole += [encoded("JPEG", "CMYK"), encoded("PNG", "I;16"), encoded("TIFF", "F"), encoded("PNG", "P")]
    whole += [encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="jpeg"), encoded("GIF", "P")]
    examples = st.one_of(
        st.sampled_from(whole).flatmap(mutated_bytes),
        st.sampled_from(whole).flatmap(lambda content: mutated_bytes(content, most=1)),
        st.sampled_from(disguised(tmp_path / "canary")),
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


def test_results(tmp_path, record_property):
    truth = write_coco(tmp_path, 2)
    shutil.rmtree(tmp_path / "images")
    found = [
        {"image_id": 100, "category_id": 3, "bbox": [10, 8, 20, 20], "score": 0.9, "segmentation": {
            "size": [40, 48], "counts": "P;X1"}},
        {"image_id": 101, "category_id": 7, "bbox": [9, 8, 20, 20], "score": 0.5, "segmentation": {
            "size": [40, 48], "counts": "P;X1"}},
    ]  # fmt: skip
    texts = (json.dumps(truth), json.dumps(found))
    both = st.one_of(
        st.tuples(mutated(lambda: json.loads(texts[0]), WRONG), st.just(found)),
        st.tuples(st.just(truth), mutated(lambda: json.loads(texts[1]), WRONG)),
        st.tuples(JUNK, JUNK),
    )

    def score(example: tuple[tuple, str]) -> None:
        for name, value in zip(("truth.json", "found.json"), example[0], strict=True):
            (tmp_path / name).write_text(json.dumps(value))
        metrics, _ = evaluate_coco(
            read_json(str(tmp_path / "truth.json")), read_json(str(tmp_path / "found.json")), example[1]
        )
        assert all(-1 <= value <= 100 for value in metrics.values())

    fuzz("results to score", record_property, tmp_path, st.tuples(both, st.sampled_from(IOU_TYPES)), score)


def test_undamaged_images_of_the_strategy_are_read_exactly(tmp_path):
    for k, kind in enumerate(("PNG", "BMP", "TIFF", "PPM")):
        (tmp_path / f"{k}").write_bytes(encoded(kind))
        assert np.array_equal(read_image(tmp_path / f"{k}"), np.asarray(Image.open(io.BytesIO(encoded(kind)))))
