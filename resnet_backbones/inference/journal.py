"""What was predicted so far, a line of JSON for each image, so that a killed run can go on and memory does not grow."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError


class Journal:
    """Entries, dicts with a "file_name", in a file that each of them is written to at once.

    Args:
        path: continued where it exists; an entry that was being written when a run was killed is dropped.
        command: what the entries depend on; written as the first line.

    Raises `UserError` if the file at `path` was begun with another `command`.
    """

    def __init__(self, path: Path, command: dict) -> None:
        self.path, self.offsets = path, {}
        self.file = open(path, "a+b")  # noqa: SIM115
        self.file.seek(0)
        first = self.file.readline()
        if first.endswith(b"\n"):
            self._find_entries()
        if self.offsets:
            self._check(json.loads(first)["command"], command)
        else:
            self.file.truncate(0)
            self._write({"command": command})

    def _check(self, begun: dict, command: dict) -> None:
        command = json.loads(json.dumps(command))
        for key in sorted(begun.keys() | command.keys()):
            if begun.get(key) != command.get(key):
                raise UserError(
                    f"{self.path.parent} has the unfinished results of a command with {key} {begun.get(key)}, which is "
                    f"now {command.get(key)}; choose another folder, or remove {self.path} to start anew."
                )

    def _find_entries(self) -> None:
        start = self.file.tell()
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            self.offsets[json.loads(line)["file_name"]] = start
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
        """Close and delete the file, when all that it holds is written elsewhere."""
        self.file.close()
        self.path.unlink()
