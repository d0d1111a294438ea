"""Pickles of numpy arrays, as Caffe2 and detectron2 publish weights, read without running code from the file."""

import codecs
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError, reason

# The private functions of numpy that its pickles call: for arrays, for arrays in protocol 5, and for scalars.
NUMPY_FUNCTIONS = {
    "multiarray._reconstruct": np.ones(1).__reduce__()[0],
    "numeric._frombuffer": np.ones(1).__reduce_ex__(5)[0],
    "multiarray.scalar": np.float32(1).__reduce__()[0],
}
# All that a pickle of arrays in plain containers may name.
ARRAY_GLOBALS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.core.{name}": function for name, function in NUMPY_FUNCTIONS.items()},  # numpy 1
    **{f"numpy._core.{name}": function for name, function in NUMPY_FUNCTIONS.items()},  # numpy 2
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": codecs.encode,  # the bytes of an array in protocol 2 …
    "__builtin__.bytes": bytes,  # … and of an empty one
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing beyond `ARRAY_GLOBALS`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # the strings of Python 2 hold any byte
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ARRAY_GLOBALS:
            raise refusal(self.path, f"{module}.{name}")
        return ARRAY_GLOBALS[f"{module}.{name}"]


def read_pickle(path: Path) -> Any:
    """Numpy arrays in plain containers. Raises `UserError` for a damaged file and for one that asks for more."""
    with open(path, "rb") as file:
        try:
            return ArrayUnpickler(file, path).load()
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"The weights file {path} is damaged or not a pickle: {reason(error)}") from error


def refusal(path: Path, asked: str) -> UserError:
    """The error for a file that names a function or class, which would run code: `asked`, e.g. "posix.system"."""
    return UserError(
        f"The weights file {path} holds more than tensors and is refused: it asks for {asked}. "
        "Save it as a plain state_dict."
    )
