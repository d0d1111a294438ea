"""Our backbones in torchvision's own detectors and segmentation models, against those with torchvision's backbones."""

import re

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import misc

from resnet_backbones import FrozenBatchNorm2d, build_backbone, fold_norms, fuse
from resnet_backbones.errors import UserError
from resnet_backbones.hosts.torchvision import backbone, deeplabv3, detector, fcn, lraspp
from resnet_backbones.weights import save_safetensors

DENSE = ["p3", "p4", "p5", "p6", "p7"]
SIZES = {"min_size": 96, "max_size": 160}
FEW = {"box_detections_per_img": 10}  # masks and keypoints of 100 detections are slow
DETECTORS = {
    "fasterrcnn_resnet50_fpn": (FasterRCNN, None, 91, SIZES),
    "maskrcnn_resnet50_fpn": (MaskRCNN, None, 91, SIZES | FEW),
    "keypointrcnn_resnet50_fpn": (KeypointRCNN, None, 2, SIZES | FEW),
    "retinanet_resnet50_fpn": (RetinaNet, DENSE, 91, SIZES),
    "fcos_resnet50_fpn": (FCOS, DENSE, 91, SIZES),
}
QUICK = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS]
# Names before torchvision 0.13, which the published COCO weights still have.
OLD_NAMES = [
    (r"(fpn\.\w+_blocks\.\d)\.0\.(weight|bias)", r"\1.\2"),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}."),
    (r"((?:classification|regression)_head\.conv)\.(\d)\.0\.", lambda match: f"{match[1]}.{2 * int(match[2])}."),
]


