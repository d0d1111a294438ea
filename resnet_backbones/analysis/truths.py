"""The numbers of every registered backbone, in `truths.json`: tests check them and the tables in the docs show them.

`resnet-backbones write-truths` writes the file. Each name has
    parameters, flops: of the backbone; flops are multiply-adds for one image, as `analyze` counts them,
    classifier_parameters, classifier_flops: with average pooling and fc; not for NAME_fpn,
    features: {feature: [channels, stride]}.
"""

import json
from pathlib import Path

import torch

from ..backbones import build_backbone
from ..classifiers import build_classifier
from .cost import analyze

PATH = Path(__file__).with_name("truths.json")


def load_truths() -> dict[str, dict]:
    return json.loads(PATH.read_text())


def setting(name: str) -> tuple[tuple[int, int], int]:
    """(height, width) of the images and number of classes that `name` was published for: CIFAR's or ImageNet's."""
    return ((32, 32), 10) if name.startswith("cifar_") else ((224, 224), 1000)


def measure(name: str) -> dict:
    """The entry of `name`."""
    size, num_classes = setting(name)
    with torch.device("meta"):
        shapes = build_backbone(name).output_shape()
    features = {feature: list(shape) for feature, shape in shapes.items()}
    if name.endswith("_fpn"):
        total = analyze(build_backbone(name), size)["total"]
        return {"parameters": total["parameters"], "flops": total["flops"], "features": features}
    rows = analyze(build_classifier(name, num_classes), size)
    return {
        "parameters": rows["total"]["parameters"] - rows["fc"]["parameters"],
        "flops": rows["total"]["flops"] - rows["fc"]["flops"],
        "classifier_parameters": rows["total"]["parameters"],
        "classifier_flops": rows["total"]["flops"],
        "features": features,
    }


def to_json(truths: dict[str, dict]) -> str:
    """Sorted, with one name per line, so that diffs are readable."""
    lines = [f"{json.dumps(name)}: {json.dumps(truths[name], sort_keys=True)}" for name in sorted(truths)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def to_markdown(truths: dict[str, dict]) -> str:
    """A table of all but the FPNs."""
    lines = [
        "| name | parameters | with fc | FLOPs | features: channels/stride |",
        "|---|--:|--:|--:|---|",
    ]
    for name in sorted(truths):
        if not name.endswith("_fpn"):
            truth = truths[name]
            sizes = f"{millions(truth['parameters'])} | {millions(truth['classifier_parameters'])}"
            lines.append(f"| `{name}` | {sizes} | {billions(truth['flops'])} | {feature_list(truth['features'])} |")
    return "\n".join(lines) + "\n"


def millions(number: int) -> str:
    return f"{number / 1e6:.2f}M"


def billions(number: int) -> str:
    return f"{number / 1e9:.2f}G"


def feature_list(features: dict[str, list[int]]) -> str:
    return ", ".join(f"{feature} {channels}/{stride}" for feature, (channels, stride) in features.items())
