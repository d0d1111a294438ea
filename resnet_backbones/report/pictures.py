"""Images as small JPEG data URIs, and masks as SVG paths."""

import base64
import io

import contourpy
import numpy as np
from PIL import Image
from pycocotools import mask as rle

SIZES = ((480, 80), (480, 55), (320, 50), (160, 40))  # longer side in pixels and JPEG quality, the best first
DECODED = 10**10  # pixels of masks; beyond, a page shows boxes
SPACING, CORNERS = 3, 100  # pixels between the corners of an outline, and the most corners


def data_uri(pixels: np.ndarray, largest: int) -> str:
    """An image (H, W, C), uint8, as a JPEG data URI of at most `largest` characters if the smallest size allows it.

    Of more than three channels, the first three are shown, of two the first.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]))
    for side, quality in SIZES:
        small, file = image.copy(), io.BytesIO()
        small.thumbnail((side, side))
        small.save(file, "JPEG", quality=quality)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        if len(uri) <= largest:
            break
    return uri


class Outlines:
    """Masks as SVG paths in pixels of their images, up to a limit on the pixels to decode."""

    def __init__(self) -> None:
        self.left = DECODED

    def of(self, segmentation: list | dict | None) -> str | None:
        """The path of a checked segmentation, polygons or compressed RLE; None without one or beyond the limit."""
        if isinstance(segmentation, list):
            return _path([np.reshape(polygon, (-1, 2)) for polygon in segmentation], 1)
        if segmentation is None or self.left <= 0:
            return None
        self.left -= int(np.prod(segmentation["size"]))
        x, y, w, h = rle.toBbox(segmentation).astype(int).tolist()
        cut = np.pad(rle.decode(segmentation)[y : y + h, x : x + w], 1)
        lines = contourpy.contour_generator(z=cut.astype(float)).lines(0.5)
        return _path([line + np.array([x - 0.5, y - 0.5]) for line in lines], SPACING)


def _path(rings: list[np.ndarray], spacing: int) -> str | None:
    parts = []
    for ring in rings:
        step = max(spacing, -(-len(ring) // CORNERS))
        points = ring[::step] if len(ring) >= 3 * step else ring
        parts.append("M" + " ".join(f"{x:.4g},{y:.4g}" for x, y in points.tolist()) + "Z")
    return "".join(parts) or None
