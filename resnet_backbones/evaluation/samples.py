"""Pictures for a person to judge a detector by."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..data import Annotations
from ..data.images import read_image
from ..data.masks import decode_mask
from ..errors import UserError

logger = logging.getLogger(__name__)

PALETTE = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000"]
LONGEST = 50  # characters of a name that are drawn or make a file's name
FAR = 1e5  # pixels to the corner of a box, past every panel
SHORT_SIDE = 480  # pixels of a drawn panel, so that text is legible on small images


def save_samples(data: Annotations, predictions: list[dict], folder: Path, count: int, min_score: float) -> list[Path]:
    """Draw `count` images spread evenly over the data set into `folder`: on the left what was predicted with a score
    of at least `min_score`, on the right the truth. One that cannot be read is left out, as it was in scoring."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)) if count else []:
        found = [p for p in predictions if p["image_id"] == data.image_ids[k] and p["score"] >= min_score]
        try:
            picture = draw_comparison(data, k, sorted(found, key=lambda p: p["score"]))
        except UserError as error:
            logger.warning("%s No sample is drawn of it.", error)
            continue
        paths.append(folder / f"{Path(data.file_name(k)).stem[:LONGEST]}.png")
        picture.save(paths[-1])
    return paths


def draw_comparison(data: Annotations, k: int, found: list[dict]) -> Image.Image:
    """Image k twice, side by side: with the predictions `found` and with its true objects."""
    pixels = read_image(data.image_root / data.file_name(k), tuple(data.sizes[k].tolist()))
    true = data.objects(k)
    left = draw_objects(pixels, data, found, f"predicted: {len(found)}")
    right = draw_objects(pixels, data, true, f"true: {len(true)}")
    gap = 8
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def draw_objects(pixels: np.ndarray, data: Annotations, objects: list[dict], title: str) -> Image.Image:
    """Boxes with class and score, and masks where there are any, over an image (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    labels = {category["id"]: k for k, category in enumerate(data.categories)}
    colours = [PALETTE[labels[o["category_id"]] % len(PALETTE)] for o in objects]
    blended = pixels.astype(float)
    for o, colour in zip(objects, colours, strict=True):
        mask = _mask(o, height, width)
        if mask is not None:
            blended[mask > 0] = 0.6 * blended[mask > 0] + 0.4 * np.array(ImageColor.getrgb(colour))

    scale = max(min(SHORT_SIDE / min(height, width), 4 * SHORT_SIDE / max(height, width)), 1)
    panel = Image.fromarray(blended.astype(np.uint8))
    panel = panel.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for o, colour in zip(objects, colours, strict=True):
        x, y, w, h = (v * scale for v in o["bbox"])
        corners = np.array([x, y, x + max(w, 0), y + max(h, 0)]).clip(-FAR, FAR)
        draw.rectangle(corners.tolist(), outline=colour, width=2)
        name = data.classes[labels[o["category_id"]]][:LONGEST]
        _text(
            draw,
            font,
            (corners[0], max(corners[1] - 14, 0)),
            f"{name} {o['score']:.2f}" if "score" in o else name,
            colour,
        )
    _text(draw, font, (4, panel.height - 18), title, "black")
    return panel


def _mask(o: dict, height: int, width: int) -> np.ndarray | None:
    try:
        return decode_mask(o, height, width)
    except (ValueError, TypeError):
        return None  # training already says so where masks are needed


def _text(draw: ImageDraw.ImageDraw, font, corner: tuple[float, float], text: str, colour: str) -> None:
    draw.rectangle(draw.textbbox(corner, text, font=font), fill=colour)
    draw.text(corner, text, fill="white", font=font)
