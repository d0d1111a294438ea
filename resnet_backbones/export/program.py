"""Networks as programs of torch.export, `.pt2` files that torch and torchvision run without this package."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision  # noqa: F401  # registers NMS and RoIAlign, which the programs call
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..errors import UserError, reason
from .network import Network

METADATA = "metadata.json"


def trace(network: Network) -> ExportedProgram:
    """The program of a network. Raises `UserError` if torch.export cannot trace a part of it."""
    sizes = {dimension: Dim.DYNAMIC for dimension in network.dynamic}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's NMS calls a deprecated function
            return torch.export.export(network.module, (network.example,), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:  # of many classes
        raise UserError(f"torch.export cannot trace the {network.kind} network: {reason(error)}") from error


def save_program(network: Network, path: Path) -> None:
    buffer = io.BytesIO()  # because torch aborts the process if it cannot write to a file
    torch.export.save(trace(network), buffer, extra_files={METADATA: json.dumps(network.metadata)})
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict]:
    """The program of a file as a function, and the file's metadata."""
    files = {METADATA: ""}
    module = torch.export.load(path, extra_files=files).module()
    return torch.no_grad()(module), json.loads(files[METADATA])
