"""Videos that break off or are damaged, in each container: what is read, and what is said."""

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
    """A whole video of 40 frames."""
    suffix, codec, flags = KINDS[request.param]
    write_video(tmp_path / f"clip{suffix}", 40, codec, flags)
    return tmp_path / f"clip{suffix}"


def test_what_states_no_length_is_whole_as_far_as_it_goes(tmp_path):
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


def test_of_a_whole_video_nothing_is_said(video):
    assert frames_and_fault(video) == (40, None)


def test_one_that_is_cut_gives_its_frames_and_names_itself(video):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 3 // 5])
    read, fault = frames_and_fault(video)
    assert 5 < read < 38
    assert str(video) in fault
    assert f" {read} of " in fault


def test_one_with_a_hole_is_damaged(video):
    content = video.read_bytes()
    half = len(content) // 2
    video.write_bytes(content[:half] + bytes(2000) + content[half + 2000 :])
    read, fault = frames_and_fault(video)
    assert read > 5
    assert f"{video} " in fault
    assert f" {read} of " in fault
