"""Checkpoints and failures: broken files, another run's files, a full disk."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config.shared import SolverConfig
from resnet_backbones.errors import UserError
from resnet_backbones.training.checkpoint import TrainingState, newest_readable, save_checkpoint
from resnet_backbones.training.ema import MovingAverage
from resnet_backbones.training.solver import build_optimizer

UNREADABLE = "it is not a checkpoint that torch can read without running code"


def content(value: float) -> dict:
    return {"model": {"weight": torch.full((1000,), value)}, "step": int(value)}


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


def test_the_last_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path / "last.pt", content(step), keep=3)
    assert {p.name: step_of(p) for p in tmp_path.iterdir()} == {"last.pt": 5, "last-1.pt": 4, "last-2.pt": 3}
    assert newest_readable(tmp_path / "last.pt")[0] == tmp_path / "last.pt"
    assert newest_readable(tmp_path / "other.pt")[1] is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("cut", "PytorchStreamReader failed"), ("empty", "EOFError"), ("text", UNREADABLE), ("gone", None)],
)
def test_a_broken_checkpoint_is_named_and_the_previous_one_used(tmp_path, caplog, damage, reason):
    for step in (1, 2):
        save_checkpoint(tmp_path / "last.pt", content(step), keep=2)
    last, previous = tmp_path / "last.pt", tmp_path / "last-1.pt"
    if damage == "gone":  # killed between renaming the old file and the new one
        last.unlink()
    else:
        last.write_bytes({"cut": last.read_bytes()[:700], "empty": b"", "text": b"no checkpoint"}[damage])
    path, found = newest_readable(last)
    assert (path, found["step"]) == (previous, 1)
    if reason is not None:
        assert f"{last} cannot be resumed from: {reason}" in caplog.text
        previous.write_bytes(b"\x1b[1m")
        with pytest.raises(UserError) as caught:
            newest_readable(last)
        assert f"{last} cannot be resumed from: {reason}" in str(caught.value)
        assert str(caught.value).endswith(f"; {previous} cannot be resumed from: {UNREADABLE}")


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


def test_a_full_disk_keeps_the_previous_checkpoint_and_reports_free_space(small_disk):
    last = small_disk / "last.pt"
    save_checkpoint(last, content(1), keep=2)
    large = {"model": {"weight": torch.zeros(1 << 20)}, "step": 2}
    with pytest.raises(UserError, match=r"Checkpoint .*last.pt cannot be written, \d MiB are free: "):
        save_checkpoint(last, large, keep=2)
    assert step_of(last) == 1
    assert [p.name for p in small_disk.iterdir()] == ["last.pt"]


class Training:
    """A small network with its optimizer and EMA."""

    def __init__(self, optimizer: str, features: int = 4) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, features, 3), nn.BatchNorm2d(features))
        solver = OmegaConf.merge(OmegaConf.structured(SolverConfig), {"optimizer": optimizer, "lr": 0.1})
        scaler, average = torch.amp.GradScaler("cpu"), MovingAverage(model, 0.9, 1)
        self.state = TrainingState(model, build_optimizer(model, solver), scaler, average)

    def step(self) -> None:
        state = self.state
        state.scaler.scale(state.model(torch.randn(2, 3, 8, 8)).square().sum()).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.finish(state.step + 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_resumed_run_continues_like_the_saved_one(tmp_path, optimizer):
    if optimizer == "lamb":
        pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    one, other = Training(optimizer), Training(optimizer)
    for _ in range(3):
        one.step()
    one.state.best = 1.5
    save_checkpoint(tmp_path / "last.pt", one.state.content())
    one.step()
    other.state.resume(tmp_path / "last.pt", max_iter=4)
    assert (other.state.step, other.state.best) == (3, 1.5)
    other.step()
    torch.testing.assert_close(other.state.content(), one.state.content(), rtol=0, atol=0)


def refusal(training: Training, path: Path) -> str:
    """The message of the error that resuming from `path` raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        training.state.resume(path, max_iter=5)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class RunsCodeOnLoad:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": RunsCodeOnLoad()}, f"cannot be resumed from: {UNREADABLE}"),
        ({"step": "x"}, "cannot be resumed from: ValueError: invalid literal for int"),
        ({"step": 6}, "is from step 6, past solver.max_iter=5; raise it to continue."),
        ({"model": 3}, "cannot be resumed from: AttributeError"),
        ({"model": {}}, "does not fit the model. 6 tensors missing in the file"),
        ({"optimizer": 3}, "cannot be resumed from: AttributeError"),
        ({"optimizer": {"state": {}}}, "cannot be resumed from: KeyError 'param_groups'"),
        ({"average": {}}, "cannot be resumed from: RuntimeError: .*Was it saved with another .*solver.ema_decay"),
        ({"random": None}, "cannot be resumed from: TypeError"),
        ({"random": [{"cpu": 3}]}, "cannot be resumed from: "),
    ],
)
def test_invalid_checkpoints_are_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    training = Training("adamw")
    training.step()
    torch.save(training.state.content() | change, "last.pt")
    assert re.match(rf"last.pt {message}", refusal(training, Path("last.pt")))
    assert not Path("canary").exists()


@pytest.mark.parametrize(("saved", "reason"), [([1, 2], "TypeError: list indices"), ({}, "KeyError 'model'")])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, saved, reason):
    torch.save(saved, tmp_path / "last.pt")
    message = f"{tmp_path}/last.pt cannot be resumed from: {reason}"
    assert refusal(Training("sgd"), tmp_path / "last.pt").startswith(message)


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (("sgd",), ("adamw",), r"its optimizer has no betas, eps.* Was it saved with another solver.optimizer"),
        (("adamw",), ("sgd",), r"its optimizer has no dampening, momentum"),
        (("sgd", 4), ("sgd", 5), r"does not fit the model. .* \(file \(4, 3, 3, 3\), model \(5, 3, 3, 3\)\)"),
    ],
)
def test_checkpoints_of_another_optimizer_or_model_are_refused(tmp_path, saved, resumed, message):
    save_checkpoint(tmp_path / "last.pt", Training(*saved).state.content())
    assert re.match(rf"{tmp_path}/last.pt .*{message}", refusal(Training(*resumed), tmp_path / "last.pt"))
