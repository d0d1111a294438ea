"""An index gives what parsing gives, and is never taken for that of another content."""

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import save_coco, write_coco

from resnet_backbones.data import indices
from resnet_backbones.data.annotations import Annotations
from resnet_backbones.data.coco import load_coco
from resnet_backbones.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where indices go, of files of any size and age."""
    monkeypatch.setenv("RESNET_BACKBONES_CACHE", str(tmp_path / "indices"))
    monkeypatch.setattr(indices, "SMALLEST", 0)
    monkeypatch.setattr(indices, "SETTLED", 0.0)
    return tmp_path / "indices"


@pytest.fixture
def data(tmp_path) -> Path:
    write_coco(tmp_path / "data", 5)
    return tmp_path / "data"


def load(data: Path, name: str = "own") -> Annotations:
    return load_coco(name, data / "images", str(data / "instances.json"))


def load_index(data: Path) -> Annotations:
    """Fails where there is none."""
    return indices.indexed(data / "instances.json", "own", data / "images", lambda: pytest.fail("parsed anew"))


def awkward(content: dict) -> dict:
    """Every form of a segmentation, boxes to be warned of, entries in no order, and no objects at all."""
    forms = [[[1, 2, 30, 2, 30.5, 20]] * 2, [], [[]], "x", None, {"size": [40, 48], "counts": "abc"}, [[1, "x"]], 7]
    for k, form in enumerate(forms):
        box = [float("nan"), 0, 5, 5] if k == 1 else [0, 0, 0, 5] if k == 2 else [2.25, 1, 9, 9]
        o = {"id": 900 - k, "image_id": 100 + k % 3, "category_id": 3, "bbox": box, "area": 1e300 * k}
        content["annotations"].insert(k * 2, o | ({} if form is None else {"segmentation": form}))
    content["categories"][0] |= {"supercategory": "Tiere, größere", "keypoints": [1, None, {"a": float("inf")}]}
    return content


@pytest.mark.parametrize("change", [lambda c: c, awkward, lambda c: c | {"annotations": []}])
def test_an_index_gives_what_parsing_gives(folder, data, caplog, change):
    save_coco(data, change(json.loads((data / "instances.json").read_text())))
    with caplog.at_level("WARNING", "resnet_backbones"):
        parsed, said = load(data), caplog.messages
        caplog.clear()
        assert len(list(folder.iterdir())) == 1
        load_index(data)
        known = load(data)
    assert caplog.messages == said
    assert len(said) == (3 if change is awkward else 0)
    assert (known.name, known.format, known.image_root) == (parsed.name, parsed.format, parsed.image_root)
    assert len(known) == len(parsed) == 5
    assert known.classes == parsed.classes == ["dog", "cat"]
    for k in range(5):
        assert known.image(k) == parsed.image(k)
        assert known.objects(k) == parsed.objects(k)
    assert [known.object(j) for j in range(len(known.labels))] == [parsed.object(j) for j in range(len(parsed.labels))]
    assert known.as_coco() == parsed.as_coco()
    for name in (*indices.COLUMNS, "trainable", "corners", "starts"):
        one, other = getattr(known, name), getattr(parsed, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(known.outlines.enclosing(), parsed.outlines.enclosing())


def test_a_set_of_another_name_and_root_has_the_same_index(folder, data):
    load(data)
    shutil.copytree(data / "images", data / "elsewhere")
    other = load_coco("other", data / "elsewhere", str(data / "instances.json"))
    assert (other.name, other.image_root) == ("other", data / "elsewhere")
    assert len(list(folder.iterdir())) == 1


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"cat"', '"cow"'))


def replace(path: Path) -> None:
    edited = path.with_suffix(".new")
    edited.write_text(path.read_text().replace('"cat"', '"cow"'))
    os.utime(edited, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    edited.replace(path)


def edit_unseen(path: Path) -> None:
    status = path.stat()
    edit(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [edit, replace, edit_unseen])
def test_a_changed_file_is_never_answered_by_its_old_index(folder, data, change):
    size = (data / "instances.json").stat().st_size
    assert load(data).classes == ["dog", "cat"]
    change(data / "instances.json")
    assert (data / "instances.json").stat().st_size == size
    assert load(data).classes == ["dog", "cow"]
    assert load_index(data).classes == ["dog", "cow"]


def test_a_file_that_changes_while_it_is_parsed_gets_no_index(folder, data):
    def parse() -> Annotations:
        parsed = load_coco("own", data / "images", str(shutil.copy(data / "instances.json", data / "copy.json")))
        edit(data / "instances.json")
        shutil.rmtree(folder)
        return parsed

    indices.indexed(data / "instances.json", "own", data / "images", parse)
    assert not folder.exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.find(b"0.png")] ^= 1  # a file name
    file.write_bytes(content)


def lack(file: Path) -> None:
    np.savez(file, boxes=np.zeros((3, 4)))


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"boxes": [1]}))


@pytest.mark.parametrize("damage", [cut, flip, lack, pickled, lambda file: file.write_bytes(b"")])
def test_a_broken_index_is_said_so_and_made_anew(folder, data, caplog, damage):
    truth = load(data).as_coco()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    damage(file)
    with caplog.at_level("INFO", "resnet_backbones"):
        assert load(data).as_coco() == truth
    assert len(caplog.messages) == 1
    assert f"own: the index {file} is broken and made anew: " in caplog.text
    assert file.read_bytes() == whole


def test_an_index_of_another_format_is_not_read(folder, data, monkeypatch):
    load(data)
    monkeypatch.setattr(indices, "FORMAT", indices.FORMAT + 1)
    load(data)
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_a_line(folder, data, caplog, monkeypatch):
    (data / "file").write_text("")
    monkeypatch.setenv("RESNET_BACKBONES_CACHE", str(data / "file" / "indices"))
    with caplog.at_level("INFO", "resnet_backbones"):
        assert len(load(data)) == 5
    assert [message.split(": ")[:2] for message in caplog.messages] == [
        ["own", f"no index can be kept in {data}/file/indices"]
    ]


def test_what_could_not_be_parsed_has_no_index(folder, data):
    (data / "instances.json").write_text('{"images": []}')
    for _ in range(2):
        with pytest.raises(UserError, match="the list 'annotations' is missing"):
            load(data)
    assert not folder.exists()


@pytest.mark.parametrize("why", ["small", "fresh", "off", "homeless", "another rank"])
def test_what_gets_no_index(folder, data, monkeypatch, why):
    if why == "small":
        monkeypatch.setattr(indices, "SMALLEST", (data / "instances.json").stat().st_size + 1)
    elif why == "fresh":
        monkeypatch.setattr(indices, "SETTLED", 3600.0)
    elif why == "off":
        monkeypatch.setenv("RESNET_BACKBONES_CACHE", "")
        monkeypatch.setenv("FVCORE_CACHE", str(folder))
    elif why == "homeless":
        monkeypatch.setenv("RESNET_BACKBONES_CACHE", "~nobody-of-this-name/indices")
    else:
        monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(load(data)) == 5
    assert not folder.exists()


def test_by_default_they_lie_where_downloads_do(folder, data, monkeypatch, tmp_path):
    monkeypatch.delenv("RESNET_BACKBONES_CACHE")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "iopath"))
    load(data)
    assert [file.suffix for file in (tmp_path / "iopath/resnet_backbones/indices").iterdir()] == [".npz"]


def test_the_newest_and_the_last_used_stay(folder, data, monkeypatch):
    monkeypatch.setattr(indices, "KEPT", 3)
    files = []
    for k in range(4):
        shutil.copy(data / "instances.json", data / f"{k}.json")
        load_coco("own", data / "images", str(data / f"{k}.json"))
        (new,) = set(folder.iterdir()) - set(files)
        os.utime(new, (k, k))
        files.append(new)
        if k == 2:
            load_coco("own", data / "images", str(data / "0.json"))
    assert set(folder.iterdir()) == {files[0], files[2], files[3]}


def _load_together(data: Path, barrier, results) -> None:
    barrier.wait()
    results.put(load(data).as_coco())


def test_processes_that_start_together_write_one_whole_index(folder, data):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_load_together, args=(data, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    loaded = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [file.suffix for file in folder.iterdir()] == [".npz"]
    assert loaded == [load_index(data).as_coco()] * 4
