"""One self-contained HTML file: the content as JSON, the style, and the scripts that draw it in a browser."""

import json
from pathlib import Path

from ..paths import atomic_write

FOLDER = Path(__file__).parent
SCRIPTS = ("elements.js", "charts.js", "tables.js", "labels.js", "gallery.js", "page.js")


def write_page(path: Path, content: dict) -> None:
    """Replace the file at `path` by a page of `content`, which page.js describes. It refers to no other file."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    parts = {
        "STYLE": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "CONTENT": data.replace("<", "\\u003c"),  # a name such as </script> does not end the element
    }
    lines = (FOLDER / "page.html").read_text(encoding="utf-8").splitlines(keepends=True)
    for place, text in parts.items():
        lines = [line.replace(place, text) if line.strip() == place else line for line in lines]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
