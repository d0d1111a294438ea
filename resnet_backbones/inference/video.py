"""Videos, read and written by PyAV, which brings FFmpeg along."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from ..errors import UserError, reason

UNSHOWN = 2  # frames that intact files may count but not have
SPARE = 0.95  # of the frames: durations are of the longest stream, and rates are averages


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
        count: the number of frames that the file states, or that its duration has room for; 0 where neither is known.
        rate: frames per second.

    Raises `UserError` naming the file if it is not a video, and after the last frame that could be decoded, if it
    breaks off there or some frames are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.av, self.end = path, import_av(), None
        try:
            with self._open() as container:
                if not container.streams.video:
                    raise UserError(f"Video {path} has no video stream.")
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or 25)
                self.stated = stream.frames
                seconds = Fraction(container.duration or 0, self.av.time_base)
                if stream.duration:
                    seconds = stream.duration * stream.time_base
                self.count = self.stated or round(seconds * self.rate)
        except self.av.FFmpegError as error:
            raise UserError(f"Video {path} cannot be read: {fault(error)}.") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        done = packets = damaged = last = 0
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                stream.thread_type = "SLICE"  # frame threads hide errors
                start = (stream.start_time or 0) * stream.time_base
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    for frame in packet.decode():
                        yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                        done += 1
                        damaged += frame.is_corrupt
                        last = frame.time or 0
        except self.av.FFmpegError as error:
            raise UserError(f"Video {self.path} breaks off after {self._of_all(done)}: {fault(error)}.") from error
        if damaged:
            read = f"{self._of_all(done)} could be read, {damaged} of them not whole"
            raise UserError(f"Video {self.path} is damaged: {read}.")
        # Packets, since frames before an edit are not shown; or else time, since rates may vary.
        there = packets if self.stated else (last - start) * self.rate + 1
        if self.end or there < min(self.count * SPARE, self.count - UNSHOWN):
            end = f": {self.end}" if self.end else ""
            raise UserError(f"Video {self.path} breaks off after {self._of_all(done)}{end}.")

    def _open(self) -> AbstractContextManager:
        try:
            return self.av.open(str(self.path))
        except self.av.FFmpegError as error:  # from a fragment that is cut in its header; those before can be streamed
            container = self.av.open(str(self.path), options={"seekable": "0"})
            self.end = fault(error)
            return container

    def _of_all(self, done: int) -> str:
        return f"{done} of {max(done, self.count)} frames"


class VideoWriter:
    """Writes an MP4, H.264, in fragments: what is written can be played even if the run is killed.

    Pictures (H, W, 3), uint8, RGB, must all have the first one's size; an odd side is padded by one. Without pictures
    no file is written.
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
