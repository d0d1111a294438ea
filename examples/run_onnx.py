#!/usr/bin/env python3
"""Run an exported detector or classifier with onnxruntime, numpy and Pillow alone, without torch.

    python examples/run_onnx.py detector.onnx image.jpg another.png --min-score 0.5 --output drawn

Prints what is found in each image, as one line of JSON per image; with --output, draws it, too. An image that cannot be
read is named on stderr, and the exit status is 1.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps

COLORS = ("red", "lime", "cyan", "magenta", "yellow", "orange", "deepskyblue", "hotpink")
SHORT_SIDE = 480  # pixels; smaller images are drawn larger, so that labels can be read


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file of `resnet-backbones export`")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--min-score", type=float, default=0.5, help="lowest score shown (default %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for images with the detections drawn")
    args = parser.parse_args(argv)
    session, metadata = load(args.model)
    find = detect if metadata["kind"] == "detection" else classify
    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"error: --output {args.output} cannot be made: {error.strerror}")
    same_stem, failed = Counter(path.stem for path in args.images), False
    for k, path in enumerate(args.images):
        try:
            image = read(path)
            found = find(session, image, metadata, args.min_score)
            if args.output and "boxes" in found:
                name = path.stem if same_stem[path.stem] == 1 else f"{path.stem}_{k}"
                draw(image, found).save(args.output / f"{name}.png")
        except Exception as error:  # Pillow and onnxruntime raise many kinds
            print(f"error: {path}: {first_line(error)}", file=sys.stderr)
            failed = True
            continue
        found.pop("masks", None)
        print(json.dumps({"image": str(path)} | found))
    sys.exit(1 if failed else 0)


def load(path: str) -> tuple[onnxruntime.InferenceSession, dict]:
    """The network and its metadata. Exits if it is not an exported detector or classifier of RGB images."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    except Exception as error:  # onnxruntime has classes of its own
        sys.exit(f"error: {path} cannot be loaded: {first_line(error)}")
    if metadata.get("kind") not in ("detection", "classification") or session.get_inputs()[0].shape[1] != 3:
        sys.exit(f"error: {path} is no detector or classifier of RGB images that `resnet-backbones export` wrote")
    if metadata["preprocessing"] is None:
        sys.exit(f"error: {path} does not say how its images are prepared")
    return session, metadata


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read(path: Path) -> Image.Image:
    """An image, upright and as RGB; gray ones of 16 bits by the range that their largest value is in."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        top = next((top for top in (255, 1023, 4095, 16383) if values.max() <= top), 65535)
        image = Image.fromarray((values * (256 / (top + 1))).astype(np.uint8))
    return image.convert("RGB")


def detect(session: onnxruntime.InferenceSession, image: Image.Image, metadata: dict, min_score: float) -> dict:
    """Boxes, xyxy in pixels of the image, with labels, scores and for Mask R-CNN masks (N, H, W)."""
    outputs = run(session, image)
    shown = outputs["scores"] >= min_score
    names = metadata["classes"] or {}
    found = {
        "boxes": outputs["boxes"][shown].tolist(),
        "scores": outputs["scores"][shown].tolist(),
        "labels": [names[label - 1] if names else int(label) for label in outputs["labels"][shown]],
    }
    if "masks" in outputs:
        found["masks"] = outputs["masks"][shown, 0] >= 0.5
    return found


def classify(session: onnxruntime.InferenceSession, image: Image.Image, metadata: dict, min_score: float) -> dict:
    """The five most probable classes of an image, resized and cropped as the network was evaluated."""
    preprocessing = metadata["preprocessing"]
    shorter, side = preprocessing["resize"] or 256, preprocessing["size"] or 224
    scale = shorter / min(image.size)
    method = Image.Resampling[preprocessing["interpolation"].upper()]
    image = image.resize([max(side, round(scale * n)) for n in image.size], method)
    left, top = ((n - side) // 2 for n in image.size)
    logits = run(session, image.crop((left, top, left + side, top + side)))["logits"][0]
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best, names = probabilities.argsort()[::-1][:5], metadata["classes"]
    return {
        "labels": [names[k] if names else int(k) for k in best],
        "scores": probabilities[best].tolist(),
    }


def run(session: onnxruntime.InferenceSession, image: Image.Image) -> dict[str, np.ndarray]:
    (source,) = session.get_inputs()
    pixels = np.asarray(image).transpose(2, 0, 1)[None]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {source.name: pixels}), strict=True))


def draw(image: Image.Image, found: dict) -> Image.Image:
    pixels, labels = np.array(image), found["labels"]
    colors = {label: COLORS[k % len(COLORS)] for k, label in enumerate(sorted(set(labels), key=str))}
    for mask, label in zip(found.get("masks", ()), labels, strict=False):
        pixels[mask] = pixels[mask] // 2 + np.array(Image.new("RGB", (1, 1), colors[label]))[0, 0] // 2
    scale = max(1, min(SHORT_SIDE / min(image.size), 4 * SHORT_SIDE / max(image.size)))
    image = Image.fromarray(pixels).resize([round(scale * n) for n in image.size])
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for box, label, score in reversed(list(zip(found["boxes"], labels, found["scores"], strict=True))):
        box, text = [scale * value for value in box], f"{label} {score:.2f}"
        _, _, width, height = pen.textbbox((0, 0), text, font=font)
        x, y = max(0, min(box[0], image.width - width)), max(0, box[1] - height)
        pen.rectangle(box, outline=colors[label], width=2)
        pen.rectangle((x, y, x + width, y + height), fill=colors[label])
        pen.text((x, y), text, fill="black", font=font)
    return image


if __name__ == "__main__":
    main()
