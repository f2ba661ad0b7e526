"""Accuracy, AUC and F1 of a test fold in percent; small enough to be written out, and compared with scikit-learn."""

import numpy as np


def accuracy(label: np.ndarray, probability: np.ndarray) -> float:
    """Percent of subjects whose most probable class is theirs: label (n,), probability (n, c)."""
    return 100 * float((probability.argmax(1) == label).mean())


def auc(label: np.ndarray, probability: np.ndarray) -> float:
    """Area under the ROC curve in percent: each class against the others, mean over the classes.

    NaN if a class is not there, or the only one.
    """
    areas = []
    for k in range(probability.shape[1]):
        score, inside = probability[:, k], label == k
        if not inside.any() or inside.all():
            return float("nan")
        difference = score[inside][:, None] - score[~inside]  # the share of pairs in the right order, ties count half
        areas.append(((difference > 0) + 0.5 * (difference == 0)).mean())
    return 100 * float(np.mean(areas))


def macro_f1(label: np.ndarray, probability: np.ndarray) -> float:
    """F1 in percent, mean over the classes; a class that is neither there nor predicted counts as 0."""
    prediction, values = probability.argmax(1), []
    for k in range(probability.shape[1]):
        hits = np.sum((prediction == k) & (label == k))
        values.append(2 * hits / max(np.sum(prediction == k) + np.sum(label == k), 1))
    return 100 * float(np.mean(values))


def attention_of_top(attention: np.ndarray, top: int) -> tuple[float, float]:
    """Of table 2: mean attention of the `top` features with the most of it, and of the others (NaN if there are none).

    Args:
        attention: (D,) in 0 to 1.
        top: how many features count as top.
    """
    falling = np.sort(attention)[::-1]
    return float(falling[:top].mean()), float(falling[top:].mean()) if len(falling) > top else float("nan")


def hits(attention: np.ndarray, names: list[str], named: tuple[str, ...], top: int) -> int:
    """How many of the `top` features with the most attention (D,) are among those `named`."""
    return sum(names[k] in named for k in np.argsort(-attention, kind="stable")[:top])
