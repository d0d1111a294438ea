"""Errors that a user can mend: one line that names the file, key or value, and the remedy."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 10_000  # characters of a message; lists of every valid name fit


class UserError(ValueError):
    """Something in the user's files, config or command; the tools print it as one line, without a traceback.

    One line it is whatever names and values from files are in it. An error from a loader worker arrives with the
    worker's traceback as its text; its last line is the message.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught UserError"):
            message = message.strip().splitlines()[-1].removeprefix(f"{__name__}.UserError: ")
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.splitlines()))
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]} …")


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: the near ones, then all that do."""
    valid = sorted(map(str, valid))
    near = difflib.get_close_matches(str(name), valid, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"Unknown {kind} {str(name)!r}.{hint} Available: {', '.join(valid) or 'none'}."


def reason(error: BaseException) -> str:
    """The first line of what a library's error says, or its kind where it says nothing; of a file's not its name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and status 2 where a `UserError` or a file's `OSError` reaches it."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
