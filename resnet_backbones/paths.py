"""Every path a user gives may be local or a URL: iopath fetches the remote ones into its cache."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from iopath.common.file_io import HTTPURLHandler, PathManager

from .errors import UserError, reason

LARGEST = 2**30  # bytes of a file that is read whole, unless a smaller limit is known

PATHS = PathManager()
PATHS.register_handler(HTTPURLHandler())


def local_file(path: str, what: str) -> Path:
    """A local copy of the file at `path`. Raises `UserError` naming `what` it should be if there is none."""
    try:
        local = Path(os.path.expanduser(PATHS.get_local_path(str(path))))
    except Exception as error:
        raise UserError(f"The {what} {path} cannot be fetched: {reason(error)}") from error
    if not os.path.isfile(local):  # also False for impossible file names, for which Path raises
        fault = "is a folder or device, not a file" if os.path.exists(local) else "does not exist"
        raise UserError(f"The {what} {path} {fault} (looked for {local.absolute()}).")
    return local


def stays_below(name: str) -> bool:
    """Whether `name`, from a list or an annotation, can be that of a file below the folder where it is looked for."""
    parts = name.replace("\\", "/").split("/")
    try:
        possible = name.strip() != "" and "\0" not in name and max(len(os.fsencode(p)) for p in parts) <= 255
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return possible and not PurePosixPath(name).is_absolute() and ".." not in parts and len(os.fsencode(name)) < 4096


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """A file's content. Raises `OSError` for what is not a file, cannot be read or is above `largest` bytes."""
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB", str(path))
        return file.read(size)


def output_folder(path: str) -> Path:
    """`path` as a folder that can be written to, created if necessary. Raises `UserError` if it cannot."""
    folder = Path(os.path.expanduser(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: not a possible folder name
        raise UserError(f"The output folder {path} cannot be written: {reason(error)}; choose another.") from error
    return folder


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it replaces `path` when the block ends, and is removed on an error.

    A run that is killed while it writes leaves the old file as it was. If `path` is a link, its target is replaced.
    Raises `UserError` if `path` is a folder or device, and if it cannot be written, as on a full disk.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is a folder or device, not a file; choose another name.")
    temporary = target.with_name(f".part-{path.name}")  # keeps the suffix, which readers and writers go by
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None or str(error.filename) not in ("None", str(temporary)):  # from what the block reads
            raise
        raise UserError(f"{path} cannot be written: {reason(error)}; choose another place.") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
