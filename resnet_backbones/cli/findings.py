"""The JSON file of a study: its settings and what it has found so far."""

import json
from pathlib import Path

from ..errors import UserError
from ..evaluation.report import write_json
from .subjects import Subject


class Findings:
    """What a study has found so far, by network label, in a JSON file that is written at every step.

    A study started again with the same `settings` resumes. Raises `UserError` for a file of other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.networks: dict = {}
        self.files: dict = {}
        if path.exists():
            try:
                known = json.loads(path.read_text())
                before, self.networks, self.files = known["settings"], known["networks"], known["files"]
                if not all(isinstance(part, dict) for part in (before, self.networks, self.files)):
                    raise TypeError
            except (ValueError, TypeError, KeyError):
                raise self.foreign() from None
            for key in sorted(before.keys() | self.settings.keys()):
                if before.get(key) != self.settings.get(key):
                    raise UserError(
                        f"{path} was made with {key} {before.get(key)}, not {self.settings.get(key)}; choose another "
                        "--output, or remove the file."
                    )

    def foreign(self) -> UserError:
        return UserError(f"{self.path} is not from an earlier study, or damaged; choose another --output.")

    def known(self, subject: Subject) -> object | None:
        """What was found for a network. Raises `UserError` if its weights file has changed since."""
        found = self.networks.get(subject.label)
        if found is not None and self.files.get(subject.label) != state_of(subject.source):
            raise UserError(f"{subject.source} has changed since {self.path} was made; choose another --output.")
        return found

    def save(self, subject: Subject, found: object) -> None:
        self.networks[subject.label], self.files[subject.label] = found, state_of(subject.source)
        self.write()

    def write(self) -> None:
        write_json(self.path, {"settings": self.settings, "networks": self.networks, "files": self.files})


def state_of(source: str) -> list | None:
    """Size and modification time of a local weights file."""
    path = Path(source)
    return [path.stat().st_size, path.stat().st_mtime] if source and path.exists() else None
