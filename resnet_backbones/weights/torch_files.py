"""The files that `torch.save` writes, read without running what is in them and without trusting what they say.

`torch.load(weights_only=True)` runs nothing either, but allocates what a file asks for: a kilobyte can ask for a
terabyte. Here a storage is as large as its bytes in the file, and a tensor lies within its storage.
"""

import io
import mmap
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pickles import ARRAYS, Reader

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6
SHARED = 16  # how many times the file's size its tensors may have together, where they share storages
MOST_DIMENSIONS = 32
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, its tensors on the CPU and without gradients.

    Raises `pickle.UnpicklingError` naming what else than tensors, arrays and plain containers it asks for, and
    whatever else Python finds wrong with damaged files; a caller takes any `Exception` for damage.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            return _read_zip(file)
        # Unlike a file, it makes no room for a read before it knows that so much is there.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_legacy(mapped, os.fstat(file.fileno()).st_size)


def check_zip(archive: zipfile.ZipFile) -> None:
    """Raise `ValueError` for a zip that unpacks to more than it is: torch compresses nothing."""
    size = os.fstat(archive.fp.fileno()).st_size
    infos = archive.infolist()
    stored = all(i.compress_type == zipfile.ZIP_STORED and i.file_size == i.compress_size for i in infos)
    if not stored or sum(i.file_size for i in infos) > size:
        raise ValueError("it unpacks to more than it is; torch.save compresses nothing")


class _TensorReader(Reader):
    """Reads tensors over the bytes that the `storage(key, dtype, count)` of a subclass gives."""

    def __init__(self, file: io.IOBase, size: int) -> None:
        rebuild = {
            "_rebuild_tensor": self._tensor,
            "_rebuild_tensor_v2": self._tensor,
            "_rebuild_tensor_v3": self._tensor,
            "_rebuild_parameter": self._parameter,
        }
        tensors = {("torch._utils", name): value for name, value in rebuild.items()}
        storages = {(m, name): dtype for m in ("torch", "torch.cuda") for name, dtype in STORAGES.items()}
        dtypes = {("torch", name): dtype for name, dtype in DTYPES.items()}
        others = {("torch.storage", "UntypedStorage"): torch.uint8, ("torch", "Size"): tuple, ("torch", "device"): str}
        super().__init__(file, ARRAYS | tensors | storages | dtypes | others)
        self.room = SHARED * size + 2**24

    def persistent_load(self, saved: Any) -> tuple[bytearray, torch.dtype]:
        kind, dtype, key, _, count, *view = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or any(view):
            raise ValueError("it has a storage of no known kind")
        if not isinstance(count, int) or not 0 <= count < 2**48:
            raise ValueError("it has a storage of no size")
        return self.storage(key, dtype, count), dtype

    def _tensor(self, storage: Any, offset: int, size: tuple, stride: tuple, *more: Any) -> Tensor:
        buffer, dtype = storage
        if len(more) > 2 and isinstance(more[2], torch.dtype):  # of a tensor over untyped bytes
            dtype = more[2]
        count, last = 1, offset
        if len(size) > MOST_DIMENSIONS:
            raise ValueError("it has a tensor of no shape")
        for side, step in zip(size, stride, strict=True):
            if not (isinstance(side, int) and isinstance(step, int) and 0 <= side < 2**48 and 0 <= step < 2**48):
                raise ValueError("it has a tensor of no shape")
            count, last = count * side, last + (side - 1) * step
        held = len(buffer) // dtype.itemsize
        self.room -= count * dtype.itemsize
        if not isinstance(offset, int) or offset < 0 or (count and last >= held) or self.room < 0:
            raise ValueError("it has a tensor larger than its storage")
        flat = torch.frombuffer(buffer, dtype=dtype, count=held) if held else torch.empty(0, dtype=dtype)
        return flat.as_strided(size, stride, offset) if count else torch.empty(size, dtype=dtype)

    def _parameter(self, tensor: Any, *_: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise ValueError("it has a parameter that is no tensor")
        return tensor


class _ZipReader(_TensorReader):
    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        super().__init__(io.BytesIO(_member(archive, f"{folder}data.pkl")), size)
        self.archive, self.folder, self.held = archive, folder, {}

    def storage(self, key: str, dtype: torch.dtype, count: int) -> bytearray:
        if key not in self.held:
            self.held[key] = bytearray(_member(self.archive, f"{self.folder}data/{key}"))
        if len(self.held[key]) != count * dtype.itemsize:
            raise ValueError(f"storage {key[:40]} is not of the size that it says")
        return self.held[key]


class _LegacyReader(_TensorReader):
    """Storages come behind the pickle: their room is made first, and never more than the file has."""

    def __init__(self, file: io.IOBase, size: int) -> None:
        super().__init__(file, size)
        self.left, self.held = size, {}

    def storage(self, key: str, dtype: torch.dtype, count: int) -> bytearray:
        if key not in self.held:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise ValueError("it has storages larger than the file")
            self.held[key] = bytearray(count * dtype.itemsize), dtype.itemsize
        if len(self.held[key][0]) != count * dtype.itemsize:
            raise ValueError(f"storage {key[:40]} has two sizes")
        return self.held[key][0]


def _read_zip(file: io.IOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        check_zip(archive)
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) < len(names):
            raise ValueError("it is a zip of something else than tensors")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and _member(archive, f"{folder}byteorder") != b"little":
            raise ValueError("it is of a big-endian machine")
        return _ZipReader(archive, folder, os.fstat(file.fileno()).st_size).read_all()


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name} in it does not have its checksum") from error


def _read_legacy(file: mmap.mmap, size: int) -> Any:
    head = [Reader(file, {}).read_all() for _ in range(2)]
    if head != [LEGACY_MAGIC, LEGACY_VERSION]:
        raise pickle.UnpicklingError("it does not begin like one")
    system = Reader(file, {}).read_all()
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise ValueError("it is of a big-endian machine")
    reader = _LegacyReader(file, size)
    content = reader.read_all()
    keys = Reader(file, {}).read_all()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(reader.held):
        raise ValueError("it does not hold the storages that it lists")
    for key in keys:
        buffer, itemsize = reader.held[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        data = file.read(len(buffer))
        if count * itemsize != len(buffer) or len(data) != len(buffer):
            raise ValueError("it ends before its last storage does")
        buffer[:] = data
    return content
