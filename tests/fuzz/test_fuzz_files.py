"""Fuzzed weights files: every one loads or is refused in one line, and no code in it runs."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzing import JUNK, fuzz, mutated, mutated_bytes
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from resnet_backbones.weights import read_checkpoint

STATE = {"conv": torch.arange(12.0).reshape(3, 4), "norm": torch.ones(3), "steps": torch.tensor(7)}
METADATA = {"architecture": {"name": "resnet18", "options": {"norm": "BN"}}, "classes": ["a"], "preprocessing": {}}
TENSORS = st.sampled_from([
    torch.tensor(float("nan")), torch.zeros(4, dtype=torch.complex64), torch.zeros(1).expand(4), torch.zeros(0),
    torch.ones(4, 3, 3, 3).to_sparse(), torch.zeros(3, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(2)),
])  # fmt: skip
ARRAYS = st.sampled_from([
    np.float32(1), np.zeros(0), np.zeros(3, np.longdouble), np.array(["a"]), np.array([{}, None]), np.zeros(3, ">i2"),
    np.zeros(2, "f4,i4"), np.zeros(3, "M8[s]"), np.zeros((2, 3), order="F"),
])  # fmt: skip


class MakesFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


def torch_bytes(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def cut(content: bytes) -> st.SearchStrategy:
    return st.integers(0, len(content)).map(lambda size: content[:size])


@st.composite
def zips(draw, content: bytes) -> bytes:
    """A torch file with a member that is overwritten, compressed, duplicated or missing.

    Its pickle is left intact: torch allocates whatever a damaged one asks for.
    """
    source, file = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    chosen = draw(st.sampled_from([name for name in source.namelist() if not name.endswith("data.pkl")]))
    damage = draw(st.sampled_from(["overwrite", "overwrite", "compress", "duplicate", "remove"]))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if damage == "compress" else zipfile.ZIP_STORED) as result:
        for name in source.namelist():
            data = source.read(name)
            if name == chosen and damage == "overwrite":
                data = draw(mutated_bytes(data, most=2))
            if name != chosen or damage != "remove":
                result.writestr(name, data)
            if name == chosen and damage == "duplicate":
                result.writestr(f"{name}/", data)
    return file.getvalue()


def test_damaged_weights_are_loaded_or_refused(tmp_path, record_property):
    code = MakesFolder(tmp_path / "canary")
    tensors = mutated(lambda: {"model": dict(STATE), "metadata": json.loads(json.dumps(METADATA))}, JUNK | TENSORS)
    arrays = mutated(
        lambda: {"model": {name: tensor.numpy() for name, tensor in STATE.items()}, "lr": np.float64(0.1)},
        JUNK | ARRAYS,
    )
    zipped = tensors.map(torch_bytes)
    legacy = tensors.map(lambda content: torch_bytes(content, legacy=True))
    pickled = st.tuples(arrays, st.integers(0, 5)).map(lambda drawn: pickle.dumps(*drawn))
    header = {"format": "resnet_backbones 1"} | {key: json.dumps(value) for key, value in METADATA.items()}
    texts = JUNK.map(lambda value: json.dumps(value)[:1000]) | st.sampled_from(["[" * 5000, "9" * 5000, "", "x"])
    changes = st.dictionaries(st.sampled_from(sorted(header)), texts, max_size=1)
    safetensors = changes.map(lambda change: safetensors_bytes(STATE, header | change))
    examples = st.one_of(
        st.tuples(st.just(".pth"), zipped | zipped.flatmap(zips) | (zipped | legacy).flatmap(cut) | legacy),
        st.tuples(st.just(".pkl"), pickled | pickled.flatmap(cut)),
        st.tuples(st.just(".safetensors"), safetensors | safetensors.flatmap(mutated_bytes)),
        st.tuples(st.just(".pth"), st.sampled_from([torch_bytes({"a": code}), torch_bytes({"a": code}, legacy=True)])),
        st.tuples(st.just(".pkl"), st.just(pickle.dumps({"a": code}))),
    )

    def read(example: tuple[str, bytes]) -> None:
        suffix, content = example
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        read_checkpoint(str(path))

    fuzz("weights", record_property, tmp_path, examples, read)
