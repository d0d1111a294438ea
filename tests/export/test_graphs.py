"""The graphs of detectors for export against the detectors they were made from, before any export."""

import pytest
import torch
from torch import Tensor, nn

from resnet_backbones import build_backbone
from resnet_backbones.detectors import torchvision as heads
from resnet_backbones.export import network_of
from resnet_backbones.export.verification import compare

SIZES = [(50, 70), (131, 77), (40, 200), (300, 211), (300, 3), (1, 1)]
DENSE = {"out_features": ["p3", "p4", "p5", "p6", "p7"]}
ANCHORS = {"anchor_sizes": [[8], [16], [32], [64], [128]]}
RCNN = ANCHORS | {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 50, "box_head_width": 32}
RES5 = {"backbone": "resnet18", "out_features": ["res4", "res5"], "anchor_sizes": [[16, 32]], "box_head": "res5"}
DC5 = {"backbone": "resnet18", "out_features": ["res5"], "output_stride": 16, "anchor_sizes": [[16, 32]]}
DETECTORS = {
    "faster_rcnn": ("faster_rcnn", RCNN),
    "mask_rcnn": ("mask_rcnn", RCNN | {"mask_head_width": 16, "mask_head_depth": 1}),
    "mask_rcnn C4": ("mask_rcnn", RCNN | RES5 | {"mask_head_width": 16}),
    "faster_rcnn DC5": ("faster_rcnn", RCNN | DC5),
    "retinanet": ("retinanet", ANCHORS | DENSE),
    "fcos": ("fcos", DENSE),
}


def tiny_detector(label: str, **changed) -> nn.Module:
    """A detector with random weights that finds something in any image."""
    name, options = DETECTORS[label]
    options = {"min_size": [96], "max_size": 160} | options | changed
    of_backbone = {k: options.pop(k) for k in ("out_features", "output_stride") if k in options}
    backbone = options.pop("backbone", "resnet18_fpn")
    of_backbone |= {"fpn_channels": 32} if backbone.endswith("_fpn") else {}
    model = getattr(heads, name)(build_backbone(backbone, **of_backbone), 3, **options)
    if name in ("retinanet", "fcos"):
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
    else:
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    model.classes = ["red", "white", "platelet"]
    return model.eval()


def pictures() -> list[Tensor]:
    return [torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8) for size in SIZES]


@pytest.mark.parametrize("label", DETECTORS)
def test_export_graph_gives_the_same_detections(label):
    network = network_of(tiny_detector(label))
    with torch.no_grad():
        difference = compare(network, network.module, pictures())
    assert not difference.wrong, difference.wrong
    assert difference.found > 20


@pytest.mark.parametrize("label", ["mask_rcnn", "mask_rcnn C4", "retinanet", "fcos"])
def test_no_detections_give_empty_outputs(label):
    network = network_of(tiny_detector(label, box_score_thresh=1.0))
    with torch.no_grad():
        found = network.module(pictures()[0])
    assert found["boxes"].shape == (0, 4)
    assert found.keys() == set(network.outputs)
    if "masks" in found:
        assert found["masks"].shape == (0, 1, *SIZES[0])


def test_compare_names_the_difference():
    network, zero = network_of(tiny_detector("faster_rcnn")), torch.tensor([0])

    def shifted(change):
        def run(image: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                found = network.module(image)
            return change(found)

        return compare(network, run, pictures()).wrong

    assert "px" in shifted(lambda found: {k: v[1:] for k, v in found.items()})
    assert "is missing" in shifted(lambda found: {k: v[:0] for k, v in found.items()})
    assert "is not the model's" in shifted(lambda found: found | {"labels": found["labels"].index_fill(0, zero, 9)})
    assert "px" in shifted(lambda found: found | {"boxes": found["boxes"] + 0.02})
    assert "scores by" in shifted(lambda found: found | {"scores": found["scores"] + 0.001})
    assert not shifted(lambda found: {k: v.flip(0) for k, v in found.items()})
