"""Pickles of numpy arrays, as Caffe2 and detectron2 publish weights, read without running what is in them."""

import io
import pickle
from typing import Any

import numpy as np

from ..errors import UserError, reason

# What a pickle of arrays in plain containers asks for, under the names of numpy 1 and 2, and of Python 2.
HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(content: bytes, source: str) -> Any:
    """What a pickle of numpy arrays and plain containers holds; strings of Python 2 are taken as Latin-1.

    Raises `UserError` naming `source` and what else it asks for, which is not run.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
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
