"""Truncated and damaged videos, in each container: the frames that are read and the error."""

import pytest
from helpers import write_video

from resnet_backbones.errors import UserError
from resnet_backbones.inference.video import VideoReader

KINDS = {
    "mp4": (".mp4", "h264", "faststart"),
    "fragments": (".mp4", "h264", "frag_keyframe+empty_moov"),
    "matroska": (".mkv", "mpeg4", ""),
    "avi": (".avi", "mpeg4", ""),
}


@pytest.fixture(params=KINDS)
def video(tmp_path, request):
    """An intact video of 40 frames."""
    suffix, codec, flags = KINDS[request.param]
    write_video(tmp_path / f"clip{suffix}", 40, codec, flags)
    return tmp_path / f"clip{suffix}"


def test_video_without_a_declared_length_is_read_to_its_end(tmp_path):
    write_video(tmp_path / "clip.mpg", 40, "mpeg2video")
    assert frames_and_fault(tmp_path / "clip.mpg") == (40, None)


def frames_and_fault(path):
    read, fault = 0, None
    try:
        for _ in VideoReader(path):
            read += 1
    except UserError as error:
        fault = str(error)
    return read, fault


def test_intact_video_is_read_without_error(video):
    assert frames_and_fault(video) == (40, None)


def test_truncated_video_gives_its_frames_and_an_error_with_its_path(video):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 3 // 5])
    read, fault = frames_and_fault(video)
    assert 5 < read < 38
    assert str(video) in fault
    assert f" {read} of " in fault


def test_video_with_zeroed_bytes_gives_frames_and_an_error(video):
    content = video.read_bytes()
    half = len(content) // 2
    video.write_bytes(content[:half] + bytes(2000) + content[half + 2000 :])
    read, fault = frames_and_fault(video)
    assert read > 5
    assert f"{video} " in fault
    assert f" {read} of " in fault
