"""Weights converted between libraries, without detectron2: names, folding, class order, and refused files."""

import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from helpers import randomize_statistics
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import load_classifier
from resnet_backbones.cli.convert import FORMATS as CHOICES
from resnet_backbones.cli.converting import recognize_backbone
from resnet_backbones.detectors.torchvision import mask_rcnn
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import Normalize, Preprocessing, imagenet
from resnet_backbones.weights import FORMATS, Checkpoint, detect_format, from_ours, read_checkpoint, read_ours, to_ours
from resnet_backbones.weights.folding import fold_mean, fold_std
from resnet_backbones.weights.names import CAFFE2, DETECTRON2, OURS, renames


def with_statistics(net: nn.Module) -> nn.Module:
    """`net` in eval mode, with non-trivial norm statistics."""
    torch.manual_seed(3)
    randomize_statistics(net)
    return net.eval()


@pytest.fixture(scope="module")
def resnet18():
    return with_statistics(torchvision.models.resnet18(num_classes=10))


def published_by_caffe2(net: nn.Module) -> dict[str, np.ndarray]:
    """The arrays of a torchvision ResNet in the format of He et al.: BGR in [0, 255], no std, affine norms."""
    arrays, state = {}, net.state_dict()
    stages = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}

    def affine(norm: str, name: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        arrays[f"{name}_s"] = scale.numpy()
        arrays[f"{name}_b"] = (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale).numpy()

    std = 255 * torch.tensor([0.229, 0.224, 0.225])
    arrays["conv1_w"] = (state["conv1.weight"] / std[:, None, None]).flip(1).numpy()
    affine("bn1", "res_conv1_bn")
    for layer, stage in stages.items():
        for k in range(len(getattr(net, layer))):
            block, name = f"{layer}.{k}", f"{stage}_{k}_branch"
            for conv, letter in (("1", "2a"), ("2", "2b"), ("3", "2c")):
                arrays[f"{name}{letter}_w"] = state[f"{block}.conv{conv}.weight"].numpy()
                affine(f"{block}.bn{conv}", f"{name}{letter}_bn")
            if f"{block}.downsample.0.weight" in state:
                arrays[f"{name}1_w"] = state[f"{block}.downsample.0.weight"].numpy()
                affine(f"{block}.downsample.1", f"{name}1_bn")
    arrays["fc1000_w"], arrays["fc1000_b"] = state["fc.weight"].numpy(), state["fc.bias"].numpy()
    arrays["conv1_w_momentum"] = np.zeros(3, np.float32)
    return arrays


def stride_in_1x1(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return net


def photograph(shared) -> torch.Tensor:
    return pil_to_tensor(Image.open(next((shared / "bccd/JPEGImages").glob("*.jpg"))).convert("RGB"))


@pytest.mark.parametrize("wrapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_published_caffe2_pickle_gives_the_same_features_in_rgb(shared, tmp_path, wrapped):
    net = with_statistics(stride_in_1x1(torchvision.models.resnet50()))
    arrays = published_by_caffe2(net)
    content = {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True} if wrapped else {"blobs": arrays}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    backbone = build_backbone("resnet50", stride_in_1x1=True, weights=str(tmp_path / "R-50.pkl")).eval()
    image = photograph(shared)[:, :256, :320]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image / 255 - mean[:, None, None]) / std[:, None, None])[None]
    with torch.no_grad():
        ours = backbone(Normalize(backbone.preprocessing)(image)[None])
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for layer, feature in ((net.layer1, "res2"), (net.layer2, "res3"), (net.layer3, "res4"), (net.layer4, "res5")):
            x = layer(x)
            # The published mean is rounded: 123.675 / 255 is 0.485 exactly, 103.53 / 255 0.406.
            assert (ours[feature] - x).abs().max() / x.abs().max() < 1e-5
    assert backbone.preprocessing.channel_order == "RGB"
    with pytest.raises(UserError, match="stride_in_1x1=True, but the backbone is built with stride_in_1x1=None"):
        build_backbone("resnet50", weights=str(tmp_path / "R-50.pkl"))


@pytest.mark.parametrize(
    ("to", "suffix"),
    [("detectron2", ".pkl"), ("caffe2", ".pkl"), ("timm", ".pth"), ("torchvision", ".safetensors")],
)
def test_a_round_trip_keeps_the_features(tool, resnet18, tmp_path, to, suffix):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    there, back = str(tmp_path / f"there{suffix}"), str(tmp_path / "back.safetensors")
    status, out, err = tool("convert_weights", tmp_path / "r18.pth", there, "--to", to)
    assert status == 0, err
    assert "architecture resnet18" in out
    assert "features read back here: largest difference" in out
    assert ("in torchvision's own network: largest difference" in out) == (to == "torchvision")
    assert detect_format(read_checkpoint(there).state) == (to if to in ("detectron2", "caffe2") else "resnet_backbones")
    assert tool("convert_weights", there, back, "--to", "resnet_backbones")[0] == 0
    one, other = build_backbone("resnet18", weights=str(tmp_path / "r18.pth")), build_backbone("resnet18", weights=back)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for feature, expected in one.eval()(x).items():
            assert (other.eval()(x)[feature] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_pre_activation_round_trip_through_timm_keeps_the_weights(tool, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = with_statistics(timm.create_model("resnetv2_50", num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = tmp_path / "ours.safetensors"
    assert tool("convert_weights", tmp_path / "timm.pth", ours, "--to", "resnet_backbones")[0] == 0
    status, out, _ = tool("convert_weights", ours, tmp_path / "back.pth", "--to", "timm")
    assert status == 0
    assert "features in timm's own network: largest difference" in out
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    again = timm.create_model("resnetv2_50", num_classes=7)
    again.load_state_dict(back)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in again.state_dict().items())
    assert load_classifier(str(ours)).fc.out_features == 7


def test_renaming_is_one_to_one():
    for laterals in (3, 4):
        there, back = renames(OURS, DETECTRON2, laterals), renames(DETECTRON2, OURS, laterals)
        assert len(there) == len(set(there.values())) == len(back)
        assert all(back[theirs] == ours for ours, theirs in there.items())
    assert renames(OURS, CAFFE2)["layer3.22.bn3.running_var"] == "res4_22_branch2c_bn_riv"
    assert renames(OURS, DETECTRON2)["backbone.fpn.inner_blocks.3.0.weight"] == "backbone.fpn_lateral5.weight"


def test_the_background_class_moves_from_first_to_last_and_back():
    torch.manual_seed(0)
    model = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 4, box_head_width=16, mask_head_width=8)
    state = model.state_dict()
    there = from_ours(Checkpoint(state, {}), "detectron2")
    assert not [name for name in there.skipped if "num_batches" not in name]
    moved = there.checkpoint.state
    score, box = "roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"
    assert torch.equal(moved[score], torch.cat([state[score][1:], state[score][:1]]))
    assert torch.equal(moved[box], state[box][4:])
    assert moved["roi_heads.mask_head.predictor.weight"].shape[0] == 4
    back = to_ours(there.checkpoint)
    assert back.checkpoint.state.keys() == state.keys()
    for name, tensor in ((name, tensor) for name, tensor in state.items() if tensor.ndim):
        background = 4 if "bbox_pred" in name and "roi" in name else 1 if "mask_fcn_logits" in name else 0
        assert torch.equal(back.checkpoint.state[name][background:], tensor[background:]), name
        assert not back.checkpoint.state[name][:background].any()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("fold", [(), ("std",)])
def test_folding_is_exact(resnet18, order, fold):
    ours = Checkpoint(resnet18.state_dict(), {"preprocessing": vars(Preprocessing())})
    there = from_ours(ours, "resnet_backbones", order, fold).checkpoint
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    folded = there.preprocessing()
    assert folded.channel_order == order
    if fold:
        assert folded.input_range == 255
        np.testing.assert_allclose(folded.as_rgb()[0], [0.485, 0.456, 0.406], rtol=1e-6)
    convolve = torch.nn.functional.conv2d
    one = convolve(Normalize(Preprocessing())(image)[None], resnet18.conv1.weight, stride=2, padding=3)
    other = convolve(Normalize(folded)(image)[None], there.state["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_the_folded_mean_is_exact_away_from_the_border(resnet18):
    state, preprocessing = fold_mean(*fold_std(resnet18.state_dict(), Preprocessing()))
    assert list(preprocessing.mean) == [0, 0, 0]
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    norm = torch.nn.functional.batch_norm

    def stem(weights, scaling):
        x = torch.nn.functional.conv2d(Normalize(scaling)(image)[None], weights["conv1.weight"], stride=2, padding=3)
        statistics = [weights[f"bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return norm(x, *statistics)[:, :, 2:-2, 2:-2]

    torch.testing.assert_close(
        stem(state, preprocessing), stem(resnet18.state_dict(), Preprocessing()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_backbone_is_recognized_by_its_tensors():
    for name in ("resnet18", "resnext50_32x4d", "preact_resnet50", "seresnet50", "plain34", "cifar_resnext29_8x64d"):
        with torch.device("meta"):
            assert recognize_backbone(build_backbone(name).state_dict()) == name
    with torch.device("meta"):
        assert recognize_backbone(build_backbone("resnet50d_fpn").state_dict()) == "resnet50d"
        assert recognize_backbone(build_backbone("vgg11").state_dict()) is None
        assert recognize_backbone(build_backbone("cifar_resnet20").state_dict()) is None  # or cifar_plain20


def test_only_files_of_detectron2s_zoo_are_converted_from_bgr():
    resnet50 = torchvision.models.resnet50()
    state = from_ours(Checkpoint(resnet50.state_dict(), {}), "detectron2").checkpoint.state
    plain, zoo = to_ours(Checkpoint(state, {})), to_ours(Checkpoint(state, {"author": "Detectron2 Model Zoo"}))
    assert plain.checkpoint.preprocessing() is None
    assert torch.equal(plain.checkpoint.state["conv1.weight"], resnet50.conv1.weight)
    assert torch.equal(zoo.checkpoint.state["conv1.weight"], resnet50.conv1.weight.flip(1))
    assert zoo.checkpoint.preprocessing().as_rgb() == imagenet("BGR").as_rgb()
    assert zoo.checkpoint.metadata["architecture"]["options"] == {"stride_in_1x1": True}


class CallsPrintOnLoad:
    def __reduce__(self):
        return print, ("code",)


def test_a_malicious_pickle_is_refused_in_one_line_without_output(tool, tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"conv1_w": CallsPrintOnLoad()}}))
    status, _, err = tool("convert_weights", tmp_path / "evil.pkl", tmp_path / "out.pth", "--to", "torchvision")
    assert status == 2
    assert re.fullmatch(r"error: The weights file .*evil.pkl .* it asks for builtins.print\. Save .*\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_an_output_that_fails_the_comparison_is_not_written(tool, resnet18, tmp_path):
    torch.save(resnet18.state_dict() | {"conv1.weight": torch.full((64, 3, 7, 7), float("inf"))}, tmp_path / "r18.pth")
    (tmp_path / "out.pth").write_text("old")
    status, _, err = tool("convert_weights", tmp_path / "r18.pth", tmp_path / "out.pth", "--to", "detectron2")
    assert status == 2
    assert "error: The converted weights do not give the same features" in err
    assert (tmp_path / "out.pth").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"r18.pth", "out.pth"}


@pytest.mark.parametrize("to", ["detectron2", "caffe2"])
def test_pickles_have_the_form_that_detectron2_loads(tool, resnet18, tmp_path, to):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    assert tool("convert_weights", tmp_path / "r18.pth", tmp_path / "out.pkl", "--to", to)[0] == 0
    with open(tmp_path / "out.pkl", "rb") as file:
        assert file.read(2) == b"\x80\x02"  # protocol 2
        file.seek(0)
        content = pickle.load(file, encoding="latin1")  # as detectron2's DetectionCheckpointer does
    # If both are set, detectron2 renames Caffe2's tensors.
    marks = (content["__author__"], content.get("matching_heuristics", False))
    assert marks == (("Caffe2", True) if to == "caffe2" else ("resnet_backbones", False))
    assert all(isinstance(name, str) and isinstance(a, np.ndarray) for name, a in content["model"].items())


def test_files_of_every_kind_keep_the_metadata(tool, resnet18, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    for suffix in (".pkl", ".pth", ".safetensors"):
        out = tmp_path / f"out{suffix}"
        arguments = ["--to", "detectron2", "--source-order", "RGB", "--channel-order", "BGR", "--fold", "std"]
        status, printed, _ = tool("convert_weights", tmp_path / "r18.pth", out, *arguments)
        assert status == 0
        assert "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [103.53, 116.28, 123.675]" in printed
        assert read_checkpoint(str(out)).preprocessing().channel_order == "BGR"
        backbone = build_backbone("resnet18", weights=str(out))
        rgb = backbone.preprocessing.as_rgb()
        np.testing.assert_allclose(rgb[0], [0.485, 0.456, 0.406], rtol=1e-6)
        assert read_ours(str(out)).metadata["architecture"] == {"name": "resnet18", "options": {}}


def test_the_command_offers_every_format():
    assert CHOICES == FORMATS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.pth", "o.pth", "--to", "timm"], "weights file gone.pth does not exist"),
        (["{r18}", "o.bin", "--to", "timm"], "o.bin has no known suffix; choose .safetensors, .pth or .pkl"),
        (["{r18}", "no/o.pth", "--to", "timm"], "no/o.pth cannot be written: the folder no does not exist; create it"),
        (["{r18}", "o.pth", "--to", "timm", "--fold", "mean"], "--fold mean needs std"),
        (
            ["{r18}", "o.pth", "--to", "timm", "--name", "resnet81"],
            "Unknown backbone 'resnet81'. Did you mean resnet18",
        ),
    ],
)
def test_bad_arguments_are_refused(tool, resnet18, tmp_path, arguments, message):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    status, _, err = tool("convert_weights", *(a.format(r18=tmp_path / "r18.pth") for a in arguments))
    assert (status, err.count("\n")) == (2, 1)
    assert err.replace("The ", "").startswith(f"error: {message}")


def test_x101_of_caffe2_and_detectron2s_zoo_gets_its_std(tmp_path):
    with torch.device("meta"):
        state = build_backbone("resnext101_32x8d").state_dict()
    shapes = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items() if tensor.ndim}
    mean, std = [123.675 / 255, 116.28 / 255, 103.53 / 255], [58.395 / 255, 57.12 / 255, 57.375 / 255]
    for to, author in (("caffe2", "Caffe2"), ("detectron2", "Detectron2 Model Zoo")):
        theirs = from_ours(Checkpoint(shapes, {}), to).checkpoint.state
        prefix = "backbone.bottom_up." if to == "detectron2" else ""
        theirs = {prefix + name: tensor for name, tensor in theirs.items()}
        ours = to_ours(Checkpoint(theirs, {"author": author})).checkpoint
        np.testing.assert_allclose(ours.preprocessing().as_rgb(), (mean, std), rtol=1e-6)
        assert "architecture" not in ours.metadata  # its stride is in the 3x3, as in ours


def test_mean_and_std_can_be_given(tool, resnet18, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    out = tmp_path / "out.safetensors"
    arguments = [tmp_path / "r18.pth", out, "--to", "resnet_backbones", "--pixel-std", "60", "50", "40"]
    assert "need the order of their numbers: --source-order RGB or BGR" in tool("convert_weights", *arguments)[2]
    assert tool("convert_weights", *arguments, "--source-order", "BGR", "--pixel-mean", "3", "2", "1")[0] == 0
    backbone = build_backbone("resnet18", weights=str(out))
    rgb = [[v / 255 for v in values] for values in ((1, 2, 3), (40, 50, 60))]
    np.testing.assert_allclose(backbone.preprocessing.as_rgb(), rgb)
    assert torch.equal(backbone.conv1.weight, resnet18.conv1.weight.flip(1))
    again = tool("convert_weights", out, tmp_path / "b.pth", "--to", "timm", "--pixel-std", "1", "1", "1")
    assert "states its mean and std; remove --pixel-mean and --pixel-std" in again[2]


def test_weights_with_a_trainers_prefix_are_converted(tool, resnet18, tmp_path):
    torch.save({"state_dict": {f"model.net.{k}": v for k, v in resnet18.state_dict().items()}}, tmp_path / "a.pth")
    status, out, _ = tool("convert_weights", tmp_path / "a.pth", tmp_path / "b.pth", "--to", "torchvision")
    assert status == 0
    assert "architecture resnet18" in out
    assert torch.load(tmp_path / "b.pth", weights_only=True)["model"].keys() == resnet18.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone.bottom_up.stem.conv1.weight", (2,)),
        ("backbone.bottom_up.stem.conv1.weight", (0,)),
        ("roi_heads.box_predictor.cls_score.weight", ()),
        ("roi_heads.box_predictor.bbox_pred.weight", ()),
    ],
)
def test_tensors_of_the_wrong_shape_are_refused(tmp_path, tool, name, shape):
    state = {"backbone.bottom_up.stem.conv1.weight": np.zeros((64, 3, 7, 7), "f4"), name: np.zeros(shape, "f4")}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 2))
    fault = "(The tensors do not have the shapes that their names require|Channels can only be swapped)"
    with pytest.raises(UserError, match=f"model.pkl: {fault}"):
        read_ours(str(path))
    status, _, err = tool("convert_weights", path, tmp_path / "out.pth", "--to", "resnet_backbones")
    assert status == 2
    assert re.search(f"^error: .*model.pkl: {fault}", err)
