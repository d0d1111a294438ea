"""detectron2's own configs with our backbones: each trains for a step and infers; table in docs/detectron2.md."""

import copy
import fnmatch
import json
from pathlib import Path

import pytest
import torch
from helpers import randomize_statistics
from omegaconf import DictConfig
from torch import nn

from resnet_backbones import FrozenBatchNorm2d, build_backbone, fold_norms, fuse
from resnet_backbones.errors import UserError

pytest.importorskip("detectron2", reason="detectron2 is not installed; see make test-detectron2")
pytestmark = [
    pytest.mark.slow,
    # detectron2's configs load their weights later.
    pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning"),
]

from detectron2 import model_zoo  # noqa: E402
from detectron2.config import CfgNode, LazyCall, LazyConfig, get_cfg, instantiate  # noqa: E402
from detectron2.engine import SimpleTrainer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.modeling.meta_arch.fcos import FCOS  # noqa: E402
from detectron2.solver import build_lr_scheduler, build_optimizer  # noqa: E402
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks  # noqa: E402

from resnet_backbones.hosts import detectron2 as host  # noqa: E402

ZOO = Path(model_zoo.__file__).parent / "configs"
CONFIGS = sorted(path.relative_to(ZOO).as_posix() for path in ZOO.rglob("*.*") if path.suffix in (".yaml", ".py"))

NAMES = ["preact_resnet18", "seresnet18", "resnext50_32x4d", "regnet_x_400mf"]

NOT_TRIED = {
    "Base-*.yaml": "what the YAMLs of the folders inherit from",
    "quick_schedules/*": "the same models with shorter schedules",
    **dict.fromkeys([f"new_baselines/*_{n}ep_LSJ.py" for n in (50, 200, 400)], "the models of 100 epochs"),
    "Misc/mmdet_mask_rcnn_R_50_FPN_1x.py": "a model of mmdetection, whose backbone is none of detectron2's",
    "Misc/torchvision_imagenet_R_50.py": "a classifier",
    **dict.fromkeys(["common/data/*", "common/coco_schedule.py", "common/optim.py", "common/train.py"], "no model"),
}

# What a family without these options refuses, and its message.
REFUSED = {
    ("regnet_x_400mf", "*_DC5_*"): r"MODEL.RESNETS.RES5_DILATION is 2, but regnet_x_400mf",
    ("regnet_x_400mf", "*dconv*"): r"MODEL.RESNETS.DEFORM_ON_PER_STAGE is \[False, True, True, True\], but regnet_x",
    ("regnet_x_400mf", "*_gn*"): r"norm is 'GN', but networks taken from torchvision or timm come with",
}

# Our replacement for each of detectron2's builders. A C4 head is detectron2's or, with res5 of our net, ours.
BUILDERS = {
    "build_resnet_fpn_backbone": "{}_fpn",
    "build_retinanet_resnet_fpn_backbone": "{}_retinanet_fpn",
    "build_resnet_backbone": "{}",
}
ROI_HEADS = {"Res5ROIHeads": "BackboneRes5ROIHeads"}

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],  # a std of 1 needs trained weights
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": -1.0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (32, 32),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}
SMALL_HEADS = {
    "box_head": {"fc_dims": [16, 1024]},
    "mask_head": {"conv_dims": [32, 32]},
    "keypoint_head": {"conv_dims": [32, 32]},
}

RPN_LOSSES, BOX_LOSSES = {"loss_rpn_cls", "loss_rpn_loc"}, {"loss_cls", "loss_box_reg"}
BOX_FIELDS = {"pred_boxes", "scores", "pred_classes"}
FIELDS = {"mask": {"pred_masks"}, "keypoint": {"pred_keypoints", "pred_keypoint_heatmaps"}}


def folder_configs(suffix: str) -> list[str]:
    return [c for c in CONFIGS if c.endswith(suffix) and not any(fnmatch.fnmatch(c, p) for p in NOT_TRIED)]


