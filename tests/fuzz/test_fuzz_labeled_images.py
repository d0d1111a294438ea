"""Fuzzed folders, tars and shards of labeled images."""

import io
import json
import tarfile

from conftest import write_images
from fuzzing import fuzz, mutated, mutated_bytes
from hypothesis import strategies as st

from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.imagenet import load_images


@st.composite
def tars(draw, content: bytes) -> bytes:
    """A tar with a damaged header and a valid checksum, or with bytes damaged anywhere."""
    if draw(st.booleans()):
        return draw(mutated_bytes(content))
    data = bytearray(content)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = draw(st.sampled_from(headers))
    start, length = draw(st.sampled_from([(0, 100), (124, 12), (156, 1), (157, 100), (345, 155)]))
    sizes = [
        b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000000", b"../../x",
        b"/etc/passwd",
        b"\x80" + bytes(8) + b"\x10\0\0", b"S", b"L", b"K", b"x", b"g", b"1", b"2", b"5", b"3", b"6",
        b"a\nb.jpg",
    ]  # fmt: skip
    data[at + start : at + start + length] = draw(st.sampled_from(sizes))[:length].ljust(length, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_damaged_labeled_images_are_read_or_refused(tmp_path, record_property):
    write_images(tmp_path, {"ant": 1, "bee": 1}, ("train",), side=8)
    encoded = [path.read_bytes() for path in sorted((tmp_path / "train").rglob("*.jpg"))]
    tree = tar_of({"train/ant/0.jpg": encoded[0], "train/bee/0.jpg": encoded[1]})
    shard = tar_of({"a.jpg": encoded[0], "a.cls": b"0", "b.jpg": encoded[1], "b.cls": b"bee"})
    patterns = st.sampled_from([
        "s-{0..0}.tar", "s-{0..0}.tar", "s-{0,0}.tar", "{" * 3000 + ".tar", "s-{0,{0,0}}.tar", "s-{0..}.tar",
        "s-{0..0..0}.tar", "../s-{0..0}.tar", "s-{0..0}\0.tar",
    ])  # fmt: skip
    index = mutated(lambda: {"shardlist": [{"url": "s-0.tar", "nsamples": 2}]}).map(lambda v: json.dumps(v).encode())
    classes = mutated_bytes(b"ant\nbee\n", most=1)
    examples = st.one_of(
        st.tuples(st.just("tree"), tars(tree)),
        st.tuples(st.just("shards"), st.tuples(tars(shard), patterns, st.just(None), st.just(b"ant\nbee\n"))),
        st.tuples(st.just("shards"), st.tuples(st.just(shard), patterns, st.none() | index, classes)),
    )

    def read(example: tuple) -> None:
        kind, content = example
        folder = tmp_path / "given"
        folder.mkdir(exist_ok=True)
        if kind == "shards":
            content, pattern, table, names = content
            (folder / "s-0.tar").write_bytes(content)
            (folder / "classes.txt").write_bytes(names)
            (folder / "index.json").unlink(missing_ok=True)
            if table is not None:
                (folder / "index.json").write_bytes(table)
            images = load_images(str(folder), pattern)
        else:
            (folder / "tree.tar").write_bytes(content)
            images = load_images(str(folder / "tree.tar"), "train")
        dataset = ClassificationDataset(images, lambda image: image.float())
        for k in range(min(len(dataset), 5)):
            dataset[k]

    fuzz("labeled images", record_property, tmp_path, examples, read)
