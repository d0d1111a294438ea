"""torch.compile of a backbone, in place, for images that are padded to few sizes."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn

from ..errors import reason

logger = logging.getLogger(__name__)

MODES = ("default", "reduce-overhead")  # torch.compile's; the second replays CUDA graphs, one for each size
BUCKET = 128  # sides of padded images are multiples of it: at most ten for COCO's 800 to 1333 pixels
SIZES = 64  # compiled sizes and kinds of pass at most; further ones run as PyTorch runs them


def compile_backbone(backbone: nn.Module, mode: str = "default", backend: str = "inductor") -> nn.Module:
    """Compile the calls of `backbone`, with or without an FPN, and return it; parameters keep their names.

    Each size of images is compiled when it is first met, for training and for evaluation. So that there are few, the
    detectors pad to multiples of the backbone's `size_divisible`, which this sets. Where `backend`, one of
    `torch.compiler.list_backends()`, fails, its part of the network runs as PyTorch runs it, and one line in the log
    says so. A deep copy is not compiled.

    Args:
        mode: of inductor, one of `MODES`. CUDA graphs need a GPU and are passed over without one.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SIZES)
    backbone.size_divisible = BUCKET
    backbone.compile(backend=_or_eager(backend, mode), dynamic=False)
    return backbone


def _or_eager(backend: str, mode: str) -> Callable:
    compile_graph = torch._dynamo.lookup_backend(backend)
    if backend == "inductor":
        compile_graph = partial(compile_graph, config_patches=torch._inductor.list_mode_options(mode))
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