def small_config(config: str, name: str) -> CfgNode:
    """The YAML `config` of the model zoo with our `name` for its backbone, and few channels and proposals."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ZOO / config))
    cfg.merge_from_list([value for pair in SMALL.items() for value in pair])
    model = cfg.MODEL
    model.BACKBONE.NAME = BUILDERS[model.BACKBONE.NAME].format(name)
    model.ROI_HEADS.NAME = ROI_HEADS.get(model.ROI_HEADS.NAME, model.ROI_HEADS.NAME)
    return cfg


def record(height: int, width: int) -> dict:
    """An image with two objects of class 0, annotated for every head of detectron2."""
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.8], [0.5, 0.3, 0.9, 0.9]]) * torch.tensor([width, height, width, height])
    objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(2, dtype=torch.int64))
    objects.gt_masks = PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()])
    centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    objects.gt_keypoints = Keypoints(torch.cat([centers, torch.full((2, 1, 1), 2.0)], 2).repeat(1, 17, 1))
    proposals = Instances((height, width), proposal_boxes=Boxes(boxes + 2), objectness_logits=torch.ones(2))
    return {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "height": height,
        "width": width,
        "instances": objects,
        "proposals": proposals,
        "sem_seg": torch.randint(4, (height, width)),
    }


def train_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """detectron2's own training step; returns the names of the losses.

    Its trainer raises for a loss that is not finite. The first trainable layer must change.
    """
    name, first = next((n, p) for n, p in model.backbone.named_parameters() if p.requires_grad)
    before = first.detach().clone()
    trainer = SimpleTrainer(model, [[record(64, 96), record(80, 75)]], optimizer)
    trainer.train(0, 1)
    assert first.grad.isfinite().all(), name
    assert first.grad.abs().sum() > 0, name
    assert not torch.equal(first, before), name
    return {key for key in trainer.storage.latest() if key.startswith("loss")}


def detect(model: nn.Module) -> dict:
    inputs = {k: v for k, v in record(75, 90).items() if k not in ("instances", "sem_seg")}
    with torch.no_grad():
        return model.eval()([inputs])[0]


def expected_of(cfg: CfgNode) -> tuple[set[str], dict[str, set[str]]]:
    """The losses of a config, and its outputs with their fields."""
    architecture, heads = cfg.MODEL.META_ARCHITECTURE, {"mask": cfg.MODEL.MASK_ON, "keypoint": cfg.MODEL.KEYPOINT_ON}
    if architecture == "SemanticSegmentor":
        return set(), {"sem_seg": set()}  # a single loss is logged as the total
    if architecture == "ProposalNetwork":
        return RPN_LOSSES, {"proposals": {"proposal_boxes", "objectness_logits"}}
    if architecture == "RetinaNet":
        return BOX_LOSSES, {"instances": BOX_FIELDS}
    losses = rcnn_losses(heads, cascade=cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        losses -= RPN_LOSSES
    outputs = {"instances": BOX_FIELDS.union(*(FIELDS[head] for head, on in heads.items() if on))}
    if architecture == "PanopticFPN":
        return losses | {"loss_sem_seg"}, outputs | {"sem_seg": set(), "panoptic_seg": set()}
    return losses, outputs


def rcnn_losses(heads: dict[str, bool], cascade: bool) -> set[str]:
    boxes = {f"{loss}_stage{k}" for loss in BOX_LOSSES for k in range(3)} if cascade else BOX_LOSSES
    return RPN_LOSSES | boxes | {f"loss_{head}" for head, on in heads.items() if on}


def refusal(config: str, name: str) -> str | None:
    return next((text for (n, p), text in REFUSED.items() if n == name and fnmatch.fnmatch(config, p)), None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", folder_configs(".yaml"))
def test_every_yaml_of_the_model_zoo_trains_for_a_step_and_infers(config, name):
    cfg = small_config(config, name)
    if message := refusal(config, name):
        with pytest.raises(UserError, match=message):
            build_model(cfg)
        return
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer)  # whose warmup makes the first step small
    losses, outputs = expected_of(cfg)
    assert train_a_step(model, optimizer) == losses
    found = detect(model)
    assert set(found) == set(outputs)
    for key, fields in outputs.items():
        assert not fields or set(found[key].get_fields()) == fields
    if "instances" in found:
        assert len(found["instances"]) > 0


def ours(name: str, theirs: DictConfig, **options) -> DictConfig:
    """`name` with the norm and the frozen stages of the backbone that it replaces."""
    norm = theirs.get("norm") or theirs.get("stem", {}).get("norm", "BN")
    return LazyCall(host.build_backbone)(name=name, norm=norm, freeze_at=theirs.get("freeze_at", 0), **options)


def replace_bottom_up(model: DictConfig, name: str) -> None:
    """Our net under detectron2's own pyramid, which asks it for `output_shape()`, and the config for `out_features`."""
    pyramid = model.backbone
    if "net" in pyramid:  # ViTDet's SimpleFeaturePyramid, of a single map
        pyramid.net, pyramid.in_feature = ours(name, pyramid.net, out_features=["res4"]), "res4"
        pyramid.square_pad = 0
        return
    features = ["res2", "res3", "res4", "res5"][-len(pyramid.in_features) :]
    pyramid.bottom_up = ours(name, pyramid.bottom_up, out_features=features)
    if "in_channels" in pyramid.top_block and pyramid.top_block.get("in_feature", "res5") == "res5":
        pyramid.top_block.in_channels = build_backbone(name).output_shape()["res5"].channels


