"""Checks and setup shared by the tests of several subpackages."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from conftest import TINY, coco_overrides
from torch import Tensor, nn

from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector, describe


def randomize_statistics(model: nn.Module) -> None:
    """Give the norms statistics like a trained net's, so that a misplaced norm shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


def save_detector(folder: Path, name: str = "mask_rcnn", *overrides: str) -> tuple[nn.Module, str]:
    """A tiny detector with random weights, which finds seven objects in any image, and the path of its checkpoint."""
    config = load_config(
        "coco_mask_rcnn_R50.yaml", [*TINY, *coco_overrides(folder), f"detector.name={name}", *overrides]
    )
    config.detector.box_score_thresh = 0.0
    config.detector.box_detections_per_img = 7
    model = build_detector(config, 2).eval()
    path = folder / f"{name}.pt"
    torch.save({"model": model.state_dict(), "metadata": describe(model, config, ["dog", "cat"])}, path)
    return model, str(path)


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To within 1e-5 of each number, or of the largest one."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def assert_equal_features(ours: dict, theirs: dict, tolerance: float = 5e-6) -> None:
    """The same names, and differences within `tolerance` of the largest value, on any device."""
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        error = (ours[name].to(expected) - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, f"{name}: {error}"


def predicted_images(folder: Path) -> list[str]:
    """The file names in the results that `predict` wrote to folder/out."""
    content = json.loads((folder / "out/images.json").read_text())
    return [image["file_name"] for image in content["images"]]


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header declares `width` x `height`; `pixels` may be fewer."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def write_video(path: Path, count: int = 12, codec: str = "h264", flags: str = "faststart") -> None:
    """Write a video of 60 x 44 pixels whose frame k is gray, from 20 k to 20 k + 9; `flags` are MP4's movflags."""
    import av

    with av.open(str(path), "w", options={"movflags": flags} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10, width=60, height=44, pix_fmt="yuv420p")
        stream.gop_size = 5
        for k in range(count):
            pixels = 20 * (k % 12) + np.random.default_rng(k).integers(0, 10, (44, 60, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
