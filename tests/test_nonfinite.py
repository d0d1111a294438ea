"""A step whose loss or gradients are not finite changes nothing but the count."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from resnet_backbones.config import SolverConfig
from resnet_backbones.errors import UserError
from resnet_backbones.nonfinite import NonFinite
from resnet_backbones.training import train_step


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
