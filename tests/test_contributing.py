"""The example of CONTRIBUTING.md, run as it stands there."""

import functools
import re

import pytest
import torch
from conftest import ROOT
from helpers import assert_equal_features, randomize_statistics

from resnet_backbones import backbones, build_backbone


@pytest.fixture
def example():
    """Registers the file and the row that CONTRIBUTING.md shows, for the length of a test."""
    file, row = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    names = dict(vars(backbones))
    exec(file, names)
    rows = eval(f"{{{row}}}", names)
    for name, options in rows.items():
        backbones.register_family(name, functools.partial(backbones.residual, **options))
    yield
    for name in rows:
        backbones.BACKBONES._obj_map.pop(name)
        backbones.BACKBONES._obj_map.pop(f"{name}_fpn")


def test_the_new_family_is_timms(example):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model("ecaresnet50d").eval()
    randomize_statistics(theirs)
    ours = build_backbone("ecaresnet50d").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}, strict=True)
    image = torch.randn(1, 3, 67, 101)
    with torch.no_grad():
        assert_equal_features({"res5": ours(image)["res5"]}, {"res5": theirs.forward_features(image)})


def test_the_new_family_has_a_pyramid(example):
    levels = build_backbone("ecaresnet50d_fpn", fpn_channels=16)(torch.randn(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels.values()] == [(16, s, s) for s in (16, 8, 4, 2, 1)]
