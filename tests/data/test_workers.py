"""Loader workers and reads that fail: what is tried again, what is named, what is left out."""

import errno
import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_coco, write_coco
from torch.utils.data import Dataset

from resnet_backbones.data import DetectionDataset, build_train_loader
from resnet_backbones.data.loader import data_loader
from resnet_backbones.data.reading import PAUSES, with_retries
from resnet_backbones.data.workers import name_dead_workers
from resnet_backbones.errors import UserError


class Deadly(Dataset):
    """Item 3 kills the process that reads it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)

    def place(self, index: int) -> str:
        return f"images/{index}.png"


def read_all() -> None:
    with name_dead_workers():
        list(data_loader(Deadly(), 2, torch.stack, batch_size=2))


def test_a_worker_that_dies_gives_the_file_it_was_reading():
    with pytest.raises(UserError, match=r"DataLoader worker .* while reading images/3\.png\."):
        read_all()


def test_reads_are_tried_again_where_the_fault_may_pass(caplog):
    faults = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def read() -> str:
        if faults:
            raise faults.pop(0)
        return "content"

    with caplog.at_level("WARNING", "resnet_backbones"):
        assert with_retries(read) == "content"
    assert "Input/output error; trying again in 0.1 s" in caplog.text
    assert f"trying again in {PAUSES[1]:g} s" in caplog.text
    tried = []
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: tried.append(1) or os.stat("/nowhere/a.png"))
    assert len(tried) == 1


def test_an_unreadable_image_of_a_detection_set_is_left_out_up_to_the_limit(tmp_path, caplog):
    write_coco(tmp_path, 4)
    (tmp_path / "images/2.png").write_bytes(b"no image")
    dataset = DetectionDataset([read_coco(tmp_path)], train=True)
    with caplog.at_level("WARNING", "resnet_backbones"):
        batches = iter(build_train_loader(dataset, 4, num_workers=1, seed=0, max_unreadable=1))
        sizes = [len(next(batches)[0]) for _ in range(3)]
    assert sizes == [3, 3, 3]
    assert caplog.text.count("images/2.png cannot be decoded: it is no image. Left out; 1 so far.") == 1
    with pytest.raises(UserError, match=r"2\.png cannot be decoded.*It is number 1; data.max_unreadable allows 0"):
        next(iter(build_train_loader(dataset, 4, num_workers=1, seed=0)))


def test_training_ends_where_no_image_can_be_read(tmp_path):
    write_coco(tmp_path, 3)
    for k in range(3):
        (tmp_path / f"images/{k}.png").write_bytes(b"no image")
    dataset = DetectionDataset([read_coco(tmp_path)], train=True)
    with pytest.raises(UserError, match=r"None of the images can be read: .*png cannot be decoded"):
        next(iter(build_train_loader(dataset, 2, num_workers=0, seed=0, max_unreadable=3)))


def test_a_folder_without_rights_is_named():
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others further up
        data = Path(folder)
        write_coco(data, 1)
        data.chmod(0o755)
        (data / "images").chmod(0)
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"Data set own: .*images cannot be read: Permission denied"):
                read_coco(data)
        finally:
            if root:
                os.seteuid(0)
            (data / "images").chmod(0o755)


def test_annotations_are_the_same_out_of_arrays(tmp_path):
    content = write_coco(tmp_path, 3)
    content["annotations"].reverse()
    content["annotations"][0]["segmentation"] = [[1.5, 2, 3, 4, 5, 6.25], [7, 8, 9, 10, 11, 12]]
    del content["annotations"][1]["segmentation"]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = read_coco(tmp_path)
    given = {o["id"]: o for o in content["annotations"]}
    objects = [o for k in range(len(data)) for o in data.objects(k)]
    assert {o["id"]: o for o in objects} == given
    assert [o["image_id"] for o in objects] == sorted(o["image_id"] for o in objects)
    assert [data.image(k) for k in range(3)] == content["images"]
    assert np.array_equal(data.starts, [0, 2, 4, 6])
