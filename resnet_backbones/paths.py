"""Every path a user gives may be local or a URL: iopath fetches the remote ones into its cache."""

import errno
import os
import tempfile
from pathlib import Path, PurePosixPath

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
    try:
        found, exists = local.is_file(), local.exists()
    except (OSError, ValueError):  # no name that a file can have
        found = exists = False
    if not found:
        fault = "is no file but a folder or device" if exists else "does not exist"
        raise UserError(f"The {what} {path} {fault} (looked for {local.absolute()}).")
    return local


def stays_below(name: str) -> bool:
    """Whether `name`, from a list or an annotation, can be that of a file below the folder that it is looked for in."""
    path = PurePosixPath(name)
    parts = name.replace("\\", "/").split("/")
    possible = name.strip() != "" and "\0" not in name and max(len(os.fsencode(p)) for p in parts) <= 255
    return possible and not path.is_absolute() and ".." not in parts and len(os.fsencode(name)) < 4096


def read_whole(path: Path, largest: int) -> bytes:
    """A file's content. Raises `OSError` for what is no file or cannot be read, `ValueError` for one above `largest`
    bytes."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is no file", str(path))
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest >> 20} MiB")
    return content


def output_folder(path: str) -> Path:
    """`path` as a folder that can be written to, made if need be. Raises `UserError` where it cannot."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"The output_dir {path} cannot be written: {error.strerror}; choose another.") from error
    return folder
