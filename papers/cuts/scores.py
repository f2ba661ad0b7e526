"""From label maps to scores: the hint that picks the foreground (section 3.2.3) and the five metrics of table 1."""

import numpy as np


def binarise(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """M11: the cluster most frequent inside the true mask becomes the foreground (one vote per true pixel).

    The same for every unsupervised method, also for label maps that are binary already.

    Args:
        labels: (H, W) integers of any numbering.
        truth: (H, W) bool.

    Returns:
        (H, W) bool; all False where the true mask is empty.

    Example:
        >>> binarise(np.array([[0, 0, 5, 5]]), np.array([[False, True, True, True]])).tolist()
        [[False, False, True, True]]
    """
    inside = labels[truth]
    if inside.size == 0:
        return np.zeros_like(truth)
    values, counts = np.unique(inside, return_counts=True)
    return labels == values[counts.argmax()]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient of two masks (H, W); 1 if both are empty."""
    both = prediction.sum() + truth.sum()
    return float(2 * (prediction & truth).sum() / both) if both else 1.0


def hausdorff(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Maximum Hausdorff distance of the pixel sets, in pixels; the image's diagonal if one mask is empty."""
    from scipy.ndimage import distance_transform_edt

    if not prediction.any() and not truth.any():
        return 0.0
    if not prediction.any() or not truth.any():
        return float(np.hypot(*truth.shape))
    to_truth, to_prediction = distance_transform_edt(~truth), distance_transform_edt(~prediction)
    return float(max(to_truth[prediction].max(), to_prediction[truth].max()))


def ergas(prediction: np.ndarray, truth: np.ndarray, window: int = 8, ratio: float = 4) -> float:
    """ERGAS of two masks, in the definition of the library `sewar` (sliding windows).

    100 ratio sqrt(MSE / mean^2) per window, mean over the windows inside the image. `sewar` divides the
    window's mean a second time by window^2, which is why the values are in the thousands, and counts windows
    with an empty truth as if that mean were 1.
    """
    from scipy.ndimage import uniform_filter

    p, t = prediction.astype(np.float64), truth.astype(np.float64)
    error = np.maximum(uniform_filter((t - p) ** 2, window), 0)
    mean = uniform_filter(t, window)
    mean[np.abs(mean) < 1e-9] = 0  # the running sums of the filter leave crumbs
    mean = np.where(mean == 0, 1.0, mean / window**2)
    inside = slice(window // 2, -(window // 2))
    return float((100 * ratio * np.sqrt(error) / mean)[inside, inside].mean())


def measure(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice, Hausdorff distance (pixels), SSIM, ERGAS and RMSE of two masks (H, W) of at least 9 x 9 pixels."""
    import torch

    from shared.similarity import ssim

    pair = [torch.from_numpy(mask.astype(np.float64))[None] for mask in (prediction, truth)]
    return {
        "dice": dice(prediction, truth),
        "hausdorff": hausdorff(prediction, truth),
        "ssim": ssim(*pair, data_range=1.0, window="uniform", win_size=7).item(),
        "ergas": ergas(prediction, truth),
        "rmse": float(np.sqrt(np.mean(prediction != truth))),
    }


def best_level(levels: list[np.ndarray], truth: np.ndarray) -> tuple[float, int]:
    """ "Diffusion (best one)": the best Dice over all levels, each binarised by M11, and its level. An oracle."""
    found = [dice(binarise(labels, truth), truth) for labels in levels]
    return max(found), int(np.argmax(found))


def nested_share(levels: list[np.ndarray]) -> float:
    """Share of the neighbouring levels, fine to coarse, where each fine segment lies in one coarse segment."""
    if len(levels) < 2:
        return 1.0
    good = 0
    for fine, coarse in zip(levels, levels[1:]):
        pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
        good += pairs.shape[1] == len(np.unique(fine)) and len(np.unique(coarse)) <= len(np.unique(fine))
    return good / (len(levels) - 1)


def coarsest_scale(levels: list[np.ndarray], structure: np.ndarray, share: float = 0.9) -> int:
    """Number of segments of the coarsest level that shows a structure: Dice at least `share` of its best one."""
    scores = [dice(binarise(labels, structure), structure) for labels in levels]
    shown = [labels for labels, score in zip(levels, scores) if score >= share * max(scores)]
    return len(np.unique(shown[-1]))


def scale_gap(levels: list[np.ndarray], structure: np.ndarray, other: np.ndarray) -> float:
    """log2 of how many times more segments it takes to show `other` than to show `structure` (claim C4)."""
    return float(np.log2(coarsest_scale(levels, other) / coarsest_scale(levels, structure)))
