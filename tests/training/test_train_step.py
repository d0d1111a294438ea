"""One step of training: clipped, accumulated, and skipped if its loss or gradients are not finite."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config import SolverConfig
from resnet_backbones.errors import UserError
from resnet_backbones.training.logger import MetricLogger
from resnet_backbones.training.loop import build_state, train_step
from resnet_backbones.training.nonfinite import NonFiniteSteps


class Net(nn.Module):
    """BN and a linear layer; `targets["case"]` makes the loss or its gradient non-finite."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, images, targets):
        y = self.layer(self.norm(images)).mean()
        loss = {"good": y, "nan": y * float("nan"), "gradient": (y - y.detach()).abs().sqrt()}[targets["case"]]
        return {"loss": loss}


class Run:
    """A run whose steps train on one batch of each case."""

    def __init__(self, output_dir, limit: int, **solver) -> None:
        torch.manual_seed(0)
        self.model, self.solver = Net(), OmegaConf.structured(SolverConfig(lr=0.1, log_period=2, **solver))
        self.training = build_state(self.model, self.solver)
        self.nonfinite = NonFiniteSteps(self.model, limit, output_dir)

    def step(self, step: int, *cases: str) -> dict | None:
        batches = iter([(torch.randn(4, 3), {"case": case, "file_name": [f"{case}.png"]}) for case in cases])
        return train_step(self.model, batches, self.training, self.solver, 0.1, step, self.nonfinite)

    def state(self) -> dict:
        model = {name: value.clone() for name, value in self.model.state_dict().items()}
        return model | {
            str(k): v["momentum_buffer"].clone() for k, v in enumerate(self.training.optimizer.state.values())
        }


def test_gradients_are_clipped_to_clip_norm(tmp_path):
    runs = {clip: Run(tmp_path, limit=0, clip_norm=clip, weight_decay=0.0) for clip in (None, 1e-3)}
    lengths = {}
    for clip, run in runs.items():
        before = nn.utils.parameters_to_vector(run.model.parameters())
        run.step(1, "good")
        lengths[clip] = (nn.utils.parameters_to_vector(run.model.parameters()) - before).norm().item()
    assert lengths[1e-3] == pytest.approx(0.1 * 1e-3, rel=1e-3)  # lr times the norm
    assert lengths[None] > 10 * lengths[1e-3]


@pytest.mark.parametrize(("case", "fault"), [("nan", "The loss is"), ("gradient", "The gradients are")])
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_non_finite_step_leaves_weights_momenta_and_statistics_unchanged(tmp_path, caplog, case, fault, amp):
    run = Run(tmp_path, limit=1, amp=amp)
    assert run.step(1, "good") is not None
    before = run.state()
    assert run.step(2, case) is None
    for name, value in run.state().items():
        assert torch.equal(value, before[name]), name
    assert f"{fault} not finite at step 2 (loss" in caplog.text
    assert f"images {case}.png; the batch is saved in {tmp_path}/nonfinite-2-0.pt. Skipped, 1 so far." in caplog.text
    assert run.step(3, "good") is not None
    assert not torch.equal(run.state()["norm.running_mean"], before["norm.running_mean"])
    with pytest.raises(UserError, match=rf"{fault} not finite at step 4 .*1 steps before it were skipped"):
        run.step(4, case)


def test_a_non_finite_part_of_an_accumulated_batch_skips_the_step_and_is_named(tmp_path, caplog):
    run = Run(tmp_path, limit=1, accumulate=2)
    before = run.state()
    assert run.step(1, "good", "nan") is None
    assert all(torch.equal(value, before[name]) for name, value in run.state().items())
    assert "images nan.png" in caplog.text
    assert [part["targets"]["case"] for part in torch.load(tmp_path / "nonfinite-1-0.pt")["parts"]] == ["good", "nan"]


def test_fp16_overflow_is_left_to_the_grad_scaler(tmp_path):
    run = Run(tmp_path, limit=0)
    run.model.norm = nn.Identity()
    run.training.scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    before = run.model.layer.weight.clone()
    batch = (torch.full((4, 3), 1e30) * torch.randn(4, 3), {"case": "good", "file_name": ["a.png"]})
    assert train_step(run.model, iter([batch]), run.training, run.solver, 0.1, 1, run.nonfinite) is not None
    assert torch.equal(run.model.layer.weight, before)
    assert run.training.scaler.get_scale() == pytest.approx(0.5e30)
    assert run.nonfinite.count == 0


def test_skipped_steps_are_not_logged(tmp_path):
    run = Run(tmp_path, limit=3, max_iter=6)
    expected = {}
    with MetricLogger(tmp_path, 0, run.solver) as log:
        for step, case in enumerate(["nan", "good", "nan", "nan", "good", "good"], start=1):
            outputs = run.step(step, case)
            expected[step] = outputs and outputs["loss"].item()
            log.step(step, outputs, 0.1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 6]
    assert [row["loss"] for row in rows] == pytest.approx([expected[2], (expected[5] + expected[6]) / 2])
