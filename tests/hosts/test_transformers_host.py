"""Our backbones in transformers, if it is installed: its backbone API, its files, and its detectors."""

import re
import warnings

import numpy as np
import pytest
import torch
from conftest import REPRESENTATIVES
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from resnet_backbones import build_backbone, fold_norms, fuse, list_backbones
from resnet_backbones.backbones import RandomFrozenWarning
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.errors import UserError
from resnet_backbones.weights import load_weights, save_safetensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
pytest.importorskip("scipy", reason="transformers' losses need scipy: pip install scipy")

from resnet_backbones.hosts import transformers as host  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")

# Every name in `make test-slow`, one of each family, and its FPN, in `make test`.
FAST = {*REPRESENTATIVES, *(f"{name}_fpn" for name in REPRESENTATIVES), "cifar_resnet20"}
NAMES = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in list_backbones()]
PYRAMID = ["res3", "res4", "res5"]
ALL = ["res2", *PYRAMID]

DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 8, "num_labels": 3, "dropout": 0.0,
}  # fmt: skip
RT_DETR = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_in_channels": [128, 256, 512],
    "decoder_in_channels": [32, 32, 32], "num_queries": 10, "num_denoising": 4, "num_labels": 3,
    "hidden_expansion": 0.5,
}  # fmt: skip
DAB = {k: v for k, v in DETR.items() if k != "d_model"} | {"hidden_size": 32}
MASKFORMER = {"mask_feature_size": 32, "fpn_feature_size": 32, "num_labels": 3}
MASK2FORMER = {
    "mask_feature_size": 32, "num_labels": 3,
    "feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "encoder_feedforward_dim": 32, "decoder_layers": 2,
    "dim_feedforward": 32, "num_attention_heads": 2, "num_queries": 8, "train_num_points": 100,
}  # fmt: skip
UPERNET = {"hidden_size": 32, "pool_scales": [1, 2], "auxiliary_in_channels": 256, "num_labels": 3}

# model of transformers: the rest of its class name, the features that it takes, the settings of a small one
HOSTS = {
    "Detr": ("ForObjectDetection", ["res5"], DETR),
    "ConditionalDetr": ("ForObjectDetection", ["res5"], DETR),
    "DeformableDetr": ("ForObjectDetection", PYRAMID, DETR | {"num_feature_levels": 4}),
    "DabDetr": ("ForObjectDetection", ["res5"], DAB),
    "TableTransformer": ("ForObjectDetection", ["res5"], DETR),
    "RTDetr": ("ForObjectDetection", PYRAMID, RT_DETR),
    "RTDetrV2": ("ForObjectDetection", PYRAMID, RT_DETR),
    "DFine": ("ForObjectDetection", PYRAMID, RT_DETR),
    "MaskFormer": ("ForInstanceSegmentation", ALL, MASKFORMER),
    "Mask2Former": ("ForUniversalSegmentation", ALL, MASK2FORMER),
    "UperNet": ("ForSemanticSegmentation", ALL, UPERNET),
}


def build_host(model: str, name: str = "resnet18", settings: dict | None = None, **options) -> nn.Module:
    """A small `model` of transformers on one of our backbones, with random weights."""
    task, features, small = HOSTS[model]
    if model == "MaskFormer":
        small = small | {"decoder_config": transformers.DetrConfig(**DETR)}
    backbone_config = host.config(name, out_features=features, **options)
    make_config, make_model = getattr(transformers, f"{model}Config"), getattr(transformers, model + task)
    return make_model(make_config(backbone_config=backbone_config, **small | (settings or {})))


def backbone_of(model: nn.Module) -> host.ResidualBackbone:
    return next(module for module in model.modules() if isinstance(module, host.ResidualBackbone))


