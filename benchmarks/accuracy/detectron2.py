"""detectron2's own network, loader and trainer."""

import time

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultTrainer
from detectron2.engine.defaults import default_setup
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from resnet_backbones.cli.training import load_sets, scorer
from resnet_backbones.hosts.detectron2 import register_dataset
from resnet_backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnet_backbones.weights import Checkpoint, from_ours

from .run import initial_weights


def train(config: DictConfig) -> tuple[dict[str, float], float]:
    """Metrics in percent and seconds per iteration."""
    for data in load_sets(config, config.data.train):
        register_dataset(data.name, data)
    cfg = translate(config, len(data.classes))
    default_setup(cfg, None)
    trainer = Trainer(cfg)
    state = from_ours(Checkpoint(initial_weights(config), {}), "detectron2").checkpoint.state
    missing, unexpected = trainer.model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all("anchor" in name or "pixel" in name for name in missing), missing
    start = time.perf_counter()
    trainer.train()
    seconds = (time.perf_counter() - start) / config.solver.max_iter
    model = InOurConvention(trainer.model, cfg)
    metrics, _ = scorer(load_sets(config, config.data.test), config)(model)
    return metrics, seconds


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))


class InOurConvention(nn.Module):
    """Inference on images (3, H, W) of uint8, resized by detectron2 itself."""

    def __init__(self, model: nn.Module, cfg: CfgNode) -> None:
        super().__init__()
        self.model, self.resize = model, ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def forward(self, images: list[torch.Tensor]) -> list[dict]:
        return [self.detect(image) for image in images]

    def detect(self, image: torch.Tensor) -> dict:
        height, width = image.shape[1:]
        pixels = image.permute(1, 2, 0).numpy()
        resized = torch.from_numpy(self.resize.get_transform(pixels).apply_image(pixels).copy()).permute(2, 0, 1)
        found: Instances = self.model([{"image": resized, "height": height, "width": width}])[0]["instances"]
        output = {"boxes": found.pred_boxes.tensor, "labels": found.pred_classes + 1, "scores": found.scores}
        return output | ({"masks": found.pred_masks[:, None].float()} if found.has("pred_masks") else {})


def translate(config: DictConfig, num_classes: int) -> CfgNode:
    """detectron2's config of the same network, data and schedule; the rest is its own default."""
    d, solver, cfg = config.detector, config.solver, get_cfg()
    levels = ["p2", "p3", "p4", "p5", "p6"]
    values = {
        "SEED": config.seed,
        "OUTPUT_DIR": config.output_dir,
        "MODEL.DEVICE": "cpu" if not torch.cuda.is_available() else "cuda",
        "MODEL.MASK_ON": d.name == "mask_rcnn",
        "MODEL.PIXEL_MEAN": [255 * v for v in IMAGENET_MEAN],
        "MODEL.PIXEL_STD": [255 * v for v in IMAGENET_STD],
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": config.backbone.freeze_at,
        "MODEL.RESNETS.DEPTH": int(config.backbone.name.removeprefix("resnet").removesuffix("_fpn")),
        "MODEL.RESNETS.NORM": config.backbone.norm,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": config.backbone.fpn_channels,
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(level) for level in d.anchor_sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(d.aspect_ratios)],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": d.rpn_pre_nms_top_n_train,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": d.rpn_pre_nms_top_n_test,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": d.rpn_post_nms_top_n_train,
        "MODEL.RPN.POST_NMS_TOPK_TEST": d.rpn_post_nms_top_n_test,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:4],
        "MODEL.ROI_HEADS.NUM_CLASSES": num_classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": d.box_batch_size_per_image,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": d.box_head_width,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": d.box_pool_size,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": d.mask_head_depth,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": d.mask_head_width,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": d.mask_pool_size,
        "INPUT.FORMAT": "RGB",
        "INPUT.MASK_FORMAT": "bitmask",  # one of four masks of nuclei is an RLE
        "INPUT.MIN_SIZE_TRAIN": list(d.min_size),
        "INPUT.MIN_SIZE_TEST": d.min_size[-1],
        "INPUT.MAX_SIZE_TRAIN": d.max_size,
        "INPUT.MAX_SIZE_TEST": d.max_size,
        "DATASETS.TRAIN": list(config.data.train),
        "DATASETS.TEST": [],
        "DATALOADER.NUM_WORKERS": config.data.num_workers,
        "DATALOADER.ASPECT_RATIO_GROUPING": config.data.aspect_ratio_grouping is not False,  # null: its own default
        "SOLVER.IMS_PER_BATCH": solver.batch_size,
        "SOLVER.BASE_LR": solver.lr,
        "SOLVER.STEPS": list(solver.steps),
        "SOLVER.GAMMA": solver.gamma,
        "SOLVER.MAX_ITER": solver.max_iter,
        "SOLVER.WARMUP_ITERS": solver.warmup_iters,
        "SOLVER.WEIGHT_DECAY": solver.weight_decay,
        "SOLVER.CHECKPOINT_PERIOD": 10**9,
        "TEST.EVAL_PERIOD": 0,
    }
    cfg.merge_from_list([v for key, value in values.items() for v in (key, value)])
    cfg.freeze()
    return cfg
