"""Errors that a user can fix: one line that names the file, key or value, and the remedy."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 10_000  # characters of a message; enough for a list of all valid names


class UserError(ValueError):
    """An error in the user's files, config or command; the commands print it as one line, without a traceback.

    Line breaks and unprintable characters in the message are escaped. torch wraps the error of a loader worker in that
    worker's traceback, whose last line is the message.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught UserError"):
            message = message.strip().splitlines()[-1].removeprefix(f"{__name__}.UserError: ")
        message = printable(message)
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]} …")


def printable(text: str) -> str:
    """`text` in one line, with unprintable characters escaped, such as those of a path that is not UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines()))


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: close matches, then all valid names."""
    valid = sorted(map(str, valid))
    near = difflib.get_close_matches(str(name), valid, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"Unknown {kind} {str(name)!r}.{hint} Available: {', '.join(valid) or 'none'}."


def reason(error: BaseException) -> str:
    """The first line of a library's error message, or its class if it has none; of an `OSError` without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):  # whose message is the key alone
        return f"KeyError {error}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def errors_about(what: str) -> Iterator[None]:
    """Put `what`, the file or key that is wrong, in front of the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with status 2 and one line on stderr for a `UserError`, or an `OSError` about a file."""
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
