"""Runs, checkpoints and prediction on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, coco_overrides, draw, write_coco, write_images
from helpers import save_detector

from resnet_backbones.inference.predictor import Predictor
from resnet_backbones.training.curves import read_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder) if "loss" in row]


@pytest.fixture
def train(tool, tmp_path):
    """`train(name, *overrides)` trains the tiny Mask R-CNN into the folder `name`; gives its logged losses."""
    write_coco(tmp_path / "data", 6)

    def run(name: str, *overrides: str) -> list[float]:
        settings = [*TINY, *coco_overrides(tmp_path / "data"), f"output_dir={tmp_path / name}", *overrides]
        status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", *settings)
        assert status == 0, err
        return losses(tmp_path / name)

    return run


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_has_the_losses_of_full_precision(train, tmp_path, amp):
    """In weights of fp32, with a GradScaler for fp16."""
    full, mixed = train("full", "solver.max_iter=8"), train(amp, "solver.max_iter=8", f"solver.amp={amp}")
    assert mixed == pytest.approx(full, rel=0.1)
    content = torch.load(tmp_path / amp / "last.pt", map_location="cpu", weights_only=True)
    assert {tensor.dtype for tensor in content["model"].values()} <= {torch.float32, torch.int64}
    assert bool(content["scaler"]) == (amp == "fp16")


def test_channels_last_has_the_losses_of_a_plain_run(train):
    assert train("fast", "solver.channels_last=true") == pytest.approx(train("plain"), rel=0.05)


def test_a_resumed_run_continues_on_the_gpu(train, tool, tmp_path):
    whole = train("whole", "solver.max_iter=6", "solver.steps=[5]")
    half = train("half", "solver.max_iter=6", "solver.steps=[5]", "solver.checkpoint_period=3")
    assert half == pytest.approx(whole, rel=0.02)
    out = tmp_path / "half"
    (out / "last.pt").unlink()
    (out / "last-1.pt").rename(out / "last.pt")  # of step 3
    settings = [*TINY, *coco_overrides(tmp_path / "data"), f"output_dir={out}", "solver.max_iter=6", "solver.steps=[5]"]
    status, stdout, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", "--resume", *settings)
    assert status == 0, err
    assert "after step 3" in stdout
    assert losses(out) == pytest.approx(whole, rel=0.02)


def test_checkpoints_of_a_gpu_detect_the_same_on_the_cpu(tmp_path):
    write_coco(tmp_path)
    _, path = save_detector(tmp_path)
    found = {device: Predictor(path, device=device)(draw(200, 150)) for device in ("cpu", "cuda")}
    assert len(found["cpu"].boxes) > 0
    assert found["cuda"].boxes == pytest.approx(found["cpu"].boxes, abs=0.05)
    assert found["cuda"].scores == pytest.approx(found["cpu"].scores, abs=1e-3)


def test_pretraining_in_bf16_with_channels_last_learns(tool, tmp_path):
    write_images(tmp_path / "images", {"ant": 8, "bee": 8, "cat": 8})  # each of one color
    settings = [f"data.root={tmp_path}/images", f"output_dir={tmp_path}/out", "data.num_workers=1"]
    settings += ["solver.amp=bf16", "solver.channels_last=true", "solver.epochs=null", "solver.warmup_epochs=0"]
    settings += ["solver.batch_size=8", "solver.max_iter=60", "solver.lr=0.05", "evaluation.batch_size=8"]
    status, _, err = tool("pretrain", "--config", "cifar10_resnet20_quick.yaml", *settings)
    assert status == 0, err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["top1"] == 100
