"""The results so far, a line of JSON for each image, so that a killed run can resume and memory does not grow."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

START = b'{"command": '
DAMAGE = (ValueError, TypeError, KeyError, RecursionError)  # raised by a line that is not as it was written


def read_command(path: Path) -> dict | None:
    """What the entries of the journal at `path` depend on; None if there is none, or its first line is incomplete.

    Raises `UserError` if the file is not a journal.
    """
    if not path.exists():
        return None
    with open(path, "rb") as file:
        first = file.readline()
    if not first.startswith(START[: len(first)]):
        raise UserError(f"{path} is not from an earlier prediction, or damaged; choose another --output, or remove it.")
    try:
        return json.loads(first)["command"]
    except DAMAGE:
        return None


class Journal:
    """Entries, dicts with a "file_name", in a file to which each is written immediately.

    Args:
        path: continued if it exists, from before the first damaged line, such as the one that was being written when
            a run was killed.
        command: what the entries depend on; written as the first line.

    Raises `UserError` if the file at `path` is not a journal, was begun with another `command`, or is open in another
    process.
    """

    def __init__(self, path: Path, command: dict) -> None:
        self.path, self.offsets = path, {}
        begun = read_command(path)
        self.file = open(path, "a+b")  # noqa: SIM115
        self._lock()
        if begun is not None:
            self._find_entries()
        if self.offsets:
            self._check(begun, command)
        else:
            self.file.truncate(0)
            self._write({"command": command})

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another prediction is writing to {self.path.parent}; wait until it ends, or choose another --output."
            ) from error
        except OSError:  # from a file system without locks
            pass

    def _check(self, begun: dict, command: dict) -> None:
        command = json.loads(json.dumps(command))
        for key in sorted(begun.keys() | command.keys()):
            if begun.get(key) != command.get(key):
                raise UserError(
                    f"{self.path.parent} has the unfinished results of a command with {key} {begun.get(key)}, which is "
                    f"now {command.get(key)}; choose another folder, or remove {self.path} to start over."
                )

    def _find_entries(self) -> None:
        self.file.seek(0)
        start = len(self.file.readline())
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            try:
                self.offsets[json.loads(line)["file_name"]] = start
            except DAMAGE:
                break
            start += len(line)
        self.file.truncate(start)

    def _write(self, content: dict) -> int:
        start = self.file.seek(0, 2)
        self.file.write(json.dumps(content).encode() + b"\n")
        self.file.flush()
        return start

    def __len__(self) -> int:
        return len(self.offsets)

    def __contains__(self, name: str) -> bool:
        return name in self.offsets

    def __getitem__(self, name: str) -> dict:
        self.file.seek(self.offsets[name])
        return json.loads(self.file.readline())

    def __iter__(self) -> Iterator[dict]:
        """The entries, in the order in which they were added."""
        return (self[name] for name in self.offsets)

    def add(self, entry: dict) -> None:
        self.offsets[entry["file_name"]] = self._write(entry)

    def remove(self) -> None:
        """Delete and close the file, once all that it holds is written elsewhere."""
        self.path.unlink()
        self.file.close()
