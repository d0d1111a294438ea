"""hf:// against a small server that speaks the Hub's protocol.

huggingface_hub reads its environment once, on import, so it runs in separate processes.
"""

import multiprocessing
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub

from resnet_backbones import build_backbone, fuse
from resnet_backbones.__main__ import main
from resnet_backbones.classifiers import build_classifier, load_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.weights import metadata_of, push_to_hub, read_checkpoint, save_safetensors

pytestmark = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["resnet_backbones.classifiers"])  # torch is imported once, not in each process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file like those that `pretrain` writes."""
    torch.manual_seed(1)
    model = build_classifier("cifar_resnet20", 3, preprocessing=Preprocessing((0.5,) * 3, (0.2,) * 3, size=32))
    model.classes = ["ant", "bee", "cat"]
    path = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    save_safetensors(path, model.state_dict(), metadata_of(model) | {"metrics": {"top1": 50.0}})
    return str(path)


@pytest.fixture
def hub(trained, tmp_path):
    server, content = Hub(), Path(trained).read_bytes()
    server.first = server.commit("me/nets", "main", {"model.safetensors": b"an old one"})
    server.commit("me/nets", "main", {"model.safetensors": content})
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    server.commit("me/nets", "v1/a", {"sub/other.pth": (tmp_path / "other.pth").read_bytes()})
    for repo in ("gated/nets", "disabled/nets", "me/secret"):
        server.commit(repo, "main", {"model.safetensors": content})
    server.private.add("me/secret")
    yield server
    server.stop()


@pytest.fixture
def client(hub, tmp_path):
    """`client(function, *arguments, HF_TOKEN=…)` calls the function in a new process that talks to the server."""

    def run(function, *arguments, **environment):
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
        with PROCESSES.Pool(1) as pool:
            return pool.apply(in_environment, (environment, function, arguments))

    return run


def in_environment(environment, function, arguments):
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(environment)
    return function(*arguments)


def read(folder, *sources) -> list[str]:
    """Save the content of each source as 0.pt, 1.pt … in `folder`; returns their errors, empty for none."""
    errors = []
    for k, source in enumerate(sources):
        try:
            torch.save(tuple(read_checkpoint(source)), folder / f"{k}.pt")
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    return errors


def push(source, repo) -> list[str]:
    model = load_classifier(source)
    return [
        push_to_hub(model, repo, private=True, commit_message="Trained"),
        push_to_hub(model.backbone, repo, filename="bodies/body.safetensors", revision="bodies"),
        push_to_hub(source, repo, filename="copy.pth"),
    ]


def command(*arguments) -> tuple[int, str]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        try:
            main(list(arguments))
        except SystemExit as stop:
            return stop.code, out.getvalue()
    return 0, out.getvalue()


def read_without_the_library(source) -> None:
    sys.modules["huggingface_hub"] = None
    read_checkpoint(source)


def assert_holds(saved, state, metadata) -> None:
    """The file that `read` saved holds exactly these tensors and this metadata."""
    read_state, read_metadata = torch.load(saved)
    assert read_metadata == metadata
    assert read_state.keys() == state.keys()
    assert all(torch.equal(read_state[name], tensor) for name, tensor in state.items())


def test_weights_are_downloaded_once_and_then_cached(hub, client, trained, tmp_path):
    sources = ["hf://me/nets", "hf://me/nets/sub/other.pth@v1/a"]
    for _ in range(2):
        assert client(read, tmp_path, *sources) == ["", ""]
        assert_holds(tmp_path / "0.pt", *read_checkpoint(trained))
        assert_holds(tmp_path / "1.pt", {"weight": torch.ones(2)}, {})
        (tmp_path / "0.pt").unlink()
        hub.stop()
    *cached, missing = client(read, tmp_path, *sources, f"hf://me/nets@{hub.first}", HF_HUB_OFFLINE="1")
    assert cached == ["", ""]
    assert missing.endswith("HF_HUB_OFFLINE is set, so only what is cached can be read; unset it.")
    assert_holds(tmp_path / "0.pt", *read_checkpoint(trained))


