"""Whole detectors, classifiers and backbones as files that ONNX Runtime, OpenVINO or torch alone run."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, reason
from .network import Network, network_of
from .onnx import load_onnx, save_onnx
from .openvino import load_openvino, save_openvino
from .program import load_program, save_program
from .verification import Difference, compare, drawn_inputs

__all__ = ["FORMATS", "PRECISIONS", "VerificationError", "check_request", "export", "load", "network_of"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}  # and the suffix of their files
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32",)}


class VerificationError(Exception):
    """An exported network does not compute the same as the original."""


def export(
    model: nn.Module | Network,
    path: str | Path,
    format: str,
    precision: str = "fp32",
    inputs: Sequence[Tensor] | None = None,
    calibration: Sequence[Tensor] = (),
) -> Difference | None:
    """Write a detector, classifier or backbone of this package to a file, and verify that it computes the same.

    Args:
        model: as `network_of` takes it, which says what inputs and outputs the file has.
        format: a key of `FORMATS`, which has the suffix of `path`.
        precision: "fp32", or for OpenVINO "bf16" or "int8".
        inputs: what the file and `model` are compared on; None for generated images of several sizes, one blank.
        calibration: inputs on which the ranges of activations are measured for int8.

    Returns how far the outputs differ; None for bf16 and int8, which are only run. Boxes may differ by 1e-2 pixels,
    scores by 1e-4, features by 1e-4 of their largest value, and masks in 0.1 % of the pixels. Raises
    `VerificationError` above that, and `UserError` for what cannot be exported or written. What was at `path` stays
    there until the new file is verified.
    """
    path = Path(path)
    check_request(path, format, precision)
    network = model if isinstance(model, Network) else network_of(model)
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            written = Path(folder) / path.name
            save(network, written, format, precision, calibration)
            difference = verify(network, written, precision, drawn_inputs(network) if inputs is None else inputs)
            for file in sorted(Path(folder).iterdir()):  # OpenVINO's .bin before its .xml
                os.replace(file, path.with_name(file.name))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    return difference


def verify(network: Network, path: Path, precision: str, inputs: Sequence[Tensor]) -> Difference | None:
    """How far a file's outputs are from the eager ones; None for bf16 and int8, which are only run."""
    try:
        run, _ = load(path)
        if precision != "fp32":
            for image in inputs:
                run(image)
            return None
        difference = compare(network, run, inputs)
    except UserError:
        raise
    except Exception as error:  # each runtime has its own classes
        raise VerificationError(f"{path.name} is not written, because it cannot be run: {reason(error)}") from error
    if difference.wrong:
        raise VerificationError(f"{path.name} is not written, because it differs from the model: {difference.wrong}")
    return difference


def check_request(path: Path, format: str, precision: str) -> None:
    """Raise `UserError` if `export` cannot write to `path` in this format and precision."""
    if path.suffix != FORMATS[format]:
        named = f"{path.stem or 'model'}{FORMATS[format]}"
        raise UserError(f"{str(path)!r} does not have the suffix of --format {format}; call it {named}.")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; choose another name.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it.")
    if precision not in PRECISIONS[format]:
        raise UserError(
            f"--precision {precision} needs --format openvino, since the CPU kernels of --format {format} lack it."
        )


def save(network: Network, path: Path, format: str, precision: str, calibration: Sequence[Tensor]) -> None:
    if format == "openvino":
        if precision == "int8" and not calibration:
            raise UserError("--precision int8 needs images to measure the ranges of activations on: --data YAML.")
        save_openvino(network, path, precision, calibration)
    else:
        {"onnx": save_onnx, "torch": save_program}[format](network, path)


def load(path: str | Path) -> tuple[Callable[[Tensor | np.ndarray], dict[str, Tensor]], dict]:
    """An exported network as a function from its input to a dict of its outputs, and the metadata of its file.

    The input is a tensor or an array of the shape and type that `network_of` gives for its kind, such as
    (1, C, H, W), uint8, of a detector; the outputs are tensors on the CPU.

    Raises `UserError` for an unknown suffix, a missing file, and if the library that runs it is not installed.
    """
    loaders = {".onnx": load_onnx, ".xml": load_openvino, ".pt2": load_program}
    path = Path(path)
    if path.suffix not in loaders:
        raise UserError(f"{path} has no known suffix; exported networks have {', '.join(loaders)}.")
    if not path.is_file():
        raise UserError(f"{path} does not exist; `resnet-backbones export` writes such files.")
    run, metadata = loaders[path.suffix](path)

    def call(images: Tensor | np.ndarray) -> dict[str, Tensor]:
        images = torch.from_numpy(images.copy()) if isinstance(images, np.ndarray) else images
        return run(images.contiguous())

    return call, metadata
