"""What a network costs, stage by stage: parameters, multiply-adds, activations, and the shapes it gives."""

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

with warnings.catch_warnings():  # it imports a focal loss made by torch.jit.script, which is deprecated
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


# The papers count convolutions and products of matrices, and neither norms nor anything else that goes by elements.
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

    Rows "stem", "res2" …, "fpn" or "fc" where there is one, and their sum "total"; each with
        parameters: trainable + frozen; weight and bias of a FrozenBN are counted as frozen,
        flops: multiply-adds of convolutions and products of matrices, the papers' convention, by fvcore,
        activations: numbers that these operations give (arXiv 2003.13678 §3.1),
        output: {feature: [channels, height, width]}, empty for the total.
    A network whose stages cannot be told has one row "backbone" for them.

    The model runs once, in evaluation. Raises `UserError` for an image that the network cannot take.
    """
    size = "x".join(map(str, (in_channels, *input_size)))
    if min(in_channels, *input_size) < 1:
        raise UserError(f"An image of {size} is empty.")
    with evaluating(model), shapes_recorded(model) as shapes:
        try:
            device = next(model.parameters()).device
            counts = count(model, torch.zeros(1, in_channels, *input_size, device=device))
        except RuntimeError as error:
            raise UserError(f"The network cannot take an image of {size}: {reason(error)}") from error
    rows = {}
    for row, names in parts(model).items():
        modules = [model.get_submodule(name) for name in names]
        costs = sum((counts[name] for name in names), Counter())
        rows[row] = cost(modules, costs, shapes.get(row, {}))
    rows["total"] = cost([model], counts[""], {})
    return rows


def parts(model: nn.Module) -> dict[str, list[str]]:
    """The names of the submodules that make up each row of `analyze`."""
    prefix = holder(model)
    backbone = model.get_submodule(prefix)
    dot = f"{prefix}." if prefix else ""
    try:
        rows = {stage: [dot + name for name in names] for stage, names in backbone.stages.items()}
    except UserError:  # a network of timm that does not lie in stages
        rows = {"backbone": [prefix]}
    return rows | {head: [head] for head in ("fpn", "fc") if hasattr(model, head)}


def holder(model: nn.Module) -> str:
    """The name of the backbone with stages: in an FPN "body", in a classifier "backbone", else the model itself."""
    return next((name for name in ("body", "backbone") if hasattr(model, name)), "")


def count(model: nn.Module, images: Tensor) -> dict[str, Counter]:
    """Per module, by its name, "flops" and "activations"; in one pass, which for fvcore's own two classes are two."""
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
    """`model.eval()` for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def shapes_recorded(model: nn.Module) -> Iterator[dict[str, dict]]:
    """{row: {feature: [C, H, W]}} of what each row gives, filled when `model` runs.

    What a stage gives is what the next one takes, and the last one's is the backbone's last feature.
    """
    shapes: dict[str, dict] = {}
    backbone, rows = model.get_submodule(holder(model)), parts(model)
    channels_last = getattr(backbone, "channels_last", False)

    def record_head(module: nn.Module, _, output: Tensor | dict[str, Tensor]) -> None:
        row = list(rows)[-1]
        shapes[row] = {f: shape_of(x) for f, x in (output if isinstance(output, dict) else {row: output}).items()}

    def record_features(module: nn.Module, _, output: dict[str, Tensor]) -> None:
        features = {f: shape_of(x) for f, x in output.items()}
        shapes.update({"backbone": features} | {f: {f: shape} for f, shape in features.items()})

    def recorder(stage: str) -> Callable:
        def record(module: nn.Module, inputs: tuple) -> None:
            if isinstance(inputs[0], Tensor) and inputs[0].dim() == 4:
                x = inputs[0].permute(0, 3, 1, 2) if channels_last else inputs[0]
                shapes[stage] = {stage: shape_of(x)}

        return record

    handles = [backbone.register_forward_hook(record_features)]
    if model is not backbone:
        handles.append(model.register_forward_hook(record_head))
    stages = [row for row in rows if row not in ("backbone", "fpn", "fc")]
    for stage, following in itertools.pairwise(stages):
        if rows[following]:
            handles.append(model.get_submodule(rows[following][0]).register_forward_pre_hook(recorder(stage)))
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def shape_of(x: Tensor) -> list[int]:
    """Without the batch; while fvcore traces, sizes are tensors."""
    return [int(side) for side in x.shape[1:]]
