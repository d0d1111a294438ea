"""Every kind of image file found in real datasets."""

import os

import numpy as np
import pytest
from conftest import draw
from helpers import png_of
from PIL import Image

from resnet_backbones.data.images import decode_image, image_size, read_image
from resnet_backbones.errors import UserError


def save(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def test_rgb_png_is_read_exactly(tmp_path):
    picture = draw()
    assert np.array_equal(read_image(save(tmp_path / "a.png", picture)), np.asarray(picture))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("L", "jpg")],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    picture = draw().resize((6, 5)).resize((48, 40)).convert(mode)
    pixels = read_image(save(tmp_path / f"a.{suffix}", picture, **({"quality": 95} if suffix == "jpg" else {})))
    assert (pixels.shape, pixels.dtype) == ((40, 48, 3), np.uint8)
    expected = np.asarray(picture.convert("RGB"), float)
    assert np.abs(pixels - expected).mean() < 4


def test_sixteen_bits_keep_their_upper_half(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    pixels = read_image(save(tmp_path / "a.png", Image.fromarray(values)))
    assert np.array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_exif_orientation_is_applied_unless_the_annotation_has_the_stored_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    path = save(tmp_path / "a.png", draw(48, 40), exif=exif)
    upright = np.rot90(np.asarray(draw(48, 40)), k=-1)
    assert image_size(path) == (40, 48)
    assert np.array_equal(read_image(path), upright)
    assert np.array_equal(read_image(path, (40, 48)), upright)
    assert np.array_equal(read_image(path, (48, 40)), np.asarray(draw(48, 40)))


def test_one_pixel(tmp_path):
    assert read_image(save(tmp_path / "a.png", draw(1, 1)), (1, 1)).shape == (1, 1, 3)


def test_broken_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.jpg", draw(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("cut.jpg", "text.jpg", "empty.png", "gone.jpg", "pipe.png"):
        with pytest.raises(UserError, match=f"Image .*{name} (cannot be|does not exist)"):
            read_image(tmp_path / name)


def test_an_image_of_another_size_than_annotated_is_named(tmp_path):
    path = save(tmp_path / "a.png", draw(48, 40))
    with pytest.raises(UserError, match=r"a\.png is 48 x 40 pixels, but its annotation says 64 x 40"):
        read_image(path, (64, 40))


def test_an_image_that_is_too_large_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(13000, 13000))
    with pytest.raises(UserError, match=r"bomb.png is 13000 x 13000 pixels, over the limit of 134217728; cut it"):
        read_image(path)
    path.write_bytes(png_of(9000, 9000))  # without pixels: decoding it would fail with another error
    with pytest.raises(UserError, match=r"bomb.png is 9000 x 9000 pixels, but its annotation says 48 x 40"):
        read_image(path, (48, 40))


def test_formats_that_run_programs_are_refused(tmp_path):
    picture = tmp_path / "a.jpg"
    draw().save(picture, format="EPS")
    with pytest.raises(UserError, match=r"a.jpg cannot be decoded: it is not an image"):
        read_image(picture)
    with pytest.raises(UserError, match=r"a.jpg cannot be decoded: it is not an image"):
        decode_image(picture.read_bytes(), "a.jpg")
