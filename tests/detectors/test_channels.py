"""Detectors and classifiers for images other than RGB: gray, RGBA, and TIFFs of five channels."""

import json

import numpy as np
import pytest
import tifffile
import torch
from conftest import REPRESENTATIVES, TINY, coco_overrides, draw, save_coco, write_coco
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import load_classifier
from resnet_backbones.config import load_config
from resnet_backbones.config.pretraining import PretrainConfig
from resnet_backbones.detectors import torchvision as heads
from resnet_backbones.detectors.settings import SETTINGS
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import Preprocessing, detector_preprocessing, input_channels

TARGET = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}


def backbone_of(channels: int, name: str = "resnet18_fpn", **options) -> nn.Module:
    return build_backbone(name, in_channels=channels, fpn_channels=64, **options)


@pytest.mark.parametrize("channels", [1, 4])
def test_losses_and_detections_match_torchvision(channels):
    backbone = backbone_of(channels)
    statistics = {"image_mean": [0.5, 0.4, 0.3, 0.2][:channels], "image_std": [0.25, 0.2, 0.3, 0.1][:channels]}
    ours = heads.faster_rcnn(backbone, 2, min_size=[64], max_size=96, **statistics)
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    theirs = FasterRCNN(backbone, 3, min_size=64, max_size=96, rpn_anchor_generator=anchors, **statistics)
    theirs.roi_heads.box_roi_pool.featmap_names = ["p2", "p3", "p4", "p5"]
    theirs.load_state_dict(ours.state_dict())
    images, losses = [torch.rand(channels, 64, 80)], []
    for model in (ours, theirs):
        torch.manual_seed(0)
        losses.append(model.train()(images, [TARGET]))
    for name, loss in losses[1].items():
        torch.testing.assert_close(losses[0][name], loss, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        mine, reference = (model.eval()(images)[0] for model in (ours, theirs))
    torch.testing.assert_close(mine["boxes"], reference["boxes"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_detector_accepts_five_channels(name):
    levels = {} if "rcnn" in name else {"out_features": ["p3", "p4", "p5", "p6", "p7"]}
    model = getattr(heads, name)(backbone_of(5, **levels), 2, min_size=[64], max_size=96)
    target = TARGET | {"masks": torch.ones(1, 64, 80, dtype=torch.uint8)}
    image = torch.randint(0, 256, (5, 64, 80), dtype=torch.uint8)
    assert all(torch.isfinite(loss) for loss in model([image], [target]).values())
    with pytest.raises(UserError, match=r"The network takes 5 channels, but the images have 3\."):
        model([image[:3]], [target])


def test_mean_and_std_fit_the_number_of_channels():
    gray = detector_preprocessing(backbone_of(1), None, None)
    assert (gray.mean, gray.std) == ((pytest.approx(0.449),), (pytest.approx(0.226),))
    assert detector_preprocessing(backbone_of(4), None, None).mean == gray.mean * 4
    backbone = backbone_of(4)
    for options in ({"image_mean": [0.5] * 3}, {"image_std": [0.5] * 3}):
        message = r"detector\.image_\w+ is \[.*\], of length 3, but the backbone takes 4 channels"
        with pytest.raises(UserError, match=message):
            heads.faster_rcnn(backbone, 2, **options)
    backbone.preprocessing = Preprocessing()  # of RGB weights, whose first convolution was fitted to 4 channels
    assert detector_preprocessing(backbone, [0.5] * 4, None).mean == (0.5,) * 4
    with pytest.raises(UserError, match=r"mean and std is .*; it must be one number per channel each"):
        Preprocessing((0.5,) * 4, (0.5,) * 3)
    with pytest.raises(UserError, match=r"channel_order is BGR; it must be RGB, or BGR of three channels"):
        Preprocessing((0.5,) * 4, (0.5,) * 4, channel_order="BGR")


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "resnet18_fpn"])
def test_input_channels_are_inferred_for_every_backbone(name):
    with torch.device("meta"):
        assert input_channels(build_backbone(name, in_channels=4)) == 4


def write_channels(folder, channels: int) -> None:
    """`write_coco` with images of `channels` channels."""
    content = write_coco(folder, 3)
    for k, image in enumerate(content["images"]):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 48, channels), dtype=np.uint8)
        if channels == 5:
            image["file_name"] = f"{k}.tif"
            tifffile.imwrite(folder / "images" / f"{k}.tif", pixels, photometric="minisblack", planarconfig="contig")
        else:
            Image.fromarray(pixels.squeeze()).save(folder / "images" / f"{k}.png")
    save_coco(folder, content)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_in_channels_in_a_config_is_enough_to_train_and_evaluate(tool, tmp_path, channels):
    write_channels(tmp_path / "data", channels)
    settings = [*TINY, *coco_overrides(tmp_path / "data"), f"output_dir={tmp_path}/out", "evaluation.samples=3"]
    settings += ["solver.max_iter=2", "solver.steps=[]", f"backbone.in_channels={channels}"]
    status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn", *settings)
    assert status == 0, err
    assert "bbox/AP" in json.loads((tmp_path / "out/metrics.json").read_text())
    assert len(list((tmp_path / "out/samples").glob("*.png"))) == 3
    evaluated = tool("train_net", "--config", "quickstart_mask_rcnn", *settings, "--eval-only",
                   f"weights={tmp_path}/out/last.pt")  # fmt: skip
    assert evaluated[0] == 0, evaluated[2]
    draw().save(tmp_path / "data/images/0.png")  # RGB
    if channels == 4:
        status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn", *settings)
        assert status == 2
        assert "images/0.png has 3 channels, but the network takes 4; set backbone.in_channels" in err


def test_pretraining_on_gray_images(tool, tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(4):
                draw(40, 40, seed=k).convert("L").save(tmp_path / split / name / f"{k}.png")
    settings = ["backbone.in_channels=1", f"data.root={tmp_path}", f"output_dir={tmp_path}/out"]
    settings += ["preprocessing.image_mean=null", "preprocessing.image_std=[0.3]"]  # those of the config are for RGB
    settings += ["augmentation.size=32", "preprocessing.resize=32", "preprocessing.size=32", "solver.batch_size=4"]
    settings += ["solver.epochs=null", "solver.warmup_epochs=0", "solver.max_iter=2", "data.num_workers=0"]
    status, _, err = tool("pretrain", "--config", "cifar10_resnet20_quick", *settings)
    assert status == 0, err
    model = load_classifier(f"{tmp_path}/out/model.safetensors").eval()
    assert (model.preprocessing.mean, model.preprocessing.std) == (pytest.approx([0.449]), [0.3])
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("quickstart_mask_rcnn", ["detector.image_mean=[0.5,0.5,0.5]"],
         r"detector.image_mean is .* it must be one number for each of 4 channels .* not 3"),
        ("quickstart_mask_rcnn", ["backbone.in_channels=0"], "backbone.in_channels is 0; it must be from 1 to 1024"),
        ("imagenet_resnet50", [],
         r"augmentation.lighting is 0\.1; it must be 0 where backbone.in_channels is not 3 but 4"),
        ("imagenet_resnet50", ["augmentation.lighting=0", "augmentation.auto_augment=rand"],
         "augmentation.auto_augment is rand; it must be none where backbone.in_channels is neither 1 nor 3 but 4"),
    ],
)  # fmt: skip
def test_configs_for_another_number_of_channels_are_refused(config, overrides, message):
    schema = {"schema": PretrainConfig} if config.startswith("imagenet") else {}
    with pytest.raises(UserError, match=message):
        load_config(config, ["backbone.in_channels=4", *overrides], **schema)
