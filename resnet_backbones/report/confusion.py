"""Which classes are confused: a matrix for few classes, the most frequent pairs for any number."""

import numpy as np

MOST_CLASSES, MOST_PAIRS = 100, 30


def confusion_table(matrix: np.ndarray, names: list[str]) -> dict:
    """`names`, `matrix` with the true classes in rows, None for very many, and the largest `pairs` off its diagonal."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    pairs = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS].tolist():
        true, predicted = divmod(place, len(names))
        if wrong[true, predicted]:
            pairs.append({"true": names[true], "predicted": names[predicted], "count": int(wrong[true, predicted])})
    return {"names": names, "matrix": matrix.tolist() if len(names) <= MOST_CLASSES + 1 else None, "pairs": pairs}
