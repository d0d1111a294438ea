"""Training from the command line: output files, resuming and errors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, coco_overrides, draw, save_coco, write_coco
from PIL import Image

from resnet_backbones.cli.train import main
from resnet_backbones.evaluation.coco import METRICS, coco_metrics


def arguments(folder: Path, *more: str) -> list[str]:
    """Arguments of a run of the tiny Mask R-CNN on the small COCO set in folder/data into folder/out."""
    settings = [*TINY, *coco_overrides(folder / "data"), "evaluation.samples=0"]
    return ["--config", "quickstart_mask_rcnn.yaml", *settings, f"output_dir={folder}/out", *more]


@pytest.fixture
def train(tool, tmp_path):
    """Runs it in tmp_path; returns status, stdout and stderr."""
    write_coco(tmp_path / "data", 5)
    return lambda *more: tool("train_net", *arguments(tmp_path, *more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The output folder of a finished run, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    write_coco(folder / "data", 5)
    torch.manual_seed(0)
    main(arguments(folder, "solver.checkpoint_period=2", "solver.deterministic=true"))
    return folder / "out"


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_patience_stops_a_run_that_no_longer_improves(train, tmp_path):
    early = ["evaluation.period=1", "evaluation.patience=2", "solver.lr=1e-30", "solver.checkpoint_period=0"]
    status, _, err = train(*early, "solver.max_iter=40")
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    scores = [row["bbox/AP"] for row in rows if "bbox/AP" in row]
    assert 3 <= len(scores) < 40
    waited = [k - int(np.argmax(scores[: k + 1])) for k in range(len(scores))]  # evaluations since the best
    assert waited[-1] == 2
    assert max(waited[:-1]) < 2
    ended = f"ended after step {len(scores)}: no new best in 2 evaluations"
    assert ended in (tmp_path / "out/log.txt").read_text()
    assert torch.load(tmp_path / "out/best.pt", weights_only=True)["step"] == len(scores) - 2

    status, _, err = train(*early, "solver.max_iter=40", "--resume")
    assert status == 0, err
    assert torch.load(tmp_path / "out/last.pt", weights_only=True)["step"] == len(scores)
    status, _, err = train("evaluation.period=0", "evaluation.patience=2")
    assert status == 2
    assert "evaluation.patience is 2; it must be null where evaluation.period is 0" in err


def test_output_files_of_a_run(train, tmp_path):
    status, out, _ = train("evaluation.period=2", "evaluation.samples=3", "evaluation.sample_score=0.0")
    assert status == 0
    folder = tmp_path / "out"
    assert "rpn_nms_thresh: 0.7" in (folder / "config.yaml").read_text()
    assert "step 4/4  loss" in (folder / "log.txt").read_text()

    metrics = json.loads((folder / "metrics.json").read_text())
    assert {f"{kind}/{metric}" for kind in ("bbox", "segm") for metric in METRICS} < set(metrics)
    assert {"bbox/AP-cat", "segm/AP-dog"} < set(metrics)
    report = json.loads((folder / "report.json").read_text())
    assert report["overall"]["AP"] == pytest.approx(metrics["segm/AP"])
    page = (folder / "report.html").read_text()
    assert page.count('"picture":"data:image/jpeg;base64,') == 5
    assert '"name":"loss_mask","steps":[1,2,3,4]' in page
    predictions = json.loads((folder / "predictions.json").read_text())
    truth = json.loads((tmp_path / "data/instances.json").read_text())
    assert {p["image_id"] for p in predictions} <= {100, 101, 102, 103, 104}
    assert {p["category_id"] for p in predictions} <= {3, 7}
    assert coco_metrics(truth, predictions, "bbox")["bbox/AR100"] == metrics["bbox/AR100"]
    assert coco_metrics(truth, predictions, "segm")["segm/AR100"] == metrics["segm/AR100"]

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4]
    assert {"loss_classifier", "loss_mask", "lr", "images_per_second"} < set(losses[0])
    assert losses[0]["loss"] == pytest.approx(sum(v for k, v in losses[0].items() if k.startswith("loss_")))
    assert [row["step"] for row in rows if "bbox/AP" in row] == [2, 4]
    assert list((folder / "tensorboard").iterdir())

    assert "roi_heads.mask_predictor.mask_fcn_logits.weight" in weights(folder / "last.pt")
    assert weights(folder / "best.pt").keys() == weights(folder / "last.pt").keys()
    samples = sorted((folder / "samples").glob("*.png"))
    assert [p.name for p in samples] == ["0.png", "2.png", "4.png"]
    assert Image.open(samples[0]).size == (2 * 576 + 8, 480)  # 48 x 40 enlarged, twice side by side
    table, files = out.rstrip().splitlines()[-9:], out.rstrip().splitlines()[-1]
    assert any(line.strip().startswith("AP ") for line in table)
    assert str(folder) in files


def test_eval_only_evaluates_a_checkpoint(train, finished, tmp_path):
    scored = ["--eval-only", f"weights={finished}/last.pt", "backbone.weights=gone.pth"]
    assert train(*scored)[0] == 0
    assert (tmp_path / "out/metrics.json").read_text() == (finished / "metrics.json").read_text()
    assert not (tmp_path / "out/last.pt").exists()

    assert train(*scored, "evaluation.tta_sizes=[40, 56]", "evaluation.tta_flip=true")[0] == 0
    found = [json.loads((folder / "predictions.json").read_text()) for folder in (finished, tmp_path / "out")]
    assert len(found[1]) > len(found[0])


def test_a_resumed_run_ends_with_the_same_weights(train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out/last-1.pt").replace(tmp_path / "out/last.pt")  # of step 2, as if the run had been killed after it
    status, out, _ = train("--resume", "data.num_workers=1", "solver.deterministic=true")
    assert status == 0
    assert f"resumed from {tmp_path}/out/last.pt after step 2" in out
    assert equal(weights(tmp_path / "out/last.pt"), weights(finished / "last.pt"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]  # the last with the metrics


def test_resuming_a_finished_run_only_evaluates(train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    assert train("--resume")[0] == 0
    assert equal(weights(tmp_path / "out/last.pt"), weights(finished / "last.pt"))
    metrics = (tmp_path / "out/metrics.json").read_text()
    assert metrics == (finished / "metrics.json").read_text()
    status, _, err = train("--resume", "solver.max_iter=2", "solver.steps=[]")
    assert (status, err.count("\n")) == (2, 1)
    assert "is from step 4, past solver.max_iter=2; raise it to continue." in err
    assert (tmp_path / "out/metrics.json").read_text() == metrics


def test_resume_without_a_checkpoint_says_that_it_starts_at_step_0(train, tmp_path):
    status, out, _ = train("--resume")
    assert status == 0
    assert f"there is no {tmp_path}/out/last.pt to resume from; starting at step 0" in out


def test_damaged_lines_of_metrics_are_dropped_on_resume(train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    file = tmp_path / "out/metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if '"loss"' in line]
    damaged = [b"null", b"5", b"{}", b"[1]", b"\xff", b"[" * 9000, b'{"step": "x"}', *map(str.encode, kept), b'{"st']
    file.write_bytes(b"\n".join(damaged))
    status, _, err = train("--resume")
    assert status == 0, err
    assert file.read_text().splitlines()[:-1] == kept


def test_gradient_accumulation_matches_the_whole_batch(train, tmp_path):
    for parts in (1, 2):
        # No norms, since batch statistics would differ. No random sampling of proposals: all of them are used.
        train(
            f"solver.accumulate={parts}",
            f"output_dir={tmp_path}/{parts}",
            "backbone.norm=none",
            "detector.name=faster_rcnn",
            "detector.rpn_batch_size_per_image=100000",
            "detector.box_batch_size_per_image=100000",
            "solver.max_iter=1",
            "solver.warmup_iters=0",
            "solver.lr=0.001",
        )
    one, two = weights(tmp_path / "1/last.pt"), weights(tmp_path / "2/last.pt")
    changed = weights(tmp_path / "1/last.pt")["roi_heads.box_predictor.cls_score.bias"]
    assert changed.abs().max() > 0
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("amp", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_mixed_precision_trains(train, tmp_path, amp):
    small = ["detector.name=faster_rcnn", "detector.min_size=[32]"]  # a CPU is slow at fp16
    saved = ["solver.checkpoint_period=1", "solver.keep_checkpoints=2"]
    status, _, err = train(f"solver.amp={amp}", "solver.max_iter=2", "solver.clip_norm=1.0", *small, *saved)
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    before, after = weights(tmp_path / "out/last-1.pt"), weights(tmp_path / "out/last.pt")
    assert all(v.dtype in (torch.float32, torch.int64) for v in after.values())
    for name in ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"):
        assert not torch.equal(before[name], after[name]), name


def test_several_test_sets_are_scored_separately(train, tmp_path):
    write_coco(tmp_path / "more", 2)
    spec = f"{{format: coco, root: {tmp_path}/more/images, annotations: {tmp_path}/more/instances.json}}"
    assert train(f"datasets.more={spec}", "data.test=[own,more]", "solver.max_iter=1")[0] == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {"bbox/AP", "more/bbox/AP"} < set(metrics)
    assert (tmp_path / "out/predictions_more.json").exists()


def one_line_error(result: tuple[int, str, str]) -> str:
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(train, tmp_path, workers):
    broken = tmp_path / "data/images/3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    message = one_line_error(train(f"data.num_workers={workers}", "solver.max_iter=10"))
    assert f"Image {broken} cannot be decoded" in message


def test_a_missing_image_is_an_error_before_training(train, tmp_path):
    (tmp_path / "data/images/3.png").unlink()
    message = one_line_error(train())
    assert f"1 of 5 images are missing from {tmp_path}/data/images, first 3.png" in message
    assert not (tmp_path / "out/last.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>", r"3\.png cannot be decoded"), (None, r"3\.png is 30 x 20 pixels, but its annotation says 48 x 40")],
)
def test_an_unreadable_or_mismatched_test_image_is_named_before_training(train, tmp_path, content, message):
    broken = tmp_path / "data/images/3.png"
    draw(30, 20).save(broken)
    if content:
        broken.write_bytes(content)
    assert re.search(message, one_line_error(train()))
    assert not (tmp_path / "out").exists()


def test_unusual_image_modes_and_sizes_train(train, tmp_path):
    content = json.loads((tmp_path / "data/instances.json").read_text())
    for k, mode in enumerate(["L", "RGBA", "CMYK", "I;16"]):
        name = f"odd{k}.{'jpg' if mode == 'CMYK' else 'png'}"
        picture = Image.fromarray(np.full((40, 48), 9000, np.uint16)) if mode == "I;16" else draw().convert(mode)
        picture.save(tmp_path / "data/images" / name)
        content["images"][k]["file_name"] = name
    draw(1, 1).save(tmp_path / "data/images/dot.png")
    content["images"][4] |= {"file_name": "dot.png", "width": 1, "height": 1}
    content["annotations"][8] |= {"bbox": [0, 0, 1, 1], "segmentation": {"size": [1, 1], "counts": [0, 1]}}
    save_coco(tmp_path / "data", content)
    status, _, err = train("detector.box_score_thresh=0.0")
    assert status == 0, err
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == {100, 101, 102, 103, 104}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "coco_faster_rcnn_R102.yaml"], "Did you mean coco_faster_rcnn_R101.yaml"),
        (["solver.lrr=1"], "unknown key solver.lrr. Did you mean lr?"),
        (["backbone.name=resnet19_fpn"], "Unknown backbone 'resnet19_fpn'. Did you mean resnet1"),
        (["data.train=[onw]"], "Unknown dataset 'onw'. Did you mean own"),
        (["--eval-only"], "--eval-only needs the weights to score: weights=FILE"),
        (["solver.lr=1e9", "solver.warmup_iters=0"], "The loss is not finite at step "),
        (["weights=gone.pt"], "weights file gone.pt does not exist"),
    ],
)
def test_bad_arguments_give_a_one_line_error(train, arguments, message):
    assert message in one_line_error(train(*arguments))


def test_non_finite_steps_are_skipped_up_to_a_limit_and_saved_for_inspection(train, tmp_path):
    status, out, err = train("solver.lr=1e9", "solver.warmup_iters=0", "solver.max_iter=20", "solver.max_nonfinite=1")
    message = one_line_error((status, out, err))
    assert "The loss is not finite at step 2 (loss_classifier" in out
    assert "Skipped, 1 so far" in out
    assert "at step 3" in message
    assert f"{tmp_path}/data/images/" in message
    assert "1 steps before it were skipped (solver.max_nonfinite)" in message
    kept = torch.load(tmp_path / "out/nonfinite-3-0.pt", weights_only=True)
    (part,) = kept["parts"]
    assert kept["step"] == 3
    assert not all(torch.isfinite(value).all() for value in part["losses"].values())
    assert [image.shape for image in part["images"]] == [(3, 40, 48)] * 2
    assert part["targets"][0]["file_name"].startswith(f"{tmp_path}/data/images/")
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]


def test_an_unwritable_output_dir_is_an_error(train, tmp_path):
    (tmp_path / "file").write_text("")
    message = one_line_error(train(f"output_dir={tmp_path}/file/out"))
    assert f"output folder {tmp_path}/file/out cannot be written: Not a directory" in message


def test_mismatched_checkpoints_are_refused_and_damaged_ones_skipped(train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    other = [f"weights={finished}/last.pt", "backbone.name=resnet34_fpn", "--eval-only"]
    assert "last.pt holds a resnet18, but the backbone is resnet34" in one_line_error(train(*other))
    assert "last.pt does not fit" in one_line_error(train("--resume", "backbone.name=resnet34_fpn"))
    (tmp_path / "out/last.pt").write_bytes(b"cut")
    assert "after step 2" in train("--resume", "solver.max_iter=2", "solver.steps=[]")[1]
    (tmp_path / "out/last.pt").write_bytes(b"cut")
    (tmp_path / "out/last-1.pt").write_bytes(b"")
    message = one_line_error(train("--resume"))
    assert message.count("cannot be resumed from") == 2
