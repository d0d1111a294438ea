"""Checkpoints through failures: broken files, a full disk, a write that is cut off."""

import os
import shutil
import subprocess

import pytest
import torch

from resnet_backbones.checkpoint import damage, newest_whole, save_checkpoint
from resnet_backbones.errors import UserError
from resnet_backbones.weights import read_checkpoint


def content(value: float) -> dict:
    return {"model": {"weight": torch.full((1000,), value)}, "step": int(value)}


def step_of(path) -> int:
    return torch.load(path, weights_only=True)["step"]


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_last_ones_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path / "last.pt", content(step), kept=3)
    assert {p.name: step_of(p) for p in tmp_path.iterdir()} == {"last.pt": 5, "last-1.pt": 4, "last-2.pt": 3}
    assert newest_whole(tmp_path / "last.pt") == tmp_path / "last.pt"
    assert newest_whole(tmp_path / "other.pt") is None


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "text", "gone"])
def test_a_broken_one_is_named_and_passed_over(tmp_path, harm):
    for step in (1, 2):
        save_checkpoint(tmp_path / "last.pt", content(step), kept=2)
    last = tmp_path / "last.pt"
    if harm == "bit":
        flip_a_bit(last)
    elif harm == "gone":
        last.unlink()
    else:
        last.write_bytes({"cut": last.read_bytes()[:700], "empty": b"", "text": b"no checkpoint"}[harm])
    assert step_of(newest_whole(last)) == 1
    if harm != "gone":
        assert damage(last)
        flip_a_bit(tmp_path / "last-1.pt")
        with pytest.raises(UserError, match=r"last.pt is no checkpoint to resume from: .*last-1.pt is no checkpoint"):
            newest_whole(last)


def test_a_flipped_bit_in_weights_is_noticed(tmp_path):
    save_checkpoint(tmp_path / "best.pt", content(1))
    flip_a_bit(tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"weights file .*best.pt is damaged: .*does not have its checksum"):
        read_checkpoint(str(tmp_path / "best.pt"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_previous_one_whole_and_says_what_is_missing(small_disk):
    last = small_disk / "last.pt"
    save_checkpoint(last, content(1), kept=2)
    large = {"model": {"weight": torch.zeros(1 << 20)}, "step": 2}
    with pytest.raises(
        UserError, match=r"cannot be written: .*it takes about 4 MiB, 0 MiB are free.*previous one is whol"
    ):
        save_checkpoint(last, large, kept=2)
    assert damage(last) is None
    assert step_of(last) == 1
    assert [p.name for p in small_disk.iterdir()] == ["last.pt"]
