"""Our backbones in detectron2: every name in its BACKBONE_REGISTRY, and a builder for LazyConfigs.

`import resnet_backbones.hosts.detectron2` registers "NAME", "NAME_fpn", "NAME_c4" (res4 alone) and
"NAME_retinanet_fpn" for configs (`cfg.MODEL.BACKBONE.NAME`); `build_backbone(name, …)` is for LazyConfigs.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from .. import backbones
from ..errors import UserError
from ..models.fpn import FPN
from ..models.freezing import split_last_stage
from ..models.naming import hide_child
from .detectron2_config import FORMS, build_from

try:
    from detectron2.config import CfgNode, get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone, build_resnet_backbone, roi_heads
except ModuleNotFoundError as error:
    raise UserError(
        f"hosts.detectron2 needs {error.name}, which is not installed; detectron2 is built from source, see "
        "https://github.com/facebookresearch/detectron2."
    ) from error

__all__ = [
    "Detectron2Backbone",
    "add_config",
    "build_backbone",
    "build_res5",
    "own_resnet",
    "register_dataset",
    "train",
]


class Detectron2Backbone(Backbone):
    """One of our backbones as one of detectron2's; its parameters keep their names in the state_dict."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.architecture, self.preprocessing = net.architecture, net.preprocessing
        hide_child(self, "net")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {k: ShapeSpec(channels=s.channels, stride=s.stride) for k, s in self.net.output_shape().items()}

    @property
    def size_divisibility(self) -> int:
        """What detectron2 pads the images of a pyramid to. Ours needs no padding, but its results would differ."""
        return getattr(self.net, "size_divisible", 32 if isinstance(self.net, FPN) else 0)


def build_backbone(name: str, **options) -> Detectron2Backbone:
    """`resnet_backbones.build_backbone` for detectron2, as in `L(build_backbone)(name="preact_resnet50_fpn")`."""
    plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}
    return Detectron2Backbone(backbones.build_backbone(name, **plain))


def build_res5(name: str, **options) -> nn.Module:
    """The last stage of a backbone, a C4 box head: `L(build_res5)(name="preact_resnet50")` as `roi_heads.res5`.

    (N, C4, H, W) to (N, C5, H / 2, W / 2). `options` are those of `build_backbone`, such as the same `weights`.
    """
    return split_last_stage(backbones.build_backbone(name, out_features=["res4", "res5"], **options))


def add_config(cfg: CfgNode) -> None:
    """Add the one key that detectron2 lacks: MODEL.BACKBONE.WEIGHTS, as `weights` of `resnet_backbones.build_backbone`.

    Without it weights come through MODEL.WEIGHTS, by detectron2's checkpointer and under our names.
    """
    cfg.MODEL.BACKBONE.WEIGHTS = ""


def _from_config(name: str, form: str, cfg: CfgNode, input_shape: ShapeSpec) -> Detectron2Backbone:
    return Detectron2Backbone(build_from(cfg, name, form, input_shape.channels))


for _name in backbones.list_backbones():
    for _suffix, _form in FORMS.items():
        # Our registry has NAME_fpn as a name of its own; the nets for CIFAR have no pyramid and no res5.
        if not _name.endswith("_fpn") and (not _suffix or f"{_name}_fpn" in backbones.BACKBONES):
            BACKBONE_REGISTRY._do_register(_name + _suffix, functools.partial(_from_config, _name, _form))


@ROI_HEADS_REGISTRY.register()
class BackboneRes5ROIHeads(roi_heads.Res5ROIHeads):
    """For "NAME_c4": detectron2's C4 heads with the backbone's own last stage."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        net = build_from(cfg, cfg.MODEL.BACKBONE.NAME.removesuffix("_c4"), "res5", len(cfg.MODEL.PIXEL_MEAN))
        channels = net.output_shape()["res5"].channels
        return split_last_stage(net), channels


def own_resnet(depth: int, norm: str = "FrozenBN", **settings) -> Backbone:
    """detectron2's own ResNet giving res2 … res5, to compare with; `settings` are keys of its MODEL.RESNETS."""
    cfg = get_cfg()
    widths = {"RES2_OUT_CHANNELS": 64} if depth < 50 else {}
    values = {"DEPTH": depth, "NORM": norm, "OUT_FEATURES": ["res2", "res3", "res4", "res5"], **widths, **settings}
    for key, value in values.items():
        cfg.MODEL.RESNETS[key] = value
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """The parser of detectron2's own training tools."""
    from detectron2.engine import default_argument_parser

    return default_argument_parser(epilog=epilog)


def register_dataset(name: str, data: Any) -> None:
    """Register `data`, an `Annotations`, with detectron2's catalogs, in whose records classes count from 0."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode
    from pycocotools import mask as rle

    class_of = {category["id"]: k for k, category in enumerate(data.categories)}

    def annotation(o: dict) -> dict:
        row = {"bbox": o["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": o["iscrowd"]}
        segmentation = o.get("segmentation")
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            segmentation = rle.frPyObjects(segmentation, *segmentation["size"])
        row["category_id"] = class_of[o["category_id"]]
        return row | ({"segmentation": segmentation} if segmentation else {})

    def record(k: int) -> dict:
        image = data.image(k)
        objects = [annotation(o) for o in data.objects(k) if min(o["bbox"][2:]) > 0]
        path = str(data.image_root / image["file_name"])
        size = {"height": image["height"], "width": image["width"]}
        return size | {"file_name": path, "image_id": image["id"], "annotations": objects}

    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: [record(k) for k in range(len(data))])
        MetadataCatalog.get(name).set(thing_classes=data.classes)


def launch_training(job: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call `job(args)`, which registers the datasets and calls `train`, in as many processes as `args` ask for."""
    from detectron2.engine import launch

    launch(job, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


def train(args: argparse.Namespace) -> None:
    """detectron2's DefaultTrainer with its COCOEvaluator; writes `results.json` to OUTPUT_DIR."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import DefaultTrainer, default_setup
    from detectron2.evaluation import COCOEvaluator
    from detectron2.utils import comm

    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
            return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / dataset_name))

    cfg = get_cfg()
    add_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        results = getattr(trainer, "_last_eval_results", {})  # train() returns them only if some are expected
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR, "results.json").write_text(json.dumps(results, indent=2) + "\n")
