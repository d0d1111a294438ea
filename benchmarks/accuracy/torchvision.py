"""The shortest training loop over torchvision's own Faster R-CNN and Mask R-CNN."""

import itertools
import logging
import time

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from resnet_backbones.cli.training import load_sets, scorer
from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.training.loop import set_seed

from .run import initial_weights

logger = logging.getLogger(__name__)


def train(config: DictConfig) -> tuple[dict[str, float], float]:
    """Metrics in percent and seconds per iteration."""
    solver, masks = config.solver, config.detector.name == "mask_rcnn"
    sets = load_sets(config, config.data.train)
    model = build_model(config, len(sets[0].classes))
    model.load_state_dict(initial_weights(config))
    set_seed(config.seed, deterministic=False)
    dataset = DetectionDataset(sets, train=True, masks=masks, flip=config.data.flip)
    loader = DataLoader(
        dataset,
        solver.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=dataset.collate,
        num_workers=config.data.num_workers,
    )
    sgd = torch.optim.SGD(model.parameters(), solver.lr, solver.momentum, weight_decay=solver.weight_decay)
    warmup = torch.optim.lr_scheduler.LinearLR(sgd, solver.warmup_factor, total_iters=solver.warmup_iters)
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd, list(solver.steps), solver.gamma)
    model.train()
    start = time.perf_counter()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, (images, targets) in enumerate(itertools.islice(batches, solver.max_iter)):
        losses = model([image / 255 for image in images], targets)
        loss = sum(losses.values())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        warmup.step()
        steps.step()
        if step % 20 == 0:
            logger.info("step %d  loss %.3f", step, loss.item())
    seconds = (time.perf_counter() - start) / solver.max_iter
    metrics, _ = scorer(load_sets(config, config.data.test), config)(InUnitRange(model))
    return metrics, seconds


class InUnitRange(nn.Module):
    """torchvision's detector on images of uint8."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[torch.Tensor]) -> list[dict]:
        return self.model([image / 255 for image in images])


def build_model(config: DictConfig, num_classes: int) -> FasterRCNN:
    """torchvision's detector with the settings of `config`; the body has BN."""
    d, width = config.detector, config.backbone.fpn_channels
    resnet = models.get_model(config.backbone.name.removesuffix("_fpn"), weights=None)
    sizes, ratios = [tuple(level) for level in d.anchor_sizes], tuple(d.aspect_ratios)
    channels = [resnet.inplanes // 8 * 2**k for k in range(4)]
    body = BackboneWithFPN(resnet, {f"layer{k + 1}": str(k) for k in range(4)}, channels, width)
    settings = {k: v for k, v in d.items() if k.startswith(("rpn_", "box_")) and not k.endswith(("_size", "_width"))}
    settings.pop("box_head", None)
    settings |= {"min_size": list(d.min_size), "max_size": d.max_size}
    settings["rpn_anchor_generator"] = AnchorGenerator(sizes, [ratios] * len(sizes))
    model = (MaskRCNN if d.name == "mask_rcnn" else FasterRCNN)(body, num_classes + 1, **settings)
    heads, pooled = model.roi_heads, width * d.box_pool_size**2
    heads.box_head = TwoMLPHead(pooled, d.box_head_width)
    heads.box_predictor = FastRCNNPredictor(d.box_head_width, num_classes + 1)
    if d.name == "mask_rcnn":
        heads.mask_head = MaskRCNNHeads(width, [d.mask_head_width] * d.mask_head_depth, dilation=1)
        heads.mask_predictor = MaskRCNNPredictor(d.mask_head_width, d.mask_head_width, num_classes + 1)
    return model
