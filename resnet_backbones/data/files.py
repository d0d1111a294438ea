"""Files of a folder, or of a tar of it that is read in place. Both are trees with the same four functions."""

import errno
import os
import tarfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import UserError, reason
from ..paths import LARGEST, local_file, read_whole

BLOCK = 10000  # members of a tar after which tarfile's own list of them is emptied
MOST_LINKS = 8  # to a folder; with links in circles a walk never ends
LONGEST = 4096  # bytes of a member's name; all names are held in rows of one length


class FolderTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str = "") -> list[str]:
        """The files anywhere below `folder`, by sorted paths from the root. Raises `UserError` for links in circles."""
        found, met = [], Counter()
        for below, _, names in os.walk(self.root / folder, followlinks=True):
            place = os.path.realpath(below)
            met[place] += 1
            if met[place] > MOST_LINKS:
                raise UserError(
                    f"{place} is met more than {MOST_LINKS} times below {self.root}; remove the links to it."
                )
            found += [os.path.relpath(os.path.join(below, name), self.root) for name in names]
        return sorted(found)

    def folders(self, folder: str = "") -> list[str]:
        """The folders directly in `folder`, sorted; none where there is no such folder."""
        top = self.root / folder
        return sorted(entry.name for entry in os.scandir(top) if entry.is_dir()) if os.path.isdir(top) else []

    def where(self, name: str) -> str:
        """A file's place, for messages."""
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        return read_whole(self.root / name)


class TarTree:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.files, self.offsets, self.sizes, self.all_folders = scan_tar(str(path))

    def names(self, folder: str = "") -> list[str]:
        within = os.fsencode(f"{folder}/" if folder else "")
        return [os.fsdecode(name) for name in self.files if name.startswith(within)]

    def folders(self, folder: str = "") -> list[str]:
        within = f"{folder}/" if folder else ""
        return sorted({f[len(within) :].split("/")[0] for f in self.all_folders if f.startswith(within)} - {""})

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"

    def read(self, name: str) -> bytes:
        k = int(np.searchsorted(self.files, os.fsencode(name)))
        if k == len(self.files) or self.files[k] != os.fsencode(name):
            raise FileNotFoundError(f"{self.path} has no member {name}")
        return read_at(str(self.path), int(self.offsets[k]), int(self.sizes[k]))


def open_tree(path: str) -> FolderTree | TarTree:
    """The folder or tar at `path`. Raises `UserError` where there is neither."""
    folder = Path(os.path.expanduser(path))
    return FolderTree(folder) if os.path.isdir(folder) else TarTree(local_file(path, "folder or tar of images"))


@lru_cache(maxsize=2)  # training and validation images are often in one tar
def scan_tar(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, set[str]]:
    """Names, offsets and sizes of a tar's files, sorted by name, and its folders, from the headers alone.

    Raises `UserError` where it is damaged or compressed.
    """
    files, folders, places, end = [], set(), {}, 0
    try:
        length = os.path.getsize(path)
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= end or member.size < 0:  # it could be read again and again
                    raise tarfile.ReadError(f"member {member.name[:80]} has no size")
                end = tar.offset
                name = member.name.removeprefix("./")
                if member.islnk():  # a second name of a file before it
                    where = places.get(member.linkname.removeprefix("./"))
                elif member.isfile() and not member.issparse():
                    where = places[name] = member.offset_data, member.size
                else:
                    where = None
                if where is not None:
                    if sum(where) > length:
                        raise tarfile.ReadError("unexpected end of data")
                    if len(os.fsencode(name)) > LONGEST:
                        raise tarfile.ReadError(f"the name of member {name[:80]} … is too long")
                    files.append((os.fsencode(name), *where))
                    folders.add(name.rpartition("/")[0])
                elif member.isdir():
                    folders.add(name)
                if len(tar.members) > BLOCK:
                    tar.members.clear()
        if len(read_at(path, end, 512, whole=False)) < 512:  # a tar ends in blocks of zeros
            raise tarfile.ReadError("unexpected end of data")
    except Exception as error:  # whatever tarfile makes of damaged headers
        raise UserError(
            f"{path} is not a whole, uncompressed tar ({reason(error)}). A compressed one cannot be read in place: "
            "unpack it."
        ) from error
    names, offsets, sizes = zip(*sorted(files), strict=True) if files else ((), (), ())
    return np.array(names, bytes), np.array(offsets, np.int64), np.array(sizes, np.int64), folders


def read_at(path: str, offset: int, size: int, whole: bool = True) -> bytes:
    """A stretch of a file. Raises `UserError` where the file ends before it and it must be `whole`, and `OSError` for
    one that is too large to be an image."""
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"a member is larger than {LARGEST >> 20} MiB", path)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(size)
    if whole and len(content) < size:
        raise UserError(f"{path} is cut short: it ends {size - len(content)} bytes before the end of a member.")
    return content
