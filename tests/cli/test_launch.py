"""What train and pretrain check before they start, and what they do to the output folder of an earlier run."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, coco_overrides, write_coco, write_images

from resnet_backbones.cli.train import main

SHORT = ["solver.max_iter=2", "solver.steps=[]", "solver.checkpoint_period=1", "evaluation.samples=0"]
CONFIG = f"{ROOT}/configs/quickstart_mask_rcnn.yaml"


def arguments(folder: Path, *more: str) -> list[str]:
    settings = [*TINY, *SHORT, *coco_overrides(folder / "data"), f"output_dir={folder}/out"]
    return ["--config", "quickstart_mask_rcnn.yaml", *settings, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `data` and the finished run `out`, with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("finished")
    write_coco(folder / "data", 3)
    main(arguments(folder))
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of `finished`."""
    return shutil.copytree(finished, tmp_path / "run")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert (status, err.count("\n")) == (2, 1), err
    return err


def test_a_fresh_start_replaces_the_earlier_run_and_says_so(folder, tool):
    out = folder / "out"
    (out / "last-7.pt").write_bytes(b"of a run that kept more")
    (out / "last-good.pt").write_bytes(b"the user's own")
    status, stdout, err = tool("train_net", *arguments(folder, "solver.max_iter=1", "solver.keep_checkpoints=5"))
    assert status == 0, err
    assert sorted(path.name for path in out.glob("last*.pt")) == ["last-good.pt", "last.pt"]
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 1
    line = f"the earlier run in {out}, at step 2, is replaced; --resume would have continued it"
    assert stdout.count(line) == (out / "log.txt").read_text().count(line) == 1


def test_a_failed_fresh_start_leaves_no_results_of_the_earlier_run(folder, tool):
    failing = ["solver.lr=1e30", "solver.warmup_iters=0", "solver.max_iter=9", "solver.checkpoint_period=0"]
    error_of(tool("train_net", *arguments(folder, *failing)))
    left = set(os.listdir(folder / "out"))
    assert not left & {"last.pt", "last-1.pt", "best.pt", "metrics.json", "predictions.json"}


def test_a_first_run_and_a_resumed_one_replace_nothing(folder, tool):
    assert "replaced" not in (folder / "out/log.txt").read_text()
    status, stdout, err = tool("train_net", *arguments(folder, "--resume"))
    assert status == 0, err
    assert "replaced" not in stdout
    assert (folder / "out/last-1.pt").exists()


REFUSED = [
    (["backbone.name=resnet19_fpn"], f"{CONFIG}: backbone: Unknown backbone 'resnet19_fpn'. Did you mean"),
    (["backbone.norm=XN"], f"{CONFIG}: backbone: Unknown norm 'XN'"),
    (["backbone.output_stride=16"], f"{CONFIG}: backbone: p5 of an FPN has stride 32"),
    (["backbone.name=resnet18"], "The backbone gives res2, res3, res4, res5; these heads need a pyramid"),
    (["detector.name=fast_rcnn"], f"{CONFIG}: Unknown detector.name 'fast_rcnn'"),
    (["detector.library=mmdet"], f"{CONFIG}: Unknown detector.library 'mmdet'"),
    (["detector.anchor_sizes=[[32]]"], "detector.anchor_sizes has 1 levels, but the backbone gives 5"),
    (["data.test=[own,onw]"], f"{CONFIG}: data.test: Unknown dataset 'onw'. Did you mean own"),
    (["backbone.weights=gone.pth"], "weights file gone.pth does not exist"),
]


def test_invalid_configs_fail_before_data_is_read(folder, tool):
    (folder / "data/instances.json").write_text("no JSON, if it were read")
    before = content(folder)
    for more, message in REFUSED:
        assert message in error_of(tool("train_net", *arguments(folder, *more)))
    assert content(folder) == before


