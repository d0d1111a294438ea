"""Configs, weights and shards from strangers."""

import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from conftest import write_images
from fuzzing import JUNK, fuzz, mutated, mutated_bytes
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from test_checkpoint import Training

from resnet_backbones.config import CONFIG_FOLDER, Config, PretrainConfig, load_config
from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.training.checkpoint import newest_whole
from resnet_backbones.weights import read_checkpoint

CONFIGS = {
    "detector": ("coco_mask_rcnn_R50.yaml", Config),
    "own data": ("bccd_faster_rcnn_R18.yaml", Config),
    "classifier": ("imagenet_resnet50_a2.yaml", PretrainConfig),
}
LAUGHS = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 8)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join(['*' + a] * 8)}], {b}: *{a}}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "datasets:\n  a0: {root: xxxxxxxxxx}\n" + "".join(
    f"  a{k + 1}: {{root: '{f'${{datasets.a{k}.root}}' * 8}'}}\n" for k in range(9)
)
YAMLS = st.sampled_from([
    LAUGHS, MERGED, CHAIN, "a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", "[" * 2000, "{a: " * 500, "- " * 3000,
    "seed: " + "9" * 5000, "seed: " + "1:" * 5000 + "1", "seed: 0x" + "f" * 9000, "seed: 2001-99-99", "seed: 0b",
    "output_dir: !!python/object/apply:os.system ['touch canary']", "seed: !!int x", "seed: !!float _",
    "? [1]\n: 2",
    "seed: !!binary '%%%'", "output_dir: !!set {a}", "seed: !!timestamp x", "a: 1\na: 2", "1: 2",
    "--- 1\n--- 2", "null: 1",
    "output_dir: ${output_dir}", "output_dir: ${seed}${seed}", "output_dir: ${oc.env:HOME}",
    "output_dir: ${oc.env:A,b}",
    "output_dir: ${oc.create:'x'}", "output_dir: ${${a}}", "seed: ???", "solver: ???", 
    "solver: {steps: [1, null]}", "data: {train: [1.5]}", "seed: ", "", "\t", "seed: 1e400", "output_dir: ${",
    "x" * 2**21,
])  # fmt: skip


def test_configs(tmp_path, record_property):
    paths = {kind: CONFIG_FOLDER / name for kind, (name, _) in CONFIGS.items()}
    file = tmp_path / "fuzzed.yaml"

    def texts(kind: str) -> st.SearchStrategy:
        whole = paths[kind].read_text()
        values = mutated(lambda: yaml.safe_load(whole), JUNK | st.sampled_from(["${seed}", "${solver}", "???", "1e-3"]))
        return st.one_of(values.map(dumped), mutated_bytes(whole.encode(), most=2), YAMLS.map(str.encode))

    keys = st.sampled_from([
        "seed", "solver.lr", "solver.steps", "data.train", "backbone", "a.b", "solver.steps[9999999]",
        "", ".", "a" * 300, "a." * 600 + "b", "datasets.x.root", "evaluation.scales", "compare",
    ])  # fmt: skip
    values = st.one_of(
        JUNK.map(str), YAMLS, st.text(max_size=9), st.sampled_from(["1", "0.1", "[1,2]", "null", "{a: 1}"])
    )
    overrides = st.lists(st.tuples(keys, values).map("=".join), max_size=2)
    examples = st.sampled_from(sorted(CONFIGS)).flatmap(lambda kind: st.tuples(st.just(kind), texts(kind), overrides))

    def read(example: tuple[str, bytes, list[str]]) -> None:
        kind, text, changes = example
        file.write_bytes(text)
        load_config(str(file), changes, CONFIGS[kind][1])

    fuzz("configs", record_property, tmp_path, examples, read)


def dumped(value: object) -> bytes:
    return yaml.safe_dump(value).encode("utf-8", "surrogatepass")


STATE = OrderedDict(conv=torch.arange(12.0).reshape(3, 4), norm=torch.ones(3), steps=torch.tensor(7))


def torch_bytes(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.canary,)


