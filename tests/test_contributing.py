"""The examples of CONTRIBUTING.md, run verbatim."""

import importlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers import assert_equal_features, randomize_statistics

FILE, IMPORT, ROW, SCRIPT = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """A copy of the package, under another name, with the new file, its import and the new row."""
    package = tmp_path / "resnet_backbones_with_eca"
    shutil.copytree(ROOT / "resnet_backbones", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models/eca.py").write_text(FILE)
    text = (package / "backbones.py").read_text()
    for place in ("from .models.extractors import", "RESNETS = {\n"):
        assert text.count(f"\n{place}") == 1
    text = text.replace("\nfrom .models.extractors import", f"\n{IMPORT}from .models.extractors import")
    (package / "backbones.py").write_text(text.replace("\nRESNETS = {\n", f"\nRESNETS = {{\n    {ROW}"))
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(package.name)


def test_new_file_and_row_add_timms_network_and_its_pyramid(changed):
    assert changed.list_backbones("eca*") == ["ecaresnet50d", "ecaresnet50d_fpn"]
    levels = changed.build_backbone("ecaresnet50d_fpn", fpn_channels=16)(torch.randn(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels.values()] == [(16, s, s) for s in (16, 8, 4, 2, 1)]

    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model("ecaresnet50d").eval()
    randomize_statistics(theirs)
    ours = changed.build_backbone("ecaresnet50d").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}, strict=True)
    image = torch.randn(1, 3, 67, 101)
    with torch.no_grad():
        assert_equal_features({"res5": ours(image)["res5"]}, {"res5": theirs.forward_features(image)})


def run(script: str, folder, *arguments: str) -> str:
    """The output of a script run outside the checkout."""
    (folder / "rezero.py").write_text(script)
    command = [sys.executable, "rezero.py", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_external_script_trains_faster_rcnn_with_its_own_block(tmp_path):
    losses, alpha = run(SCRIPT, tmp_path).splitlines()
    assert re.findall(r"'(\w+)'", losses) == [
        "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"
    ]  # fmt: skip
    assert float(alpha.removeprefix("alpha is now ")) != 0


@pytest.mark.slow
def test_command_line_finds_backbones_registered_by_a_script(tmp_path):
    definitions, _ = SCRIPT.split('if __name__ == "__main__":')
    script = f"{definitions}from resnet_backbones.__main__ import main\nmain()\n"
    assert run(script, tmp_path, "list", "rezero*").split() == ["rezero18", "rezero18_fpn"]
    table = run(script, tmp_path, "analyze", "rezero18_fpn", "shortcut=A", "norm=GN", "fpn_channels=64")
    assert table.splitlines()[-1].startswith("total")
