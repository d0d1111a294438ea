"""What the studies measure in a network, against the equations and against networks modified by hand."""

import itertools
import math

import pytest
import torch
from helpers import randomize_statistics
from torch import nn

from resnet_backbones import build_backbone
from resnet_backbones.analysis.blocks import block_shapes, find_blocks, reordered, without, without_gradient
from resnet_backbones.analysis.gradients import block_gradients, gradient_highways
from resnet_backbones.analysis.lesions import kendall_tau, plan_lesions
from resnet_backbones.analysis.paths import path_gradient, path_lengths, path_table
from resnet_backbones.analysis.responses import layer_responses
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.models.blocks import BasicBlock
from resnet_backbones.models.preact import PreActResNet
from resnet_backbones.models.resnet import ResNet
from resnet_backbones.models.stems import conv3x3


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


def net_of(name: str, **options) -> nn.Module:
    net = build_backbone(name, **options)
    randomize_statistics(net)
    return net.eval()


def last_feature(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return list(net(images).values())[-1]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", [2, 2, 2, 2]),
        ("preact_resnet50_fpn", [3, 4, 6, 3]),
        ("cifar_plain20", [3, 3, 3]),
        ("convnext_tiny", [3, 3, 9, 3]),
        ("swin_t", [2, 2, 6, 2]),
        ("regnet_y_400mf", [1, 3, 6, 6]),
        ("efficientnet_b0", [2, 2, 6, 5]),
    ],
)
def test_blocks_per_stage_match_the_papers_tables(name, stages):
    blocks = find_blocks(build_backbone(name))
    found = [len(list(group)) for _, group in itertools.groupby(blocks, lambda block: block.stage)]
    assert found == stages


@pytest.mark.parametrize(("name", "count"), [("convnext_atto", 2 + 2 + 6 + 2), ("regnety_002", 1 + 1 + 4 + 7)])
def test_timm_blocks_are_found(name, count):
    pytest.importorskip("timm")
    assert len(find_blocks(build_backbone(f"timm:{name}"))) == count


def test_a_deformable_convolution_is_one_layer(images):
    net = net_of("resnet18", deform_on=["res5"])
    found = layer_responses(net, [images], lambda model, batch: model(batch))
    assert len(found) == 17
    assert found["layer4.0.conv2"] > 0


def test_a_network_of_single_layers_has_no_blocks():
    with pytest.raises(UserError, match="no blocks: its stages are single layers"):
        find_blocks(build_backbone("vgg11"))


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "resnet50", "cifar_resnet20"])
def test_removing_a_residual_equals_zeroing_its_last_layer(name, images):
    net = net_of(name)
    before = last_feature(net, images)
    for k in (1, 2):  # one that keeps its size, and one that does not
        block = find_blocks(net)[k]
        with without(net, [block]):
            removed = last_feature(net, images)
        kind = nn.Conv2d if name.startswith("preact") else nn.BatchNorm2d
        last = [m for m in block.module.children() if isinstance(m, kind)][-1]
        kept = [p.detach().clone() for p in last.parameters()]
        for p in last.parameters():
            nn.init.zeros_(p)
        torch.testing.assert_close(removed, last_feature(net, images))
        assert (removed - before).abs().max() > 1e-3
        for p, value in zip(last.parameters(), kept, strict=True):
            p.data.copy_(value)
    assert torch.equal(before, last_feature(net, images))


def test_removed_block_of_a_plain_net_is_skipped(images):
    net = net_of("cifar_plain20")
    with without(net, find_blocks(net)[4:5]):
        removed = last_feature(net, images)
    del net.layer2[1]
    torch.testing.assert_close(removed, last_feature(net, images))


def test_reordered_blocks_run_in_the_given_order(images):
    net = net_of("cifar_resnet20")
    blocks, before = find_blocks(net), last_feature(net, images)
    with reordered(net, blocks, [0, 2, 1, 3, 4, 5, 6, 7, 8]):
        swapped = last_feature(net, images)
    a, b, c = net.layer1
    net.layer1 = nn.Sequential(a, c, b)
    torch.testing.assert_close(swapped, last_feature(net, images))
    assert not torch.allclose(swapped, before)