# Pieces of pickles, which the strategy strings together: what allocates, repeats, hashes, names or sets.
OPERATIONS = st.sampled_from([
    b"cbuiltins\nbytearray\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.multiarray\nscalar\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"cos\nsystem\n", b"cbuiltins\neval\n", b"c_codecs\nencode\n",
    b"\x8a\x06\x00\x00\x00\x00\x00\x10", b"J\x00\x00\x00\x7f", b"K\x01", b"M\x00\x01", b"\x85", b"\x86",
    b"\x87", b"(", b"t",
    b"R", b"b", b"Q", b"2", b"0", b"}", b"]", b")", b"s", b"u", b"a", b"e", b"d", b"l", b"N", b"\x88",
    b"q\x00", b"h\x00",
    b"r\xff\xff\xff\xff", b"\x94", b"j\xff\xff\xff\xff", b"X\x04\x00\x00\x00conv", b"X\x02\x00\x00\x00f4",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f",
    b"\x96\x00\x00\x00\x00\x10\x00\x00\x00", b"\x81", b"\x93", b"C\x04abcd", b"I99\n",
    b"L" + b"9" * 5000 + b"L\n", b"F1e400\n",
    b"\x8f", b"\x91", b"\x90", b"\x82\x01", b"X\x07\x00\x00\x00storage", b"X\x03\x00\x00\x00cpu",
    b"X\x01\x00\x00\x000",
    b"\x85" * 3000, b"(" * 3000, b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"2\x86q\x01",
    b"h\x01h\x01\x86q\x01" * 40,
])  # fmt: skip
PICKLES = st.lists(OPERATIONS, max_size=24).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


@st.composite
def zips(draw, content: bytes) -> bytes:
    """A checkpoint whose members are damaged under right checksums, or packed, doubled or left out."""
    file = io.BytesIO()
    kind = draw(st.sampled_from(["bytes", "bytes", "pickle", "packed", "doubled", "left out", "bomb"]))
    source = zipfile.ZipFile(io.BytesIO(content))
    chosen = draw(st.sampled_from(source.namelist()))
    with zipfile.ZipFile(
        file, "w", zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
    ) as result:
        for name in source.namelist():
            data = source.read(name)
            if kind == "pickle" and name.endswith("data.pkl"):
                data = draw(PICKLES)
            elif name == chosen and kind == "bomb":
                data = bytes(2**22)
            elif name == chosen and kind == "bytes":
                data = draw(mutated_bytes(data, most=2))
            if not (name == chosen and kind == "left out"):
                result.writestr(name, data)
            if name == chosen and kind == "doubled":
                result.writestr(name + "/", data)
    return file.getvalue()


def test_weights(tmp_path, record_property):
    told = {"model": STATE, "metadata": {"architecture": {"name": "resnet18"}, "classes": ["a"]}}
    arrays = {"model": {name: tensor.numpy() for name, tensor in STATE.items()}, "__author__": "x"}
    modern, legacy, evil = torch_bytes(told), torch_bytes(told, legacy=True), Runs(tmp_path / "canary")
    metadata = {"format": "resnet_backbones 1", "architecture": '{"name": "resnet18"}', "preprocessing": '{"size": 9}'}
    texts = JUNK.map(lambda value: json.dumps(value)[:1000]) | st.sampled_from(["[" * 5000, "9" * 5000, "", "x"])
    changes = st.dictionaries(st.sampled_from(sorted(metadata)), texts, max_size=1)
    safe = changes.map(lambda change: safetensors_bytes(dict(STATE), metadata | change))
    runs = [torch_bytes({"a": evil}), torch_bytes({"a": evil}, legacy=True)]
    header = torch_bytes({}, legacy=True)[:-4]
    pickled = {protocol: pickle.dumps(arrays, protocol) for protocol in (0, 2)}
    examples = st.one_of(
        st.tuples(st.just(".pth"), zips(modern) | mutated_bytes(modern) | mutated_bytes(modern, most=1)),
        st.tuples(st.just(".pth"), mutated_bytes(legacy) | st.sampled_from(runs) | PICKLES.map(header.__add__)),
        st.tuples(st.just(".safetensors"), safe | safe.flatmap(mutated_bytes)),
        st.tuples(st.just(".pkl"), st.sampled_from(list(pickled.values())).flatmap(mutated_bytes) | PICKLES),
        st.tuples(st.just(".pkl"), st.just(pickle.dumps(evil))),
    )

    def read(example: tuple[str, bytes]) -> None:
        suffix, content = example
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        checkpoint = read_checkpoint(str(path))
        size = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.state.values())
        assert size <= 16 * len(content) + 2**24

    fuzz("weights", record_property, tmp_path, examples, read)