def test_evaluation_checks_the_config_before_reading_data(folder, tool):
    (folder / "data/instances.json").write_text("no JSON, if it were read")
    scored = ["--eval-only", f"weights={folder}/out/last.pt", f"output_dir={folder}/new"]
    for more in ("backbone.name=resnet19_fpn", "detector.name=fast_rcnn", "data.test=[onw]"):
        assert "Unknown" in error_of(tool("train_net", *arguments(folder, *scored, more)))
    assert "weights file gone.pth does not exist" in error_of(
        tool("train_net", *arguments(folder, *scored, "weights=gone.pth"))
    )
    assert not (folder / "new").exists()


def test_a_failed_start_leaves_no_new_folder(folder, tool):
    for more in ("backbone.name=resnet19_fpn", f"datasets.own.annotations={folder}/out/log.txt"):
        error_of(tool("train_net", *arguments(folder, more, f"output_dir={folder}/new/run")))
        assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume", "backbone.name=resnet34_fpn"], "last.pt does not fit"),
        (["--resume", "solver.max_iter=1"], "is from step 2, past solver.max_iter=1"),
        (["--eval-only", "weights={folder}/out/last.pt", "backbone.name=resnet34_fpn"], "holds a resnet18"),
        (["data.train=[broken]", "datasets.broken.annotations={folder}/out/log.txt"], "log.txt is not valid JSON"),
    ],
)
def test_a_later_error_leaves_the_finished_run_untouched(folder, tool, more, message):
    before = content(folder / "out")
    more = [argument.format(folder=folder) for argument in more]
    broken = f"datasets.broken.root={folder}/data/images"
    assert message in error_of(tool("train_net", *arguments(folder, broken, *more)))
    assert content(folder / "out") == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("backbone.name=cifar_resnet21", "cifar10_resnet20_quick.yaml: backbone: Unknown backbone 'cifar_resnet21'"),
        ("backbone.norm=XN", "backbone: Unknown norm 'XN'"),
        ("compare=[cifar_resnet20,cifar_plain21]", "compare: Unknown backbone 'cifar_plain21'"),
        ("data.root=gone", "The folder or tar of images gone does not exist"),
    ],
)
def test_pretraining_checks_the_config_before_reading_data(tool, tmp_path, more, message):
    write_images(tmp_path / "images", {"ant": 1})
    (tmp_path / "images/train/ant/0.jpg").unlink()  # also an error, if data were read first
    settings = [f"data.root={tmp_path}/images", f"output_dir={tmp_path}/out", more]
    assert message in error_of(tool("pretrain", "--config", "cifar10_resnet20_quick.yaml", *settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("detectron2") is not None, reason="detectron2 is installed")
def test_detectron2s_trainer_says_how_to_install_detectron2(tool):
    message = error_of(tool("train_net_detectron2", "--config-file", "bccd_faster_rcnn_preact_R18.yaml"))
    assert "is built from source, see https://github.com/facebookresearch/detectron2" in message


def run(script: str, *arguments: str, folder: Path = ROOT) -> tuple[int, str, str]:
    command = [sys.executable, script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)
    return result.returncode, result.stdout, result.stderr


def test_errors_on_several_ranks_are_still_one_line_with_status_2(folder):
    (folder / "data/instances.json").unlink()
    message = error_of(run("tools/train_net.py", *arguments(folder, "--num-gpus", "2")))
    assert f"{CONFIG}: data.train: Dataset own is missing: {folder}/data/instances.json does not exist" in message


@pytest.mark.slow
def test_ranks_see_the_families_registered_by_the_launching_script(folder):
    row = "functools.partial(residual, block=BasicBlock, depths=(1, 1, 1, 1))"
    (folder / "own.py").write_text(
        "import functools\nfrom resnet_backbones.__main__ import main\n"
        "from resnet_backbones.backbones import register_family, residual\n"
        f"from resnet_backbones.models.blocks import BasicBlock\nregister_family('own10', {row})\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    settings = arguments(folder, "backbone.name=own10_fpn", f"output_dir={folder}/two")
    status, stdout, err = run("own.py", "train", "--num-gpus", "2", *settings, folder=folder)
    assert status == 0, err
    assert "name: own10_fpn" in (folder / "two/config.yaml").read_text()
    if not torch.cuda.is_available():
        assert "There is no GPU here: the 2 ranks run on the CPU" in stdout
