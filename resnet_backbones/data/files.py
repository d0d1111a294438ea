"""The files of a folder, or of a tar that is read in place. Both are trees with the same four methods."""

import errno
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import UserError, reason
from ..paths import LARGEST, local_file, read_whole

MEMBERS = 10_000  # of a tar, after which tarfile's own list of them is emptied to save memory
MAX_VISITS = 8  # of a folder; symbolic links can form a circle
STRAYS = {"thumbs.db", "desktop.ini", "__macosx"}  # what Windows and macOS leave in folders and archives


def is_stray(name: str) -> bool:
    """Whether a path relative to a data set is hidden, such as ._a.jpg and .git/x, or left there by a file manager."""
    return any(part.startswith(".") or part.lower() in STRAYS for part in name.split("/") if part != ".")


def missing_files(root: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that are not files below `root`. Each folder is listed once: faster than checking each file.

    Raises `UserError` for a folder that cannot be read.
    """
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            path = root / folder
            try:
                present[folder] = set(os.listdir(path)) if os.path.isdir(path) else set()
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        if file not in present[folder]:
            missing.append(name)
    return missing


class FolderTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str = "") -> list[str]:
        """All files below `folder` except strays, relative to the root, sorted.

        Raises `UserError` for links that form a circle.
        """
        found, visits = [], Counter()
        for below, folders, names in os.walk(self.root / folder, followlinks=True):
            folders[:] = [name for name in folders if not is_stray(name)]
            real = os.path.realpath(below)
            visits[real] += 1
            if visits[real] > MAX_VISITS:
                raise UserError(
                    f"{real} is linked more than {MAX_VISITS} times below {self.root}; remove the links to it."
                )
            inside = os.path.relpath(below, self.root)
            found += [name if inside == "." else f"{inside}/{name}" for name in names if not is_stray(name)]
        return sorted(found)

    def folders(self, folder: str = "") -> list[str]:
        """The folders directly in `folder`, sorted; none if it does not exist."""
        top = self.root / folder
        found = os.scandir(top) if os.path.isdir(top) else ()
        return sorted(entry.name for entry in found if entry.is_dir() and not is_stray(entry.name))

    def path(self, name: str) -> str:
        """What messages call a file."""
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        return read_whole(self.root / name)


class TarTree:
    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self.files, self.offsets, self.sizes, self.all_folders = scan_tar(str(tar))

    def names(self, folder: str = "") -> list[str]:
        within = os.fsencode(f"{folder}/" if folder else "")
        names = [os.fsdecode(name) for name in self.files if name.startswith(within)]
        return [name for name in names if not is_stray(name)]

    def folders(self, folder: str = "") -> list[str]:
        within = f"{folder}/" if folder else ""
        found = {f[len(within) :].split("/")[0] for f in self.all_folders if f.startswith(within)}
        return sorted(name for name in found - {""} if not is_stray(name))

    def path(self, name: str) -> str:
        return f"{self.tar}:{name}"

    def read(self, name: str) -> bytes:
        k = int(np.searchsorted(self.files, os.fsencode(name)))
        if k == len(self.files) or self.files[k] != os.fsencode(name):
            raise FileNotFoundError(f"{self.tar} has no member {name}")
        return read_at(str(self.tar), int(self.offsets[k]), int(self.sizes[k]))


def open_tree(path: str) -> FolderTree | TarTree:
    """The folder or tar at `path`. Raises `UserError` if there is neither."""
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        return FolderTree(folder)
    if "://" not in path and not os.path.exists(folder):
        raise UserError(
            f"The folder or tar of images {path} does not exist (looked for {folder.absolute()}); set data.root, "
            "or --data, to where they are, or RESNET_BACKBONES_DATASETS to the folder that contains it. ImageNet is at "
            "https://image-net.org/download; classes as folders below train/ and val/ are enough for other images."
        )
    return TarTree(local_file(path, "folder or tar of images"))


@lru_cache(maxsize=2)  # training and validation images are often in one tar
def scan_tar(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, set[str]]:
    """Names, offsets and sizes of a tar's files, sorted by name, and the names of its folders, from the headers alone.

    Raises `UserError` if it is damaged or compressed.
    """
    files, folders, regular, end = [], set(), {}, 0
    try:
        length = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= end or member.size < 0:  # would be read over and over
                    raise tarfile.ReadError(f"member {member.name[:80]} has a negative size")
                end = tar.offset
                name = member.name.removeprefix("./")
                extent = None
                if member.islnk():  # a hard link to an earlier file
                    extent = regular.get(member.linkname.removeprefix("./"))
                elif member.isfile() and not member.issparse():
                    extent = regular[name] = member.offset_data, member.size
                elif member.isdir():
                    folders.add(name)
                if extent is not None:
                    if sum(extent) > length:
                        raise tarfile.ReadError("unexpected end of data")
                    files.append((os.fsencode(name), *extent))
                    folders.add(name.rpartition("/")[0])
                if len(tar.members) > MEMBERS:
                    tar.members.clear()
        if len(read_at(path, end, 512, whole=False)) < 512:  # a tar ends with blocks of zeros
            raise tarfile.ReadError("unexpected end of data")
    except Exception as error:  # tarfile raises many kinds for damaged headers
        raise UserError(
            f"{path} is not a complete, uncompressed tar ({reason(error)}). Compressed ones cannot be read in place; "
            "unpack them."
        ) from error
    names, offsets, sizes = zip(*sorted(files), strict=True) if files else ((), (), ())
    return np.array(names, bytes), np.array(offsets, np.int64), np.array(sizes, np.int64), folders


def read_at(path: str, offset: int, size: int, whole: bool = True) -> bytes:
    """`size` bytes of a file from `offset`, or with `whole=False` fewer if it ends earlier.

    Raises `UserError` if the file ends earlier, and `OSError` if `size` is too large for an image.
    """
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"a member is larger than {LARGEST >> 20} MiB", path)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(size)
    if whole and len(content) < size:
        raise UserError(f"{path} is cut short: it ends {size - len(content)} bytes before the end of a member.")
    return content