def test_lesion_plan_has_single_random_and_reordered_blocks(images):
    net = net_of("cifar_plain20")
    blocks = find_blocks(net)
    shapes = block_shapes(blocks, lambda: net(images))
    plan = list(plan_lesions(blocks, shapes, draws=2))
    singles = [row["blocks"] for row in plan if row["kind"] == "single"]
    assert singles == [[f"layer{k}.{i}"] for k in (1, 2, 3) for i in range(3) if (k, i) not in ((2, 0), (3, 0))]
    assert [len(row["blocks"]) for row in plan if row["kind"] == "random"] == [2, 2, 4, 4]
    for row in plan:
        if row["kind"] == "reordered":
            assert sorted(row["order"]) == list(range(9))
            assert all({i, k} <= {0, 1, 2} or {i, k} <= {4, 5} or {i, k} <= {7, 8} or i == k
                       for k, i in enumerate(row["order"]))  # fmt: skip
    residual = find_blocks(net_of("cifar_resnet20"))
    kept = [row["keeps_size"] for row in plan_lesions(residual, shapes, 1) if row["kind"] == "single"]
    assert kept == [True] * 3 + [False, True, True] * 2


def test_kendalls_tau():
    assert kendall_tau([0, 1, 2, 3]) == 1
    assert kendall_tau([3, 2, 1, 0]) == -1
    assert kendall_tau([1, 0, 2, 3]) == pytest.approx(4 / 6)


def test_layer_responses_are_the_outputs_of_the_norms(images):
    """Post-activation: after every BN on the main path. Pre-activation: after the next BN, if any, else bare."""
    net = net_of("resnet18")
    outputs = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and "downsample" not in name:
            module.register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o.detach().clone()}))
    found = layer_responses(net, [images[:2], images[2:]], lambda model, batch: model(batch))
    last_feature(net, images)
    assert list(found) == [name.replace("bn", "conv") for name in outputs]
    for (name, std), output in zip(found.items(), outputs.values(), strict=True):
        assert std == pytest.approx(output.std(correction=0).item(), rel=1e-4), name

    net = net_of("preact_resnet18")
    block, taken = net.layer2[1], []
    block.bn2.register_forward_hook(lambda m, i, o: taken.append(o.detach().clone()))
    block.conv2.register_forward_hook(lambda m, i, o: taken.append(o.detach().clone()))
    found = layer_responses(net, [images], lambda model, batch: model(batch))
    assert found["layer2.1.conv1"] == pytest.approx(taken[0].std(correction=0).item(), rel=1e-4)
    assert found["layer2.1.conv2"] == pytest.approx(taken[1].std(correction=0).item(), rel=1e-4)


def test_responses_of_timm_norms_are_taken_before_the_activation(images):
    pytest.importorskip("timm")
    net = net_of("timm:regnety_002")
    norm = next(module for name, module in net.named_modules() if name.endswith("s1.b1.conv1.bn"))
    taken = []
    norm.act.register_forward_pre_hook(lambda m, inputs: taken.append(inputs[0].detach().clone()))
    found = layer_responses(net, [images], lambda model, batch: model(batch))
    (std,) = [std for name, std in found.items() if name.endswith("s1.b1.conv1.conv")]
    assert taken[0].min() < 0
    assert std == pytest.approx(taken[0].std(correction=0).item(), rel=1e-4)


def test_gradients_at_block_inputs(images):
    net = net_of("resnet18").double()
    images = images.double()
    found, _ = block_gradients(find_blocks(net), lambda: net(images)["res5"].square().mean())
    x = net.stem(images)[1].detach().requires_grad_()
    end = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    torch.testing.assert_close(found[0], torch.autograd.grad(end.square().mean(), x)[0])
    x = net.layer3(net.layer2(net.layer1(x))).detach().requires_grad_()
    torch.testing.assert_close(found[6], torch.autograd.grad(net.layer4(x).square().mean(), x)[0])


