"""Images with predictions beside the ground truth, to judge a detector by eye."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..data.annotations import Annotations
from ..data.images import read_image
from ..data.masks import decode_mask
from ..errors import UserError

logger = logging.getLogger(__name__)

PALETTE = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000"]
MAX_NAME = 50  # characters of a class or file name
FAR = 1e5  # pixels; corners are clipped to it, outside every panel
SHORT_SIDE = 480  # pixels of a panel; small images are enlarged to keep text legible


def save_samples(
    data: Annotations, predictions: list[dict], folder: Path, count: int, min_score: float, channels: int = 3
) -> list[Path]:
    """Draw `count` images, evenly spaced in the dataset, into `folder`, and return the paths.

    On the left are the predictions with a score of at least `min_score`, on the right the ground truth. Files are named
    after their images, "front_1.png" for front/1.jpg. Images that cannot be read are skipped. If `channels` are not
    RGB, the first three are drawn, or the first as gray.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)) if count else []:
        image_id = data.image_id(k)
        found = [p for p in predictions if p["image_id"] == image_id and p["score"] >= min_score]
        try:
            picture = side_by_side(data, k, sorted(found, key=lambda p: p["score"]), channels)
        except UserError as error:
            logger.warning("%s No sample is drawn.", error)
            continue
        name = str(Path(data.file_name(k)).with_suffix("")).replace("/", "_")[-MAX_NAME:]
        path = folder / f"{name}.png"
        if path in paths:  # of a file with another suffix, or a longer name
            path = folder / f"{name}_{k}.png"
        picture.save(path)
        paths.append(path)
    return paths


def side_by_side(data: Annotations, k: int, found: list[dict], channels: int = 3) -> Image.Image:
    """Image k twice, side by side: with the predictions `found` and with the ground truth."""
    pixels = read_image(data.path(k), tuple(data.sizes[k].tolist()), channels)
    true = data.objects(k)
    names = {category["id"]: category["name"] for category in data.categories}
    left = draw_objects(pixels, names, found, f"predicted: {len(found)}")
    right = draw_objects(pixels, names, true, f"true: {len(true)}")
    gap = 8
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def draw_objects(pixels: np.ndarray, names: dict[int | str, str], objects: list[dict], title: str = "") -> Image.Image:
    """An image (H, W, C), uint8, with boxes, classes, scores and any masks drawn over it.

    If channels are not RGB, the first three are drawn, or the first as gray.

    Args:
        names: of the categories, by id.
        objects: annotations or results as COCO writes them.
    """
    height, width, channels = pixels.shape
    pixels = pixels[..., :3] if channels >= 3 else pixels[..., :1].repeat(3, axis=2)
    order = {category: k for k, category in enumerate(names)}
    colors = [PALETTE[order[o["category_id"]] % len(PALETTE)] for o in objects]
    blended = pixels.copy()
    for o, color in zip(objects, colors, strict=True):
        mask = decode_mask(o.get("segmentation"), height, width)
        if mask is not None:
            blended[mask > 0] = (0.6 * blended[mask > 0] + 0.4 * np.array(ImageColor.getrgb(color))).astype(np.uint8)

    scale = max(min(SHORT_SIDE / min(height, width), 4 * SHORT_SIDE / max(height, width)), 1)
    panel = Image.fromarray(blended)
    if scale > 1:
        panel = panel.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for o, color in zip(objects, colors, strict=True):
        x, y, w, h = (v * scale for v in o["bbox"])
        corners = np.array([x, y, x + max(w, 0), y + max(h, 0)]).clip(-FAR, FAR)
        draw.rectangle(corners.tolist(), outline=color, width=2)
        name = names[o["category_id"]][:MAX_NAME]
        _text(
            draw,
            font,
            (corners[0], max(corners[1] - 14, 0)),
            f"{name} {o['score']:.2f}" if "score" in o else name,
            color,
        )
    if title:
        _text(draw, font, (4, panel.height - 18), title, "black")
    return panel


def _text(draw: ImageDraw.ImageDraw, font, corner: tuple[float, float], text: str, color: str) -> None:
    draw.rectangle(draw.textbbox(corner, text, font=font), fill=color)
    draw.text(corner, text, fill="white", font=font)
