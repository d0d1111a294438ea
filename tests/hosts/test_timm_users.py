"""Libraries that take networks from timm, with ours: segmentation_models_pytorch and transformers' TimmBackbone."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, outputs_of, randomize_statistics
from torch import Tensor, nn

from resnet_backbones import build_backbone, fold_norms, fuse
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.datasets import load_annotations
from resnet_backbones.errors import UserError
from resnet_backbones.weights import metadata_of, save_safetensors

timm = pytest.importorskip("timm", reason="timm is not installed")

import resnet_backbones.hosts.timm  # noqa: E402, F401


@pytest.fixture
def smp():
    return pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")


@pytest.fixture
def nuclei(shared):
    """Four microscopy images (4, 3, 96, 96) and their masks of nuclei (4, 96, 96)."""
    root = shared / "nuclei"
    spec = {"root": str(root / "images/train"), "annotations": str(root / "annotations/instances_train.json")}
    dataset = DetectionDataset([load_annotations("own", {"own": {"format": "coco", **spec}})], train=True, masks=True)
    images, masks = zip(*(dataset[k] for k in range(4)), strict=True)
    images = torch.stack([image[:, :96, :96].float() / 255 for image in images])
    return images, torch.stack([target["masks"][:, :96, :96].amax(0).long() for target in masks])


def losses_of(model: nn.Module, images: Tensor, masks: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
@pytest.mark.parametrize(
    "name", ["preact_resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet18", "seresnet18"))]
)
def test_unet_learns_nuclei(smp, nuclei, name):
    model = smp.Unet(f"tu-rb_{name}", encoder_weights=None, classes=2, decoder_channels=(64, 32, 32, 16, 16))
    losses = losses_of(model, *nuclei, steps=12)
    assert losses[-1] < losses[0] / 2
    share = nuclei[1].double().mean()
    assert losses[-1] < F.binary_cross_entropy(share, share)  # the best loss of a constant prediction


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
@pytest.mark.parametrize("model", ["FPN", "DeepLabV3Plus"])
def test_other_segmentation_models_train_for_a_step(smp, name, model):
    options = {"encoder_output_stride": 16} if model == "DeepLabV3Plus" else {}
    net = getattr(smp, model)(f"tu-rb_{name}", encoder_weights=None, classes=2, **options)
    images, masks = torch.rand(2, 3, 64, 64), torch.randint(2, (2, 64, 64))
    first, second = losses_of(net, images, masks, steps=2)
    assert first != second
    if options:
        assert net.encoder(images)[-1].shape[-1] == 4


@pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "seresnet18"])
def test_folding_and_fusing_inside_unet_keep_outputs(smp, name):
    model = smp.Unet(f"tu-rb_{name}", encoder_weights=None, classes=2)
    randomize_statistics(model)
    model.eval()
    images = torch.rand(1, 3, 64, 64)
    expected = outputs_of(model, images)
    fused = fuse(model)
    assert fused.encoder.model.net.layer1[0].conv1.bias is not None
    assert_close(outputs_of(fused, images), expected)
    frozen = smp.Unet(f"tu-rb_{name}", encoder_weights=None, classes=2, norm="FrozenBN").eval()
    frozen.load_state_dict(model.state_dict(), strict=False)
    assert_close(outputs_of(frozen, images), expected)
    assert_close(outputs_of(fold_norms(frozen), images), expected)


def test_a_segmentation_model_loads_weights_from_a_file(smp, tmp_path):
    net, path, images = build_backbone("preact_resnet18").eval(), tmp_path / "own.safetensors", torch.rand(1, 3, 64, 64)
    randomize_statistics(net)
    save_safetensors(path, net.state_dict(), metadata_of(net))
    overlay = {"file": str(path)}
    model = smp.Unet("tu-rb_preact_resnet18", encoder_weights=True, pretrained_cfg_overlay=overlay).eval()
    assert_close(outputs_of(model.encoder, images)[-1], outputs_of(net, images)["res5"])
    with pytest.raises(UserError, match="encoder_weights=None"):
        smp.Unet("tu-rb_preact_resnet18", encoder_weights=True)


@pytest.mark.parametrize("name", ["rb_resnet18", "rb_vgg11_bn", "rb_swin_t"])
def test_segmentation_models_backpropagate_through_our_encoders(smp, name):
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2)
    images = torch.rand(2, 3, 64, 64)
    loss = F.cross_entropy(model(images), torch.randint(2, (2, 64, 64)))
    loss.backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_encoders_with_timms_weights_match_timm(smp):
    ours = smp.Unet("tu-rb_resnet18", encoder_weights=None)
    theirs = smp.Unet("tu-resnet18", encoder_weights=None).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert_close(outputs_of(ours.eval(), images), outputs_of(theirs, images))


def test_transformers_feature_maps_are_ours():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.TimmBackboneConfig(backbone="rb_preact_resnet18", out_indices=(2, -1))
    model = transformers.TimmBackbone(config).eval()
    net = build_backbone("preact_resnet18").eval()
    net.load_state_dict({name.removeprefix("_backbone."): x for name, x in model.state_dict().items()})
    images = torch.rand(1, 3, 64, 64)
    features = list(outputs_of(net, images).values())
    assert model.channels == [128, 512]
    for x, expected in zip(outputs_of(model, images).feature_maps, (features[1], features[3]), strict=True):
        assert torch.equal(x, expected)
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    assert [x.shape[1] for x in output.hidden_states] == [64, 64, 128, 256, 512]
    assert torch.equal(output.feature_maps[0], features[1])
