"""XML from anywhere: no entities, which can unfold to gigabytes or name other files, and nothing of absurd size."""

from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

LARGEST = 2**24  # bytes; an annotation takes thousands
DEEPEST, MOST = 64, 300_000  # levels and elements


def parse_xml(content: bytes) -> Element:
    """The root of an XML document in any encoding that expat knows.

    Raises `ValueError` saying what is wrong with it: damage, a document type, depth or size.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    builder, depth, count = TreeBuilder(), 0, 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if count > MOST:
            raise ValueError(f"it has more than {MOST} elements")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type or entities, which annotations do without")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    # A document type comes before every entity, whatever the encoding; the others are for an expat that thinks not.
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ParseError, AssertionError) as error:
        raise ValueError(str(error)) from error
