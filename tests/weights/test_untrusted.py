"""Untrusted weights files: plain data loads, code is refused by name, and a damaged file gives a one-line error."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from resnet_backbones.errors import UserError
from resnet_backbones.weights import read_checkpoint

STATE = {"conv.weight": torch.arange(24.0).reshape(4, 6).t(), "bn.bias": torch.ones(3), "steps": torch.tensor(7)}

# {"weight": numpy.arange(3, dtype="f4")} as numpy 1 under Python 2 pickles it in protocol 0.
PYTHON2_PICKLE = (
    b"(dp0\nS'weight'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
    b"(I1\n(I3\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n"
    b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\x80?\\x00\\x00\\x00@'\np15\ntp16\nbs."
)


class MakesFolder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Settings:
    """Runs code when it is unpickled."""

    def __getstate__(self):
        return {"lr": 0.1, "loss": MakesFolder}

    def __setstate__(self, state):
        raise RuntimeError("code")


def write(path, content, **options) -> str:
    """Write `content` in the format of the suffix of `path`; returns the path as a string."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, **options))
    else:
        torch.save(content, path, **options)
    return str(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_file_may_hold_plain_data_and_numpy_besides_tensors(tmp_path, legacy):
    content = {
        "model": OrderedDict(STATE),
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict(),
        "epoch": 3, "best": -float("inf"), "size": torch.Size([1, 2]), "text": ("ä", None, b"\0\xff"),
        "map": np.float64(0.5), "seeds": np.arange(3), "names": np.array(["a", "b"]), "nothing": np.zeros((0, 3)),
    }  # fmt: skip
    path = write(tmp_path / "a.pth", content, _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(read_checkpoint(path).state, STATE, rtol=0, atol=0)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_of_any_protocol_may_hold_arrays_and_numpy_scalars(tmp_path, protocol):
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()} | {"nothing": np.zeros((0, 3), "f4")}
    content = {"model": OrderedDict(arrays), "lr": np.float64(0.1), "__author__": "someone"}
    checkpoint = read_checkpoint(write(tmp_path / "a.pkl", content, protocol=protocol))
    torch.testing.assert_close(checkpoint.state, STATE | {"nothing": torch.zeros(0, 3)}, rtol=0, atol=0)
    assert checkpoint.metadata == {"author": "someone"}


def test_python_2_pickle_loads(tmp_path):
    (tmp_path / "old.pkl").write_bytes(PYTHON2_PICKLE)
    assert torch.equal(read_checkpoint(str(tmp_path / "old.pkl")).state["weight"], torch.arange(3.0))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("place", ["tensor", "beside the model", "whole file"])
def test_code_in_a_file_is_named_and_not_run(tmp_path, suffix, place):
    code = MakesFolder(tmp_path / "created")
    content = {"tensor": {"model": {"a": code}}, "beside the model": {"model": {}, "x": code}, "whole file": code}
    path = write(tmp_path / f"evil{suffix}", content[place])
    with pytest.raises(UserError, match=r"evil.p.* is refused: it asks for posix.mkdir. Save it as a plain state_dict"):
        read_checkpoint(path)
    assert not (tmp_path / "created").exists()
    pickle.loads(pickle.dumps(code))  # the code itself works
    assert (tmp_path / "created").exists()


def test_code_in_a_legacy_torch_file_is_named_and_not_run(tmp_path):
    code = MakesFolder(tmp_path / "created")
    path = write(tmp_path / "evil.pth", {"model": code}, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"evil.pth holds more than tensors and is refused: it asks for posix.mkdir"):
        read_checkpoint(path)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_namespaces_and_paths_are_accepted(tmp_path, legacy):
    content = {"model": STATE, "args": Namespace(lr=0.1, output=Path("output"), nested=Namespace(a=[1]))}
    path = write(tmp_path / "a.pth", content, _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(read_checkpoint(path).state, STATE, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_objects_of_any_class_are_accepted_without_running_their_code(tmp_path, suffix):
    state = {name: tensor.numpy() for name, tensor in STATE.items()} if suffix == ".pkl" else STATE
    path = write(tmp_path / f"a{suffix}", {"model": state, "settings": Settings()})
    torch.testing.assert_close(read_checkpoint(path).state, STATE, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="code"):
        pickle.loads(pickle.dumps(Settings()))


def test_self_referencing_file_loads(tmp_path):
    content = {"model": STATE}
    content["again"] = [content, content]
    torch.testing.assert_close(read_checkpoint(write(tmp_path / "a.pth", content)).state, STATE, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 a zip cut short", b"\x80\x02", b"\x80\x04\x95."]
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_file_that_is_not_a_checkpoint_gives_a_one_line_error(tmp_path, suffix, content):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"The weights file .*bad{suffix} is damaged or not a") as caught:
        read_checkpoint(str(path))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to run what is in the file


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["torch", "legacy torch", "pickle", "safetensors"])
def test_truncated_file_is_refused(tmp_path, kind, share):
    state = {name: tensor.contiguous() for name, tensor in STATE.items()} | {"more": torch.zeros(1000)}
    path = tmp_path / {"pickle": "bad.pkl", "safetensors": "bad.safetensors"}.get(kind, "bad.pth")
    if kind == "pickle":
        write(path, {name: tensor.numpy() for name, tensor in state.items()})
    elif kind == "safetensors":
        path.write_bytes(safetensors_bytes(state))
    else:
        write(path, state, _use_new_zipfile_serialization=kind == "torch")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="The weights file .*bad.* is damaged or not a"):
        read_checkpoint(str(path))


def test_arrays_without_a_torch_dtype_are_refused(tmp_path):
    path = write(tmp_path / "wide.pkl", {"weight": np.zeros(3, np.longdouble)})
    with pytest.raises(UserError, match="wide.pkl: weight is not a tensor: "):
        read_checkpoint(path)
