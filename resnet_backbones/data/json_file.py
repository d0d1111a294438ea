"""JSON files of any size, in the encodings and dialects that people's tools write."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from ..errors import UserError
from ..paths import local_file, read_whole
from .text import decode_text

LARGEST = 2**35  # bytes; the largest published annotation files are a tenth of it


def read_json(path: str, what: str = "annotation file") -> object:
    """The content of a JSON file. Raises `UserError` naming the file and where it is corrupt."""
    try:
        content = read_whole(local_file(path, what), LARGEST)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:  # Python's takes NaN, Infinity and integers of any size, as it writes them
            return json.loads(decode_text(content))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn off Python's search for cycles, which would scan millions of new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