def with_statistics(model: nn.Module) -> nn.Module:
    """`model` in eval mode, with non-trivial norm statistics."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def targets_of(model: str, images: torch.Tensor) -> dict:
    """Labels in the form that `model` takes: two objects per image, or a class per pixel."""
    count, _, height, width = images.shape
    if model == "UperNet":
        return {"labels": torch.randint(3, (count, height, width))}
    if model in ("MaskFormer", "Mask2Former"):
        masks = torch.zeros(2, height, width)
        masks[0, : height // 2, : width // 2] = masks[1, height // 2 :, width // 2 :] = 1
        return {"mask_labels": [masks] * count, "class_labels": [torch.tensor([0, 2])] * count}
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.4], [0.6, 0.7, 0.4, 0.2]])
    return {"labels": [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}] * count}


def outputs_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The predictions of `model`, without the losses, which need labels."""
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    return [outputs[name] for name in names if name in outputs]


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_feature_maps_match_build_backbone(name):
    torch.manual_seed(0)
    expected = build_backbone(name, out_features=["res3", "res5"]).eval()
    torch.manual_seed(0)
    model = host.backbone(name, out_features=["res3", "res5"]).eval()
    assert isinstance(model, transformers.AutoBackbone._model_mapping[type(model.config)])
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, outputs = expected(images), model(images, output_hidden_states=True)
    for feature, theirs in zip(features.values(), outputs.feature_maps, strict=True):
        torch.testing.assert_close(theirs, feature, rtol=0, atol=0)
    assert model.channels == [shape.channels for shape in expected.output_shape().values()]
    assert model.out_features == ["res3", "res5"]
    assert [model.stage_names[i] for i in model.out_indices] == ["res3", "res5"]
    assert len(outputs.hidden_states) == len(model.stage_names)
    assert model(images, return_dict=False)[0][1].shape == outputs.feature_maps[1].shape


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_an_auto_backbone(name):
    config = host.config(name, out_indices=[1, -1])
    again = transformers.AutoConfig.for_model(**config.to_dict())
    with torch.device("meta"):
        model = transformers.AutoBackbone.from_config(again)
        maps = model(torch.zeros(1, 3, 64, 64)).feature_maps
    assert [m.shape[1] for m in maps] == model.channels
    assert model.out_features == [model.stage_names[1], model.stage_names[-1]]


