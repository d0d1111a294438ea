"""The statistics of benchmarks/accuracy; its systems start from the same weights."""

import sys

import pytest
import torch
from conftest import TINY, coco_overrides, write_coco

from benchmarks.accuracy.__main__ import main as study
from benchmarks.accuracy.__main__ import read_variant
from benchmarks.accuracy.run import initial_weights
from benchmarks.accuracy.table import half_interval
from benchmarks.accuracy.torchvision import build_model
from resnet_backbones.cli.train import main
from resnet_backbones.config import load_config
from resnet_backbones.errors import UserError


def test_interval_is_students_t():
    # s = 0.7550, t(0.975, 2) = 4.3027: 4.3027 * 0.7550 / sqrt(3)
    assert half_interval([53.1, 52.5, 51.6]) == pytest.approx(1.8755, abs=1e-3)
    assert half_interval([1.0, 3.0]) == pytest.approx(12.706, abs=1e-3)


def test_a_variant_is_a_name_and_overrides():
    assert read_variant("ema: solver.ema_decay=0.99 seed=1") == ("ema", ("ours", ["solver.ema_decay=0.99", "seed=1"]))
    for text in ("ema", ": seed=1", "ema: "):
        with pytest.raises(UserError, match=f"--variant is '{text}'; it must be 'NAME: key=value …'"):
            read_variant(text)


def test_a_wrong_config_or_key_is_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    arguments = ["accuracy", "--configs", "bccd_faster_rcnn_R18", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--variant", "ema: solver.ema_deca=0.9"])
    with pytest.raises(SystemExit, match="2"):
        study()
    assert "unknown key solver.ema_deca. Did you mean ema_decay?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_torchvision_detector_loads_the_initial_weights_of_our_training(tmp_path, name):
    write_coco(tmp_path)
    settings = [*TINY, *coco_overrides(tmp_path), f"detector.name={name}", "seed=5", "evaluation.samples=0"]
    config = load_config("quickstart_mask_rcnn.yaml", settings)
    state = initial_weights(config)
    build_model(config, 2).load_state_dict(state)
    main(["--config", "quickstart_mask_rcnn.yaml", *settings, f"output_dir={tmp_path}/out", "solver.lr=1e-30"])
    trained = torch.load(tmp_path / "out/last.pt", weights_only=True)["model"]
    for key, value in state.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(trained[key], value, msg=key)
