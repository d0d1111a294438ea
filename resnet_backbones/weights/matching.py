"""Find a network in a file by the names and shapes of its tensors, whatever their prefix."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Of a teacher or a moving average. mmengine's "ema_state_dict" holds the weights that are not averaged.
AVERAGED = re.compile(r"(^|[._])(teacher|ema)(?!_state_dict)[._]")


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The tensors of `model` that a file has to have: all but the step counters of BN, which FrozenBN lacks."""
    return {n: t.shape for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def find_prefix(wanted: Mapping[str, torch.Size], state: dict[str, Tensor]) -> str:
    """The prefix of a network's names in a file: "", or for example "state_dict.module.encoder_q.".

    It is the prefix behind which most of the names and shapes in `wanted` are found; if no shape fits, most of the
    names. If several tie, those with the fewest further tensors in the same layers remain, since a ResNet-34 has all
    of a ResNet-18. Of these a teacher or a moving average is taken, as timm, DINO and Soft Teacher do, else the first
    in the file, which in MoCo is the trained encoder.
    """
    fitting, named = Counter(), Counter()
    for name, tensor in state.items():
        for tail in tails_of(name):
            if tail in wanted:
                prefix = name.removesuffix(tail)
                named[prefix] += 1
                fitting[prefix] += wanted[tail] == tensor.shape
    counts = +fitting or named
    most = max(counts.values(), default=0)
    equal = [prefix for prefix, count in counts.items() if count == most]
    if len(equal) > 1:
        further = {prefix: len(layers_below(prefix, wanted, state).keys() - wanted.keys()) for prefix in equal}
        equal = [prefix for prefix in equal if further[prefix] == min(further.values())]
    return next((prefix for prefix in equal if AVERAGED.search(prefix)), next(iter(equal), ""))


def layers_below(prefix: str, wanted: Mapping[str, torch.Size], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors behind `prefix` in a file, without it, of the layers that the names in `wanted` begin with."""
    layers = {name.split(".")[0] for name in wanted}
    return {name: tensor for name, tensor in below(prefix, state).items() if name.split(".")[0] in layers}


def tails_of(name: str) -> list[str]:
    """`name`, and every part of it behind a dot, the longest first."""
    parts = name.split(".")
    return [".".join(parts[k:]) for k in range(len(parts))]


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with names that start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def last_layer(backbone: nn.Module, state: dict[str, Tensor]) -> tuple[str, str] | None:
    """The names of weight and bias of the linear layer that classifies the last feature of `backbone` in a file.

    It is "fc" beside the backbone, or the only linear layer of as many inputs beside or around it, if the file has no
    other layers there, whose part in the result would be unknown. None where there is none.
    """
    wanted = shapes_of(backbone)
    prefix = find_prefix(wanted, state)
    if f"{prefix}fc.weight" in state:
        return f"{prefix}fc.weight", f"{prefix}fc.bias"
    *_, feature = backbone.output_shape().values()
    own = {prefix + name for name in wanted}
    around = {
        name: _shared(name, prefix)
        for name, tensor in state.items()
        if name.endswith(".weight") and name not in own and tensor.ndim == 2 and tensor.shape[1] == feature.channels
    }
    longest = max(map(len, around.values()), default=0)
    nearest = [name for name, shared in around.items() if len(shared) == longest]
    if len(nearest) != 1:
        return None
    weight, bias = nearest[0], nearest[0].removesuffix("weight") + "bias"
    beside = {name for name in state if name.startswith(around[weight]) and not name.endswith("num_batches_tracked")}
    return (weight, bias) if bias in state and beside <= own | {weight, bias} else None


def _shared(one: str, other: str) -> str:
    """The leading parts that two names share, each with its dot."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return "".join(f"{a}." for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """The first convolution, (O, C, H, W), for images of `channels`, by timm's rule (`timm.models.adapt_input_conv`).

    For one channel the weights are summed; for others repeated, and scaled to the same sum.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    given = weight.shape[1]
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return repeated * (given / channels)


def contents(state: dict[str, Tensor], longest: int = 6) -> str:
    """What a file holds, in one line: "205 tensors: 102 of encoder_q, such as encoder_q.conv1.weight; 102 of …"."""
    shared = ""
    groups = Counter(state)
    while len(groups := _groups(shared, state)) == 1 and next(iter(groups)) not in state:
        shared = f"{next(iter(groups))}."
    listed = [
        name if name in state else f"{count} of {name}, such as {next(n for n in state if n.startswith(f'{name}.'))}"
        for name, count in groups.most_common(longest)
    ]
    return f"{len(state)} tensors: {'; '.join(listed)}{' …' if len(groups) > longest else ''}"


def _groups(shared: str, state: dict[str, Tensor]) -> Counter:
    """How many tensors have each of the next parts of names behind `shared`."""
    return Counter(shared + name.removeprefix(shared).split(".")[0] for name in state)
