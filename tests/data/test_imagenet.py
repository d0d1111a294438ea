"""Labeled images in every layout: what is read, in which order, and what is refused."""

import functools
import http.server
import importlib.util
import io
import json
import tarfile
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, write_images
from PIL import Image

from resnet_backbones.data.classification import ClassificationDataset
from resnet_backbones.data.imagenet import load_images
from resnet_backbones.data.loader import build_train_loader
from resnet_backbones.data.unreadable import Unreadable
from resnet_backbones.errors import UserError

COUNTS = {"ant": 3, "bee": 2, "cat": 4}


@pytest.fixture
def tree(tmp_path):
    write_images(tmp_path / "tree", COUNTS)
    return tmp_path / "tree"


def pack(folder, path, mode="w"):
    with tarfile.open(path, mode) as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    return path


def content(images) -> list[tuple[str, bytes]]:
    """(class, encoded file) of each image."""
    return [(images.classes[label], data) for data, label, _ in (images.read(k) for k in range(len(images)))]


def expected(tree, split="train") -> list[tuple[str, bytes]]:
    return [(path.parent.name, path.read_bytes()) for path in sorted((tree / split).glob("*/*"))]


def write_shards(tree, folder, sizes, classes=("ant", "bee", "cat"), label=str):
    """The training images of `tree` in shards of the given sizes."""
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    rows = iter(expected(tree))
    for k, size in enumerate(sizes):
        with tarfile.open(folder / f"train-{k:02}.tar", "w") as tar:
            for i in range(size):
                name, data = next(rows)
                for kind, part in (("cls", label(classes.index(name)).encode()), ("jpg", data)):
                    member = tarfile.TarInfo(f"./part/{k}{i}.{kind}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return f"{folder}/train-{{00..{len(sizes) - 1:02}}}.tar"


def test_a_tree_and_its_tar_give_the_same_images(tree, tmp_path):
    images = load_images(str(tree), "train")
    assert images.classes == ["ant", "bee", "cat"]
    assert content(images) == expected(tree)
    archive = load_images(str(pack(tree, tmp_path / "tree.tar")), "train")
    assert archive.classes == images.classes
    assert content(archive) == expected(tree)
    assert content(load_images("", str(tree / "val"))) == expected(tree, "val")


def test_validation_labels_use_the_training_classes(tree):
    for path in (tree / "val" / "ant").iterdir():
        path.unlink()
    (tree / "val" / "ant").rmdir()
    val = load_images(str(tree), "val", ["cat", "bee", "ant"])
    assert content(val) == expected(tree, "val")
    assert set(val.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("val_labels", ["csv", "xml"])
def test_original_ilsvrc_layout_is_read(tree, tmp_path, packed, val_labels):
    top = tmp_path / "published" / "ILSVRC"
    (top / "Data/CLS-LOC").mkdir(parents=True)
    (tree / "train").rename(top / "Data/CLS-LOC/train")
    (top / "Data/CLS-LOC/val").mkdir()
    (top / "Annotations/CLS-LOC/val").mkdir(parents=True)
    rows = ["ImageId,PredictionString"]
    for k, path in enumerate(sorted((tree / "val").glob("*/*"))):
        name = f"ILSVRC2012_val_{k:08}"
        path.rename(top / f"Data/CLS-LOC/val/{name}.JPEG")
        rows.append(f"{name},{path.parent.name} 1 2 30 40 {path.parent.name} 3 4 20 20 ")
        if val_labels == "xml":
            xml = f"<annotation><object><name>{path.parent.name}</name></object></annotation>"
            (top / f"Annotations/CLS-LOC/val/{name}.xml").write_text(xml)
    if val_labels == "csv":
        (top.parent / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    root = pack(top.parent, tmp_path / "published.tar") if packed else top.parent
    train = load_images(str(root), "train")
    assert [name for name, _ in content(train)] == ["ant"] * 3 + ["bee"] * 2 + ["cat"] * 4
    val = load_images(str(root), "val", train.classes)
    assert [name for name, _ in content(val)] == ["ant"] * 3 + ["bee"] * 2 + ["cat"] * 4


def test_shards_give_the_same_images_as_the_tree(tree, tmp_path):
    pattern = write_shards(tree, tmp_path / "shards", [4, 2, 3])
    shards = load_images("", pattern)
    assert shards.classes == ["ant", "bee", "cat"]
    assert content(shards) == content(load_images(str(tmp_path), "shards/train-{00..02}.tar")) == expected(tree)
    order = shards.order(torch.Generator().manual_seed(1)).tolist()
    assert sorted(order) == list(range(9))
    assert order != list(range(9))


def test_shards_may_label_by_class_name_and_list_sample_counts(tree, tmp_path):
    pattern = write_shards(tree, tmp_path / "shards", [5, 4], label=lambda k: ["ant", "bee", "cat"][k])
    assert content(load_images("", pattern)) == expected(tree)
    index = {"shardlist": [{"url": "x/train-00.tar", "nsamples": 5}, {"url": "train-01.tar", "nsamples": 4}]}
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    (tmp_path / "shards" / "train-01.tar").rename(tmp_path / "later.tar")
    shards = load_images("", pattern)  # from index.json: the second shard is missing
    assert len(shards) == 9
    (tmp_path / "later.tar").rename(tmp_path / "shards" / "train-01.tar")
    assert content(shards) == expected(tree)


def test_write_shards_packs_a_tree(tree, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("write_shards", ROOT / "datasets" / "write_shards.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for split in ("train", "val"):
        script.main(["--root", f"{tree}", "--split", split, "--output", f"{tmp_path}/shards", "--size", "4"])
    assert f"'data.root={tmp_path}/shards' 'data.val=val-{{000000..000002}}.tar'" in capsys.readouterr().out
    shards = load_images(f"{tmp_path}/shards", "val-{000000..000002}.tar")
    assert sorted(content(shards)) == sorted(expected(tree, "val"))
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert [row["nsamples"] for row in index["shardlist"]] == [4, 4, 1, 4, 4, 1]


def test_remote_shards_are_evicted_from_the_cache(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))  # iopath's cache
    monkeypatch.setattr("resnet_backbones.data.shards.POOL", 1)
    write_shards(tree, tmp_path / "shards", [3, 3, 3])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "shards")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards = load_images("", f"http://127.0.0.1:{server.server_port}/train-{{00..02}}.tar")
        assert content(shards) == expected(tree)
        assert content(shards) == expected(tree)  # fetched again
        assert len(list((tmp_path / "cache").rglob("*.tar"))) == 2
        server.shutdown()


def test_an_epoch_shuffles_within_a_pool_of_shards(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_backbones.data.shards.POOL", 2)
    shards = load_images("", write_shards(tree, tmp_path / "shards", [2, 2, 2, 2]))
    shard = [k // 2 for k in shards.order(torch.Generator().manual_seed(0)).tolist()]
    assert sorted(shard) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(shard[:4])) == len(set(shard[4:])) == 2
    for k in range(8):
        shards.read(k)
    assert len(shards.scanned) == 4


def spoil(tree, change):
    if change == "empty":
        (tree / "train" / "dog").mkdir()
    if change == "unknown":
        write_images(tree, {"dog": 1}, ("val",))
    if change == "loose":
        (tree / "train" / "ant" / "0.jpg").rename(tree / "train" / "0.jpg")
    if change == "none":
        for path in (tree / "train").glob("*/*"):
            path.rename(path.with_suffix(".txt"))
    if change == "flat":
        for path in (tree / "train").glob("*/*"):
            path.rename(tree / "train" / f"{path.parent.name}{path.name}")
            if not list(path.parent.iterdir()):
                path.parent.rmdir()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ("empty", "train", "has class folders without images: dog; fill or remove them"),
        ("unknown", "val", "has classes that are not among the 3 of training: dog. Those are ant, bee, cat"),
        ("loose", "train", "0.jpg is outside the class folders"),
        ("none", "train", "There are no images in .*train.* has train, val"),
        ("nothing", "test", "There are no images in .*test.* has train, val"),
        ("flat", "train", "The class of .*ant0.jpg is unknown: it is not in a class folder"),
    ],
)
def test_invalid_trees_are_refused(tree, tmp_path, packed, change, split, message):
    spoil(tree, change)
    root = pack(tree, tmp_path / "tree.tar") if packed else tree
    with pytest.raises(UserError, match=message):
        load_images(str(root), split, ["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "folder or tar of images .*missing does not exist .* set data.root"),
        ("tree.tar.gz", "not a complete, uncompressed tar"),
    ],
)
def test_invalid_roots_are_refused(tree, tmp_path, name, message):
    pack(tree, tmp_path / "tree.tar.gz", "w:gz")
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path / name), "train")


