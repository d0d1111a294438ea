#!/usr/bin/env python3
"""Measure the registered backbones anew: resnet_backbones/truths.json and the table in configs/README.md.

tools/write_truths.py                  all of them, some minutes and 4 GB of memory
tools/write_truths.py "resnet27*"      those that match, and whatever the file lacks

Names that are no longer registered leave the file.
"""

import argparse
import fnmatch
from pathlib import Path

from resnet_backbones import list_backbones
from resnet_backbones.analysis.truths import PATH, load_truths, measure, to_json, to_markdown
from resnet_backbones.errors import UserError, one_line_errors

README = Path(__file__).parent.parent / "configs" / "README.md"
BEGIN, END = "<!-- models -->\n", "<!-- /models -->"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="a shell pattern, in quotes")
    args = parser.parse_args(argv)
    with one_line_errors():
        known = load_truths() if PATH.exists() else {}
        truths = {}
        for name in list_backbones():
            anew = name not in known or fnmatch.fnmatch(name, args.pattern)
            truths[name] = measure(name) if anew else known[name]
            if truths[name] != known.get(name):
                print(f"{name}: {truths[name]}", flush=True)
        text = replace_table(README.read_text(), to_markdown(truths))
        PATH.write_text(to_json(truths))
        README.write_text(text)


def replace_table(text: str, table: str) -> str:
    """`text` with `table` between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{README} must have one line {BEGIN.strip()} and one {END}, between which the table stands.")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{table}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
