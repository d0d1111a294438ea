"""Faster R-CNN with an FPN as it is deployed on a CPU: eager, fused, compiled, ONNX Runtime and OpenVINO."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_backbones import fuse
from resnet_backbones.errors import UserError
from resnet_backbones.export import FORMATS, load, network_of
from resnet_backbones.export import save as save_network
from resnet_backbones.export.verification import drawn_inputs

from .agreement import detection_differences
from .detection import build_detector, make_batch, shared_state
from .networks import compiled
from .settings import Settings
from .timing import Row, measure

EXPORTS = {
    "torch.export fp32": ("torch", "fp32"),
    "onnxruntime fp32": ("onnx", "fp32"),
    "OpenVINO fp32": ("openvino", "fp32"),
    "OpenVINO bf16": ("openvino", "bf16"),
    "OpenVINO int8": ("openvino", "int8"),
}


def deployments(settings: Settings) -> list[Row]:
    """CPU time of inference on one image; "ours", the base of the ratios, is the fused eager model."""
    settings = dataclasses.replace(settings, device="cpu", amp="none")
    model = build_detector("ours", settings, shared_state(settings)).eval()
    image = (make_batch(settings)[0][0] * 255).round().to(torch.uint8)
    runs = {"ours": eager(fuse(model).to(memory_format=torch.channels_last), image)}
    runs |= {"ours plain": eager(model, image), "ours compiled": eager(with_compiled_backbone(model), image)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (format, precision) in EXPORTS.items():
            runs[name] = exported(model, Path(folder), format, precision, image)
        shape = f"{settings.name}_fpn, {settings.short_side}x{settings.short_side * 3 // 2}"
        what = f"detector inference, CPU time (1 image, {shape})"
        options = {"rounds": settings.rounds, "warmup": 2, "device": torch.device("cpu"), "clock": time.process_time}
        rows = measure(what, runs, images=1, **options)
        expected = runs["ours"]()
        for row in rows:
            if callable(runs[row.contender]):
                row.differences = detection_differences(expected, runs[row.contender]())
    return rows


def eager(model: nn.Module, image: Tensor) -> Callable[[], dict[str, Tensor]]:
    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            return model([image])[0]

    return run


def with_compiled_backbone(model: nn.Module) -> nn.Module:
    """A fused copy with its backbone under torch.compile, with freezing of weights."""
    model = fuse(model).to(memory_format=torch.channels_last)
    model.backbone = compiled(model.backbone)
    return model


def exported(
    model: nn.Module, folder: Path, format: str, precision: str, image: Tensor
) -> Callable[[], dict[str, Tensor]] | str:
    """The exported network on an image, calibrated on generated pictures, or why there is none."""
    path, network = folder / f"{precision}{FORMATS[format]}", network_of(model)
    try:
        save_network(network, path, format, precision, drawn_inputs(network))
        run, _ = load(path)
    except UserError as error:
        return str(error)
    return lambda: run(image[None])
