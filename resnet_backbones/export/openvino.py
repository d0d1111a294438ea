"""Networks in OpenVINO's format, an `.xml` file with a `.bin` beside it: made from ONNX, quantized by NNCF."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import DeformConv2d

from ..errors import UserError, reason
from .network import Network
from .onnx import save_onnx

INSTALL = "pip install openvino nncf onnx onnxruntime onnxscript"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of what is not quantized
OURS = "resnet_backbones"  # the section of a file's rt_info
# What int8 leaves in float32, since boxes and scores need more than 256 values: the last layers of heads, by their
# names in torchvision's detectors, and the arithmetic of boxes.
PREDICTORS = ("cls_logits", "cls_score", "bbox_pred", "bbox_reg", "bbox_ctrness", "mask_fcn_logits")
BOX_ARITHMETIC = ["Multiply", "Subtract", "Divide", "Minimum", "Maximum", "Concat"]


def import_openvino() -> ModuleType:
    """openvino. Raises `UserError` if it is not installed.

    It and NNCF are imported as if openvino_telemetry, which reports their use to a server, were not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError:
        raise UserError(f"--format openvino needs openvino, which is not installed: {INSTALL}") from None
    return openvino


def save_openvino(network: Network, path: Path, precision: str, calibration: Sequence[Tensor] = ()) -> None:
    """Write the two files; for `int8` with ranges of activations measured on the inputs `calibration`.

    `bf16` is only noted in the file; the weights are converted when it is compiled, for a CPU or GPU that supports it.
    Raises `UserError` without the libraries and for an operator that OpenVINO lacks.
    """
    openvino = import_openvino()
    if any(isinstance(module, DeformConv2d) for module in network.module.modules()):  # OpenVINO can crash on them
        raise UserError("OpenVINO has no deformable convolutions (backbone.deform_on); use --format onnx or torch.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        save_onnx(network, source)
        try:
            model = openvino.convert_model(source)
        except Exception as error:  # of its own classes
            lines = [line for line in str(error).splitlines() if "No conversion rule found" in line]
            cause = lines[0].strip("- ") if lines else reason(error)
            raise UserError(f"A part of this network has no equivalent in OpenVINO: {cause}") from error
    if precision == "int8":
        model = quantize(model, network, calibration)
    for key, value in (network.metadata | {"precision": precision}).items():
        model.set_rt_info(json.dumps(value), [OURS, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def quantize(model: object, network: Network, calibration: Sequence[Tensor]) -> object:
    """`model`, made from `network`, with convolutions and linear layers in int8 (NNCF's post-training quantization)."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        import nncf
    except ImportError:
        raise UserError(f"--precision int8 needs nncf, which is not installed: {INSTALL}") from None
    weights = [m.weight.numpy(force=True) for name, m in network.module.named_modules() if name.endswith(PREDICTORS)]
    layers = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "MatMul")]
    predictors = [op.get_friendly_name() for op in layers if any(has_weight(op, weight) for weight in weights)]
    types = BOX_ARITHMETIC if network.kind == "detection" else []
    return nncf.quantize(
        model,
        nncf.Dataset([image.numpy() for image in calibration]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=predictors, types=types, validate=False),
    )


def has_weight(layer: object, weight: np.ndarray) -> bool:
    """Whether a convolution or matrix product of OpenVINO has this `weight`."""
    constant = layer.input_value(1).get_node()
    if constant.get_type_name() != "Constant" or list(constant.shape) != list(weight.shape):
        return False
    return np.array_equal(constant.data, weight)


def load_openvino(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict]:
    """The network of a file as a function, run on the CPU in the file's precision, and the file's metadata."""
    openvino = import_openvino()
    model = openvino.Core().read_model(path)
    section = model.get_rt_info([OURS]).astype(dict) if model.has_rt_info([OURS]) else {}
    metadata = {key: json.loads(value.astype(str)) for key, value in section.items()}
    hints = {"INFERENCE_PRECISION_HINT": HINTS[metadata.get("precision", "fp32")]}
    hints |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(model, "CPU", hints)
    names = [output.any_name for output in compiled.outputs]

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = compiled([images.numpy()])
        return {name: torch.from_numpy(np.array(outputs[name])) for name in names}

    return run, metadata
