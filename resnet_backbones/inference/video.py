"""Videos, read and written by PyAV, which brings FFmpeg along."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from ..errors import UserError, reason

UNSHOWN = 2  # frames that intact files may count and not show, such as those before an edit


def import_av() -> ModuleType:
    """PyAV. Raises `UserError` if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("Videos need PyAV, which is not installed: pip install av") from None
    return av


def fault(error: Exception) -> str:
    """FFmpeg's own words, without the number and the path that PyAV adds."""
    return getattr(error, "strerror", None) or reason(error)


class VideoReader:
    """The frames of a video, upright, (H, W, 3), uint8, RGB.

    Attributes:
        count: the number of frames that the file states, 0 where it does not.
        rate: frames per second.

    Raises `UserError` naming the file if it is no video, and where it breaks off: after the last frame that could be
    decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.av = path, import_av()
        try:
            with self.av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.count, self.rate = stream.frames, Fraction(stream.average_rate or 25)
        except (self.av.FFmpegError, IndexError) as error:
            raise UserError(f"Video {path} cannot be read: {fault(error)}.") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        done = 0
        try:
            with self.av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    done += 1
        except self.av.FFmpegError as error:
            raise UserError(f"Video {self.path} breaks off after {done} frames: {fault(error)}.") from error
        if done < self.count - UNSHOWN:
            raise UserError(f"Video {self.path} breaks off after {done} of {self.count} frames.")


class VideoWriter:
    """Writes an MP4, H.264, in fragments: what is written can be played even if the run is killed.

    Pictures (H, W, 3), uint8, RGB, are all of the first one's size; an odd side is padded by one. Without any picture
    there is no file.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate, self.av = path, rate, import_av()
        self.container = None

    def add(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.container is None:
            self._begin(*picture.shape[:2])
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def _begin(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "frag_keyframe+empty_moov"}
        self.container = self.av.open(str(self.path), "w", format="mp4", options=options)
        self.stream = self.container.add_stream("h264", rate=self.rate, width=width, height=height, pix_fmt="yuv420p")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
