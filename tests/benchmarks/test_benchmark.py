"""`python -m benchmarks.speed`: its table and its JSON; the contenders compute the same results."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.agreement import detection_differences, loss_difference
from benchmarks.detection import build_detector, inference, make_batch, shared_state
from benchmarks.memory import process_peak, tensor_peak
from benchmarks.networks import frozen_backbone
from benchmarks.peers import peer_backbone, peer_fpn
from benchmarks.settings import Settings
from benchmarks.speed import main
from benchmarks.timing import measure
from resnet_backbones import build_backbone

CPU = torch.device("cpu")


@pytest.fixture
def speed(capfd):
    """`speed(*arguments)` runs the program in this process and returns its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, out, err

    return run


SMALL = ["--name", "resnet18", "--size", "64", "--short-side", "64", "--jpegs", "4", "--images", "20"]
MIB = 2**20


def rows_by_measured(path) -> dict[str, dict[str, dict]]:
    groups: dict[str, dict[str, dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        groups.setdefault(row["measured"], {})[row["contender"]] = row
    return groups


def test_table_and_json_report_the_measurements(speed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    arguments = ["--only", "backbone", "loader", *SMALL, "--rounds", "3", "--json", tmp_path / "b.json"]
    status, out, err = speed(*arguments)
    assert (status, "Traceback" in err) == (0, False)
    lines = out.splitlines()
    assert lines[0].startswith("- hardware: ")
    assert f"torch {torch.__version__.split('+')[0]}" in lines[1]
    assert lines[2] == f"- command: python -m benchmarks.speed {' '.join(map(str, arguments))}"

    groups = rows_by_measured(tmp_path / "b.json")
    assert [measured.split(" (")[0] for measured in groups] == [
        "backbone forward", "backbone forward + backward", "loader"
    ]  # fmt: skip
    for measured, rows in groups.items():
        for contender, row in rows.items():
            (line,) = [line for line in lines if line.startswith(f"| {measured} | {contender} |")]
            if row["seconds"]:
                assert len(row["seconds"]) == 3
                ratios = np.divide(rows["ours"]["seconds"], row["seconds"])
                assert row["ratios"]["ours"] == pytest.approx(np.quantile(ratios, [0.25, 0.5, 0.75]).tolist())
                low, middle, high = np.quantile(row["seconds"], [0.25, 0.5, 0.75])
                assert f"| {middle:.4g} ({low:.4g} to {high:.4g}) | {row['images'] / middle:.4g} |" in line
                assert contender == "ours" or f"| {np.median(ratios):.2f} (" in line
            else:
                assert "not installed" in line
        assert rows["ours"]["seconds"]
    forward, backward, loader = groups.values()
    for rows in (forward, backward):
        assert (rows["timm"]["seconds"], rows["timm"]["remark"]) == ([], "not installed")
    assert forward["torchvision"]["differences"]["features"] < 1e-4
    trained = sum(p.numel() for p in nn.Conv2d(256, 512, 3, bias=False).parameters())
    assert backward["torchvision"]["peak_bytes"] > forward["torchvision"]["peak_bytes"] + 4 * trained
    assert loader["ours"]["images"] == 4


@pytest.mark.slow
def test_scoring_is_measured_as_a_function_and_as_a_command(speed, tmp_path):
    status, _, _ = speed("--only", "evaluator", *SMALL, "--rounds", "1", "--json", tmp_path / "b.json")
    groups = rows_by_measured(tmp_path / "b.json")
    assert status == 0
    assert [measured.split(" (")[0] for measured in groups] == [
        "scoring of bbox, CPU time", "the whole command for bbox, CPU time",
        "scoring of segm, CPU time", "the whole command for segm, CPU time"
    ]  # fmt: skip
    boxes, _, masks, _ = groups.values()
    for scoring in (boxes, masks):
        assert scoring["pycocotools"]["differences"] == {"metrics": 0}
        assert scoring["pycocotools"]["remark"] == "metrics identical: yes"


@pytest.mark.slow
def test_the_profile_names_the_operators_of_a_training_step(speed, tmp_path):
    status, out, _ = speed("--only", "profile", *SMALL, "--rounds", "1", "--json", tmp_path / "b.json")
    assert status == 0
    (rows,) = rows_by_measured(tmp_path / "b.json").values()
    whole = rows.pop("ours")["median"]
    assert sum(row["median"] for row in rows.values()) == pytest.approx(whole)
    assert {"aten::mm", "aten::convolution_backward", "everything else"} <= set(rows)
    assert f"{100 * rows['aten::mm']['median'] / whole:.1f} %" in out


@pytest.mark.slow
def test_timed_detectors_give_the_same_results(speed, tmp_path):
    status, _, _ = speed("--only", "detector", *SMALL, "--rounds", "2", "--json", tmp_path / "b.json")
    assert status == 0
    training, inference = rows_by_measured(tmp_path / "b.json").values()
    assert training["torchvision"]["differences"]["losses"] < 1e-5
    assert inference["torchvision"]["differences"]["unpaired"] == 0
    for rows in (training, inference):
        ratio = np.median(np.divide(rows["ours"]["seconds"], rows["torchvision"]["seconds"]))
        assert rows["torchvision"]["ratios"]["ours"][1] == pytest.approx(ratio)


@pytest.mark.slow
def test_memory_of_tensors_and_processes_is_reported(speed, tmp_path):
    status, out, _ = speed("--only", "memory", *SMALL, "--json", tmp_path / "b.json")
    assert status == 0
    (rows,) = rows_by_measured(tmp_path / "b.json").values()
    for contender in ("ours", "torchvision", "torchvision, BN in eval mode"):
        row = rows[contender]
        assert row["seconds"] == []
        assert row["process_bytes"] > row["peak_bytes"] > 50 * MIB  # the gradients of the box head alone
        ratio = rows["ours"]["peak_bytes"] / row["peak_bytes"]
        assert (
            contender == "ours" or f"| {contender} | – | – | – | {row['peak_bytes'] / MIB:.1f} ({ratio:.2f}) |" in out
        )


@pytest.mark.slow
def test_ablation_times_every_variant(speed, tmp_path):
    status, _, _ = speed("--only", "ablation", *SMALL, "--rounds", "2", "--json", tmp_path / "b.json")
    assert status == 0
    (rows,) = rows_by_measured(tmp_path / "b.json").values()
    assert list(rows) == ["ours", "without fold_norms", "without channels_last", "without RoIAlign as a weighted sum",
                          "with fused SGD"]  # fmt: skip
    assert all(len(row["seconds"]) == 2 for row in rows.values())


@pytest.mark.slow
def test_deployed_detectors_give_the_same_detections(speed, tmp_path):
    status, _, _ = speed("--only", "deployment", *SMALL, "--rounds", "2", "--json", tmp_path / "b.json")
    assert status == 0
    (rows,) = rows_by_measured(tmp_path / "b.json").values()
    assert list(rows)[:3] == ["ours", "ours plain", "ours compiled"]
    for contender in ("ours plain", "ours compiled", "torch.export fp32", "onnxruntime fp32", "OpenVINO fp32"):
        if rows[contender]["seconds"]:  # else it is not installed
            assert rows[contender]["differences"]["unpaired"] == 0
            assert len(rows[contender]["seconds"]) == 2


def test_peers_train_the_same_parameters():
    net = build_backbone("resnet18_fpn")
    ours = {name: frozen_backbone(name) for name in ("resnet18", "resnet18_fpn")}
    body = {name.removeprefix("body."): v for name, v in net.state_dict().items() if name.startswith("body.")}
    for theirs, name in [
        (peer_backbone("torchvision", "resnet18", body), "resnet18"),
        (peer_backbone("timm", "resnet18", body), "resnet18"),
        (peer_fpn("torchvision", "resnet18", net.state_dict()), "resnet18_fpn"),
    ]:
        assert {n for n, p in theirs.named_parameters() if p.requires_grad} == {
            n for n, p in ours[name].named_parameters() if p.requires_grad
        }


@pytest.mark.slow
def test_compiled_net_is_a_second_baseline_of_ratios(speed, tmp_path):
    status, out, _ = speed("--only", "backbone", *SMALL, "--compile", "--rounds", "2", "--json", tmp_path / "b.json")
    assert status == 0
    assert "| ours / it | ours compiled / it |" in out
    for rows in rows_by_measured(tmp_path / "b.json").values():
        ratios = np.divide(rows["ours compiled"]["seconds"], rows["torchvision"]["seconds"])
        assert rows["torchvision"]["ratios"]["ours compiled"][1] == pytest.approx(np.median(ratios))
        assert rows["torchvision compiled"]["seconds"]


def test_detectors_agree_on_the_same_weights_and_a_changed_weight_shows():
    settings = Settings(name="resnet18", short_side=64)
    state, batch = shared_state(settings), make_batch(settings)
    ours, theirs = (build_detector(who, settings, state) for who in ("ours", "torchvision"))
    found = [inference(who, m, settings)()[0] for who, m in (("ours", ours), ("torchvision", theirs))]
    assert len(found[0]["boxes"]) > 20
    apart = detection_differences(*found)
    assert (apart["unpaired"], apart["boxes, px"] < 1e-2, apart["scores"] < 1e-4) == (0, True, True)
    assert loss_difference(ours.train(), theirs.train(), *batch) < 1e-5
    with torch.no_grad():
        theirs.rpn.head.cls_logits.bias += 0.01
    assert loss_difference(ours, theirs, *batch) > 1e-4


def test_detections_are_paired_by_class_and_location():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    ours = {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    theirs = {"boxes": boxes.flip(0) + 0.25, "labels": torch.tensor([3, 2, 4]), "scores": torch.tensor([0.7, 0.7, 0.9])}
    apart = detection_differences(ours, theirs)
    assert apart["unpaired"] == 1
    assert apart["boxes, px"] == 0.25
    assert apart["scores"] == pytest.approx(0.1)
    empty = {key: value[:0] for key, value in ours.items()}
    assert detection_differences(empty, theirs) == {"unpaired": 3}


def test_contenders_take_turns_and_none_is_always_first():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    rows = measure("turns", runs | {"d": "not installed"}, images=1, rounds=3, warmup=1, device=CPU)
    rounds = [calls[k : k + 3] for k in range(0, len(calls), 3)]
    assert len(rounds) == 4
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert all(one[0] != other[0] for one, other in pairwise(rounds))
    assert [(len(row.seconds), row.remark) for row in rows] == [(3, "")] * 3 + [(0, "not installed")]


def hold_64_mib():
    return lambda: torch.ones(64 * MIB, dtype=torch.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a process")
@pytest.mark.slow
def test_process_peak_is_what_its_calls_hold():
    assert 64 * MIB <= process_peak(hold_64_mib) < 128 * MIB


def test_tensor_peak_is_the_most_held_at_once():
    kept = torch.ones(8 * MIB, dtype=torch.uint8)

    def run():
        for _ in range(3):
            a = kept + 1
            b = a + kept
            del a, b

    assert 16 * MIB <= tensor_peak(run, CPU) < 17 * MIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "bakbone"], "Unknown part 'bakbone'. Did you mean backbone"),
        (["--name", "resnet51"], "Unknown backbone 'resnet51'. Did you mean"),
        (["--rounds", "0"], "--rounds is 0; it must be at least 1."),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'; see --help."),
        (["--short-side", "16"], "--size and --short-side must be at least 32"),
        (["--amp", "fp8"], "Unknown --amp 'fp8'. Available: bf16, none."),
        (["--device", "tpu"], "Unknown --device 'tpu'."),
        (["--json", "nowhere/b.json"], "nowhere"),
    ],
)
def test_invalid_arguments_give_a_one_line_error(speed, arguments, message):
    status, _, err = speed(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused(speed):
    status, _, err = speed("--device", "cuda")
    assert (status, err) == (2, "error: --device is cuda, but there is no GPU; leave it out.\n")
