"""What a network costs, stage by stage: parameters, multiply-adds, activations, and the shapes of its features."""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError, reason
from ..models.layers import FrozenBatchNorm2d

with warnings.catch_warnings():  # fvcore imports a focal loss compiled by torch.jit.script, which is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis, jit_handles


def deform_conv_flops(inputs: list, outputs: list) -> int:
    """As a convolution; the interpolation between pixels is not counted. `inputs`: x, weight, offset, mask, bias …"""
    x, weight, out = (jit_handles.get_shape(v) for v in (*inputs[:2], outputs[0]))
    return jit_handles.conv_flop_count(x, weight, out)


def attention_flops(inputs: list, outputs: list) -> int:
    """Query times key, and the result times value, each (N, heads, length, channels)."""
    query, key, value = (jit_handles.get_shape(v) for v in inputs[:3])
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * math.prod(value[-2:])


# Papers count convolutions and matrix products, but no elementwise operations and norms.
COUNTED = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::matmul": jit_handles.matmul_flop_jit,
    "aten::mm": jit_handles.matmul_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": jit_handles.einsum_flop_jit,
    "aten::scaled_dot_product_attention": attention_flops,
    "torchvision::deform_conv2d": deform_conv_flops,
}


def analyze(model: nn.Module, input_size: tuple[int, int], in_channels: int = 3) -> dict[str, dict]:
    """The cost of `model`, a backbone or a `Classifier` and not on the meta device, for one image of (H, W) pixels.

    Rows "stem", "res2" …, "fpn" or "fc" if there is one, and their sum "total", each with
        parameters: trainable + frozen; weight and bias of a FrozenBN count as frozen,
        flops: multiply-adds of convolutions and matrix products, the papers' convention, by fvcore,
        activations: elements of their outputs (arXiv 2003.13678 §3.1),
        output: {feature: [channels, height, width]}, empty for the total.
    A network that cannot be split into stages has one row "backbone" instead.

    The model runs once, in evaluation mode. Raises `UserError` for an image that the network cannot take.
    """
    size = "x".join(map(str, (in_channels, *input_size)))
    if min(in_channels, *input_size) < 1:
        raise UserError(f"An image of {size} is empty.")
    rows = parts(model)
    with evaluating(model), recorded_shapes(model, rows) as shapes:
        try:
            device = next(model.parameters()).device
            counts = count(model, torch.zeros(1, in_channels, *input_size, device=device))
        except RuntimeError as error:
            raise UserError(f"The network cannot take an image of {size}: {reason(error)}") from error
    costs = {}
    for row, names in rows.items():
        modules = [model.get_submodule(name) for name in names]
        costs[row] = cost(modules, sum((counts[name] for name in names), Counter()), shapes.get(row, {}))
    return costs | {"total": cost([model], counts[""], {})}


def parts(model: nn.Module) -> dict[str, list[str]]:
    """The names of the submodules that make up each row of `analyze`."""
    prefix = backbone_name(model)
    backbone = model.get_submodule(prefix)
    dot = f"{prefix}." if prefix else ""
    try:
        rows = {stage: [dot + name for name in names] for stage, names in backbone.stages.items()}
    except UserError:  # of a timm network that cannot be split into stages
        rows = {"backbone": [prefix]}
    return rows | {head: [head] for head in ("fpn", "fc") if hasattr(model, head)}


def backbone_name(model: nn.Module) -> str:
    """The name of the backbone with stages: in an FPN "body", in a classifier "backbone", else "", the model itself."""
    return next((name for name in ("body", "backbone") if hasattr(model, name)), "")


def count(model: nn.Module, images: Tensor) -> dict[str, Counter]:
    """For each module, by its name, "flops" and "activations", counted in one pass."""
    handles = {op: _counter(flops) for op, flops in COUNTED.items()}
    analysis = FlopCountAnalysis(model, images).clear_op_handles().set_op_handle(**handles)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        return analysis.by_module_and_operator()


def _counter(flops: Callable) -> Callable:
    def handle(inputs: list, outputs: list) -> Counter:
        number = flops(inputs, outputs)
        number = sum(number.values()) if isinstance(number, Counter) else number
        return Counter(flops=int(number), activations=math.prod(jit_handles.get_shape(outputs[0])))

    return handle


def cost(modules: list[nn.Module], counts: Counter, output: dict) -> dict:
    parameters = [p for module in modules for p in module.parameters()]
    norms = [m for module in modules for m in module.modules() if isinstance(m, FrozenBatchNorm2d)]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad) + sum(2 * m.num_features for m in norms)
    return {
        "parameters": trainable + frozen,
        "trainable": trainable,
        "frozen": frozen,
        "flops": counts["flops"],
        "activations": counts["activations"],
        "output": output,
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model.eval()` inside this context."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def recorded_shapes(model: nn.Module, rows: dict[str, list[str]]) -> Iterator[dict[str, dict]]:
    """{row: {feature: [C, H, W]}} of the outputs of each row, recorded when `model` runs.

    The output of a stage is the input of the next one, that of the last stage the backbone's last feature.
    """
    shapes: dict[str, dict] = {}
    backbone = model.get_submodule(backbone_name(model))
    channels_last = getattr(backbone, "channels_last", False)  # as those of Swin, whose modules pass on (N, H, W, C)

    def record_stage(stage: str) -> Callable:
        def record(module: nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            if isinstance(x, Tensor) and x.dim() == 4:
                shapes[stage] = {stage: shape_of(x.permute(0, 3, 1, 2) if channels_last else x)}

        return record

    def record_features(module: nn.Module, _, features: dict[str, Tensor]) -> None:
        for name, x in features.items():
            shapes[name] = {name: shape_of(x)}
            shapes.setdefault("backbone", {})[name] = shape_of(x)

    def record_head(module: nn.Module, _, output: Tensor | dict[str, Tensor]) -> None:
        head = list(rows)[-1]
        features = output if isinstance(output, dict) else {head: output}
        shapes[head] = {name: shape_of(x) for name, x in features.items()}

    handles = [backbone.register_forward_hook(record_features)]
    if model is not backbone:
        handles.append(model.register_forward_hook(record_head))
    stages = [row for row in rows if row not in ("backbone", "fpn", "fc")]
    for stage, following in itertools.pairwise(stages):
        if rows[following]:
            handles.append(model.get_submodule(rows[following][0]).register_forward_pre_hook(record_stage(stage)))
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def shape_of(x: Tensor) -> list[int]:
    """Without the batch. The sizes are tensors while fvcore traces."""
    return [int(side) for side in x.shape[1:]]
