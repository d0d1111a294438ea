import copy
import functools
import json
import re

import pytest
import torch
import torchvision
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from resnet_backbones import backbones, build_backbone, list_backbones
from resnet_backbones.analysis.cost import analyze
from resnet_backbones.analysis.truths import load_truths, measure, setting, to_markdown
from resnet_backbones.backbones import register_family, residual
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.cli.list import main as list_names
from resnet_backbones.errors import UserError
from resnet_backbones.models.blocks import BasicBlock

SUMMED = ("parameters", "trainable", "frozen", "flops", "activations")


# Millions of parameters in the papers: arXiv 1512.03385 Table 6 for CIFAR, 1709.01507 Table 2 (28.1, in its text),
# 1603.05027 Table 4 (its 10.2 for 1001 layers are without norms), 1611.05431 Tables 1 and 7; the ImageNet ResNets
# from torchvision.
PAPERS = {
    "resnet18": 11.7, "resnet34": 21.8, "resnet50": 25.6, "resnet101": 44.5, "resnet152": 60.2,
    "resnext50_32x4d": 25.0, "seresnet50": 28.1, "cifar_resnext29_8x64d": 34.4,
    "cifar_resnet20": 0.27, "cifar_resnet32": 0.46, "cifar_resnet44": 0.66, "cifar_resnet56": 0.85,
    "cifar_resnet110": 1.7, "cifar_resnet1202": 19.4, "cifar_preact_resnet110": 1.7, "cifar_preact_resnet164": 1.7,
    "cifar_preact_resnet1001": 10.3,
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_parameter_counts_match_the_papers(name):
    digits = 2 if PAPERS[name] < 1 else 1
    tolerance = 10**-digits if name.startswith("cifar") else 10**-digits / 2  # some are truncated
    assert load_truths()[name]["classifier_parameters"] / 1e6 == pytest.approx(PAPERS[name], abs=tolerance)


# Table 1 of arXiv 1512.03385, in 1e9; some of its numbers are truncated, some rounded.
FLOPS = {"resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}


@pytest.mark.parametrize("name", FLOPS)
def test_flops_match_the_paper(name):
    options = {} if name in ("resnet18", "resnet34") else {"stride_in_1x1": True}
    total = analyze(build_classifier(name, **options), (224, 224))["total"]
    assert total["flops"] / 1e9 == pytest.approx(FLOPS[name], abs=0.1)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnext50_32x4d", "googlenet", "densenet121", "regnet_y_400mf", "convnext_tiny"]
)
def test_flops_and_parameter_counts_match_torchvision(name):
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    truth = load_truths()[name]
    assert truth["classifier_flops"] / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)
    unused = 1536 if name == "convnext_tiny" else 0  # the LayerNorm of its head
    assert truth["classifier_parameters"] + unused == meta["num_params"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet50_fpn", {}), ("seresnet18", {}), ("swin_t", {}), ("resnet18", {"norm": "GN", "output_stride": 8})],
)
def test_flops_agree_with_torchs_own_counter(name, options):
    model = build_backbone(name, **options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 96, 128))
    assert 2 * analyze(model, (96, 128))["total"]["flops"] == counter.get_total_flops()


def test_deformable_convolution_adds_the_cost_of_its_offsets():
    plain = analyze(build_backbone("resnet18"), (64, 64))["res5"]
    for modulated, offsets in ((False, 18), (True, 27)):
        options = {"deform_on": ["res5"], "deform_modulated": modulated}
        deformable = analyze(build_backbone("resnet18", **options), (64, 64))["res5"]
        assert deformable["flops"] - plain["flops"] == 2 * (512 * 9 * offsets * 2 * 2)  # two blocks, 2x2 positions
        assert deformable["activations"] - plain["activations"] == 2 * (offsets * 2 * 2)


def test_activations_agree_with_fvcore():
    from fvcore.nn import ActivationCountAnalysis

    model = build_backbone("seresnet18_fpn").eval()
    theirs = ActivationCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
    assert analyze(model, (64, 64))["total"]["activations"] == theirs.total()


