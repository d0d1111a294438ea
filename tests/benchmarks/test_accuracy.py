"""The statistics of benchmarks/accuracy; its systems start from the same weights."""

import pytest
import torch
from conftest import TINY, coco_overrides, write_coco

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
    with pytest.raises(UserError, match="--variant is 'ema'; it must be 'NAME: key=value …'"):
        read_variant("ema")


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
