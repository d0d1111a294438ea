"""torch.compile of a backbone, in place, for images that are padded to a few sizes."""

import torch
from torch import nn

MODES = ("default", "reduce-overhead")  # torch.compile's; the second replays CUDA graphs, one for each size
BUCKET = 128  # sides of padded images are multiples of it: at most ten for COCO's 800 to 1333 pixels
SIZES = 64  # maximum of compiled sizes and kinds of pass; further ones run eagerly


def compile_backbone(backbone: nn.Module, mode: str = "default", backend: str = "inductor") -> nn.Module:
    """Compile the calls of `backbone`, with or without an FPN, and return it; parameters keep their names.

    Each size of images is compiled when it is first met, for training and for evaluation. To keep them few, the
    detectors pad to multiples of the backbone's `size_divisible`, which this sets. A part that fails to compile runs
    eagerly, with a warning from torch. A deep copy is not compiled.

    Args:
        mode: one of `MODES`, of inductor. CUDA graphs need a GPU and are skipped without one.
        backend: one of `torch.compiler.list_backends()`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SIZES)
    torch._dynamo.config.suppress_errors = True
    backbone.size_divisible = BUCKET
    backbone.compile(backend=backend, mode=mode if backend == "inductor" else None, dynamic=False)
    return backbone
