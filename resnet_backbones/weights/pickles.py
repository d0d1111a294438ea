"""Pickles read without running code from the file: those of numpy arrays, and stand-ins for the classes in others."""

import codecs
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError, reason

# The private functions of numpy that its pickles call: for arrays, for arrays in protocol 5, and for scalars.
NUMPY_FUNCTIONS = {
    "multiarray._reconstruct": np.ones(1).__reduce__()[0],
    "numeric._frombuffer": np.ones(1).__reduce_ex__(5)[0],
    "multiarray.scalar": np.float32(1).__reduce__()[0],
}
# All that a pickle may call.
ARRAY_GLOBALS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.core.{name}": function for name, function in NUMPY_FUNCTIONS.items()},  # numpy 1
    **{f"numpy._core.{name}": function for name, function in NUMPY_FUNCTIONS.items()},  # numpy 2
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": codecs.encode,  # the bytes of an array in protocol 2 …
    "__builtin__.bytes": bytes,  # … and of an empty one
    "collections.defaultdict": defaultdict,
    **{f"pathlib{private}.PosixPath": PurePosixPath for private in ("", "._local")},  # in the options of training
    **{f"pathlib{private}.WindowsPath": PureWindowsPath for private in ("", "._local")},
}


class Inert(dict):
    """An object of a class that is not imported, such as `argparse.Namespace`: its attributes, which are data.

    A pickle makes such an object without calling its class. One that calls it, as it calls a function, is refused.
    """

    asked, path = "", Path()

    def __init__(self, *_: Any) -> None:
        raise refusal(self.path, self.asked)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def inert(asked: str, path: Path) -> type[Inert]:
    """The stand-in for the class or function `asked`, e.g. "argparse.Namespace", of the file at `path`."""
    return type("Inert", (Inert,), {"asked": asked, "path": path})


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing beyond `ARRAY_GLOBALS`; anything else is `Inert`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # the strings of Python 2 hold any byte
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        return ARRAY_GLOBALS.get(f"{module}.{name}") or inert(f"{module}.{name}", self.path)


def read_pickle(path: Path) -> Any:
    """Numpy arrays in containers. Raises `UserError` for a damaged file and for one that calls anything else."""
    with open(path, "rb") as file:
        try:
            return ArrayUnpickler(file, path).load()
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"The weights file {path} is damaged or not a pickle: {reason(error)}") from error


def refusal(path: Path, asked: str) -> UserError:
    """The error for a file that calls a function or class, which would run code: `asked`, e.g. "posix.system"."""
    return UserError(
        f"The weights file {path} holds more than tensors and is refused: it asks for {asked}. "
        "Save it as a plain state_dict."
    )