TENSORS = st.sampled_from([
    torch.tensor(-1.0), torch.tensor(float("nan")), torch.zeros(4), torch.zeros(4, dtype=torch.complex64),
    torch.zeros(1).expand(4), torch.ones(4, 3, 3, 3).to_sparse(), torch.zeros(0), torch.zeros(5000, dtype=torch.uint8),
])  # fmt: skip


def test_checkpoints_to_resume_from(tmp_path, record_property):
    written = {}
    for optimizer in ("sgd", "adamw", "lamb"):
        training = Training(optimizer)
        training.step()
        written[optimizer] = torch_bytes(training.state())
    path = tmp_path / "last.pt"

    @st.composite
    def checkpoints(draw) -> tuple[str, bytes]:
        optimizer = draw(st.sampled_from(sorted(written)))
        whole = written[optimizer]
        state = mutated(lambda: torch.load(io.BytesIO(whole), weights_only=True), JUNK | TENSORS, most=2)
        return optimizer, draw(state.map(torch_bytes) | zips(whole) | mutated_bytes(whole, most=1))

    def resume(example: tuple[str, bytes]) -> None:
        optimizer, content = example
        path.write_bytes(content)
        training = Training(optimizer)
        training.restore(newest_whole(path))
        training.step()

    fuzz("checkpoints", record_property, tmp_path, checkpoints(), resume)


@st.composite
def tars(draw, content: bytes) -> bytes:
    """A tar with one of its headers damaged under a right checksum, or with any bytes damaged."""
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


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_labelled_images(tmp_path, record_property):
    write_images(tmp_path, {"ant": 1, "bee": 1}, ("train",), side=8)
    encoded = [path.read_bytes() for path in sorted((tmp_path / "train").rglob("*.jpg"))]
    tree = packed({"train/ant/0.jpg": encoded[0], "train/bee/0.jpg": encoded[1]})
    flat = {f"Data/CLS-LOC/val/{k}.jpg": image for k, image in enumerate(encoded)}
    answers = b"ImageId,PredictionString\n0,ant 1 2\n1,bee 1 2\n"
    xml = b"<annotation><object><name>ant</name></object></annotation>"
    own = mutated_bytes(answers).map(lambda table: packed(flat | {"LOC_val_solution.csv": table}))
    annotated = mutated_bytes(xml).map(
        lambda text: packed(flat | {f"Annotations/CLS-LOC/val/{k}.xml": text for k in "01"})
    )
    shard = packed({"a.jpg": encoded[0], "a.cls": b"0", "b.jpg": encoded[1], "b.cls": b"bee"})
    patterns = st.sampled_from([
        "s-{0..0}.tar", "s-{0..0}.tar", "s-{0,0}.tar", "s-{0..999999999999}.tar", "{a..z}" * 9 + ".tar",
        "s-{0..9}{0..9999999}.tar", "{" * 3000 + ".tar", "s-{0,{0,0}}.tar", "{0..9}" * 30 + ".tar",
        "{0,1}" * 60 + ".tar", "s-{0..}.tar", "s-{0..0..0}.tar", "../s-{0..0}.tar", "s-{0..0}\0.tar",
    ])  # fmt: skip
    index = mutated(lambda: {"shardlist": [{"url": "s-0.tar", "nsamples": 2}]}).map(lambda v: json.dumps(v).encode())
    classes = mutated_bytes(b"ant\nbee\n", most=1)
    examples = st.one_of(
        st.tuples(st.just("tree"), tars(tree)),
        st.tuples(st.just("ilsvrc"), own | annotated),
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
            images = load_images(str(folder / "tree.tar"), "train" if kind == "tree" else "val")
        dataset = ClassificationDataset(images, lambda image: image.float())
        for k in range(min(len(dataset), 5)):
            dataset[k]

    fuzz("labelled images", record_property, tmp_path, examples, read)
