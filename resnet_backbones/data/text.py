"""Text files in the encodings that people's tools write."""

import codecs
from pathlib import Path

from ..errors import UserError, reason
from ..paths import read_whole

ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path, what: str) -> str:
    """The text of a file in UTF-8, UTF-8 with a byte order mark or UTF-16 with one, without the mark.

    Raises `UserError` that names `what` the file is and its path if it is missing, cannot be read or is not such text.
    """
    try:
        return decode_text(read_whole(Path(path)))
    except FileNotFoundError as error:
        raise UserError(f"The {what} {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The {what} {path} is not text in UTF-8 or UTF-16 (byte {error.start} is "
            f"{error.object[error.start]:#04x}); save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        raise UserError(f"The {what} {path} cannot be read: {reason(error)}.") from error


def decode_text(content: bytes) -> str:
    """`content` as text; a byte order mark says which encoding it is. Raises `UnicodeDecodeError`."""
    return content.decode(next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8"))
