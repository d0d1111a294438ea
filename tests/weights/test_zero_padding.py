"""The two kinds of option A: the one a file was trained with is detected, or the file is refused."""

import copy
import tarfile

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from resnet_backbones import build_backbone
from resnet_backbones.classifiers import build_classifier, load_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnet_backbones.weights import metadata_of, save_safetensors

PUBLISHED = {"cifar_resnet20": "resnet20-12fca82f.th", "cifar_resnet56": "resnet56-4bfd9763.th"}


class AuthorsBlock(nn.Module):
    """The block of akamaster/pytorch_resnet_cifar10, which pads half of the new channels on each side."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.planes = stride, planes

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))
        return F.relu(y + x)


class AuthorsNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        n = (depth - 2) // 6
        for k, (in_planes, planes, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)]):
            blocks = [AuthorsBlock(in_planes, planes, stride), *(AuthorsBlock(planes, planes, 1) for _ in range(n - 1))]
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def authors_net(path, depth: int) -> AuthorsNet:
    net = nn.DataParallel(AuthorsNet(depth))  # the files have its "module." prefix
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return net.module.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_nets_give_their_authors_logits(shared, name):
    path = shared / "published_cifar" / PUBLISHED[name]
    model, theirs = load_classifier(str(path), name).eval(), authors_net(path, int(name[-2:]))
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)
    assert metadata_of(model)["architecture"]["options"]["shortcut"] == "A_centered"
    with pytest.raises(
        UserError, match=r"was trained with backbone.shortcut=A_centered, not A: .* 0.0\d\d with A_cent"
    ):
        load_classifier(str(path), name, shortcut="A")
    assert "A_centered" in str(load_classifier(str(path), name, shortcut="A_centered"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top1"), [("cifar_resnet20", "81.03"), ("cifar_resnet56", "83.20")])
def test_published_nets_score_on_cifar10_like_their_authors_nets(shared, tool, tmp_path, name, top1):
    with tarfile.open(shared / "cifar10_imagefolder.tar.xz") as archive:
        archive.extractall(tmp_path, [m for m in archive if "val/" in m.name], filter="data")
    path = shared / "published_cifar" / PUBLISHED[name]
    root = next(folder.parent for folder in tmp_path.rglob("val"))
    options = ["--config", name.replace("cifar", "cifar10") + ".yaml", "--eval-only", f"weights={path}"]
    status, out, _ = tool("pretrain", *options, f"data.root={root}", f"output_dir={tmp_path / 'out'}")
    assert status == 0
    assert f"top1 {top1}" in out
    model, theirs = load_classifier(str(path), name).eval(), authors_net(path, int(name[-2:]))
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    files = sorted((root / "val").rglob("*.jpg"))
    assert len(files) == 10_000
    hits = 0
    with torch.no_grad():
        for k in range(0, len(files), 500):
            images = torch.stack([to_tensor(Image.open(file)) for file in files[k : k + 500]])
            ours, expected = (net((images - mean) / std).argmax(1) for net in (model, theirs))
            assert torch.equal(ours, expected)
            classes = sorted({file.parent.name for file in files})
            hits += sum(classes[i] == f.parent.name for i, f in zip(ours, files[k : k + 500], strict=True))
    assert f"{hits / 100:.2f}" == top1


@pytest.fixture(scope="module")
def trained():
    """`cifar_resnet20` of both kinds after 60 steps on ten noisy patterns."""
    models = {}
    for kind in ("A", "A_centered"):
        torch.manual_seed(0)
        model = build_classifier("cifar_resnet20", 10, shortcut=kind).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        patterns = torch.randn(10, 3, 16, 16)
        for _ in range(60):
            labels = torch.randint(10, (16,))
            images = patterns[labels] + torch.randn(16, 3, 16, 16)
            model(images, labels)["loss_classifier"].backward()
            optimizer.step()
            optimizer.zero_grad()
        models[kind] = model.eval()
    return models


@pytest.mark.parametrize("kind", ["A", "A_centered"])
def test_padding_of_trained_nets_is_detected(trained, tmp_path, kind):
    torch.save(trained[kind].state_dict(), tmp_path / "net.pth")
    model, images = load_classifier(str(tmp_path / "net.pth"), "cifar_resnet20").eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), trained[kind](images))
    wrong = {"A": "A_centered", "A_centered": "A"}[kind]
    with pytest.raises(UserError, match=f"net.pth was trained with backbone.shortcut={kind}, not {wrong}"):
        build_backbone("cifar_resnet20", shortcut=wrong, weights=str(tmp_path / "net.pth"))


def test_ambiguous_weights_are_refused_unless_padding_is_given(trained, tmp_path):
    model = copy.deepcopy(trained["A"])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="net.pth does not say whether .* A or A_centered, .*; give backbone.shortcut"):
        build_backbone("cifar_resnet20", weights=str(tmp_path / "net.pth"))
    given = build_backbone("cifar_resnet20", shortcut="A_centered", weights=str(tmp_path / "net.pth")).eval()
    expected = build_backbone("cifar_resnet20", shortcut="A_centered").eval()
    expected.load_state_dict(model.backbone.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(given(images)["res4"], expected(images)["res4"])
        assert not torch.equal(given(images)["res4"], model.backbone(images)["res4"])  # padded as in A


def test_our_files_store_the_padding(trained, tmp_path):
    model = trained["A_centered"]
    save_safetensors(tmp_path / "net.safetensors", model.state_dict(), metadata_of(model))
    again, images = load_classifier(str(tmp_path / "net.safetensors")).eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    with pytest.raises(UserError, match="with shortcut=A_centered, but the backbone is built with shortcut=None"):
        build_backbone("cifar_resnet20", weights=str(tmp_path / "net.safetensors"))


def test_untrained_weights_load_without_giving_the_padding(tmp_path):
    net, images = build_backbone("cifar_resnet20").eval(), torch.randn(4, 3, 32, 32)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = build_backbone("cifar_resnet20", weights=str(tmp_path / "net.pth")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images)["res4"], net(images)["res4"])
