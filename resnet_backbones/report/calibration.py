"""Calibration: whether 80 % of the predictions with a score of 0.8 are right."""

import numpy as np

BINS = 10


def calibration(scores: np.ndarray, right: np.ndarray) -> dict:
    """Ten bins of equal width over scores in 0 to 1, and the expected calibration error (arXiv 1706.04599).

    Args:
        scores: (N,), clipped to 0 … 1.
        right: (N,), bool.

    Returns `ece`, None without predictions, and `bins` of `low`, `high`, `count`, the mean `score` of their predictions
    and the fraction that is `right`, None in an empty bin.
    """
    scores = scores.clip(0, 1)
    bin_of = np.minimum((scores * BINS).astype(int), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    with np.errstate(invalid="ignore"):
        score, share = (np.bincount(bin_of, values, BINS) / count for values in (scores, right))
    filled = count > 0
    gaps = count[filled] * np.abs(score[filled] - share[filled])
    bins = [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "count": int(count[k]),
            "score": float(score[k]) if filled[k] else None,
            "right": float(share[k]) if filled[k] else None,
        }
        for k in range(BINS)
    ]
    return {"ece": float(gaps.sum() / len(scores)) if len(scores) else None, "bins": bins}
