"""Prediction on any number of files: results and pictures, image by image; a killed run is resumed."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UserError, reason
from ..paths import local_file
from .images import read_file
from .journal import Journal
from .outputs import entry_of
from .pictures import Draw, save_picture, written_name
from .predictor import Predictor
from .sources import Source
from .video import VideoReader, VideoWriter

logger = logging.getLogger(__name__)

T = TypeVar("T")


def predict_files(
    predictor: Predictor,
    sources: list[Source],
    folder: Path,
    journal: Journal,
    category_ids: list[int | str],
    draw: Draw,
) -> list[str]:
    """Add the results of all `sources` to `journal`, except for images already in it, and draw them below `folder`.

    Returns why images and videos could not be read, or not to their end; each reason is logged. Raises `OSError` if
    results or pictures cannot be written (see `keeping_results`); the journal keeps those that were.

    Args:
        category_ids: in the order of the predictor's classes.
    """
    images = [source for source in sources if not source.is_video and source.name not in journal]
    videos = [source for source in sources if source.is_video]
    names = {source.name for source in sources}
    together = 1 if predictor.tile else predictor.batch_size
    faults: list[str] = []

    def skip(error: UserError) -> None:
        faults.append(str(error))
        logger.warning("%s", error)

    with (
        logging_redirect_tqdm([logging.getLogger("resnet_backbones")]),
        tqdm(total=len(images), desc="predict", unit="image", disable=None) as progress,
        ThreadPoolExecutor(together) as readers,
    ):
        for batch in in_batches(images, together):
            readable = []
            for source, content in zip(batch, readers.map(partial(read, predictor), batch), strict=True):
                if isinstance(content, UserError):
                    skip(content)
                else:
                    readable.append((source, content))
            found = predictor([pixels for _, pixels in readable])
            for (source, pixels), result in zip(readable, found, strict=True):
                entry = entry_of(result, source.name, source.image_id, category_ids)
                save_picture(draw(pixels, entry), folder / "images", source.name, names)
                journal.add(entry)
            progress.update(len(batch))
        for source in videos:
            try:
                suffix = "" if source.name.lower().endswith(".mp4") else ".mp4"
                path = folder / "videos" / written_name(source.name, suffix, names)
                predict_video(predictor, source, path, journal, category_ids, draw, progress)
            except UserError as error:
                skip(error)
    return faults


def read(predictor: Predictor, source: Source) -> np.ndarray | UserError:
    """The image (H, W, C), or why it cannot be read."""
    try:
        return read_file(source.path, predictor.channels, predictor.tile is not None, source.size)
    except UserError as error:
        return error


def predict_video(
    predictor: Predictor,
    source: Source,
    path: Path,
    journal: Journal,
    category_ids: list[int | str],
    draw: Draw,
    progress: tqdm,
) -> None:
    """`predict_files` for a video, whose frames are called NAME/000000 …; those in the journal are only drawn again.

    Args:
        path: of the video to write.

    Raises `UserError` if the video breaks off or is damaged; what was read is kept.
    """
    frames = VideoReader(local_file(source.path, "video"))
    progress.total += frames.count
    with VideoWriter(path, frames.rate) as writer:
        named = ((f"{source.name}/{k:06}", pixels) for k, pixels in enumerate(frames))
        for batch in in_batches(named, predictor.batch_size):
            new = [(name, pixels) for name, pixels in batch if name not in journal]
            for (name, _), result in zip(new, predictor([pixels for _, pixels in new]), strict=True):
                journal.add(entry_of(result, name, None, category_ids))
            for name, pixels in batch:
                writer.add(np.asarray(draw(pixels, journal[name])))
            progress.update(len(batch))


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter. A `UserError` is raised after the items that came before it."""
    batch, end = [], None
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except UserError as error:
        end = error
    if batch:
        yield batch
    if end is not None:
        raise end


@contextmanager
def keeping_results(folder: Path) -> Iterator[None]:
    """Say how to resume after an interrupt, or if something cannot be written (`UserError`), as on a full disk."""
    kept = "Results so far are kept; repeat the command to resume."
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}. {kept}") from error
