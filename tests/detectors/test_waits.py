"""How often a training step asks for what only the device knows: each time, a GPU would be waited for."""

from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import resize_boxes as torchvisions_resize_boxes

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.config import SolverConfig
from resnet_backbones.detectors.dense import ANCHOR_SIZES
from resnet_backbones.detectors.draws import ANCHORS, ROIS
from resnet_backbones.detectors.sampling import SeededSampler
from resnet_backbones.detectors.torchvision import faster_rcnn, fcos, retinanet
from resnet_backbones.detectors.transform import ImageTransform, resize_boxes
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.training.loop import train_step
from resnet_backbones.training.nonfinite import NonFinite
from resnet_backbones.training.solver import build_optimizer

SIZES = {"min_size": [96], "max_size": 160}


class Waits(TorchDispatchMode):
    """Counts the operators that read a value (`item`, `bool`, `tolist`) or whose result has a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        asking = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "torchvision::nms")
        if masked or name in asking or name.startswith("aten::_unique"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))

    def total(self) -> int:
        return sum(self.counts.values())


def step(model: nn.Module, batch: tuple, folder, count: int = 2) -> Waits:
    """The waits of the last of `count` steps of our loop."""
    solver = OmegaConf.structured(SolverConfig(lr=1e-6, clip_norm=1.0))
    optimizer, scaler = build_optimizer(model.train(), solver), torch.amp.GradScaler("cpu", enabled=False)
    guard = NonFinite(model, 0, folder, late=True)
    for k in range(count):
        with Waits() as waits:
            assert train_step(model, iter([batch]), optimizer, scaler, solver, k, guard) is not None
    return waits


def test_a_classifiers_step_only_reads_the_verdict_of_the_step_before(tmp_path):
    model = build_classifier("resnet18", 10)
    batch = (torch.randn(2, 3, 64, 64), {"labels": torch.tensor([1, 2]), "file_name": ["a", "b"]})
    assert step(model, batch, tmp_path, count=1).total() == 0
    assert step(model, batch, tmp_path).counts == {"aten::_local_scalar_dense": 1}


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos"])
def test_a_detectors_step_waits_where_torchvisions_heads_do_and_nowhere_else(tmp_path, name):
    images = [torch.rand(3, 90, 140), torch.rand(3, 201, 77)]
    targets = [
        {"boxes": torch.tensor([[5.0, 10, 40, 50], [20, 30, 60, 70]]), "labels": torch.tensor([1, 3]), "seed": k}
        | {"file_name": f"{k}.png"}
        for k in range(2)
    ]
    levels = ["p2", "p3", "p4", "p5", "p6"] if name == "faster_rcnn" else ["p3", "p4", "p5", "p6", "p7"]
    body = build_backbone("resnet18_fpn", fpn_channels=32, out_features=levels)
    if name == "faster_rcnn":
        ours = faster_rcnn(body, 3, **SIZES)
        anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
        theirs = FasterRCNN(body, 4, rpn_anchor_generator=anchors, **SIZES)
        theirs.roi_heads.box_roi_pool.featmap_names = ours.roi_heads.box_roi_pool.featmap_names
    elif name == "retinanet":
        ours = retinanet(body, 3, **SIZES)
        anchors = AnchorGenerator(ANCHOR_SIZES, ((0.5, 1.0, 2.0),) * 5)
        theirs = RetinaNet(body, 3, anchor_generator=anchors, **SIZES)
    else:
        ours, theirs = fcos(body, 3, **SIZES), FCOS(body, 3, **SIZES)
    with Waits() as reference:
        labels = targets if name == "faster_rcnn" else [t | {"labels": t["labels"] - 1} for t in targets]
        sum(theirs.train()(images, [{k: t[k] for k in ("boxes", "labels")} for t in labels]).values()).backward()
    waits = step(ours, (images, targets), tmp_path)
    waits.counts["aten::_local_scalar_dense"] -= 1  # the verdict of the step before
    assert not waits.counts - reference.counts, (waits.counts, reference.counts)


def test_boxes_are_resized_as_by_torchvision():
    boxes = torch.rand(50, 4) * 500
    for size, new_size in [((480, 640), (800, 1066)), ((333, 500), (799, 1200)), ((7, 1333), (1, 1333))]:
        assert torch.equal(resize_boxes(boxes, size, new_size), torchvisions_resize_boxes(boxes, size, new_size))


@pytest.mark.parametrize("stream", [ANCHORS, ROIS])
@pytest.mark.parametrize(("positive", "negative"), [(300, 700), (3, 700), (3, 20), (0, 0), (300, 0)])
def test_samples_are_drawn_without_counting_candidates(stream, positive, negative):
    transform = ImageTransform((96,), 160, Preprocessing())
    transform.seeds = [7, 8]
    sampler = SeededSampler(64, 0.25, transform, stream)
    labels = [torch.cat([torch.ones(positive), torch.zeros(negative), -torch.ones(9)]).long() for _ in range(2)]
    labels = [values[torch.randperm(len(values))] for values in labels]
    sampler.boxes = [torch.rand(len(values), 4) * 500 for values in labels] if stream == ROIS else None
    with Waits() as waits:
        taken = sampler(labels)
        counts = sampler.counts()
    assert waits.total() == 0
    positives = min(positive, 16)
    for masks, label, wanted in zip(taken, (1, 0), (positives, min(negative, 64 - positives)), strict=True):
        assert [int(mask.sum()) for mask in masks] == [wanted, wanted]
        assert all((values[mask] == label).all() for mask, values in zip(masks, labels, strict=True))
    assert [int(count) for count in counts] == [2 * positives, 2 * (positives + min(negative, 64 - positives))]
