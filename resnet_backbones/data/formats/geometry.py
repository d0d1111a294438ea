"""Outlines of objects as COCO writes them: boxes [x, y, width, height], polygons [x, y, x, y …] and RLE."""

from collections.abc import Sequence

import numpy as np

ELLIPSE_CORNERS = 64
MAX_PIXELS = 2**27  # of an image with masks
QUIET = np.errstate(invalid="ignore", over="ignore")  # coordinates that are not finite are for `clean` to report


def corners(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """The polygon of a box."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def bounds(polygons: Sequence[Sequence[float]]) -> list[float]:
    """The smallest box around all points of one or several polygons."""
    points = np.array([value for polygon in polygons for value in polygon], float).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def outlined(polygons: list[list[float]]) -> dict:
    """`bbox`, `area` and `segmentation` of an object with these polygons, which are assumed not to overlap."""
    return {"bbox": bounds(polygons), "area": sum(map(area, polygons)), "segmentation": polygons}


@QUIET
def area(polygon: Sequence[float]) -> float:
    """The area of a polygon, by the shoelace formula."""
    x, y = np.array(polygon, float).reshape(-1, 2).T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


@QUIET
def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[float]:
    """A polygon of `ELLIPSE_CORNERS` corners on an ellipse around (x, y)."""
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1).ravel().tolist()


@QUIET
def rotated(polygon: Sequence[float], center: Sequence[float], degrees: float) -> list[float]:
    """A polygon turned clockwise around `center`."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((np.reshape(polygon, (-1, 2)) - center) @ turn + center).ravel().tolist()


def masked(crop: np.ndarray, left: int, top: int, height: int, width: int) -> dict:
    """`bbox`, `area` and `segmentation` of the mask `crop` (h, w), bool, at (left, top) of an image (height, width).

    The part of the mask outside the image is cut off. Raises `ValueError` if the image is too large.
    """
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"an image of {width} x {height} pixels")
    mask = np.zeros((height, width), np.uint8)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), max(top + crop.shape[0], 0), max(left + crop.shape[1], 0)
    inside = mask[y0:y1, x0:x1]
    inside[:] = crop[y0 - top :, x0 - left :][: inside.shape[0], : inside.shape[1]]
    columns = mask.T.ravel()
    ends = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *ends.tolist(), columns.size]).tolist()
    rle = {"size": [height, width], "counts": [0, *counts] if columns[0] else counts}
    return {"bbox": _mask_bounds(mask), "area": float(mask.sum()), "segmentation": rle}


def _mask_bounds(mask: np.ndarray) -> list[float]:
    """The box of the pixels that are set; without area if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]
