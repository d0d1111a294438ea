"""Networks as ONNX files, by torch's exporter, and run by onnxruntime."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, reason
from .network import Network
from .program import trace

INSTALL = "pip install onnx onnxruntime onnxscript"


def save_onnx(network: Network, path: Path) -> None:
    """Write an ONNX file. Raises `UserError` without the libraries, and for an operator that ONNX lacks."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch's exporter is built on
    except ImportError as error:
        raise UserError(f"Export to ONNX needs {error.name}, which is not installed: {INSTALL}") from None
    program = trace(network)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, input_names=[network.input], output_names=list(network.outputs), dynamo=True, verbose=False
            )
    except Exception as error:  # of many classes
        raise UserError(f"A part of this network has no equivalent in ONNX: {last_reason(error)}") from error
    model = exported.model_proto
    for key, value in network.metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)


def last_reason(error: BaseException) -> str:
    """The message of the first cause of an error, where torch's exporter names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)


def load_onnx(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict]:
    """The network of a file as a function, run by onnxruntime on the CPU, and the file's metadata."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"Running an ONNX file needs onnxruntime, which is not installed: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # which costs CPU time and saves none
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (source,), names = session.get_inputs(), [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {source.name: images.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    metadata = session.get_modelmeta().custom_metadata_map
    return run, {key: json.loads(value) for key, value in metadata.items()}
