"""Loader workers and failing reads: what is retried, named and skipped."""

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import read_coco, write_coco
from torch.utils.data import Dataset

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.loader import build_train_loader, data_loader
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

    def path(self, index: int) -> str:
        return f"images/{index}.png"

    @staticmethod
    def collate(samples: list) -> torch.Tensor:
        return torch.stack(samples)


def read_all() -> None:
    with name_dead_workers():
        list(data_loader(Deadly(), 2, batch_size=2))


def test_the_error_about_a_dead_worker_names_the_file_it_was_reading():
    with pytest.raises(UserError, match=r"DataLoader worker .* while reading images/3\.png\."):
        read_all()


def test_reads_are_retried_after_transient_errors(caplog):
    faults = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def read() -> str:
        if faults:
            raise faults.pop(0)
        return "content"

    with caplog.at_level("WARNING", "resnet_backbones"):
        assert with_retries(read) == "content"
    assert "Input/output error; retrying in 0.1 s" in caplog.text
    assert f"retrying in {PAUSES[1]:g} s" in caplog.text
    tried = []
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: tried.append(1) or os.stat("/nowhere/a.png"))
    assert len(tried) == 1


def test_unreadable_images_of_a_detection_set_are_skipped_up_to_the_limit(tmp_path, caplog):
    write_coco(tmp_path, 4)
    (tmp_path / "images/2.png").write_bytes(b"no image")
    dataset = DetectionDataset([read_coco(tmp_path)], train=True)
    with caplog.at_level("WARNING", "resnet_backbones"):
        batches = iter(build_train_loader(dataset, 4, num_workers=1, seed=0, max_unreadable=1))
        sizes = [len(next(batches)[0]) for _ in range(3)]
    assert sizes == [3, 3, 3]
    assert caplog.text.count("images/2.png cannot be decoded: it is not an image. Skipped; 1 so far.") == 1
    with pytest.raises(UserError, match=r"2\.png cannot be decoded.*image 1; data.max_unreadable allows 0"):
        next(iter(build_train_loader(dataset, 4, num_workers=1, seed=0)))


def test_training_stops_if_no_image_can_be_read(tmp_path):
    write_coco(tmp_path, 3)
    for k in range(3):
        (tmp_path / f"images/{k}.png").write_bytes(b"no image")
    dataset = DetectionDataset([read_coco(tmp_path)], train=True)
    with pytest.raises(UserError, match=r"None of the images can be read: .*png cannot be decoded"):
        next(iter(build_train_loader(dataset, 2, num_workers=0, seed=0, max_unreadable=3)))


def test_error_for_a_folder_without_permission_names_it():
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:  # tmp_path has parents that other users may not enter
        data = Path(folder)
        write_coco(data, 1)
        data.chmod(0o755)
        (data / "images").chmod(0)
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"datasets\.own: .*images cannot be read: Permission denied"):
                read_coco(data)
        finally:
            if root:
                os.seteuid(0)
            (data / "images").chmod(0o755)