@pytest.mark.parametrize(
    "name",
    ["preact_resnet18_fpn", "seresnet18", "resnet18d", "cifar_preact_resnet110", "vgg11", "densenet121", "googlenet",
     "efficientnet_b0", "regnet_x_400mf", "convnext_tiny", "swin_t_fpn", "zfnet", "alexnet"],
)  # fmt: skip
def test_stages_sum_to_the_total_and_shapes_match_the_features(name):
    model = build_backbone(name)
    rows = analyze(model, (96, 128))
    total = rows.pop("total")
    for key in SUMMED:
        assert sum(row[key] for row in rows.values()) == total[key]
    assert total["parameters"] == total["trainable"] == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        features = model.eval()(torch.rand(1, 3, 96, 128))
    outputs = {f: tuple(shape) for row in rows.values() for f, shape in row["output"].items()}
    assert outputs.items() >= {f: tuple(x.shape[1:]) for f, x in features.items()}.items()
    assert list(rows)[:2] == ["stem", "res2"]
    assert all(row["output"] for row in rows.values())


@pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")
def test_frozen_and_trainable_parameters_are_counted():
    plain = analyze(build_classifier("resnet18"), (32, 32))
    frozen = analyze(build_classifier("resnet18", norm="FrozenBN", freeze_at=2), (32, 32))
    for row in plain:
        assert frozen[row]["parameters"] == plain[row]["parameters"]
        assert frozen[row]["parameters"] == frozen[row]["frozen"] + frozen[row]["trainable"]
        assert frozen[row]["flops"] == plain[row]["flops"]
    assert frozen["stem"]["trainable"] == frozen["res2"]["trainable"] == 0
    assert frozen["res3"]["frozen"] == 2 * 5 * 128  # the FrozenBN of four convolutions and a shortcut
    assert frozen["fc"]["frozen"] == 0


def test_analyze_leaves_the_model_unchanged():
    model = build_classifier("resnet18", in_channels=1)
    model.backbone.layer1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rows = analyze(model, (64, 64), in_channels=1)
    assert rows["stem"]["output"] == {"stem": [64, 16, 16]}
    assert rows["fc"]["output"] == {"fc": [1000]}
    assert model.training
    assert not model.backbone.layer1.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_timm_networks_are_analyzed():
    pytest.importorskip("timm")
    rows = analyze(build_backbone("timm:resnet18"), (64, 64))
    assert rows["total"]["flops"] == analyze(build_backbone("resnet18"), (64, 64))["total"]["flops"]
    whole = analyze(build_backbone("timm:hrnet_w18_small"), (64, 64))
    assert list(whole) == ["backbone", "total"]
    assert list(whole["backbone"]["output"]) == ["res2", "res3", "res4", "res5"]


def test_too_small_image_is_refused():
    with pytest.raises(UserError, match="3x1x1"):
        analyze(build_backbone("alexnet"), (1, 1))


def test_truths_hold_every_name_with_its_parameters_and_features(monkeypatch):
    for init in ("kaiming_uniform_", "kaiming_normal_", "trunc_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, init, lambda tensor, *args, **kwargs: tensor)  # which takes half of the time
    table = load_truths()
    assert list(table) == list_backbones()
    found = {}
    for name in table:
        if f"{name}_fpn" not in table:  # NAME comes as the body of NAME_fpn
            with torch.device("meta"):
                found[name] = build_backbone(name)
        if name.endswith("_fpn"):
            found[name.removesuffix("_fpn")] = found[name].body
    for name, truth in table.items():
        assert truth["parameters"] == sum(p.numel() for p in found[name].parameters()), name
        assert truth["features"] == {f: list(shape) for f, shape in found[name].output_shape().items()}, name
        if not name.endswith("_fpn"):
            fc = (list(truth["features"].values())[-1][0] + 1) * setting(name)[1]
            assert truth["classifier_parameters"] == truth["parameters"] + fc, name


QUICK = ("resnet18", "preact_resnet18_fpn", "cifar_resnet20", "regnet_x_400mf", "zfnet")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_backbones()]
)
def test_truths_equal_a_new_measurement(name):
    assert load_truths()[name] == measure(name)


