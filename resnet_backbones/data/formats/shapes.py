"""The built-in dataset: bright shapes on a muted, textured background, drawn once as COCO JSON and PNG."""

import colorsys
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from ...errors import UserError, reason
from ..json_file import read_json
from ..masks import as_text
from ..splits import Split

CLASSES = ("disc", "rectangle", "triangle")
SPLITS = {"train": (400, 1), "val": (80, 2)}  # number of images, seed
SIDE = 128  # of an image, pixels
OVERSAMPLING = 4  # shapes are drawn larger and downsampled, for smooth edges


def read_shapes(root: Path, annotations: None, split: Split, classes: None = None) -> tuple[Path, object]:
    """The folder and records of the train or val split in `root`, drawing it first if it is not there.

    Raises `UserError` for another split and for a `root` that cannot be written.
    """
    if split.name not in SPLITS:
        raise UserError(f"{split.source}: shapes has the splits {', '.join(SPLITS)}, not {split.name!r}.")
    folder = root / split.name
    if not os.path.isdir(folder):
        _write_whole(folder, split.source, *SPLITS[split.name])
    return folder, read_json(str(folder / "instances.json"))


def _write_whole(folder: Path, source: str, num_images: int, seed: int) -> None:
    """Write into a temporary folder and rename it, so that an interrupted or parallel run leaves nothing incomplete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write_shapes(temporary, num_images, seed)
            temporary.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster; its images are the same
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: the shapes cannot be drawn in {folder.absolute()}: {reason(error)}; set "
            "$RESNET_BACKBONES_DATASETS to a writable folder."
        ) from error


def write_shapes(folder: Path, num_images: int, seed: int) -> None:
    """Draw `num_images` images and their `instances.json` into `folder`; the same seed gives the same files."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        pixels, objects = draw_image(rng)
        file_name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(folder / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": SIDE, "height": SIDE})
        for label, mask in objects:
            encoded = rle.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": rle.toBbox(encoded).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": as_text(encoded),
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (SIDE, SIDE, 3), uint8, and (label, visible mask (SIDE, SIDE), uint8) of its shapes."""
    pixels = _textured_background(rng)
    objects: list[tuple[int, np.ndarray]] = []
    for _ in range(rng.integers(6, 15)):
        label = int(rng.integers(1, len(CLASSES) + 1))
        coverage = _draw_shape(rng, CLASSES[label - 1])
        mask = (coverage > 0.5).astype(np.uint8)
        if any((mask & other).sum() > 0.05 * other.sum() for _, other in objects):
            continue  # it would hide more than a corner of an earlier shape
        objects = [(k, other & ~mask) for k, other in objects]
        hue = rng.uniform()
        color = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.6, 1)))
        color = color + rng.normal(0, 8, pixels.shape)
        pixels = pixels + coverage[:, :, None] * (color - pixels)
        objects.append((label, mask))
    return pixels.clip(0, 255).astype(np.uint8), objects


def _textured_background(rng: np.random.Generator) -> np.ndarray:
    """A muted color, clouds of three scales and fine grain; float (SIDE, SIDE, 3)."""
    background = np.full((SIDE, SIDE, 3), rng.uniform(60, 196) + rng.uniform(-20, 20, 3))
    for cells in (4, 16, 48):
        noise = Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8))
        background += 0.15 * (np.asarray(noise.resize((SIDE, SIDE), Image.BICUBIC), float)[:, :, None] - 128)
    return background + rng.normal(0, 6, background.shape)


def _draw_shape(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The fraction of each pixel that a random shape of this kind covers; float (SIDE, SIDE) in [0, 1]."""
    radius = rng.uniform(9, 17)
    center = rng.uniform(radius * 0.7, SIDE - radius * 0.7, 2)
    corners = {
        "disc": np.linspace(0, 2 * np.pi, 64, endpoint=False),
        "rectangle": np.array([0, np.pi, np.pi, 2 * np.pi]) + np.array([1, -1, 1, -1]) * rng.uniform(0.6, 1.0),
        "triangle": np.array([-3, 1, 5]) * np.pi / 6,
    }[kind]
    angles = corners + rng.uniform(-0.2, 0.2)  # slightly tilted
    points = (center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)) * OVERSAMPLING
    canvas = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points], fill=255)
    return np.asarray(canvas.resize((SIDE, SIDE), Image.BOX), float) / 255
