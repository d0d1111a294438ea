"""Measure the registered backbones: resnet_backbones/analysis/truths.json and the table in configs/README.md.

    resnet-backbones write-truths                  all of them, some minutes and 4 GB of memory
    resnet-backbones write-truths "resnet27*"      matching ones, and those not yet in the file

Names that are no longer registered are removed.
"""

import fnmatch

from ..config import CONFIG_FOLDER
from ..errors import UserError, one_line_errors
from . import command_parser

README = CONFIG_FOLDER / "README.md"
BEGIN, END = "<!-- models -->\n", "<!-- /models -->"


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("write-truths", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="a shell pattern, in quotes")
    args = parser.parse_args(argv)
    from ..analysis.truths import PATH, load_truths, measure, to_json, to_markdown
    from ..backbones import list_backbones

    with one_line_errors():
        if not README.is_file():
            raise UserError(f"There is no {README}; write-truths needs a checkout of the repository.")
        known = load_truths() if PATH.exists() else {}
        truths = {}
        for name in list_backbones():
            stale = name not in known or fnmatch.fnmatch(name, args.pattern)
            truths[name] = measure(name) if stale else known[name]
            if truths[name] != known.get(name):
                print(f"{name}: {truths[name]}", flush=True)
        text = replace_table(README.read_text(), to_markdown(truths))
        PATH.write_text(to_json(truths))
        README.write_text(text)


def replace_table(text: str, table: str) -> str:
    """`text` with `table` between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{README} must have one line {BEGIN.strip()} and one {END}, around the table.")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{table}{END}{rest.partition(END)[2]}"
