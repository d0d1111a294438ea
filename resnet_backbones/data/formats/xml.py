"""XML of annotation tools, read without entities."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import fromstring

from ...errors import UserError
from ...paths import read_whole
from ..text import ENCODINGS, decode_text

DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)""")


def read_xml(path: Path) -> Element:
    """The root of an XML file, in any encoding that it declares or that its byte order mark indicates.

    Raises `UserError` naming the file if it cannot be read, is not valid or has a DOCTYPE.
    """
    try:
        return fromstring(_decode(read_whole(path)).lstrip(), forbid_dtd=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except DTDForbidden as error:
        raise UserError(f"{path} has a DOCTYPE, which can declare entities; remove it.") from error
    except (ParseError, ValueError, LookupError) as error:  # the last two for encodings
        raise UserError(f"{path} is not valid XML: {error}.") from error


def _decode(content: bytes) -> str:
    """`content` in the encoding of its byte order mark, or else the one that it declares."""
    declared = DECLARATION.match(content)
    if declared is None or content.startswith(tuple(ENCODINGS)):
        return decode_text(content)
    encoding = declared[1].decode()  # found in single bytes, so it is not UTF-16, whatever it says
    return content.decode("utf-8" if encoding.lower().startswith("utf-16") else encoding)


def number(text: str | None, what: str) -> float:
    """`text` as a float, NaN and infinity included. Raises `UserError` naming `what` it belongs to."""
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        shown = repr(text if text is None else text[:80])
        raise UserError(f"{what} is {shown}, not a number.") from error


def size_of(width: str | None, height: str | None) -> dict[str, int]:
    """`width` and `height` of an image record, if both are whole numbers above 0."""
    try:
        size = {"width": int(width), "height": int(height)}
    except (TypeError, ValueError):
        return {}
    return size if min(size.values()) > 0 else {}
