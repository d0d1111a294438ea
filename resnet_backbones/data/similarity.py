"""Images that are nearly the same: copies, other sizes and encodings, shots of one scene."""

import numpy as np
from PIL import Image

SIDE = 16  # of a thumbnail, pixels
SIMILAR = 0.95  # correlation of two thumbnails; that of different photographs of one series stays below 0.8
ROWS = 512  # that are compared with all others at a time


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(SIDE * SIDE,), float32: an image (H, W, C), uint8, in gray and small, with mean 0 and norm 1; 0 if it is flat.

    The product of two is their correlation, which does not depend on brightness and contrast.
    """
    gray = Image.fromarray(pixels[..., :3].mean(axis=2).astype(np.uint8))
    values = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    values = values - values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 1 else np.zeros_like(values)


def most_similar(thumbnails: np.ndarray, others: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each of `thumbnails` (N, D) the index of the most similar of `others` (M, D), (N,), and their correlation.

    Without `others`, it is chosen from the thumbnails before it.
    """
    indices, correlations = np.zeros(len(thumbnails), np.int64), np.full(len(thumbnails), -1.0)
    for start in range(0, len(thumbnails), ROWS):
        rows = thumbnails[start : start + ROWS]
        products = rows @ (thumbnails[: start + len(rows)] if others is None else others).T
        if others is None:
            products[np.triu_indices(len(rows), start, products.shape[1])] = -1
        if products.size:
            best = products.argmax(1)
            indices[start : start + ROWS] = best
            correlations[start : start + ROWS] = products[np.arange(len(rows)), best]
    return indices, correlations