def test_resnet50_matches_transformers_own():
    def theirs(key: str) -> str:
        """The name of a tensor of torchvision's ResNet-50 in transformers' own."""
        key = re.sub(r"^(conv1|bn1)", r"embedder.embedder.\1", key)
        key = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", key)
        key = re.sub(r"(layers\.\d+)\.(conv|bn)(\d)", lambda m: f"{m[1]}.layer.{int(m[3]) - 1}.{m[2]}{m[3]}", key)
        key = key.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
        return re.sub(r"(conv|bn)\d\.", lambda m: {"conv": "convolution.", "bn": "normalization."}[m[1]], key)

    ours = with_statistics(host.backbone("resnet50", out_indices=[0, 1, 2, 3, 4]))
    config = transformers.ResNetConfig(out_features=["stem", "stage1", "stage2", "stage3", "stage4"])
    own = transformers.AutoBackbone.from_config(config).eval()
    own.load_state_dict({theirs(key): tensor for key, tensor in ours.net.state_dict().items()})
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        for a, b in zip(ours(images).feature_maps, own(images).feature_maps, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    assert ours.channels == own.channels
    assert ours.out_indices == own.out_indices


def test_saved_files_have_our_tensor_names_and_load_both_ways(tmp_path):
    model = with_statistics(host.backbone("preact_resnet18", out_features=ALL, norm="FrozenBN", weights=None))
    images = torch.rand(1, 3, 64, 64)
    expected = model(images).feature_maps
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.net.state_dict())
    again, info = host.ResidualBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.options == {"norm": "FrozenBN"}
    for a, b in zip(again(images).feature_maps, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    net = build_backbone("preact_resnet18", weights=str(tmp_path / "model.safetensors")).eval()
    torch.testing.assert_close(net(images)["res5"], expected[-1], rtol=0, atol=1e-5)
    net.conv1.weight.data.mul_(1.5)  # a file written by us
    save_safetensors(tmp_path / "model.safetensors", net.state_dict(), {"architecture": net.architecture})
    again = host.ResidualBackbone.from_pretrained(tmp_path, out_features=["res5"])
    torch.testing.assert_close(again(images).feature_maps[0], net(images)["res5"], rtol=0, atol=1e-5)


def test_weights_load_from_the_config_or_later_and_are_saved_with_the_detector(tmp_path):
    source = str(tmp_path / "weights.safetensors")
    net = with_statistics(build_backbone("resnet18"))
    save_safetensors(tmp_path / "weights.safetensors", net.state_dict(), {"architecture": net.architecture})
    images = torch.rand(1, 3, 64, 64)
    for model in HOSTS:
        torch.manual_seed(0)
        by_config = build_host(model, weights=source)
        maps = backbone_of(by_config.eval())(images).feature_maps
        torch.testing.assert_close(maps[-1], net(images)["res5"], rtol=0, atol=1e-5)
    torch.manual_seed(0)
    later = build_host(model)
    load_weights(backbone_of(later).net, source)
    for a, b in zip(outputs_of(later, images), outputs_of(by_config, images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    by_config.save_pretrained(tmp_path / "saved")
    (tmp_path / "weights.safetensors").unlink()
    again = type(by_config).from_pretrained(tmp_path / "saved")
    assert again.config.backbone_config.weights is None
    for a, b in zip(outputs_of(again, images), outputs_of(by_config, images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("model", HOSTS)
def test_every_host_trains_for_a_step_and_predicts(model, tmp_path):
    detector = build_host(model, "preact_resnet18").train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    images = torch.rand(2, 3, 64, 64)
    loss = detector(images, **targets_of(model, images)).loss
    loss.backward()
    parameters = dict(backbone_of(detector).named_parameters())
    assert all(p.requires_grad for p in parameters.values())  # none is frozen because of the backbone's name
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()] == []
    optimizer.step()
    expected = outputs_of(detector, images)
    assert all(output.isfinite().all() for output in expected)

    detector.save_pretrained(tmp_path)
    again, info = type(detector).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for a, b in zip(outputs_of(again, images), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"norm": "FrozenBN"}, {"freeze_at": 2}], ids=str)
def test_fusing_and_folding_keep_the_outputs_of_detr(options):
    model = with_statistics(build_host("Detr", "resnet18", **options))
    images = torch.rand(1, 3, 64, 96)
    expected = outputs_of(model, images)
    fused, folded = fuse(model), fold_norms(model)
    for changed in (fused, folded):
        kinds = {type(module).__name__ for module in backbone_of(changed).modules()}
        assert {kind for kind in kinds if "Norm" in kind} == {"FusedNorm" if changed is fused else "FoldedNorm"}
        for a, b in zip(outputs_of(changed, images), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_frozen_stages_stay_frozen_after_loading(tmp_path):
    with pytest.warns(RandomFrozenWarning, match="freeze_at=2"):
        model = build_host("Detr", "resnet18d", freeze_at=2)

    def trained(detector):
        return {n.split(".")[0] for n, p in backbone_of(detector).net.named_parameters() if p.requires_grad}

    assert trained(model) == {"layer2", "layer3", "layer4"}
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RandomFrozenWarning)
        assert trained(type(model).from_pretrained(tmp_path)) == {"layer2", "layer3", "layer4"}


def test_parameters_missing_from_a_file_keep_their_initialization(tmp_path):
    model = build_host("UperNet")
    model.save_pretrained(tmp_path)
    config = transformers.UperNetConfig.from_pretrained(tmp_path)
    config.backbone_config = host.config("seresnet18", out_features=ALL, zero_init_residual=True)
    again = type(model).from_pretrained(tmp_path, config=config)
    theirs, initial = backbone_of(again).net, build_backbone("seresnet18", zero_init_residual=True)
    for name, tensor in initial.state_dict().items():
        loaded = theirs.state_dict()[name]
        if ".se." in name:  # not in a resnet18
            torch.testing.assert_close(loaded.float().std(), tensor.float().std(), rtol=0.2, atol=1e-6, msg=name)
        else:
            torch.testing.assert_close(loaded, backbone_of(model).net.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet17", {}, "Unknown backbone 'resnet17'. Did you mean resnet"),
        ("cifar_resnet20", {"out_features": ["res5"]}, "Unknown feature of cifar_resnet20 'res5'. Did you mean res4"),
        ("resnet18", {"out_indices": [5]}, "out_indices has 5, but resnet18 has 5 features: stem, res2"),
        ("resnet18", {"out_indices": [-6]}, "out_indices has -6, but resnet18 has 5 features"),
        ("resnet18", {"output_strid": 16}, "Unknown option of resnet18 'output_strid'. Did you mean output_stride"),
        ("timm:resnet18", {}, "transformers has timm's networks itself; use its TimmBackboneConfig"),
        ("resnet18", {"weights": "no_such.pth"}, "no_such.pth"),
    ],
)
def test_bad_arguments_give_a_one_line_error(name, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        host.backbone(name, **arguments)
    assert "\n" not in str(error.value)


def test_a_backbone_option_outside_options_is_refused():
    with pytest.raises(UserError, match=r"norm is an option of build_backbone: options=\{'norm': 'FrozenBN'\}"):
        host.ResidualBackboneConfig(name="resnet18", norm="FrozenBN")


def two_images(shared, side: int) -> tuple[torch.Tensor, list[dict]]:
    """The first two images of bccd's training set with 2 or 3 cells, `side` pixels square, and their labels."""
    data = load_annotations("own", {"own": {"format": "voc", "root": str(shared / "bccd"), "split": "train"}})
    label_of = {category["id"]: k for k, category in enumerate(data.categories)}
    few = [k for k in range(len(data)) if len(data.objects(k)) in (2, 3)]
    images, labels = [], []
    for k in few[:2]:
        info, objects = data.image(k), data.objects(k)
        image = Image.open(data.image_root / info["file_name"]).convert("RGB").resize((side, side))
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        boxes = torch.tensor([o["bbox"] for o in objects]) / torch.tensor([info["width"], info["height"]] * 2)
        boxes = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)  # center and size
        classes = torch.tensor([label_of[o["category_id"]] for o in objects])
        labels.append({"class_labels": classes, "boxes": boxes.float()})
    return torch.stack(images), labels


# In transformers this narrow, the default initial stds of 0.02 and 0.01 are too small to tell queries apart.
WIDER = {
    "Detr": {"d_model": 64, "init_std": 0.15},
    "RTDetr": {"d_model": 64, "encoder_hidden_dim": 64, "decoder_in_channels": [64] * 3, "num_denoising": 0,
               "initializer_range": 0.1},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), [("Detr", 64), ("RTDetr", 96)])
def test_a_detector_overfits_two_images(shared, model, side):
    torch.manual_seed(0)
    images, labels = two_images(shared, side)
    # GN, since DETRs freeze BN at its initial statistics, which are not those of real data.
    detector = build_host(model, "preact_resnet18", WIDER[model], norm="GN").train()
    named = list(detector.named_parameters())
    groups = [{"params": [p for n, p in named if ("backbone" in n) == inside]} for inside in (True, False)]
    rates = [1e-4, 1e-3]  # the backbone's is a tenth, as in the DETR paper
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=400, pct_start=0.1)
    losses = []
    for _ in range(400):
        loss = detector(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if np.mean(losses[-5:]) < losses[0] / 10:
            break
    assert np.mean(losses[-5:]) < losses[0] / 10, losses[::20]