def test_truths_have_one_line_per_name_and_the_table_is_up_to_date():
    table = load_truths()
    first, *lines, last = (ROOT / "resnet_backbones/analysis/truths.json").read_text().splitlines()
    assert (first, last) == ("{", "}")
    assert [list(json.loads(f"{{{line.rstrip(',')}}}")) for line in lines] == [[name] for name in list_backbones()]
    block = re.search("<!-- models -->\n(.*)<!-- /models -->", (ROOT / "configs/README.md").read_text(), re.DOTALL)
    assert block[1] == to_markdown(table), "run `resnet-backbones write-truths 'names that changed'`"


def test_analyze_model_prints_a_table(tool):
    status, out, err = tool("analyze_model", "resnet18_fpn", "norm=FrozenBN", "--input", "64x96", "freeze_at=2")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == ["parameters", "trainable", "frozen", "flops", "activations", "output"]
    assert [line.split()[0] for line in lines[1:]] == ["stem", "res2", "res3", "res4", "res5", "fpn", "total"]
    assert lines[1].split()[1:4] == ["9,536", "0", "9,536"]
    assert lines[1].endswith("64x16x24")
    assert "p2 256x16x24, p3 256x8x12" in lines[6]


def test_analyze_model_prints_json(tool):
    status, out, _ = tool(
        "analyze_model", "cifar_resnet20", "--classifier", "--json", "drop_path=1e-1", "in_channels=1"
    )
    content = json.loads(out)
    assert status == 0
    assert content["input"] == [32, 32]
    assert content["options"] == {"drop_path": 0.1, "in_channels": 1, "num_classes": 10}
    assert content["rows"]["fc"]["parameters"] == 650
    assert content["rows"]["total"]["parameters"] == load_truths()["cifar_resnet20"]["classifier_parameters"] - 2 * 144


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet_18"], "Did you mean resnet18"),
        (["resnet18", "--input", "800by1333"], "HEIGHTxWIDTH"),
        (["resnet18", "--input", "0x64"], "HEIGHTxWIDTH"),
        (["resnet18", "--input", "64x0"], "HEIGHTxWIDTH"),
        (["alexnet", "--input", "2x2"], "cannot take an image of 3x2x2"),
        (["resnet18", "norm"], "key=value"),
        (["resnet18", "=3"], "key=value"),
        (["resnet18", "width=" + "9" * 5000], "key=value"),
        (["resnet18", "out_features=[res4"], "key=value"),
        (["resnet18", "normm=GN"], "Did you mean norm"),
        (["resnet18", "freeze_at=nothing"], "freeze_at"),
        (["resnet18", "in_channels=three"], "in_channels"),
        (["cifar_resnet20", "in_channels=-1"], "in_channels"),
        (["zfnet", "in_channels=0"], "0x224x224"),
        (["resnet18_fpn", "--classifier"], "FPN"),
        (["resnet18", "num_classes=3"], "num_classes"),
        (["resnet18", "--classifier", "num_classes=-3"], "num_classes"),
    ],
)
def test_analyze_model_errors_are_one_line(tool, arguments, message):
    status, out, err = tool("analyze_model", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_list_prints_one_name_per_line(capsys):
    list_names([])
    assert capsys.readouterr().out.splitlines() == list_backbones()
    list_names(["resnet18*_fpn"])
    assert capsys.readouterr().out.splitlines() == ["resnet18_fpn", "resnet18d_fpn"]
    with pytest.raises(SystemExit):
        list_names(["resnet19"])
    assert capsys.readouterr().err.startswith("error: No backbone matches 'resnet19'")


def test_list_prints_a_table(capsys):
    list_names(["preact*", "--table"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list_backbones("preact*")
    assert lines[1].split()[:3] == ["preact_resnet101", "42.49M", "7.80G"]
    assert lines[1].endswith("  res2 256/4, res3 512/8, res4 1024/16, res5 2048/32")


def test_list_table_measures_a_name_without_truths(capsys, monkeypatch):
    monkeypatch.setattr(backbones, "BACKBONES", copy.deepcopy(backbones.BACKBONES))  # restored after the test
    register_family("own10", functools.partial(residual, block=BasicBlock, depths=(1, 1, 1, 1)))
    assert "own10" not in load_truths()
    list_names(["own10", "--table"])
    row = "own10 4.91M 0.89G res2 64/4, res3 128/8, res4 256/16, res5 512/32"
    assert capsys.readouterr().out.splitlines()[1].split() == row.split()
