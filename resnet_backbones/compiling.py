"""torch.compile of a backbone, in place and for images of any size."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from .errors import reason

logger = logging.getLogger(__name__)


def compile_backbone(backbone: nn.Module, backend: str = "inductor") -> nn.Module:
    """Compile the calls of `backbone`, with or without an FPN, and return it; parameters keep their names.

    Sizes are symbols in the compiled code, so that it serves every batch and image size: what is compiled anew is
    training and evaluation, with and without gradients, each dtype of autocast, and a batch or a side of 1. Where
    `backend`, one of `torch.compiler.list_backends()`, fails, its part of the network runs as PyTorch runs it, and one
    line in the log says so. A deep copy is not compiled.
    """
    backbone.compile(backend=_or_eager(backend), dynamic=True)
    return backbone


def _or_eager(backend: str) -> Callable:
    compile_graph = torch._dynamo.lookup_backend(backend)
    failed = False

    def guarded(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable:
        nonlocal failed
        try:
            return graph.forward if failed else compile_graph(graph, inputs)
        except Exception as error:  # of a compiler there are many kinds
            failed = True
            logger.warning("torch.compile failed, so the backbone runs without it: %s", reason(error))
            return graph.forward

    return guarded
