"""A step whose loss or gradients are not finite changes nothing but the count."""

import json
from contextlib import closing

import pytest
import torch
from kill_and_resume import difference
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config import SolverConfig
from resnet_backbones.errors import UserError
from resnet_backbones.training.ema import MovingAverage
from resnet_backbones.training.logger import Journal
from resnet_backbones.training.loop import train_step
from resnet_backbones.training.nonfinite import NonFinite
from resnet_backbones.training.solver import build_optimizer


class Net(nn.Module):
    """BN and a layer; `targets["loss"]` makes the loss or its gradient non-finite."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, images, targets):
        y = self.layer(self.norm(images)).mean()
        loss = {"good": y, "nan": y * float("nan"), "gradient": (y - y.detach()).abs().sqrt()}[targets["case"]]
        return {"loss": loss}


def state(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("case", "fault"), [("nan", "The loss is"), ("gradient", "The gradients are")])
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_weights_momenta_and_statistics_stay_as_they_were(tmp_path, caplog, case, fault, amp):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    solver = OmegaConf.structured(SolverConfig(amp=amp))
    guard = NonFinite(model, 1, tmp_path)

    def step(case: str, k: int):
        batches = iter([(torch.randn(4, 3), {"case": case, "file_name": ["a.png"]})])
        return train_step(model, batches, optimizer, scaler, solver, k, guard)

    assert step("good", 1) is not None
    before, momenta = state(model), [v["momentum_buffer"].clone() for v in optimizer.state.values()]
    with caplog.at_level("WARNING", "resnet_backbones"):
        assert step(case, 2) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(v["momentum_buffer"], m) for v, m in zip(optimizer.state.values(), momenta, strict=True))
    assert f"{fault} not finite at step 2" in caplog.text
    assert step("good", 3) is not None
    assert not torch.equal(model.state_dict()["norm.running_mean"], before["norm.running_mean"])
    with pytest.raises(UserError, match=rf"{fault} not finite at step 4 .*images a\.png.*1 steps before it were left"):
        step(case, 4)


def test_gradients_that_overflow_in_fp16_are_the_scalers(tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1e30)
    guard = NonFinite(model, 0, tmp_path)
    before = state(model)["layer.weight"]
    batch = iter([(torch.full((4, 3), 1e30) * torch.randn(4, 3), {"case": "good", "file_name": ["a.png"]})])
    model.norm = nn.Identity()
    assert train_step(model, batch, optimizer, scaler, OmegaConf.structured(SolverConfig()), 1, guard) is not None
    assert torch.equal(model.layer.weight, before)
    assert scaler.get_scale() == pytest.approx(0.5e30)
    assert guard.count == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_verdict_read_late_changes_only_when_the_host_hears_of_it(tmp_path, caplog, optimizer):
    """As on a GPU, where the device leaves out a step before the host knows; the first is bad already."""
    cases = ["nan", "good", "gradient", "good", "nan", "good"]
    solver = OmegaConf.structured(SolverConfig(optimizer=optimizer, lr=0.1, clip_norm=1.0))
    ends, heard = [], []
    for late in (False, True):
        torch.manual_seed(0)
        model = Net()
        guard, average = NonFinite(model, 3, tmp_path, late), MovingAverage(model, 0.9, 1)
        training = build_optimizer(model, solver)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        (tmp_path / str(late)).mkdir()
        caplog.clear()
        with (
            caplog.at_level("WARNING", "resnet_backbones"),
            closing(Journal(tmp_path / str(late), 0, len(cases), 4, 2)) as journal,
        ):
            for k, case in enumerate(cases, start=1):
                batches = iter([(torch.randn(4, 3), {"case": case, "file_name": [f"{case}.png"]})])
                outputs = train_step(model, batches, training, scaler, solver, k, guard)
                average.update(k)
                journal.advance(outputs, guard.finite)
                if journal.due(k):
                    journal.record(k, 0.1)
                heard.append(guard.count)
            guard.read()
        rows = [json.loads(line) for line in (tmp_path / str(late) / "metrics.jsonl").read_text().splitlines()]
        told = [record.message for record in caplog.records]
        figures = [(row["step"], row["loss"]) for row in rows]
        ends.append((state(model), state(average.average), training.state_dict(), told, figures))
    assert heard == [1, 1, 2, 2, 3, 3, 0, 1, 1, 2, 2, 3]
    assert not difference(list(ends[0]), list(ends[1]))
    assert [step for step, _ in ends[1][-1]] == [2, 4, 6]
    assert [message.split(" (")[0] for message in ends[1][-2]] == [
        f"The {what} not finite at step {k}" for what, k in (("loss is", 1), ("gradients are", 3), ("loss is", 5))
    ]

    batches = iter([(torch.randn(4, 3), {"case": "nan", "file_name": ["last.png"]})])
    assert train_step(model, batches, training, scaler, solver, 7, guard) is not None
    with pytest.raises(
        UserError, match=r"loss is not finite at step 7 .*images last\.png.*3 steps before it were left"
    ):
        guard.read()
    assert not difference(ends[1][0], state(model))
