"""Convolution and fixed norm as one, against the two one after the other; and in channels_last."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize_statistics
from torch import nn

from resnet_backbones import FrozenBatchNorm2d, build_backbone
from resnet_backbones.models.conv_norm import ConvNorms, conv_norm

pytestmark = pytest.mark.filterwarnings("ignore::resnet_backbones.backbones.RandomFrozenWarning")
CHANNELS_LAST = torch.channels_last


def pair(frozen: bool = True, **options) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution of 8 to 16 channels and its norm, with a trained net's statistics."""
    conv = nn.Conv2d(8, 16, **{"kernel_size": 3, "padding": 1, "bias": False} | options)
    norm = nn.BatchNorm2d(16).eval()
    randomize_statistics(norm)
    return conv, FrozenBatchNorm2d.convert(norm) if frozen else norm


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 8, 20, 24, dtype=dtype)


class ConvolutionsSeen(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the weights that convolutions are called with."""

    def __enter__(self):
        self.weights = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.weights.append(args[1])
        return function(*args, **kwargs or {})


def is_folded(conv: nn.Module, norm: nn.Module, x: torch.Tensor) -> bool:
    with ConvolutionsSeen() as seen:
        conv_norm(conv, norm, x)
    (weight,) = seen.weights
    return not torch.equal(weight.float(), conv.weight.detach().to(weight.dtype).float())


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"groups": 4}, {"dilation": 2, "padding": 2}, {"stride": 2}, {"kernel_size": 1, "padding": 0}],
)
def test_outputs_and_all_gradients_are_those_of_the_two(frozen, options):
    conv, norm = pair(frozen, **options)
    assert is_folded(conv, norm, image())
    wanted = [image().requires_grad_(), *conv.parameters(), *norm.parameters()]
    as_one, as_two = conv_norm(conv, norm, wanted[0]), norm(conv(wanted[0]))
    assert_close(as_one, as_two)
    direction = torch.randn_like(as_two)
    for got, expected in zip(*(torch.autograd.grad(y, wanted, direction) for y in (as_one, as_two)), strict=True):
        assert_close(got, expected)


FEW_POSITIONS = [  # fewer than the 16 channels of the result, which are taken as products of matrices
    {}, {"stride": 2}, {"stride": (2, 1), "padding": (1, 2)}, {"kernel_size": (3, 5), "padding": 2}, {"bias": True},
    {"dilation": 2, "padding": 2}, {"groups": 2},
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("options", FEW_POSITIONS)
def test_outputs_and_all_gradients_of_few_positions(options, dtype):
    conv, norm = pair(**options)
    conv, norm = conv.to(dtype), norm.to(dtype)
    for size in ((1, 8, 3, 3), (2, 8, 2, 3)):
        x = torch.randn(size, dtype=dtype).to(memory_format=CHANNELS_LAST).requires_grad_()
        wanted = [x, *conv.parameters()]
        as_one, as_two = conv_norm(conv, norm, x, relu=True), F.relu(norm(conv(x)))
        assert_close(as_one, as_two)
        direction = torch.randn_like(as_two)
        for got, expected in zip(*(torch.autograd.grad(y, wanted, direction) for y in (as_one, as_two)), strict=True):
            assert_close(got, expected)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("trained", ["conv", "plus", "x", "nothing"])
def test_sums_with_a_shortcut(trained, kernel_size, frozen):
    conv, norm = pair(frozen, kernel_size=kernel_size, padding=kernel_size // 2)
    conv.requires_grad_(trained == "conv"), norm.requires_grad_(trained == "conv")
    x, plus = image().requires_grad_(trained == "x"), torch.randn(2, 16, 20, 24).requires_grad_(trained == "plus")
    for format in (torch.contiguous_format, CHANNELS_LAST):
        ours = [t.detach().clone(memory_format=format).requires_grad_(t.requires_grad) for t in (x, plus)]
        as_one = conv_norm(conv, norm, ours[0], relu=True, plus=ours[1])
        as_two = F.relu(norm(conv(x)) + plus)
        assert_close(as_one.detach(), as_two.detach())
        assert torch.equal(ours[1], plus)
        if trained != "nothing":
            direction = torch.randn_like(as_two)
            wanted = [*conv.parameters(), *norm.parameters()] if trained == "conv" else []
            got = torch.autograd.grad(as_one, [*wanted, *(t for t in ours if t.requires_grad)], direction)
            expected = torch.autograd.grad(as_two, [*wanted, *(t for t in (x, plus) if t.requires_grad)], direction)
            for one, two in zip(got, expected, strict=True):
                assert_close(one, two)


def test_images_of_changing_sizes_and_kinds():
    conv, norm = pair()
    conv.requires_grad_(False)
    images = [torch.randn(n, 8, h, w) for n, h, w in ((2, 20, 24), (2, 20, 24), (1, 7, 40), (2, 20, 24), (1, 7, 40))]
    images += [images[0].to(memory_format=CHANNELS_LAST)] * 2 + [images[0].requires_grad_()]
    for x in images:
        for _ in range(3):
            assert_close(conv_norm(conv, norm, x), norm(conv(x)))


class OutputsOfBlocks:
    """What the blocks of a net gave, and what their inputs were, as hooks see it."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        self.seen, self.copies = [], []
        blocks = [b for stage in (net.layer1, net.layer2, net.layer3, net.layer4) for b in stage]
        shortcuts = [m for b in blocks if b.downsample is not None for m in b.downsample]
        for module in {"all": blocks, "every second": blocks[1::2], "shortcuts": shortcuts}[kind]:
            module.register_forward_hook(self.note)

    def note(self, module, inputs, output) -> None:
        self.seen += [inputs[0], output]
        self.copies += [inputs[0].clone(), output.clone()]


@pytest.mark.parametrize("kind", ["all", "every second", "shortcuts"])
def test_what_hooks_have_seen_of_blocks_is_not_written_over(kind):
    net = build_backbone("resnet50", norm="FrozenBN")
    randomize_statistics(net)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = {name: feature.clone() for name, feature in net(x).items()}
        outputs = OutputsOfBlocks(net, kind)
        features = net(x)
    assert outputs.seen
    for seen, copy_of in zip(outputs.seen, outputs.copies, strict=True):
        assert torch.equal(seen, copy_of)
    for name, feature in features.items():
        assert_close(feature, expected[name])


def test_hooks_on_all_modules_see_every_convolution_and_norm():
    net, calls = build_backbone("resnet18", norm="FrozenBN"), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    hook.remove()
    assert {m for m in net.modules() if isinstance(m, nn.Conv2d | FrozenBatchNorm2d)} <= set(calls)


def test_inputs_of_blocks_and_stages_and_features_are_not_written_over():
    net = build_backbone("resnet50", norm="FrozenBN")
    with torch.no_grad():
        x = torch.randn(1, 256, 16, 16).to(memory_format=CHANNELS_LAST)
        before = x.clone()
        net.layer1[1](x), net.layer1[1:](x), net.layer2(x)
        assert torch.equal(x, before)
        features = net(torch.randn(1, 3, 64, 64))
        copies = {name: feature.clone() for name, feature in features.items()}
        net(torch.randn(1, 3, 64, 64))
    for name, feature in features.items():
        assert torch.equal(feature, copies[name])


@pytest.mark.parametrize("size", [9, 3])
def test_second_derivatives_are_right(size):
    conv, norm = pair(frozen=False)
    conv, norm = conv.double(), norm.double()
    x = image(torch.double)[:1, :, :size, :size].requires_grad_()

    def one(x, weight, bias):
        return torch.func.functional_call(Both(conv, norm), {"conv.weight": weight, "norm.bias": bias}, (x,))

    assert torch.autograd.gradgradcheck(one, (x, conv.weight, norm.bias), fast_mode=True)


class Both(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_norm(self.conv, self.norm, x)


def test_only_wanted_gradients_are_taken():
    conv, norm = pair()
    conv.requires_grad_(False)
    x = image().requires_grad_()
    conv_norm(conv, norm, x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None


def replace_weight(conv, norm):
    conv.weight = nn.Parameter(conv.weight.detach() * 2)


def load_other(conv, norm):
    conv.load_state_dict({"weight": torch.randn_like(conv.weight)})
    norm.load_state_dict({k: torch.rand_like(v) + 0.5 for k, v in norm.state_dict().items()})


def optimise(optimizer, **options):
    def step(conv, norm):
        conv.weight.requires_grad_().grad = torch.randn_like(conv.weight)
        optimizer([conv.weight], lr=0.1, **options).step()

    return step


def move(conv, norm):
    for module in (conv, norm):
        module.half().float().double().float().to(memory_format=CHANNELS_LAST)
    conv.weight.data.neg_()


CHANGES = {
    "weights loaded": load_other,
    "parameter replaced": replace_weight,
    "data replaced": lambda conv, norm: setattr(conv.weight, "data", conv.weight.data * 3),
    "data written to, which bumps no version": lambda conv, norm: conv.weight.data.mul_(0.5),
    "one number written to": lambda conv, norm: conv.weight.data.view(-1)[77:78].add_(5),
    "written through numpy": lambda conv, norm: conv.weight.detach().numpy().fill(0.25),
    "norm's buffer written to": lambda conv, norm: norm.running_var.data.mul_(4),
    "norm's buffer replaced": lambda conv, norm: setattr(norm, "bias", norm.bias + 1),
    "eps changed": lambda conv, norm: setattr(norm, "eps", 0.5),
    "moved and cast": move,
    "made trainable and stepped": optimise(torch.optim.SGD, momentum=0.9),
    "stepped by a foreach optimiser": optimise(torch.optim.AdamW, foreach=True),
    "stepped by a fused optimiser": optimise(torch.optim.SGD, fused=True),
    "stride changed": lambda conv, norm: setattr(conv, "stride", (2, 2)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed_since_the_last_call_counts(change, mode):
    conv, norm = pair()
    conv.requires_grad_(False)
    x = image()
    with mode():
        before = conv_norm(conv, norm, x)
    change(conv, norm)
    with mode():
        after = conv_norm(conv, norm, x)
        assert_close(after.detach(), norm(conv(x)).detach())
    assert after.shape != before.shape or not torch.allclose(after, before, rtol=1e-3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_go_their_own_way(copied):
    conv, norm = pair()
    x = image()
    with torch.no_grad():
        expected = conv_norm(conv, norm, x)
        other = copied(Both(conv, norm))
        assert torch.equal(other(x), expected)
        other.conv.weight.data.zero_()
        assert torch.equal(conv_norm(conv, norm, x), expected)
        assert_close(other(x), norm(torch.zeros_like(expected)))


def test_convert_and_revert_between_the_norms():
    net = ConvNorms(*pair(frozen=False))
    x = image()
    expected = net(x).detach()
    assert_close(FrozenBatchNorm2d.convert(net)(x).detach(), expected)
    assert_close(FrozenBatchNorm2d.revert(net).eval()(x).detach(), expected)
    with torch.no_grad():  # in training BN normalises by the batch
        assert_close(net.train()(x), F.batch_norm(net[0](x), None, None, net[1].weight, net[1].bias, True))


def test_threads_do_not_disturb_each_other():
    nets = [ConvNorms(*pair()) for _ in range(4)]
    x, results = image(), {}
    with torch.no_grad():
        expected = [norm(conv(x)) for conv, norm in nets]

    @torch.no_grad()
    def call(k):
        results[k] = [nets[k](x) for _ in range(20)]

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, outputs in results.items():
        for output in outputs:
            assert_close(output, expected[k])


def batch_of_statistics() -> nn.Module:
    return nn.BatchNorm2d(16, track_running_stats=False).eval()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(16).train(),
        batch_of_statistics,
        lambda: nn.GroupNorm(4, 16),
        nn.Identity,
        lambda: nn.InstanceNorm2d(16),
    ],
)
def test_norms_of_the_batch_are_called_as_they_are(norm):
    conv, norm = pair()[0], norm()
    x, other = image(), copy.deepcopy(norm)
    assert torch.equal(conv_norm(conv, norm, x), other(conv(x)))
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, norm.get_buffer(name))


@pytest.mark.parametrize("affine", [True, False])
def test_synced_norms_and_those_without_affine(affine):
    conv, norm = pair()[0], nn.SyncBatchNorm(16, affine=affine).eval()
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    assert is_folded(conv, norm, image())
    x = image()
    assert_close(conv_norm(conv, norm, x).detach(), norm(conv(x)).detach())


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("on", [0, 1])
def test_hooks_see_every_call(hook, on):
    modules, calls = pair(), []
    getattr(modules[on], hook)(lambda *_: calls.append(1))
    x = image().requires_grad_()
    conv_norm(*modules, x).sum().backward()
    assert calls == [1]


def test_parametrised_quantised_and_padded_convolutions_are_called_as_they_are():
    for change in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        conv, norm = pair()
        change(conv)
        conv.eval()
        x = image()
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    conv, norm = pair(padding_mode="reflect")
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    conv, norm = pair(padding="same")
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_gives_its_dtype_and_float32_gradients(dtype, frozen):
    conv, norm = pair(frozen)
    x = image()
    with torch.autocast("cpu", dtype):
        y, expected = conv_norm(conv, norm, x), norm(conv(x))
    assert_close(y.detach(), expected.detach(), 2e-2)
    y.float().square().mean().backward()
    got, conv.weight.grad = conv.weight.grad, None
    norm(conv(x)).square().mean().backward()
    assert_close(got, conv.weight.grad, 3e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), {torch.bfloat16: 2e-2, torch.half: 1e-2, torch.double: 1e-12}.items())
def test_models_of_other_dtypes(dtype, tolerance):
    conv, norm = pair()
    expected = norm(conv(x := image())).detach()
    if dtype == torch.double:
        expected = norm.double()(conv.double()(x.double())).detach()
    y = conv_norm(conv.to(dtype), norm.to(dtype), x.to(dtype)).detach()
    assert y.dtype == dtype
    assert (y.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("size", [20, 3])
def test_batched_and_functional_gradients(size):
    conv, norm = pair()
    both, weights = Both(conv, norm), {"conv.weight": torch.randn(3, *conv.weight.shape)}
    x = image()[:1, :, :size, :size]
    stacked = torch.func.vmap(lambda w: torch.func.functional_call(both, w, (x,)))(weights)
    for k, weight in enumerate(weights["conv.weight"]):
        expected = norm(F.conv2d(x, weight, padding=1))
        assert_close(stacked[k], expected)
    grads = torch.func.grad(lambda w: torch.func.functional_call(both, w, (x,)).square().mean())
    one = {"conv.weight": conv.weight.detach()}
    norm(conv(x)).square().mean().backward()
    assert_close(grads(one)["conv.weight"], conv.weight.grad)


FAMILIES = [
    ("resnet18", {}), ("resnet50", {"stride_in_1x1": True}), ("resnext50_32x4d", {}), ("preact_resnet50", {}),
    ("seresnet18", {}), ("resnet18d", {"output_stride": 16}), ("plain18", {}), ("cifar_resnet20", {}),
    ("resnet50", {"deform_on": ["res5"]}), ("resnet18_fpn", {"fpn_norm": "FrozenBN"}),
    ("resnet18", {"checkpoint_stages": ["res4"]}),
]  # fmt: skip


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_whole_nets_give_the_features_and_gradients_of_plain_calls(name, options, norm):
    net = build_backbone(name, norm="BN", **options)
    randomize_statistics(net)
    net = (FrozenBatchNorm2d.convert(net) if norm == "FrozenBN" else net).eval().double()
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)  # in which no ReLU is on in one and off in the other
    results = []
    for plain in (False, True):
        hooks = [m.register_forward_pre_hook(lambda *_: None) for m in net.modules() if plain]  # as they are
        net.zero_grad()
        features = net(x)
        sum((f / f.detach().std()).square().mean() for f in features.values()).backward()
        results.append([*(f.detach() for f in features.values()), *(p.grad for p in net.parameters())])
        for hook in hooks:
            hook.remove()
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, 1e-9)


def test_frozen_stages_keep_nothing_for_the_backward_pass():
    net = build_backbone("resnet18", norm="FrozenBN", freeze_at=2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        x = net.layer1(net.stem(torch.randn(1, 3, 64, 64)))
    assert kept == []
    assert not x.requires_grad


def test_neither_products_nor_outputs_of_the_norm_are_kept():
    net = build_backbone("resnet18", norm="FrozenBN")
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
    ):
        features = net(torch.randn(1, 3, 256, 256))
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    # ReLUs' outputs, two of each of eight blocks, the stem's, and what the pool kept; a little for the scales.
    units = 2 * 2 * sum(f[0].numel() for f in features.values()) * 4
    stem = 4 * 64 * (128 * 128 + 3 * 64 * 64) + 4 * 3 * 256 * 256
    assert sum(size for p, size in kept.items() if p not in weights) <= units + stem + 2e5


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("name", "norm", "training", "expected"),
    [
        ("resnet18_fpn", "FrozenBN", True, True),
        ("resnet18_fpn", "BN", False, True),
        ("resnet18_fpn", "BN", True, False),  # PyTorch's BN is less exact in channels_last
        ("resnet18_fpn", "GN", True, False),
        ("resnext50_32x4d", "FrozenBN", True, False),
        ("seresnet18", "FrozenBN", True, True),
    ],
)
def test_features_are_channels_last_where_all_norms_are_fixed(name, norm, training, expected, batch):
    net = build_backbone(name, norm=norm).train(training)
    features = net(torch.randn(batch, 3, 64, 64))
    for name, feature in features.items():
        shown = feature.is_contiguous(memory_format=CHANNELS_LAST)
        assert shown == expected or feature.shape[2] < 2, name


def test_wrong_dtypes_are_refused_as_by_a_convolution():
    conv, norm = pair()
    with pytest.raises(RuntimeError, match="type"):
        conv_norm(conv, norm, image(torch.bfloat16))
