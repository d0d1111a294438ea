"""Checkpoints through failures: broken files, a full disk, a write that is cut off."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config.shared import SolverConfig
from resnet_backbones.errors import UserError
from resnet_backbones.training.checkpoint import damage, newest_whole, restore, save_checkpoint, training_state
from resnet_backbones.training.ema import MovingAverage
from resnet_backbones.training.solver import build_optimizer
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


class Training:
    """A small network, its optimiser and what else a checkpoint to resume from is of."""

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        solver = OmegaConf.merge(OmegaConf.structured(SolverConfig), {"optimizer": optimizer, "lr": 0.1})
        self.optimizer = build_optimizer(self.model, solver)
        self.scaler, self.average = torch.amp.GradScaler("cpu"), MovingAverage(self.model, 0.9, 1)

    def step(self) -> None:
        self.scaler.scale(self.model(torch.randn(2, 3, 8, 8)).square().sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.average.update(1)

    def state(self) -> dict:
        return training_state(self.model, self.optimizer, self.scaler, self.average, 3, 1.5)

    def restore(self, path: Path) -> tuple[int, float]:
        return restore(path, self.model, self.optimizer, self.scaler, self.average)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_what_is_restored_goes_on_as_what_was_saved(tmp_path, optimizer):
    one, other = Training(optimizer), Training(optimizer)
    for _ in range(3):
        one.step()
    save_checkpoint(tmp_path / "last.pt", one.state())
    one.step()
    assert other.restore(tmp_path / "last.pt") == (3, 1.5)
    other.step()
    for (name, a), b in zip(one.state()["model"].items(), other.state()["model"].values(), strict=True):
        assert torch.equal(a, b), name
    torch.testing.assert_close(one.state(), other.state(), rtol=0, atol=0)


class Runs:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


def kept(training: dict) -> dict:
    return training["optimizer"]["state"][0]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda state: state.update(more=Runs()), "it asks for posix.mkdir"),
        (lambda state: state.update(step=-1), "its step is no count"),
        (lambda state: state.update(step=True), "its step is no count"),
        (lambda state: state.update(step=2**70), "its step is no count"),
        (lambda state: state["model"].update({7: torch.zeros(1)}), "its model is no mapping of names to tensors"),
        (lambda state: kept(state).update(exp_avg=torch.zeros(5)), "its optimiser's exp_avg of parameter 0 is of no"),
        (lambda state: kept(state).update(step=torch.tensor(-1.0)), "its optimiser's step of parameter 0 is of no use"),
        (lambda state: kept(state).pop("exp_avg_sq"), "its optimiser keeps step, exp_avg of a parameter"),
        (lambda state: state["optimizer"]["param_groups"][0].update(betas=(7.0, 7.0)), "its optimiser is another one"),
        (lambda state: state["optimizer"]["param_groups"][0].update(lr="0.1"), "its optimiser is another one"),
        (lambda state: state["scaler"].update(scale="1"), "its scaler of fp16 is none"),
        (lambda state: state["average"].pop("n_averaged"), "has the state of another model"),
    ],
)
def test_a_state_that_no_run_leaves_is_refused(tmp_path, monkeypatch, harm, message):
    monkeypatch.chdir(tmp_path)
    training = Training("adamw")
    training.step()
    state = training.state()
    harm(state)
    torch.save(state, "last.pt")
    with pytest.raises(UserError, match=message) as caught:
        training.restore(newest_whole(Path("last.pt")))
    assert str(caught.value).startswith("last.pt ")
    assert not Path("canary").exists()


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt is no checkpoint to resume from: it is no file"):
        newest_whole(tmp_path / "last.pt")
