"""Several ranks against one process: the same losses and metrics; and what happens when a rank dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, coco_overrides, write_coco
from kill_and_resume import children, compare, wait_for
from PIL import Image
from torch import distributed as dist
from torch import nn

from resnet_backbones import build_backbone, distributed
from resnet_backbones.cli.training import load_sets, scorer
from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector, global_batch
from resnet_backbones.detectors.torchvision import faster_rcnn, fcos, retinanet
from resnet_backbones.errors import UserError

RANKS = [1, 2, 4]
STEPS = 20
# Makes a two-stage detector free of discrete selections: all proposals are kept and sampled.
ALL_PROPOSALS = [
    "detector.rpn_nms_thresh=1.0", "detector.rpn_pre_nms_top_n_train=100000",
    "detector.rpn_post_nms_top_n_train=100000", "detector.box_batch_size_per_image=100000",
]  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Path:
    """Images of several sizes, so that padding matters; seven of them, which 2 and 4 ranks cannot share evenly."""
    content = write_coco(tmp_path / "data", 7)
    for k, image in enumerate(content["images"]):
        path = tmp_path / "data/images" / image["file_name"]
        size = (48 + 16 * (k % 3), 40 + 24 * (k % 2))
        Image.open(path).resize(size).save(path)
        image["width"], image["height"] = size
        for o in content["annotations"]:
            if o["image_id"] == image["id"] and o["iscrowd"]:
                o["segmentation"] = {"size": [size[1], size[0]], "counts": [0, 80, size[0] * size[1] - 80]}
    (tmp_path / "data/instances.json").write_text(json.dumps(content))
    return tmp_path


def detectors() -> dict[str, nn.Module]:
    """A tiny detector of each kind, with the same weights in every process."""
    torch.manual_seed(0)
    dense = {"norm": "GN", "fpn_channels": 64, "out_features": ["p3", "p4", "p5", "p6", "p7"]}
    size = {"min_size": [48, 56, 64], "max_size": 96}
    pyramid = build_backbone("resnet18_fpn", norm="GN", fpn_channels=32)
    return {
        "faster_rcnn": faster_rcnn(pyramid, 2, box_head_width=32, **size),
        "retinanet": retinanet(build_backbone("resnet18_fpn", **dense), 2, **size),
        "fcos": fcos(build_backbone("resnet18_fpn", **dense), 2, **size),
    }


def losses(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images, boxes = [torch.rand(3, 48, 80), torch.rand(3, 64, 56)], torch.tensor([[5.0, 5, 40, 40], [20, 8, 50, 30]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2]), "seed": k} for k in range(2)]
    with torch.no_grad():
        return model.train()(images, targets)


def score(folder: Path) -> tuple[dict, list]:
    """Metrics and predictions of a random detector on the data, by all ranks together."""
    torch.manual_seed(0)
    overrides = [*TINY, *coco_overrides(folder / "data"), "detector.box_score_thresh=0.0"]
    config = load_config("quickstart_mask_rcnn", overrides)
    sets = load_sets(config, config.data.test)
    return scorer(sets, config)(build_detector(config, len(sets[0].classes)))


def on_each_of_two_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    if rank == 0:
        torch.save({name: losses(model) for name, model in detectors().items()}, folder / "losses.pt")
    scored = score(folder)
    if rank == 0:
        torch.save(scored, folder / "scored.pt")
    with pytest.raises(UserError, match="norm=SyncBN needs GPUs where there are several ranks"):
        distributed.wrap(nn.Sequential(nn.SyncBatchNorm(3)), torch.device("cpu"))
    dist.destroy_process_group()


def test_a_process_group_leaves_losses_and_metrics_unchanged(data):
    """Only the main rank computes losses, as in a user's own loop; the other does not wait for it."""
    torch.multiprocessing.spawn(on_each_of_two_ranks, (data,), nprocs=2)
    alone, scored = torch.load(data / "losses.pt"), torch.load(data / "scored.pt")
    for name, model in detectors().items():
        expected = losses(model)
        assert alone[name] == expected, name
        assert losses(global_batch(model)) == expected, name
    assert scored == score(data)
    assert len(scored[1][0]) > 0


def command(folder: Path, ranks: int, *arguments: str) -> list[str]:
    settings = [*TINY, *coco_overrides(folder / "data"), "solver.batch_size=4", "evaluation.samples=0", *arguments]
    launch = ["tools/train_net.py", "--num-gpus", str(ranks), "--config", "quickstart_mask_rcnn.yaml"]
    return [sys.executable, *launch, *settings]