def replace_backbone(model: DictConfig, name: str) -> None:
    """Our net with our pyramid; for C4 our net with its own res5 as the box head."""
    theirs = model.backbone.get("bottom_up", {})
    if "res5" in model.get("roi_heads", {}):
        c4, c5 = (build_backbone(name).output_shape()[f].channels for f in ("res4", "res5"))
        model.backbone = ours(name, model.backbone, out_features=["res4"])
        model.proposal_generator.head.in_channels = c4
        model.roi_heads.res5 = LazyCall(host.build_res5)(name=name, norm="FrozenBN")
        model.roi_heads.box_predictor.input_shape.channels = model.roi_heads.mask_head.input_shape.channels = c5
        return
    levels = model.proposal_generator.in_features if "proposal_generator" in model else model.head_in_features
    options = {"fpn_p6_input": "p5"} if model._target_ is FCOS else {}
    model.backbone = ours(f"{name}_fpn", theirs, out_features=list(levels), **options)
    for level in model.get("sem_seg_head", {}).get("input_shape", {}).values():
        level.channels = 256  # detectron2 reads it from backbone.out_channels


def small_lazy(model: DictConfig) -> None:
    model.pixel_std = SMALL["MODEL.PIXEL_STD"]
    if "roi_heads" not in model:
        model.test_score_thresh = 0.0
        return
    model.proposal_generator.update(batch_size_per_image=32, post_nms_topk=(20, 10))
    heads = model.roi_heads
    heads.batch_size_per_image = 16
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.update(test_score_thresh=-1.0, test_topk_per_image=5)
    for key, sizes in SMALL_HEADS.items():
        if key in heads:
            heads[key].update(sizes)
    for head in heads.get("box_heads") or []:
        head.update(SMALL_HEADS["box_head"])


def lazy_losses(model: DictConfig) -> set[str]:
    if "roi_heads" not in model:
        return {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"} if model._target_ is FCOS else BOX_LOSSES
    heads = {head: f"{head}_head" in model.roi_heads for head in ("mask", "keypoint")}
    losses = rcnn_losses(heads, cascade="box_heads" in model.roi_heads)
    return losses | ({"loss_sem_seg"} if "sem_seg_head" in model else set())


LAZY = [(config, replace_backbone) for config in folder_configs(".py")]
LAZY += [(config, replace_bottom_up) for config, _ in LAZY if "c4" not in config.lower()]  # C4 has no pyramid


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("config", "replace"), LAZY)
def test_every_lazy_config_trains_for_a_step_and_infers(config, replace, name):
    lazy = LazyConfig.load(str(ZOO / config)).model
    small_lazy(lazy)
    replace(lazy, name)
    model = instantiate(lazy)
    sgd = LazyConfig.load(str(ZOO / "common/optim.py")).SGD
    sgd.lr, sgd.params.model = 2e-5, model
    assert train_a_step(model, instantiate(sgd)) == lazy_losses(lazy)
    found = detect(model)
    assert len(found["instances"]) > 0
    assert ("panoptic_seg" in found) == ("sem_seg_head" in lazy)


def test_options_of_a_lazy_config_are_json_serializable():
    lazy = LazyCall(host.build_backbone)(name="resnet50", deform_on=["res5"], out_features=["res4", "res5"])
    assert json.loads(json.dumps(instantiate(lazy).architecture))["options"]["deform_on"] == ["res5"]


FUSED = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", FUSED)
def test_fused_and_folded_models_give_the_same_detections(config, name):
    cfg = small_config(config, name)
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0])
    model = build_model(cfg)
    randomize_statistics(model)
    inputs = record(75, 90)
    expected = outputs_of(model, inputs)
    fused = fuse(model)
    folded = fold_norms(FrozenBatchNorm2d.convert(copy.deepcopy(model)))
    assert any(type(m).__name__ == "FoldedConv2d" for m in folded.backbone.modules())
    for other in (fused, folded):
        for k, tensor in outputs_of(other, inputs).items():
            if k == "pred_masks":  # a pixel near the threshold may flip
                assert (tensor != expected[k]).double().mean() < 1e-3
            else:
                error = (tensor - expected[k]).abs().max() / expected[k].abs().max().clamp(min=1e-3)
                assert error < 1e-5, (k, float(error))


def outputs_of(model: nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    """Features and detections."""
    image = {k: inputs[k] for k in ("image", "height", "width")}
    with torch.no_grad():
        features = model.eval().backbone(model.preprocess_image([inputs]).tensor)
        detections = model([image])[0]
    fields = {k: getattr(v, "tensor", v).double() for k, v in detections["instances"].get_fields().items()}
    assert len(fields["scores"]) > 0
    return {**{k: v.double() for k, v in features.items()}, **fields}
