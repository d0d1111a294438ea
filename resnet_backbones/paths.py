"""Every path a user gives may be local or a URL: iopath fetches the remote ones into its cache."""

import tempfile
from pathlib import Path

from iopath.common.file_io import HTTPURLHandler, PathManager

from .errors import UserError, reason

PATHS = PathManager()
PATHS.register_handler(HTTPURLHandler())


def local_file(path: str, what: str) -> Path:
    """A local copy of the file at `path`. Raises `UserError` naming `what` it should be where there is none."""
    try:
        local = Path(PATHS.get_local_path(str(path))).expanduser()
    except Exception as error:
        raise UserError(f"The {what} {path} cannot be fetched: {reason(error)}") from error
    if not local.is_file():
        fault = "is no file but a folder or device" if local.exists() else "does not exist"
        raise UserError(f"The {what} {path} {fault} (looked for {local.absolute()}).")
    return local


def output_folder(path: str) -> Path:
    """`path` as a folder that can be written to, made if need be. Raises `UserError` where it cannot."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"The output_dir {path} cannot be written: {error.strerror}; choose another.") from error
    return folder
