"""Indices: large annotation files kept as parsed arrays, so that the next start need not parse them again."""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import __version__, distributed
from ..errors import reason
from .annotations import Annotations
from .outlines import Outlines
from .packed import Rows

logger = logging.getLogger(__name__)

FORMAT = 1  # to be raised with whatever changes what parsing gives, or how it is stored here
SMALLEST = 20 << 20  # bytes; what is smaller is parsed within a second
KEPT = 20  # indices
SETTLED = 2.0  # seconds since its last change, before which a file could change again within a tick of its clock
COLUMNS = ("image_ids", "sizes", "object_ids", "images_of", "labels", "boxes", "areas", "crowds")


def indexed(path: Path, name: str, root: Path, parse: Callable[[], Annotations]) -> Annotations:
    """What `parse` makes of the annotation file at `path`, from its index if it has one, else by parsing it.

    An index is a zip of arrays (.npz, each with its checksum), found by the file's absolute path, size, inode and times
    of change (of content and of inode), so that any change asks for another one. It lies in $RESNET_BACKBONES_CACHE,
    by default where iopath keeps downloads ($FVCORE_CACHE or ~/.torch/iopath_cache); the newest 20 are kept. An empty
    RESNET_BACKBONES_CACHE turns this off. One that is broken or cannot be written costs a line in the log.
    """
    folder, status, now = _folder(), path.stat(), time.time_ns()
    if folder is None or status.st_size < SMALLEST:
        return parse()
    identity = _identity(path, status)
    file = folder / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.npz"
    try:
        return _read(file, name, root)
    except OSError:  # there is none; or the folder is out of reach, and writing will say so
        pass
    except Exception as error:  # whatever numpy makes of a damaged file
        logger.warning("%s: the index %s is broken and made anew: %s", name, file, reason(error))
    data = parse()
    settled = now - max(status.st_mtime_ns, status.st_ctime_ns) >= SETTLED * 1e9
    if settled and distributed.local_rank() == 0:
        _write(file, data, lambda: identity == _identity(path, path.stat()))
    return data


def _folder() -> Path | None:
    downloads = os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")
    chosen = os.environ.get("RESNET_BACKBONES_CACHE", f"{downloads}/resnet_backbones/indices")
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # nobody's home
        return None


def _identity(path: Path, status: os.stat_result) -> tuple:
    """Of a file's content, as far as can be told without reading it, and of what reads it."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (str(path.resolve()), status.st_size, status.st_ino, *times, FORMAT, __version__)


def _write(file: Path, data: Annotations, unchanged: Callable[[], bool]) -> None:
    """Whole or not at all, beside whoever writes the same one; nothing if the source is not `unchanged` by now."""
    part = file.with_name(f"{file.stem}-{uuid.uuid4().hex}.part")
    try:
        if not unchanged():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as content:
            np.savez(content, **_arrays(data))
        os.replace(part, file)
    except Exception as error:  # no room, no right, or nothing that JSON can hold: a run does not need it
        logger.info("%s: no index can be kept in %s: %s", data.name, file.parent, reason(error))
        with contextlib.suppress(OSError):
            part.unlink()
    _forget_old(file.parent)


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process may be at it
        files = [*folder.glob("*.npz"), *folder.glob("*.part")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)[:-KEPT]:
            file.unlink()


def _arrays(data: Annotations) -> dict[str, np.ndarray]:
    outlines = data.outlines
    rows = {"file_names": data.file_names, "polygons": outlines.polygons, "others": outlines.others}
    records = json.dumps({"categories": data.categories, "left_out": data.left_out}).encode()
    return (
        {name: getattr(data, name) for name in COLUMNS}
        | {name: getattr(outlines, name) for name in ("kinds", "places", "polygon_ends")}
        | {f"{name}_{part}": getattr(row, part) for name, row in rows.items() for part in ("content", "ends")}
        | {"records": np.frombuffer(records, np.uint8)}
    )


def _read(file: Path, name: str, root: Path) -> Annotations:
    with np.load(file, allow_pickle=False) as archive:  # which compares checksums
        arrays = {key: archive[key] for key in archive.files}
    with contextlib.suppress(OSError):
        os.utime(file)  # among the newest again
    records = json.loads(arrays["records"].tobytes())
    rows = {key: Rows(arrays[f"{key}_content"], arrays[f"{key}_ends"]) for key in ("file_names", "polygons", "others")}
    return Annotations(
        name=name,
        format="coco",
        image_root=Path(root),
        categories=records["categories"],
        file_names=rows["file_names"],
        outlines=Outlines(arrays["kinds"], arrays["places"], rows["polygons"], arrays["polygon_ends"], rows["others"]),
        left_out=tuple(records["left_out"]),
        **{column: arrays[column] for column in COLUMNS},
    )