def run(arguments: list[str]) -> str:
    """The stdout of the command, which must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
@pytest.mark.parametrize(
    ("detector", "lr"),
    [
        (["detector.name=retinanet", "backbone.out_features=[p3,p4,p5,p6,p7]"], 0.01),
        (["detector.name=fcos", "backbone.out_features=[p3,p4,p5,p6,p7]", "backbone.fpn_channels=64"], 1e-5),
        (["detector.name=faster_rcnn", "detector.min_size=[48,56,64]"], 1e-5),
        (["detector.name=mask_rcnn", *ALL_PROPOSALS], 1e-5),
    ],
    ids=["retinanet", "fcos", "faster_rcnn", "mask_rcnn"],
)
def test_losses_on_several_ranks_match_one_process(data, detector, lr, norm):
    norms = [f"backbone.norm={norm}", "backbone.fpn_norm=GN"]
    for ranks in RANKS:
        settings = [f"solver.lr={lr}", f"solver.max_iter={STEPS}", "solver.steps=[]", "solver.warmup_iters=0"]
        run(command(data, ranks, *norms, *detector, *settings, f"output_dir={data / str(ranks)}"))
    one, two, four = ([row for row in rows(data / str(ranks)) if "lr" in row] for ranks in RANKS)
    assert len(one) == STEPS
    assert one[-1]["loss"] != pytest.approx(one[0]["loss"], rel=1e-5)
    for many in (two, four):
        for mine, theirs in zip(many, one, strict=True):
            for name in (name for name in theirs if name.startswith("loss")):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (name, theirs["step"])


@pytest.mark.slow
def test_gradients_on_two_ranks_match_one_process(data):
    # Not Mask R-CNN: its mask targets are pooled from a number of points that jumps with the last bit of a box.
    settings = ["backbone.norm=GN", "detector.name=faster_rcnn", "solver.max_iter=1", "solver.momentum=0"]
    settings += ["solver.lr=1", "solver.weight_decay=0", "solver.warmup_iters=0", "solver.steps=[]"]
    states = []
    for ranks in (1, 2):
        run(command(data, ranks, *settings, f"output_dir={data / str(ranks)}"))
        states.append(torch.load(data / str(ranks) / "last.pt", weights_only=True)["model"])
    # The initial weights minus the gradient.
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_evaluation_on_two_and_four_ranks_matches_one_process(data):
    run(command(data, 1, "detector.box_score_thresh=0.0", f"output_dir={data}/trained"))
    metrics, predictions = [], []
    for ranks in RANKS:
        score = ["--eval-only", f"weights={data}/trained/last.pt", "detector.box_score_thresh=0.0"]
        run(command(data, ranks, *score, f"output_dir={data / str(ranks)}"))
        metrics.append(json.loads((data / str(ranks) / "metrics.json").read_text()))
        predictions.append(json.loads((data / str(ranks) / "predictions.json").read_text()))
    assert metrics[0] == metrics[1] == metrics[2]
    assert predictions[0] == predictions[1] == predictions[2]


def start(arguments: list[str]) -> subprocess.Popen:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipe)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    file = folder / "metrics.jsonl"
    reached = wait_for(lambda: file.is_file() and len(file.read_text().splitlines()) >= step, process)
    assert reached, process.stdout.read()


@pytest.mark.slow
def test_ranks_restart_up_to_max_restarts_and_the_dead_rank_is_named(data):
    more = ["solver.max_iter=1000", "solver.checkpoint_period=1", "detector.name=faster_rcnn"]
    process = start([*command(data, 2, f"output_dir={data}/out", *more), "--max-restarts", "1"])
    wait_for_step(data / "out", 3, process)
    reached = len(rows(data / "out"))
    os.kill(children(process.pid)[1], signal.SIGKILL)
    wait_for_step(data / "out", reached + 5, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    since = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - since < 60
    assert process.returncode == 1
    assert "resumed from" in output
    steps = [row["step"] for row in rows(data / "out")]
    assert steps == list(range(1, len(steps) + 1))
    cause = output.split("Root Cause")[1]
    assert "rank      : 1" in cause
    assert "SIGKILL" in cause


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_to_resume_from(data):
    arguments = command(data, 1, f"output_dir={data}/out", "solver.max_iter=30", "detector.name=faster_rcnn")
    process = start(arguments)
    wait_for_step(data / "out", 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    saved = torch.load(data / "out/last.pt", weights_only=True)["step"]
    assert f"interrupted: saved after step {saved}; continue with --resume" in output
    assert f"after step {saved}" in run([*arguments, "--resume"])
    assert [row["step"] for row in rows(data / "out") if "loss" in row] == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_torchrun_reaches_its_ranks(data, number):
    process = start(command(data, 2, f"output_dir={data}/out", "solver.max_iter=1000", "detector.name=faster_rcnn"))
    wait_for_step(data / "out", 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    saved = torch.load(data / "out/last.pt", weights_only=True)["step"]
    assert saved == rows(data / "out")[-1]["step"]
    assert f"interrupted: saved after step {saved}; continue with --resume" in output


@pytest.mark.slow
def test_a_second_sigterm_exits_at_once(data):
    # A step that never ends: the loader's only worker is stopped.
    process = start(command(data, 1, f"output_dir={data}/out", "solver.max_iter=1000", "data.num_workers=1"))
    wait_for_step(data / "out", 2, process)
    for worker in children(process.pid):
        os.kill(worker, signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_twenty_times_matches_an_uninterrupted_one(tmp_path, ranks):
    assert compare(tmp_path, ranks, kills=20, seed=ranks)


@pytest.mark.slow
def test_a_run_killed_twice_matches_an_uninterrupted_one(tmp_path):
    assert compare(tmp_path, ranks=1, kills=2, seed=0, steps=10)


@pytest.mark.parametrize("option", [("--num-gpus", "0"), ("--max-restarts", "-1")], ids=" ".join)
def test_impossible_numbers_of_gpus_and_restarts_are_refused_in_one_line(tool, option):
    status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", *option)
    assert (status, err) == (2, "error: --num-gpus must be at least 1, --max-restarts at least 0.\n")
