"""Pickles of numpy arrays, as Caffe2 and detectron2 publish weights, read without running what is in them.

A pickle is a program that names functions, calls them and sets attributes. Here it can only name the entries of a
table, which check what they are given before they allocate anything.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UserError, reason
from ..nesting import expanded_size, nested_children

LARGEST_TREE = 10_000_000  # values that nested containers may hold, shared ones counted every time
NEEDLESS = (
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EMPTY_SET,
    pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
)  # fmt: skip


class PlainDict(dict):
    """What becomes of an OrderedDict: attributes that a pickle gives it are dropped."""

    __slots__ = ()

    def __init__(self, pairs: list = ()) -> None:
        for key, value in pairs:
            self[_key(key)] = value


class Reader(pickle._Unpickler):
    """Python's unpickler in its Python version, whose every operation on what a file says can be narrowed.

    `globals` are what a pickle may name, by module and name. Keys are strings and 64-bit integers: other kinds can be
    made whose hashes take for ever.
    """

    def __init__(self, file: io.IOBase, globals: dict[tuple[str, str], Any]) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2's strings
        self.globals = globals

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.globals:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.globals[module, name]

    def read_all(self) -> Any:
        """`load`, with the size of what it gives checked."""
        content = self.load()
        if expanded_size(content, nested_children) > LARGEST_TREE:
            raise ValueError("it repeats its own parts without end")
        return content

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.ndarray):
            target.__setstate__(_array_state(state))
        elif isinstance(target, np.dtype):
            _set_byte_order(target, state)
        elif not isinstance(target, PlainDict):
            raise pickle.UnpicklingError(f"it sets attributes of a {type(target).__name__}")

    def _put_items(self) -> None:
        self._put(self.pop_mark())

    def _put_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _put(self, items: list) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it puts items into what is no mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _append_items(self) -> None:
        self._extend(self.pop_mark())

    def _append_item(self) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, items: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    dispatch = {code: run for code, run in pickle._Unpickler.dispatch.items() if bytes([code]) not in NEEDLESS} | {
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _put_item,
        pickle.SETITEMS[0]: _put_items,
        pickle.DICT[0]: _make_dict,
        pickle.APPEND[0]: _append_item,
        pickle.APPENDS[0]: _append_items,
    }


def _key(key: Any) -> Any:
    if isinstance(key, str) or key is None or (isinstance(key, int) and abs(key) < 2**63):
        return key
    raise ValueError(f"it has a {type(key).__name__} as a key")


def _dtype(code: str, *_: Any) -> np.dtype:
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biufc]\d{1,2}|[SU]\d{0,5}|[?])", code):
        raise ValueError(f"it has an array of type {str(code)[:40]!r}")
    return np.dtype(code, False, True)  # a copy, which BUILD gives its byte order


def _set_byte_order(dtype: np.dtype, state: Any) -> None:
    _, order, *rest = state
    if order not in ("<", ">", "=", "|") or rest[:3] != [None, None, None] or (dtype.kind in "SU" and order == ">"):
        raise ValueError("it has an array of a type with fields")
    if dtype.kind not in "SU":
        dtype.__setstate__((3, order, None, None, None, -1, -1, 0))


def _array_state(state: Any) -> tuple:
    *_, shape, dtype, fortran, raw = state
    _array_size(shape, dtype, raw)
    return 1, shape, dtype, bool(fortran), raw.encode("latin1") if isinstance(raw, str) else raw


def _array_size(shape: Any, dtype: Any, raw: Any) -> None:
    """Raise `ValueError` unless `raw` fills an array of that shape exactly."""
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
        raise ValueError("it has an array without shape or type")
    size = dtype.itemsize
    for side in shape:
        if not isinstance(side, int) or not 0 <= side < 2**40:
            raise ValueError("it has an array of no shape")
        size *= side
    if not isinstance(raw, (bytes, str)) or len(raw) != size or len(shape) > 32:
        raise ValueError("it has an array whose data are not of its shape")


def _scalar(dtype: np.dtype, raw: Any) -> Any:
    _array_size((), dtype, raw)
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_call(name: str) -> Callable:
    def refuse(*_: Any) -> None:
        raise ValueError(f"it makes a {name} of its own")

    return refuse


# What a pickle of arrays in plain containers asks for, under the names of numpy 1 and 2, and of Python 2.
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _no_call("ndarray"),
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0),  # BUILD gives it shape and data
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: np.empty(0),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("collections", "OrderedDict"): PlainDict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): lambda: b"",  # of an array without elements, in protocol 2
}


def read_pickle(content: bytes, source: str) -> Any:
    """What a pickle of numpy arrays and plain containers holds; strings of Python 2 are taken as Latin-1.

    Raises `UserError` naming `source` and what else it asks for, which is not run.
    """
    try:
        return Reader(io.BytesIO(content), ARRAYS).read_all()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The weights file {source} holds more than arrays and is refused: {reason(error)}. Save it as a plain "
            "mapping of names to arrays."
        ) from error
    except Exception as error:  # whatever a damaged pickle makes the machine stumble over
        raise UserError(f"The weights file {source} is damaged: {reason(error)}") from error


def write_pickle(state: dict[str, np.ndarray], more: dict[str, Any]) -> bytes:
    """A pickle that `read_pickle` and detectron2 read: `state` under "model", and `more` beside it."""
    return pickle.dumps({"model": state, **more}, protocol=2)
