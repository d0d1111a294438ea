"""detectron2's detectors on our backbones; skipped if it is not installed."""

import json

import pytest
import torch
from conftest import TINY, coco_overrides, write_coco

from resnet_backbones import build_backbone
from resnet_backbones.errors import UserError

pytest.importorskip("detectron2", reason="detectron2 is not installed; see make test-detectron2")

from resnet_backbones.detectors import detectron2 as twin
from resnet_backbones.detectors import torchvision as torchvision_heads
from resnet_backbones.detectors.test_time import MultiView

PYRAMID = ["p3", "p4", "p5", "p6", "p7"]


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_an_unknown_setting_is_named(name):
    with pytest.raises(TypeError, match="bogus"):
        getattr(twin, name)(build_backbone("resnet18_fpn"), 2, bogus=1)


KINDS = {
    "faster_rcnn": ({}, {}, {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}),
    "mask_rcnn": ({}, {}, {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}),
    "retinanet": ({"out_features": PYRAMID}, {}, {"loss_cls", "loss_box_reg"}),
    "fcos": ({"out_features": PYRAMID}, {}, {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}),
    "c4": ({"out_features": ["res4", "res5"]}, {"box_head": "res5", "box_pool_size": 14}, {"loss_mask", "loss_cls"}),
    "dc5": ({"out_features": ["res5"], "output_stride": 16}, {}, {"loss_cls", "loss_box_reg"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_trains_and_detects_in_our_convention(kind):
    options, settings, expected_losses = KINDS[kind]
    body = "resnet18" if kind in ("c4", "dc5") else "resnet18_fpn"
    make = getattr(twin, {"c4": "mask_rcnn", "dc5": "faster_rcnn"}.get(kind, kind))
    if kind in ("c4", "dc5"):
        settings = settings | {"anchor_sizes": [[32, 64]]}
    torch.manual_seed(0)
    backbone = build_backbone(body, **options)
    model = make(backbone, 3, min_size=[96], max_size=160, box_score_thresh=0.0, **settings)
    images = [torch.randint(256, (3, 90, 120), dtype=torch.uint8), torch.randint(256, (3, 70, 150), dtype=torch.uint8)]
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 60, 65]]), "labels": torch.tensor([3]),
         "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8)} for image in images
    ]  # fmt: skip
    losses = model(images, targets)
    assert expected_losses <= set(losses)
    sum(losses.values()).backward()
    assert next(backbone.parameters()).grad.abs().sum() > 0
    with torch.no_grad():
        for image, found in zip(images, model.eval()(images), strict=True):
            height, width = image.shape[1:]
            assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) > 0
            assert found["boxes"][:, 2].max() <= width
            assert found["boxes"][:, 3].max() <= height
            assert set(found["labels"].tolist()) <= {1, 2, 3}
            if kind in ("mask_rcnn", "c4"):
                assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


def test_the_twin_normalizes_with_the_preprocessing_of_the_weights():
    from resnet_backbones.preprocessing import Preprocessing

    backbone = build_backbone("resnet18_fpn")
    backbone.preprocessing = Preprocessing((100, 110, 120), (1, 2, 3), channel_order="BGR", input_range=255)
    model = twin.faster_rcnn(backbone, 2, min_size=[64]).eval()
    seen = []
    backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model([torch.full((3, 64, 64), 127.5 / 255)])
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([27.5, 17.5 / 2, 7.5 / 3]))


def test_rpn_score_thresh_is_refused():
    with pytest.raises(UserError, match="rpn_score_thresh is 0.1; it must be 0, detectron2 has none"):
        twin.faster_rcnn(build_backbone("resnet18_fpn"), 2, rpn_score_thresh=0.1)


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
def test_library_detectron2_in_a_yaml_trains_and_evaluates(tool, tmp_path, detector):
    write_coco(tmp_path / "data", 5)
    levels = ["backbone.out_features=[p3,p4,p5,p6,p7]"] if detector == "retinanet" else []
    settings = [*TINY, *coco_overrides(tmp_path / "data"), f"output_dir={tmp_path}/out", f"detector.name={detector}",
                "detector.library=detectron2", *levels]  # fmt: skip
    status, _, err = tool("train_net", "--config", "quickstart_mask_rcnn.yaml", *settings)
    assert status == 0, err
    trained = json.loads((tmp_path / "out/metrics.json").read_text())
    assert ("segm/AP" in trained) == (detector == "mask_rcnn")
    more = ["--eval-only", f"weights={tmp_path}/out/last.pt", f"output_dir={tmp_path}/scored"]
    assert tool("train_net", "--config", "quickstart_mask_rcnn.yaml", *settings, *more)[0] == 0
    assert json.loads((tmp_path / "scored/metrics.json").read_text()) == trained


def test_giou_loss_matches_torchvisions_heads():
    """For one RoI at the true box, with the bias as the predicted offsets, both have the same loss."""
    torch.manual_seed(0)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    losses = []
    for library in (twin, torchvision_heads):
        sizes = {"min_size": [64], "max_size": 96, "rpn_post_nms_top_n_train": 1, "box_fg_iou_thresh": 0.95}
        model = library.faster_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 1, box_loss="giou", **sizes)
        predictor = model.roi_heads.box_predictor
        torch.nn.init.zeros_(predictor.bbox_pred.weight)
        with torch.no_grad():
            predictor.bbox_pred.bias.copy_(
                torch.tensor([1.0, 0.5, 0.3, -0.2]).repeat(len(predictor.bbox_pred.bias) // 4)
            )
        outputs = model([torch.rand(3, 64, 64)], [dict(target)])
        losses.append(outputs["loss_box_reg"].item() * 2)  # the mean over two RoIs, the other one background
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_views_of_an_image_are_merged():
    torch.manual_seed(0)
    heads = {"min_size": [64], "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 7}
    model = twin.mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32), 2, **heads).eval()
    image, views = torch.rand(3, 60, 80), MultiView(model, [48, 64], True, 0.5, 100)
    with torch.no_grad():
        (found,), (mirrored,) = views([image]), views([image.flip(-1)])
    assert len(found["boxes"]) > 7
    torch.testing.assert_close(found["scores"].sort().values, mirrored["scores"].sort().values)
    assert found["masks"].shape == (len(found["boxes"]), 1, 60, 80)
