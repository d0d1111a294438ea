"""Backbones alone and with an FPN: forward, and forward and backward."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resnet_backbones import build_backbone, fold_norms, fuse
from resnet_backbones.backbones import allow_random_frozen

from .agreement import feature_difference
from .peers import MissingError, peer_backbone, peer_fpn
from .settings import Settings
from .timing import Row, add_peaks, measure

RESIDUAL = 0.2  # weight of the last norm of a block


def backbones(settings: Settings) -> list[Row]:
    return _measure("backbone", settings.name, peer_backbone, ("torchvision", "detectron2", "timm"), settings)


def fpns(settings: Settings) -> list[Row]:
    return _measure("fpn", f"{settings.name}_fpn", peer_fpn, ("torchvision", "detectron2"), settings)


def compiled(net: nn.Module) -> nn.Module:
    """A backbone or FPN under torch.compile, with inductor's freezing of weights where no gradient is taken."""
    torch._inductor.config.freezing = True
    return torch.compile(net)


def prepared(who: str, net: nn.Module, training: bool) -> nn.Module:
    """Ours as the trainer and the evaluator prepare it; the others, and "ours plain", as they are."""
    if who != "ours":
        return net.train(training)
    net = fold_norms(copy.deepcopy(net)).train() if training else fuse(net)
    return net.to(memory_format=torch.channels_last)


def frozen_backbone(name: str, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Ours with every norm FrozenBN, stem and res2 frozen, and the weights in `state`."""
    with allow_random_frozen():  # nothing is learnt here
        net = build_backbone(name, norm="FrozenBN", freeze_at=2)
    if state is not None:
        net.load_state_dict(state)
    return net


def settle(net: nn.Module, images: Tensor) -> nn.Module:
    """`net` with random weights that behave like trained ones when they are frozen.

    Its BN has the statistics of `images`, as otherwise a deep net overflows, and what a block adds to its shortcut is
    small, as otherwise differences of the last bit grow from block to block.
    """
    for block in net.modules():
        if hasattr(block, "downsample"):
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            nn.init.constant_(last.weight, RESIDUAL)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net


def autocast(settings: Settings) -> AbstractContextManager:
    return torch.autocast(settings.device, torch.bfloat16, enabled=settings.amp == "bf16")


def _measure(part: str, name: str, make_peer: Callable, peers: tuple[str, ...], settings: Settings) -> list[Row]:
    torch.manual_seed(0)
    images = torch.rand(settings.batch, 3, settings.size, settings.size)
    state = settle(build_backbone(name), images).state_dict()
    nets: dict[str, nn.Module | str] = {"ours": frozen_backbone(name, state)}
    for peer in peers:
        try:
            nets[peer] = make_peer(peer, settings.name, state)
        except MissingError as reason:
            nets[peer] = str(reason)
    device, images = torch.device(settings.device), images.to(settings.device)
    nets = {who: net if isinstance(net, str) else net.to(device) for who, net in nets.items()}
    nets = {"ours": nets["ours"], "ours plain": copy.deepcopy(nets["ours"])} | nets
    differences = _differences(nets, images)

    shape = f"{name}, {settings.batch}x{settings.size}x{settings.size}"
    rows = []
    for training in (False, True):
        ready = {w: net if isinstance(net, str) else prepared(w, net, training) for w, net in nets.items()}
        if settings.compile:
            built = {w: net for w, net in ready.items() if not isinstance(net, str) and w != "ours plain"}
            ready |= {f"{w} compiled": compiled(copy.deepcopy(net)) for w, net in built.items()}
        runs = {w: net if isinstance(net, str) else _runner(net, images, settings) for w, net in ready.items()}
        what = f"{part} {'forward + backward' if training else 'forward'} ({shape})"
        part_rows = measure(what, runs, images=settings.batch, rounds=settings.rounds, warmup=2, device=device)
        add_peaks(part_rows, runs, device)
        for row in part_rows:
            row.differences = differences.get(row.contender, {})
        rows += part_rows
    return rows


def _differences(nets: dict[str, nn.Module | str], images: Tensor) -> dict[str, dict[str, float]]:
    """How each peer's features differ from ours."""
    with torch.no_grad():
        ready = {who: prepared(who, net, False) for who, net in nets.items() if not isinstance(net, str)}
        features = {who: _as_list(net(images)) for who, net in ready.items()}
    ours = features.pop("ours")
    return {who: {"features": feature_difference(ours, theirs)} for who, theirs in features.items()}


def _as_list(features: dict[str, Tensor] | list[Tensor]) -> list[Tensor]:
    return list(features.values()) if isinstance(features, dict) else list(features)


def _runner(net: nn.Module, images: Tensor, settings: Settings) -> Callable[[], object]:
    def features() -> list[Tensor]:
        with autocast(settings):
            return _as_list(net(images))

    def forward() -> None:
        with torch.no_grad():
            features()

    def forward_and_backward() -> None:
        trained = [feature for feature in features() if feature.requires_grad]
        torch.autograd.backward(trained, [torch.ones_like(feature) for feature in trained])
        net.zero_grad(set_to_none=True)

    return forward_and_backward if net.training else forward
