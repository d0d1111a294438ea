"""WebDataset shards: tars of a few thousand samples each, `KEY.jpg` beside `KEY.cls`, for data larger than the disk.

Shards are read at random positions, not as a stream: an epoch goes through them in random order, a pool of shards at a
time, and shuffles the samples of the pool. So the order depends on the seed alone, not on the number of ranks and
workers, a resumed run continues at the exact sample, and there is no shuffle buffer to fill.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from braceexpand import braceexpand
from torch import Tensor

from ..errors import UserError, reason
from ..paths import local_file, read_whole
from .files import read_at, scan_tar

POOL = 8  # shards drawn from at a time
IMAGES = ("jpg", "jpeg", "png", "webp")


def is_shards(path: str) -> bool:
    """Whether `path` is a pattern of shards, the name of a tar with braces, for a single one `{000000..000000}`."""
    return path.endswith(".tar") and "{" in path


class ShardImages:
    """The labeled images of all shards that `pattern` names, with the methods of `imagenet.FileImages`.

    The numbers of samples are read from `index.json` beside the shards, which WebDataset's `widsindex` writes; without
    it, every shard is scanned once. `KEY.cls` holds the name of a class, or its index in `classes.txt` beside the
    shards. `classes` are the names in label order, by default those of `classes.txt`.

    A remote shard is fetched when it is first needed, and its local copy is removed 2 x `POOL` shards later. Raises
    `UserError` for a shard that is missing, cut short or not made of such samples.
    """

    def __init__(self, pattern: str, classes: Sequence[str] | None = None) -> None:
        self.urls = _expand(pattern)
        folder = pattern.rpartition("/")[0]
        self.own_classes = _class_names(folder, pattern)
        self.classes = list(classes) if classes is not None else self.own_classes
        self.label_of = {name: label for label, name in enumerate(self.classes)}
        self.scanned: OrderedDict[int, tuple[str, np.ndarray]] = OrderedDict()
        known = _counts(folder)
        counts = [known.get(PurePosixPath(url).name) or len(self._shard(k)[1]) for k, url in enumerate(self.urls)]
        self.starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, index: int) -> tuple[bytes, int, str]:
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, samples = self._shard(k)
        sample = index - int(self.starts[k])
        if sample >= len(samples):
            raise UserError(f"{self.urls[k]} has {len(samples)} samples, fewer than index.json beside it says.")
        offset, size, label = map(int, samples[sample])
        return read_at(path, offset, size), label, self.path(index)

    def path(self, index: int) -> str:
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.urls[k]}:{index - int(self.starts[k])}"

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of one epoch in random order, one pool of shards after the other."""
        shards = torch.randperm(len(self.urls), generator=generator)
        pools = []
        for pool in shards.split(POOL):
            members = torch.cat([torch.arange(self.starts[k], self.starts[k + 1]) for k in pool.tolist()])
            pools.append(members[torch.randperm(len(members), generator=generator)])
        return torch.cat(pools)

    def _shard(self, k: int) -> tuple[str, np.ndarray]:
        """A shard's local path and (offset of the image, its size, label) of each sample."""
        if k not in self.scanned:
            path = str(local_file(self.urls[k], "shard"))
            self.scanned[k] = path, self._samples(path, self.urls[k])
            if len(self.scanned) > 2 * POOL:
                oldest, (old_path, _) = self.scanned.popitem(last=False)
                if "://" in self.urls[oldest]:
                    os.unlink(old_path)
        self.scanned.move_to_end(k)
        return self.scanned[k]

    def _samples(self, path: str, url: str) -> np.ndarray:
        names, offsets, sizes, _ = scan_tar(path)
        images, labels = {}, {}
        for name, offset, size in zip(names, offsets, sizes, strict=True):
            key, _, kind = os.fsdecode(name).rpartition("/")[2].partition(".")
            key = f"{os.fsdecode(name).rpartition('/')[0]}/{key}"
            if kind.lower() in IMAGES:
                images[key] = offset, size
            elif kind == "cls":
                labels[key] = self._label(
                    read_at(path, int(offset), min(int(size), 4096)).decode(errors="replace").strip(),
                    f"{url}:{key}.cls",
                )
        odd = sorted(set(images) ^ set(labels))
        if odd or not images:
            fault = f"{odd[0].removeprefix('/')} lacks one of them" if odd else "there are none"
            raise UserError(f"{url} is not a shard of images: each sample needs KEY.jpg and KEY.cls, but {fault}.")
        return np.array([(*images[key], labels[key]) for key in images], np.int64)

    def _label(self, text: str, source: str) -> int:
        known = text.isdecimal() and int(text) < len(self.own_classes)
        name = self.own_classes[int(text)] if known else text
        if name not in self.label_of or (text.isdecimal() and not known):
            raise UserError(f"{source} says {text[:80]!r}, which is not one of the {len(self.classes)} classes.")
        return self.label_of[name]


def _expand(pattern: str) -> list[str]:
    """The shards that `pattern` names. Raises `UserError` if its braces are wrong."""
    try:
        return list(braceexpand(pattern))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{pattern[:200]} is not a pattern like train-{{000000..000009}}.tar: {reason(error)}."
        ) from error


def _class_names(folder: str, pattern: str) -> list[str]:
    path = local_file(f"{folder}/classes.txt" if folder else "classes.txt", "list of class names")
    try:
        names = read_whole(path).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    classes = [line.strip() for line in names.splitlines() if line.strip()]
    if not classes:
        raise UserError(f"classes.txt beside {pattern} is empty; it must name one class per line.")
    return classes


def _counts(folder: str) -> dict[str, int]:
    """The number of samples of each shard, by file name, from `index.json`; empty if there is none."""
    try:
        index = json.loads(read_whole(local_file(f"{folder}/index.json" if folder else "index.json", "shard index")))
        counts = {PurePosixPath(shard["url"]).name: int(shard["nsamples"]) for shard in index["shardlist"]}
        if min(counts.values(), default=1) < 1:
            raise ValueError("a shard without samples")
        return counts
    except UserError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError, OSError) as error:
        raise UserError(
            f"{folder}/index.json is damaged ({reason(error)}); write it again with widsindex or remove it."
        ) from error