def test_errors_name_the_cause_and_the_remedy(hub, client, tmp_path):
    expected = {
        "hf://nets": "hf://nets is malformed; write hf://OWNER/REPO[/FILE][@REVISION].",
        "hf://me/nets/../x": "is malformed",
        "hf://me/a--b": "cannot be downloaded: Cannot have -- or .. in repo_id",
        "hf://me/gone": "me/gone does not exist or is private; check the name, or log in: hf auth login.",
        "hf://me/secret": "me/secret does not exist or is private; check the name, or log in: hf auth login.",
        "hf://gated/nets": f"it is gated; ask for access at {hub.endpoint}/gated/nets and log in: hf auth login.",
        "hf://disabled/nets": "hf://disabled/nets cannot be downloaded: 403 Forbidden: The owner is away.",
        "hf://me/nets/modle.safetensors": "Did you mean model.safetensors? Available: model.safetensors.",
        "hf://me/nets@v2": "Unknown revision 'v2'. Available: main, v1/a.",
        f"hf://me/nets@{hub.first}": "is damaged or not a safetensors file",
    }
    for text, error in zip(expected.values(), client(read, tmp_path, *expected), strict=True):
        assert text in error
    hub.stop()
    with pytest.raises(UserError, match="cannot be downloaded: .*onnection.* check the network and the Hub's address"):
        client(read_checkpoint, "hf://me/nets")
    with pytest.raises(UserError, match=r"huggingface_hub, which is not installed: pip install huggingface_hub$"):
        client(read_without_the_library, "hf://me/nets")


def test_pushed_models_load_again(hub, client, trained, tmp_path):
    pushed = client(push, trained, "me/new", HF_TOKEN=TOKEN)
    assert [source.rpartition("@")[0] for source in pushed] == [
        "hf://me/new/model.safetensors", "hf://me/new/bodies/body.safetensors", "hf://me/new/copy.pth"
    ]  # fmt: skip
    assert "me/new" in hub.private
    assert hub.messages[0] == "Trained"
    assert "bodies/body.safetensors" in hub.repos["me/new"]["bodies"]
    assert client(read, tmp_path, *pushed, HF_TOKEN=TOKEN) == ["", "", ""]
    state, metadata = read_checkpoint(trained)
    assert_holds(tmp_path / "2.pt", state, metadata | {"author": "resnet_backbones"})
    assert metadata.pop("metrics") == {"top1": 50.0}  # which a model does not keep
    assert metadata["classes"] == ["ant", "bee", "cat"]
    assert_holds(tmp_path / "0.pt", state, metadata)
    del metadata["classes"], state["fc.weight"], state["fc.bias"]
    assert_holds(tmp_path / "1.pt", state, metadata)


def test_pushing_needs_a_token_with_write_access(hub, client, trained):
    for repo, token in [("others/nets", TOKEN), ("me/nets", "")]:
        remedy = f"no permission to write to {repo}; log in with a token that has it: hf auth login."
        with pytest.raises(UserError, match=f"^hf://{repo}/model.safetensors cannot be uploaded: {remedy}$"):
            client(push, trained, repo, HF_TOKEN=token)
    hub.stop()
    with pytest.raises(UserError, match="cannot be uploaded: .* check the network"):
        client(push, trained, "me/nets", HF_TOKEN=TOKEN)


def test_convert_reads_from_the_hub_and_writes_to_it(hub, client, trained, tmp_path):
    arguments = ["convert", "hf://me/nets", "hf://me/nets/converted/r20.pth", "--to", "resnet_backbones"]
    status, out = client(command, *arguments, HF_TOKEN=TOKEN)
    assert status == 0
    assert re.search(r"uploaded: hf://me/nets/converted/r20.pth@\w{40}$", out.strip())
    (tmp_path / "r20.pth").write_bytes(hub.repos["me/nets"]["main"]["converted/r20.pth"])
    state, expected = read_checkpoint(str(tmp_path / "r20.pth")).state, read_checkpoint(str(trained)).state
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_models_that_cannot_be_loaded_again_are_not_pushed():
    with pytest.raises(UserError, match="A fused model cannot be loaded again"):
        push_to_hub(fuse(build_backbone("cifar_resnet20")), "me/nets")
    with pytest.raises(UserError, match="A Linear is not a classifier or backbone; save its state_dict"):
        push_to_hub(torch.nn.Linear(1, 1), "me/nets")
    with pytest.raises(UserError, match="hf://me/model.safetensors is malformed: repo_id is OWNER/REPO"):
        push_to_hub(build_backbone("cifar_resnet20"), "me")
