"""From a residual to a detection (section 3.2, M6), and how detections are scored. Volumes are (X, Y, Z) arrays."""

import numpy as np


def anomaly_map(residual: np.ndarray, mask: np.ndarray, erosions: int = 3, median: int = 5) -> np.ndarray:
    """A: the residual without the brain's rim, smoothed.

    Args:
        residual: |z₀ - ẑ₀|, float32 (X, Y, Z).
        mask: bool (X, Y, Z), the brain.
        erosions: iterations of 2-D erosion with a cross, slice by slice (paper: 3).
        median: side of the cubic median filter in voxels (paper: 5); 1 is none.

    Returns:
        float32 (X, Y, Z), 0 outside the eroded mask.
    """
    from scipy import ndimage

    if erosions:
        cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
        mask = ndimage.binary_erosion(mask, cross, iterations=erosions)
    score = np.where(mask, residual, 0).astype(np.float32)
    return ndimage.median_filter(score, median) if median > 1 else score


def binarise(score: np.ndarray, threshold: float, smallest: int = 7) -> np.ndarray:
    """bool (X, Y, Z): voxels above the threshold, without components of `smallest` voxels or fewer."""
    from scipy import ndimage

    found = score > threshold
    if smallest <= 0:
        return found
    parts, count = ndimage.label(found, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes > smallest)[parts]


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Area under the precision-recall curve, Σ (R_n - R_{n-1}) P_n over the distinct scores; NaN without truth.

    Scores that tie are decided together. A random score gives the share of true voxels.
    """
    score, truth = score.ravel(), truth.ravel().astype(bool)
    if not truth.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # last voxel of each run of ties
    hits = np.cumsum(truth)[last].astype(np.float64)
    precision, recall = hits / (last + 1), hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |F ∩ T| / (|F| + |T|); NaN where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else float("nan")


def dice_counts(scores: list[np.ndarray], truths: list[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Voxels (3, volumes, thresholds): hits, found, true, of each volume at each threshold."""
    rows = []
    for score, truth in zip(scores, truths):
        every, hits = np.sort(score.ravel()), np.sort(score[truth])
        found = len(every) - np.searchsorted(every, thresholds, side="right")
        hit = len(hits) - np.searchsorted(hits, thresholds, side="right")
        rows.append([hit, found, np.full(len(thresholds), len(hits))])
    return np.array(rows).transpose(1, 0, 2)


def candidate_thresholds(scores: list[np.ndarray], number: int = 400) -> np.ndarray:
    """Thresholds to try: quantiles of all positive scores, dense towards the top."""
    positive = np.concatenate([score[score > 0] for score in scores])
    if not positive.size:
        return np.zeros(1)
    shares = 1 - np.geomspace(1.0, 1e-4, number)
    return np.unique(np.quantile(positive, shares))


def best_threshold(scores: list[np.ndarray], truths: list[np.ndarray], pooled: bool) -> float:
    """The threshold with the highest Dice: of all voxels together (`pooled`), or on average over the volumes.

    Pooled, on the unhealthy validation volumes, is the released code's protocol; the average over the test volumes
    is the text's.
    """
    thresholds = candidate_thresholds(scores)
    hits, found, true = dice_counts(scores, truths, thresholds)
    if pooled:
        hits, found, true = (counts.sum(0, keepdims=True) for counts in (hits, found, true))
    values = 2 * hits / np.maximum(found + true, 1)
    return float(thresholds[values.mean(0).argmax()])
