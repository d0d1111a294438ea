#!/usr/bin/env python3
"""Run an exported detector or classifier with onnxruntime, numpy and Pillow alone, without torch.

    python examples/run_onnx.py detector.onnx image.jpg another.png --min-score 0.5 --output drawn

Prints what is found in each image, as one line of JSON per image; with --output, draws it, too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

COLORS = ("red", "lime", "cyan", "magenta", "yellow", "orange", "deepskyblue", "hotpink")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file of `resnet-backbones export`")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--min-score", type=float, default=0.5, help="of the detections that are shown; %(default)s")
    parser.add_argument("--output", type=Path, help="folder for images with the detections drawn")
    args = parser.parse_args(argv)
    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    find = {"detection": detect, "classification": classify}[metadata["kind"]]
    for path in args.images:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        found = find(session, image, metadata, args.min_score)
        if args.output and "boxes" in found:
            args.output.mkdir(parents=True, exist_ok=True)
            draw(image, found).save(args.output / f"{path.stem}.png")
        found.pop("masks", None)
        print(json.dumps({"image": str(path)} | found))


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
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for box, label, score in zip(found["boxes"], labels, found["scores"], strict=True):
        pen.rectangle(box, outline=colors[label], width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{label} {score:.2f}", fill=colors[label])
    return image


if __name__ == "__main__":
    main()