def theirs(name: str) -> nn.Module:
    """torchvision's detector with random weights, non-trivial norms, and scores high enough for detections."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, **DETECTORS[name][3])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 0.4)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for module in (getattr(model, "roi_heads", None), getattr(model, "head", None)):
        for parameter, value in [] if module is None else module.named_parameters():
            if re.search(r"cls_score\.weight|cls_logits\.(weight|bias)|bbox_ctrness\.bias", parameter):
                nn.init.normal_(value, std=5.0 if "cls_score" in parameter else 0.05)
    return model.eval()


def largest_difference(ours: nn.Module, other: nn.Module) -> dict[str, float]:
    """Per field of the detections in two images, of which there must be more than ten."""
    images = [torch.rand(3, 96, 128), torch.rand(3, 140, 101)]
    with torch.no_grad():
        pairs = list(zip(ours(images), other(images), strict=True))
    assert sum(len(a["boxes"]) for a, _ in pairs) > 10
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in pairs)
    keys = pairs[0][0].keys() - {"labels"}
    return {key: max(float((a[key] - b[key]).abs().max()) for a, b in pairs) for key in keys}


@pytest.mark.parametrize("name", NAMES)
def test_detections_on_our_backbone_match_torchvision(name):
    make, levels, classes, options = DETECTORS[name]
    reference = theirs(name)
    model = make(backbone("resnet50_fpn", out_features=levels), classes, **options).eval()
    assert not any(model.load_state_dict(reference.state_dict()))  # no key is missing or unexpected
    differences = largest_difference(model, reference)
    assert max(differences.values()) <= 1e-4, differences


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_of_torchvision_before_0_13_load(name):
    make, levels, classes, options = DETECTORS[name]
    reference = theirs(name)
    old = {}
    for key, tensor in reference.state_dict().items():
        for pattern, replacement in OLD_NAMES:
            key = re.sub(pattern, replacement, key)
        old[key] = tensor
    assert old.keys() != reference.state_dict().keys()
    model = make(backbone("resnet50_fpn", out_features=levels), classes, **options).eval()
    assert not any(model.load_state_dict(old))
    for key, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def losses(model: nn.Module) -> dict[str, torch.Tensor]:
    """The losses of a training step on one image with one object."""
    keypoints = torch.tensor([[[40.0, 50.0, 1.0]] * 17])
    mask = torch.zeros(1, 96, 128, dtype=torch.uint8)
    mask[0, 20:90, 20:100] = 1
    target = {"boxes": torch.tensor([[20.0, 20, 100, 90]]), "labels": torch.tensor([1])}
    return model.train()([torch.rand(3, 96, 128)], [target | {"masks": mask, "keypoints": keypoints}])


@pytest.mark.parametrize(
    "make", [FasterRCNN, FCOS, *(pytest.param(c, marks=pytest.mark.slow) for c in (MaskRCNN, KeypointRCNN, RetinaNet))]
)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preact_resnet18", {"output_stride": 16}),
        ("vgg11", {"out_features": ["res4"]}),
        ("cifar_resnet20", {}),
        ("seresnet18_fpn", {"out_features": ["p2", "p3", "p4"]}),
        ("resnet18d_fpn", {"out_features": DENSE}),
    ],
)
def test_detectors_train_on_a_single_map_or_another_pyramid(make, name, options):
    net = backbone(name, **options)
    model = detector(make, net, 2, min_size=96, max_size=128)
    terms = losses(model)
    sum(terms.values()).backward()
    first = next(p for p in net.parameters())
    assert all(term.isfinite() for term in terms.values())
    assert first.grad.abs().sum() > 0
    with torch.no_grad():
        assert {"boxes", "labels", "scores"} <= set(model.eval()([torch.rand(3, 96, 128)])[0])


def test_anchors_of_a_pyramid_match_torchvision():
    for name, (make, levels, classes, _) in DETECTORS.items():
        net = backbone("resnet50_fpn", out_features=levels)
        ours, reference = detector(make, net, classes), make(net, classes)
        for model in (ours, reference):
            model.found = getattr(model, "rpn", model).anchor_generator
        assert ours.found.sizes == reference.found.sizes, name
        assert ours.found.aspect_ratios == reference.found.aspect_ratios, name


@pytest.mark.parametrize(
    ("name", "make", "reference", "options"),
    [
        ("resnet50", deeplabv3, segmentation.deeplabv3_resnet50, {"output_stride": 8}),
        ("resnet50", fcn, segmentation.fcn_resnet50, {"output_stride": 8}),
    ],
)
def test_segmentation_models_match_torchvision(name, make, reference, options):
    torch.manual_seed(0)
    reference = reference(weights=None, weights_backbone=None, aux_loss=True).eval()
    model = make(name, 21, aux=True, **options).eval()
    assert not any(model.load_state_dict(reference.state_dict()))
    images = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        ours, expected = model(images), reference(images)
    for key in ("out", "aux"):
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["preact_resnet18", "seresnet18", "convnext_tiny", "cifar_resnet20"])
def test_segmentation_models_backpropagate_to_the_backbone(name):
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    for make, options in ((fcn, {"aux": True}), (deeplabv3, {}), (lraspp, {})):
        model = make(name, 3, **options)
        loss = sum(nn.functional.cross_entropy(scores, labels) for scores in model(images).values())
        loss.backward()
        assert model(images)["out"].shape == (2, 3, 64, 64)
        assert next(p for p in model.backbone.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "seresnet18", "resnet18d", "plain18", "googlenet"])
def test_intermediate_layer_getter_gives_our_features(name):
    net = build_backbone(name).eval()
    layers = {net.stages[feature][-1]: feature for feature in net.out_features}
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, intermediates = net(images), IntermediateLayerGetter(net, layers)(images)
        for feature, expected in features.items():
            assert torch.equal(intermediates[feature], expected)
        channels = [shape.channels for shape in net.output_shape().values()]
        pyramid = BackboneWithFPN(net, layers, channels, 32).eval()
        ours = build_backbone(f"{name}_fpn", fpn_channels=32).eval()
        ours.load_state_dict({key: tensor for key, tensor in pyramid.state_dict().items()})
        for level, expected in zip(ours(images).values(), pyramid(images).values(), strict=True):
            torch.testing.assert_close(level, expected)


@pytest.mark.parametrize(
    ("prepare", "norm"),
    [
        (fold_norms, misc.FrozenBatchNorm2d),
        (fuse, FrozenBatchNorm2d),
        pytest.param(fold_norms, FrozenBatchNorm2d, marks=pytest.mark.slow),
        pytest.param(fuse, misc.FrozenBatchNorm2d, marks=pytest.mark.slow),
    ],
)
def test_folding_and_fusing_keep_the_detections(prepare, norm):
    reference = theirs("fasterrcnn_resnet50_fpn")
    model = FasterRCNN(backbone("resnet50_fpn"), 91, **SIZES).eval()
    model.load_state_dict(reference.state_dict())
    if norm is FrozenBatchNorm2d:
        norm.convert(model)
    else:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                model.set_submodule(name, norm(module.num_features))
        model.load_state_dict(reference.state_dict(), strict=False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    prepared = prepare(model)
    assert max(largest_difference(prepared, reference).values()) <= 1e-4
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = prepared.backbone(images), reference.backbone(images)
    for level, feature in features.items():
        torch.testing.assert_close(feature, expected[level], rtol=1e-5, atol=1e-5)
    if prepare is fold_norms:
        assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: backbone("cifar_resnet20_fpn"), "Unknown backbone 'cifar_resnet20_fpn'"),
        (lambda: backbone("resnet18_fpn", out_features=["p9"]), "Unknown feature 'p9'"),
        (lambda: backbone("resnet18_fpn", out_features=[]), "out_features is empty"),
        (lambda: backbone("resnet18_fpn", out_features={"p2": "0", "p3": "0"}), "each feature needs a name of its own"),
        (lambda: detector(FasterRCNN, backbone("resnet18", out_features=["res4", "res5"]), 2), "0: 256, 1: 512"),
        (lambda: detector(nn.Linear, backbone("resnet18"), 2), "Linear is not one of torchvision's FasterRCNN"),
        (lambda: detector("FasterRCNN", backbone("resnet18"), 2), "FasterRCNN is not one of torchvision's"),
        (lambda: detector(FasterRCNN, nn.Conv2d(3, 8, 3), 2), "The backbone is a Conv2d; give one of"),
        (lambda: detector(FasterRCNN, backbone("resnet18_fpn", out_features=["p6"]), 2), "gives none of these"),
        (lambda: fcn("resnet18", 0), "num_classes is 0; it must be at least 1"),
        (lambda: lraspp("resnet18", 2, out_features=["res2"]), "not an option of a segmentation model"),
        (lambda: deeplabv3("resnet18_fpn", 2), "resnet18_fpn: .* remove _fpn"),
        (lambda: fcn("vgg11", 2, output_stride=8), "Unknown option of vgg11 'output_stride'"),
    ],
)
def test_unsupported_models_and_options_are_refused(build, message):
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def file_of(tmp_path, **preprocessing) -> str:
    """A weights file of a ResNet-18 with its preprocessing."""
    path = tmp_path / "r18.safetensors"
    given = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]} | preprocessing
    save_safetensors(path, build_backbone("resnet18").state_dict(), {"preprocessing": given})
    return str(path)


def test_normalization_comes_from_the_weights(tmp_path):
    model = detector(FasterRCNN, backbone("resnet18", weights=file_of(tmp_path)), 2)
    assert (model.transform.image_mean, model.transform.image_std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    bgr = file_of(tmp_path, channel_order="BGR")
    for build in (backbone, lambda name, weights: fcn(name, 2, weights=weights)):
        with pytest.raises(UserError, match="take BGR images, and torchvision gives RGB; convert them"):
            build("resnet18", weights=bgr)