def test_error_for_a_truncated_tar_names_it(tree, tmp_path):
    path = pack(tree, tmp_path / "tree.tar")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"tree.tar is not a complete, uncompressed tar \(unexpected end of data"):
        load_images(str(path), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", "train-01.tar is not a complete, uncompressed tar"),
        ("missing", "shard .*train-01.tar does not exist"),
        ("unlabeled", "train-01.tar is not a shard of images: each sample needs KEY.jpg and KEY.cls, but x lacks one"),
        ("label", r"train-01.tar:/9.cls says '3', which is not one of the 3 classes"),
        ("classes", "list of class names .*classes.txt does not exist"),
        ("index", "index.json is damaged"),
        ("fewer", "train-01.tar has 4 samples, fewer than index.json beside it says"),
    ],
)
def test_invalid_shards_are_refused(tree, tmp_path, change, message):
    folder = tmp_path / "shards"
    pattern = write_shards(tree, folder, [5, 4])
    second = folder / "train-01.tar"
    if change == "truncated":
        second.write_bytes(second.read_bytes()[:3000])
    if change == "missing":
        second.unlink()
    if change in ("unlabeled", "label"):
        with tarfile.open(second, "a") as tar:
            for name, data in (("x.jpg", b"..."),) if change == "unlabeled" else (("9.cls", b"3"), ("9.jpg", b"...")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    if change == "classes":
        (folder / "classes.txt").unlink()
    if change == "index":
        (folder / "index.json").write_text('{"shardlist": 3}')
    if change == "fewer":
        counts = [{"url": "train-00.tar", "nsamples": 5}, {"url": "train-01.tar", "nsamples": 6}]
        (folder / "index.json").write_text(json.dumps({"shardlist": counts}))
    with pytest.raises(UserError, match=message):
        content(load_images("", pattern))


def batches(tree, count, **options):
    dataset = ClassificationDataset(load_images(str(tree), "train"), lambda image: image[:, :8, :8])
    loader = iter(build_train_loader(dataset, 4, num_workers=0, seed=3, **options))
    return [next(loader)[1]["file_name"] for _ in range(count)]


def test_start_resumes_with_the_same_batches(tree):
    whole = batches(tree, 6)
    assert batches(tree, 2, start=4) == whole[4:]
    flat = [name for batch in whole for name in batch]
    assert sorted(flat[:9]) == sorted(set(flat))  # an epoch has every image once


def test_repeated_augmentation_repeats_images_within_a_batch(tree):
    names = batches(tree, 2, repeats=2)
    assert all(len(set(batch)) == 2 for batch in names)


def test_sample_seed_fixes_augmentation_and_leaves_the_global_rng_alone(tree):
    dataset = ClassificationDataset(load_images(str(tree), "train"), lambda image: torch.rand(2))
    torch.manual_seed(5)
    one, again, other = dataset[1, 7][0], dataset[1, 7][0], dataset[1, 8][0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_unreadable_image_is_skipped_with_a_warning(tree, caplog, damage):
    path = tree / "train" / "bee" / "1.jpg"
    path.write_bytes({"truncated": path.read_bytes()[:300], "text": b"no image", "empty": b""}[damage])
    dataset = ClassificationDataset(load_images(str(tree), "train"), lambda image: image[:, :8, :8])
    assert isinstance(dataset[4], Unreadable)
    with caplog.at_level("WARNING", "resnet_backbones"):
        loader = iter(build_train_loader(dataset, 9, num_workers=0, seed=0, max_unreadable=1))
        images, targets = next(loader)
    assert images.shape == (8, 3, 8, 8)
    assert len(targets["labels"]) == len(targets["file_name"]) == 8
    assert f"Image {path} cannot be decoded" in caplog.text
    assert len(next(loader)[0]) == 8  # seen again, counted once
    strict = iter(build_train_loader(dataset, 9, num_workers=0, seed=0))
    with pytest.raises(UserError, match=r"bee/1.jpg cannot be decoded.*image 1; data.max_unreadable allows 0"):
        next(strict)


def test_shard_labels_are_matched_by_class_name(tree, tmp_path):
    pattern = write_shards(tree, tmp_path / "shards", [9])
    assert content(load_images("", pattern, ["cat", "ant", "dog", "bee"])) == expected(tree)
    with pytest.raises(UserError, match=r"says '2', which is not one of the 2 classes"):
        content(load_images("", pattern, ["ant", "bee"]))
    digits = write_shards(tree, tmp_path / "digits", [9])
    (tmp_path / "digits" / "classes.txt").write_text("1\n2\n0\n")
    shards = load_images("", digits)
    assert [shards.read(k)[1] for k in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_hard_links_in_a_tar_are_read(tree, tmp_path):
    (tree / "train" / "cat" / "9.jpg").hardlink_to(tree / "train" / "cat" / "0.jpg")
    images = load_images(str(pack(tree, tmp_path / "tree.tar")), "train")
    assert content(images) == expected(tree)
    whole = (tmp_path / "tree.tar").read_bytes()
    with tarfile.open(tmp_path / "tree.tar") as archive:
        (tmp_path / "cut.tar").write_bytes(whole[: archive.getmembers()[-1].offset])  # between two members
    with pytest.raises(UserError, match="cut.tar is not a complete, uncompressed tar"):
        load_images(str(tmp_path / "cut.tar"), "train")


def test_odd_images_are_read_as_rgb(tree):
    path = tree / "train" / "ant" / "0.jpg"
    upright = np.asarray(Image.open(path).convert("RGB"))
    for mode in ("L", "CMYK", "P", "RGBA", "I;16"):
        kind = "png" if mode in ("P", "RGBA", "I;16") else "jpg"
        picture = Image.fromarray(np.full((40, 48), 36000, np.uint16)) if mode == "I;16" else Image.open(path)
        odd = path.with_name(f"z{mode.replace(';', '')}.{kind}")
        (picture if mode == "I;16" else picture.convert(mode)).save(odd)
    rotated = Image.Exif()
    rotated[0x0112] = 3
    Image.fromarray(upright).save(path.with_name("zexif.png"), exif=rotated)
    dataset = ClassificationDataset(load_images(str(tree), "train"), lambda image: image)
    items = {name.rpartition("/")[2]: image for image, _, name in (dataset[k] for k in range(len(dataset)))}
    assert all(image.dtype == torch.uint8 and image.shape == (3, 40, 48) for image in items.values())
    assert items["zI16.png"].unique().tolist() == [140]
    assert torch.equal(items["zexif.png"], torch.from_numpy(upright.copy()).permute(2, 0, 1).flip(1, 2))
