"""Every kind of image file found in real datasets."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import draw
from helpers import png_of
from PIL import Image, ImageOps

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


def test_16_bit_png_keeps_the_upper_byte(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    pixels = read_image(save(tmp_path / "a.png", Image.fromarray(values)))
    assert np.array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


GRAY = np.full((40, 48), 80.0)  # of 255
GRAY[8:20, 10:30] = 200
RGB = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], 2)
BANDS = np.stack([GRAY * k / 5 for k in range(1, 6)], 2).astype(np.uint8)
CHANNELS = {"photometric": "minisblack", "planarconfig": "contig"}  # of a TIFF (H, W, C)


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png16(values: np.ndarray, color_type: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def warned(monkeypatch, caplog):
    """The warnings of a process that has read no image yet."""
    monkeypatch.setattr("resnet_backbones.data.bit_depth.WARNED", set())
    caplog.set_level("WARNING", "resnet_backbones")
    return caplog


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_10_to_16_bit_values_keep_their_upper_8_bits(warned, bits):
    values = (GRAY * 2 ** (bits - 8)).astype(np.uint16)
    color = (RGB * 2 ** (bits - 8)).astype(np.uint16)
    for content in (tiff(values), tiff(values, byteorder=">"), png16(values, 0)):
        assert np.array_equal(decode_image(content, "a"), np.repeat(GRAY[..., None], 3, 2))
    assert np.array_equal(decode_image(tiff(color, photometric="rgb"), "a"), RGB)
    upper = decode_image(png16(color, 2), "a")  # Pillow keeps the upper 8 bits of 16-bit color PNGs
    assert np.abs(upper - RGB).max() < 2 ** (16 - bits)
    lzw = io.BytesIO()
    Image.fromarray(values).save(lzw, "TIFF", compression="tiff_lzw")
    assert np.array_equal(decode_image(lzw.getvalue(), "a")[..., 0], GRAY)
    assert warned.text.count("Image a has uint16 values from") == (bits < 16)


@pytest.mark.parametrize(
    "values",
    [
        *((GRAY / 255).astype(dtype) for dtype in (np.float16, np.float32, np.float64)),
        GRAY.astype(np.float32),
        (GRAY * 257).astype(np.float32),
        (GRAY - 128).astype(np.int8),
        (GRAY * 257 - 32768).astype(np.int16),
        (GRAY * 257 - 32768).astype(np.int32),  # within the range of int16
        (GRAY * 2**24 - 2**31).astype(np.int32),
        (GRAY * 2**24).astype(np.uint32),
        (GRAY / 127.5 - 1).astype(np.float32),
    ],
    ids=lambda values: f"{values.dtype} {values.min():.2g} to {values.max():.2g}",
)
def test_other_dtypes_are_scaled_to_8_bits(warned, values):
    assert np.abs(decode_image(tiff(values), "a")[..., 0] - GRAY).max() <= 0


@pytest.mark.parametrize(
    ("values", "black", "white"),
    [
        (GRAY / 196, 80 * 255 / 196, 255),  # a little above 1: white
        (GRAY / 255 - 80 / 255, 0, 120),
        ((GRAY - 90) / 200, 0, 255 * 0.55),  # -0.05: noise around 0
        ((GRAY - 100) / 100, 255 * 0.4, 255),  # -0.2: black at -1
        (GRAY / 255e3, 80 * 1024 / 1000, 200 * 1024 / 1000),  # white at 2^-10
        (GRAY * 1e4, 800_000 * 255 / 2**21, 2_000_000 * 255 / 2**21),
    ],
)
def test_unusual_float_ranges_keep_their_contrast(warned, values, black, white):
    pixels = decode_image(tiff(values.astype(np.float32)), "a")
    assert (pixels.min(), pixels.max()) == (pytest.approx(black, abs=0.6), pytest.approx(white, abs=0.6))


def test_a_guessed_range_or_lost_contrast_is_warned_about_once(warned):
    kelvin, hot = (GRAY / 10 + 280).astype(np.float32), (GRAY * 16).astype(np.uint16)
    hot[0, 0] = 65535
    for name in ("first.tif", "second.tif"):
        decode_image(tiff((GRAY * 16).astype(np.uint16)), name)
        decode_image(tiff(kelvin), name)
        decode_image(tiff(hot), name)
    lines = [record.getMessage() for record in warned.records]
    assert len(lines) == 3
    assert lines[0] == (
        "Image first.tif has uint16 values from 1280 to 3200, read with black at 0 and white at 4095, a guess. "
        "To choose another range, convert such images to 8 bits."
    )
    assert "288 to 300, read with black at 0 and white at 1023, which leaves hardly any contrast" in lines[1]
    assert "1280 to 65535, read with black at 0 and white at 65535, which leaves hardly any contrast" in lines[2]


def test_nan_infinite_and_nodata_values_are_black(warned):
    values = (GRAY / 255).astype(np.float32)
    values[:3] = [[np.nan], [np.inf], [-np.inf]]
    pixels = decode_image(tiff(values), "a")[..., 0]
    assert (pixels[:3].max(), pixels[3:].min(), pixels.max()) == (0, 80, 200)
    values[:3] = -9999
    marked = decode_image(tiff(values, extratags=[(42113, 2, 0, "-9999", True)]), "a")[..., 0]  # GDAL_NODATA
    assert np.array_equal(marked, pixels)
    assert not warned.text
    with pytest.raises(UserError, match=r"Image a has no finite value\."):
        decode_image(tiff(values * np.nan), "a")
    with pytest.raises(UserError, match=r"Image a has complex64 values; convert it to real numbers\."):
        decode_image(tiff(values.astype(np.complex64)), "a")


@pytest.mark.parametrize("count", [2, 4, 5])
def test_tiffs_with_any_number_of_channels_are_read(warned, tmp_path, count):
    bands = BANDS[..., :count]
    planes = np.ascontiguousarray(bands.transpose(2, 0, 1))
    (tmp_path / "a.tif").write_bytes(tiff(bands, **CHANNELS))
    assert image_size(tmp_path / "a.tif") == (48, 40)
    for content in (
        (tmp_path / "a.tif").read_bytes(),
        tiff(planes, photometric="minisblack", planarconfig="separate"),
        tiff(bands),  # pixels, axes not stated
        tiff(planes),  # planes, axes not stated
        tiff(planes, imagej=True, metadata={"axes": "CYX"}),
    ):
        assert np.array_equal(decode_image(content, "a", (48, 40), channels=count), bands)
    sixteen = tiff(bands.astype(np.uint16) * 257, **CHANNELS)
    assert np.array_equal(decode_image(sixteen, "a", channels=count), bands)


def test_channels_are_adapted_to_the_network_or_refused(warned):
    rgba = np.dstack([RGB, 255 - GRAY]).astype(np.uint8)
    gray, color = GRAY.astype(np.uint8), RGB.astype(np.uint8)
    luma = np.asarray(Image.fromarray(color).convert("L"))

    def png(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    for content in (png(rgba), png16(rgba.astype(np.uint16) * 257, 6)):
        assert np.array_equal(decode_image(content, "a", channels=4), rgba)
        assert np.array_equal(decode_image(content, "a"), color)
        assert np.array_equal(decode_image(content, "a", channels=1)[..., 0], luma)
    dark = png16(np.dstack([RGB * 16, np.full_like(GRAY, 65535)]).astype(np.uint16), 6)  # only alpha uses all 16 bits
    assert np.abs(decode_image(dark, "a") - RGB).max() < 16
    assert np.array_equal(decode_image(png(gray), "a", channels=1)[..., 0], gray)
    for content, found, channels in (
        (png(gray), "1 channel", 4),
        (png(color), "3 channels", 4),
        (png(rgba), "4 channels", 5),
        (tiff(BANDS, **CHANNELS), "5 channels", 3),
        (tiff(BANDS, **CHANNELS), "5 channels", 1),
    ):
        message = rf"Image a\.tif has {found}, but the network takes {channels}; set backbone\.in_channels"
        with pytest.raises(UserError, match=message):
            decode_image(content, "a.tif", channels=channels)


def test_error_for_a_truncated_tiff_names_it(warned, tmp_path):
    whole = tiff(BANDS, **CHANNELS)
    for length in (4, 8, 100, len(whole) // 2):
        (tmp_path / "cut.tif").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"Image .*cut\.tif cannot be decoded"):
            read_image(tmp_path / "cut.tif", channels=5)


def test_exif_orientation_is_applied_unless_the_annotation_has_the_stored_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    path = save(tmp_path / "a.png", draw(48, 40), exif=exif)
    upright = np.rot90(np.asarray(draw(48, 40)), k=-1)
    assert image_size(path) == (40, 48)
    assert np.array_equal(read_image(path), upright)
    assert np.array_equal(read_image(path, (40, 48)), upright)
    assert np.array_equal(read_image(path, (48, 40)), np.asarray(draw(48, 40)))


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are invalid
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "16 bits"])
def test_exif_orientations_match_pillow(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34) if kind == "16 bits" else draw()
    path = save(tmp_path / "a", stored, format="PNG" if kind == "16 bits" else kind, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    expected = np.repeat((upright >> 8)[..., None], 3, 2) if kind == "16 bits" else upright
    assert image_size(path) == expected.shape[1::-1]
    assert np.array_equal(read_image(path), expected)


def test_an_image_of_one_pixel_is_read(tmp_path):
    assert read_image(save(tmp_path / "a.png", draw(1, 1)), (1, 1)).shape == (1, 1, 3)


def test_errors_name_the_broken_file(tmp_path):
    whole = save(tmp_path / "whole.jpg", draw(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("cut.jpg", "text.jpg", "empty.png", "gone.jpg", "pipe.png"):
        with pytest.raises(UserError, match=f"Image .*{name} (cannot be|does not exist)"):
            read_image(tmp_path / name)


def test_an_image_size_other_than_annotated_is_refused(tmp_path):
    path = save(tmp_path / "a.png", draw(48, 40))
    with pytest.raises(UserError, match=r"a\.png is 48 x 40 pixels, but its annotation says 64 x 40"):
        read_image(path, (64, 40))


def test_too_large_an_image_is_refused_by_its_header(tmp_path):
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
