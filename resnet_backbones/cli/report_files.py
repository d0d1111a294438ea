"""Check the files that `report` and `check-data` write before the work starts."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import UserError, reason


def check_outputs(outputs: Mapping[str, tuple[Path | None, str]], inputs: Iterable[str | Path]) -> None:
    """Raise `UserError` for an output that cannot be written, or would replace an input or a file of another kind.

    Args:
        outputs: for each option, the path given, or None, and the suffix that it must have. Suffixes differ, so no
            output replaces another.
        inputs: files, and folders in which any file may be an input.
    """
    read = [Path(path).expanduser().resolve() for path in inputs]
    for option, (path, suffix) in outputs.items():
        if path is None:
            continue
        if path.is_dir():  # also ".", which an empty name becomes
            raise UserError(f"{option}: {path} is a folder; name a file in it, such as {path / 'report'}{suffix}.")
        if path.suffix.lower() != suffix:
            raise UserError(f"{option}: {path} must end in {suffix}; choose another name.")
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: {path} is a device, not a file; choose another name.")
        if path.exists() and any(path.resolve().is_relative_to(given) for given in read):
            raise UserError(f"{path} would be overwritten; choose another name with {' or '.join(outputs)}.")
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it.")
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(f"{path} cannot be written: {reason(error)}; choose another folder.") from error