def loss_over(net: nn.Module, images: torch.Tensor):
    return lambda: list(net(images).values())[-1].square().mean()


def test_the_constant_term_of_equation_5(images):
    """With identity shortcuts, the gradient at the end of a stage reaches each of its blocks unchanged; the rest comes
    through the residuals."""
    net = net_of("cifar_preact_resnet20").double()
    loss = loss_over(net, images.double())
    blocks = find_blocks(net)
    for row in gradient_highways(blocks, loss):
        assert row["constant_error"] is None or row["constant_error"] < 1e-6
    total, at_ends = block_gradients(blocks, loss)
    x = net.layer2(net.layer1(net.stem(images.double())[1])).detach()
    x = net.layer3[0](x).detach().requires_grad_()
    first = net.layer3[1](x) - x  # the sum of the residuals of blocks 1 and 2, as a function of the input of 1
    residuals = first + net.layer3[2](x + first) - (x + first)
    (through_residuals,) = torch.autograd.grad(residuals, x, at_ends[-1])
    torch.testing.assert_close(total[7], at_ends[-1] + through_residuals, rtol=1e-6, atol=1e-12)
    activated = gradient_highways(
        find_blocks(post := net_of("cifar_resnet20").double()), loss_over(post, images.double())
    )
    assert activated[0]["constant_error"] > 0.1  # the ReLUs after the additions are in the way


def test_gradient_shares_of_shortcuts(images):
    net = net_of("cifar_resnet20")
    rows = gradient_highways(find_blocks(net), loss_over(net, images))
    assert all(row["through_shortcuts"] > 0 for row in rows)
    for block in find_blocks(net):  # with zero residuals everything comes through the shortcuts
        nn.init.zeros_(block.module.bn2.weight)
    for row in gradient_highways(find_blocks(net), loss_over(net, images)):
        assert row["through_shortcuts"] == pytest.approx(row["norm"])
        assert row["share"] == pytest.approx(1)
    plain = net_of("cifar_plain20")
    assert all(row["share"] is None for row in gradient_highways(find_blocks(plain), loss_over(plain, images)))


@pytest.mark.parametrize("net", [ResNet, PreActResNet])
def test_the_gradient_is_the_sum_over_all_paths(net, images):
    from resnet_backbones.models.preact import PreActBasicBlock

    block = BasicBlock if net is ResNet else PreActBasicBlock
    model = net(block, (2, 1, 1), stem=conv3x3, width=4).double().eval()
    randomize_statistics(model)
    loss, blocks = loss_over(model, images.double()), find_blocks(model)
    total, _ = block_gradients(blocks[:1], loss)
    summed, norms = 0, {}
    for chosen in itertools.product((False, True), repeat=len(blocks)):
        along = [block for block, taken in zip(blocks, chosen, strict=True) if taken]
        past = [block for block, taken in zip(blocks, chosen, strict=True) if not taken]
        with without_gradient(along, "shortcut"), without_gradient(past, "residual"):
            (of_path,), _ = block_gradients(blocks[:1], loss)
        summed += of_path
        norms.setdefault(len(along), []).append(of_path.norm().item())
    torch.testing.assert_close(summed, total[0])
    for length, known in norms.items():
        assert any(math.isclose(path_gradient(blocks, length, loss, seed=0), norm) for norm in known)


def test_paths_of_each_length_are_binomially_distributed():
    rows = path_table(4, {0: [8.0], 1: [4.0, 2.0], 2: [1.0], 3: [0.5], 4: [0.25]})
    assert [row["paths"] for row in rows] == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    assert rows[1]["gradient"] == 3.0
    assert max(row["contribution"] for row in rows) == rows[1]["contribution"] == 1
    assert rows[2]["contribution"] == pytest.approx(0.5)
    assert path_lengths(5) == [0, 1, 2, 3, 4, 5]
    assert path_lengths(54)[0] == 0
    assert path_lengths(54)[-1] == 54


def test_find_blocks_accepts_a_classifier():
    model = build_classifier("cifar_resnet20", 3)
    assert find_blocks(model)[0].name == "backbone.layer1.0"
