"""Networks on a GPU against the same ones on the CPU."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import REPRESENTATIVES
from helpers import assert_equal_features, randomize_statistics
from torch import nn

from resnet_backbones import build_backbone, fold_norms, fuse
from resnet_backbones.backbones import allow_random_frozen
from resnet_backbones.detectors.torchvision import mask_rcnn
from resnet_backbones.models.compile import compile_backbone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = torch.device("cuda")
IMAGES = (2, 3, 128, 160)


@pytest.fixture(autouse=True)
def _full_precision():
    """Without TF32, and with frozen random weights."""
    with torch.backends.cudnn.flags(allow_tf32=False), allow_random_frozen():
        yield


@pytest.fixture
def backbone() -> nn.Module:
    backbone = build_backbone("resnet18_fpn", fpn_channels=32)
    randomize_statistics(backbone)
    return backbone.eval()


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "resnet18_fpn", "preact_resnet18_fpn", "swin_t_fpn"])
def test_features_and_gradients_are_those_of_the_cpu(name):
    options = {"norm": "FrozenBN"} if "resnet" in name else {}
    net = build_backbone(name, **options).eval()
    randomize_statistics(net)
    twin, images = copy.deepcopy(net).to(DEVICE), torch.randn(IMAGES)
    expected, found = net(images), twin(images.to(DEVICE))
    assert_equal_features(found, expected, 1e-4)
    for features in (expected, found):
        sum(feature.square().mean() for feature in features.values()).backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert gradients
    assert_equal_features({n: p.grad for n, p in twin.named_parameters() if n in gradients}, gradients, 1e-2)


@pytest.mark.parametrize("options", [{"deform_on": ["res4", "res5"]}, {"output_stride": 8}])
def test_options_give_the_features_of_the_cpu(options):
    net = build_backbone("resnet50", **options).eval()
    for module in net.modules():  # offsets start at zero, which would hide wrong ones
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.01)
    images = torch.randn(IMAGES)
    with torch.no_grad():
        expected = net(images)
        assert_equal_features(net.to(DEVICE)(images.to(DEVICE)), expected, 1e-4)


def test_bf16_and_channels_last_are_close(backbone):
    images = torch.randn(IMAGES, device=DEVICE)
    with torch.no_grad():
        backbone.to(DEVICE)
        expected = backbone(images)
        backbone.to(memory_format=torch.channels_last)
        assert_equal_features(backbone(images.contiguous(memory_format=torch.channels_last)), expected, 1e-4)
        with torch.autocast("cuda", torch.bfloat16):
            assert_equal_features(backbone(images), expected, 3e-2)


def test_fused_and_folded_networks_are_equal_on_the_gpu(backbone):
    images = torch.randn(IMAGES, device=DEVICE)
    frozen = build_backbone("resnet18_fpn", fpn_channels=32, norm="FrozenBN").eval()
    frozen.load_state_dict({k: v for k, v in backbone.state_dict().items() if "num_batches" not in k})
    with torch.no_grad():
        expected = backbone.to(DEVICE)(images)
        assert_equal_features(fuse(backbone)(images), expected, 1e-4)
        assert_equal_features(fold_norms(frozen.to(DEVICE))(images), expected, 1e-4)


def test_a_cuda_graph_replays_the_features(backbone):
    backbone.to(DEVICE)
    static, graph = torch.randn(IMAGES, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            backbone(static)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            captured = backbone(static)
        for _ in range(3):
            images = torch.randn(IMAGES, device=DEVICE)
            static.copy_(images)
            graph.replay()
            assert_equal_features(captured, backbone(images), 1e-5)


def test_reduce_overhead_trains_like_eager(backbone):
    """CUDA graphs of forward and backward, for two sizes in turn."""
    compiled = compile_backbone(copy.deepcopy(backbone).to(DEVICE), "reduce-overhead")
    backbone.to(DEVICE)
    for size in [(2, 3, 128, 128), (2, 3, 128, 256)] * 3:
        images = torch.randn(size, device=DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        for net in (backbone, compiled):
            net.zero_grad(set_to_none=True)
            sum(feature.square().mean() for feature in net(images).values()).backward()
        gradients = {n: p.grad.clone() for n, p in backbone.named_parameters()}
        assert_equal_features({n: p.grad for n, p in compiled.named_parameters()}, gradients, 1e-2)


def test_checkpointed_stages_take_less_memory_for_the_same_gradients():
    peaks, gradients = [], []
    for stages in ([], ["res2", "res3", "res4", "res5"]):
        torch.manual_seed(0)
        net = build_backbone("resnet50", norm="FrozenBN", checkpoint_stages=stages).to(DEVICE).train()
        images = torch.randn(4, 3, 256, 256, device=DEVICE)
        torch.cuda.reset_peak_memory_stats()
        sum(feature.square().mean() for feature in net(images).values()).backward()
        peaks.append(torch.cuda.max_memory_allocated())
        gradients.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
        del net
    assert peaks[1] < 0.75 * peaks[0]
    assert_equal_features(gradients[1], gradients[0], 1e-3)


def test_losses_of_a_detector_are_those_of_the_cpu():
    """With every anchor and proposal sampled, since draws differ between devices."""
    sizes = {"min_size": [96], "max_size": 160, "box_head_width": 32, "mask_head_width": 16}
    everything = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}
    model = mask_rcnn(build_backbone("resnet18_fpn", fpn_channels=32, norm="FrozenBN"), 2, **sizes, **everything)
    masks = torch.zeros(2, 96, 120, dtype=torch.uint8)
    masks[0, 5:60, 5:60] = masks[1, 30:90, 40:110] = 1
    target = {
        "boxes": torch.tensor([[5.0, 5, 60, 60], [40, 30, 110, 90]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    image = torch.rand(3, 96, 120)
    twin = copy.deepcopy(model).to(DEVICE)
    expected = model([image], [dict(target)])
    found = twin([image.to(DEVICE)], [{key: value.to(DEVICE) for key, value in target.items()}])
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=2e-2), name


def synchronized(rank: int, folder: str) -> None:
    """Half of a batch through SyncBN, in one of two processes that share the GPU by gloo."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    saved = torch.load(f"{folder}/whole.pt")
    net = build_backbone("resnet18", norm="SyncBN").to(DEVICE).train()
    net.load_state_dict(saved["weights"])
    with torch.backends.cudnn.flags(allow_tf32=False):
        features = net(saved["images"][2 * rank : 2 * rank + 2].to(DEVICE))
        sum(feature.square().sum() for feature in features.values()).backward()
    result = {
        "features": {name: feature.detach().cpu() for name, feature in features.items()},
        "statistics": {k: v.float().cpu() for k, v in net.state_dict().items() if "running" in k},
        "gradients": {name: p.grad.cpu() for name, p in net.named_parameters()},
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_sync_bn_over_two_ranks_is_bn_over_the_whole_batch(tmp_path):
    net = build_backbone("resnet18").to(DEVICE).train()
    weights, images = copy.deepcopy(net.state_dict()), torch.randn(4, 3, 96, 96)
    torch.save({"weights": weights, "images": images}, tmp_path / "whole.pt")
    features = net(images.to(DEVICE))
    sum(feature.square().sum() for feature in features.values()).backward()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(synchronized, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    joined = {name: torch.cat([rank["features"][name] for rank in ranks]) for name in features}
    assert_equal_features(joined, {name: feature.detach() for name, feature in features.items()}, 1e-4)
    statistics = {k: v.float() for k, v in net.state_dict().items() if "running" in k}
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    for rank in ranks:
        assert_equal_features(rank["statistics"], statistics, 1e-4)
    summed = {name: ranks[0]["gradients"][name] + ranks[1]["gradients"][name] for name in gradients}
    assert_equal_features(summed, gradients, 1e-2)
