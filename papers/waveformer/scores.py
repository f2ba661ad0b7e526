"""Scores of a segmentation: TransUNet's protocol, which the paper's table follows, and one without its quirks."""

from collections.abc import Sequence

import numpy as np
import torch


def transunet_scores(prediction: np.ndarray, truth: np.ndarray, labels: Sequence[int]) -> dict[str, list[float]]:
    """Dice in percent and 95 % Hausdorff distance in voxels of each label, with TransUNet's edge cases.

    Distances are those of medpy with unit spacing, whatever the voxels' size. A label that only the prediction has
    counts as Dice 1 and distance 0; one that the prediction lacks as Dice 0 and distance 0, also where the truth lacks
    it too.
    """
    from shared.metrics import dice
    from shared.surfaces import hd95

    p, t = (torch.from_numpy(np.asarray(x, np.uint8))[None] for x in (prediction, truth))
    overlap = dice(p, t, labels)[0].tolist()
    distance = hd95(p, t, [1.0] * truth.ndim, labels, convention="pooled", both_empty=0.0, one_empty=0.0)[0].tolist()
    for position, label in enumerate(labels):
        predicted, true = (prediction == label).any(), (truth == label).any()
        if not predicted or not true:
            overlap[position] = float(predicted)
    return {"dice": [100 * value for value in overlap], "hd95": distance}


def plain_scores(
    prediction: np.ndarray, truth: np.ndarray, labels: Sequence[int], spacing: Sequence[float]
) -> dict[str, list[float]]:
    """Dice in percent, 95 % Hausdorff distance in mm, and whether it was missed or invented (1 or 0), of each label.

    NaN where neither has the label. Where only one has it, Dice is 0 and there is no distance (NaN).
    """
    from shared.metrics import dice
    from shared.surfaces import hd95

    p, t = (torch.from_numpy(np.asarray(x, np.uint8))[None] for x in (prediction, truth))
    distance = hd95(p, t, spacing, labels, convention="pooled", one_empty=float("nan"))[0].tolist()
    missed = [float((prediction == label).any() != (truth == label).any()) for label in labels]
    return {"dice": [100 * value for value in dice(p, t, labels)[0].tolist()], "hd95_mm": distance, "missed": missed}


def mean(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN if all are."""
    there = [value for value in values if value == value]
    return sum(there) / len(there) if there else float("nan")


def score_volume(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], organs: Sequence[str]
) -> dict[str, float]:
    """Columns of metrics.csv for a CT with the labels 1, 2, ... for `organs`."""
    labels = list(range(1, len(organs) + 1))
    protocol = transunet_scores(prediction, truth, labels)
    plain = plain_scores(prediction, truth, labels, spacing)
    return {
        "dice": mean(plain["dice"]),
        "dice_transunet": mean(protocol["dice"]),
        "hd95": mean(protocol["hd95"]),
        "hd95_mm": mean(plain["hd95_mm"]),
        "missed": sum(plain["missed"]),
        **{f"dice_{name}": value for name, value in zip(organs, plain["dice"])},
    }


def score_lesion(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Columns of metrics.csv for a mask of 0 and 1 on a photograph; distances in pixels."""
    plain = plain_scores(prediction, truth, [1], (1.0, 1.0))
    both, neither = float(((prediction == 1) & (truth == 1)).sum()), float(((prediction == 0) & (truth == 0)).sum())
    return {
        "lesion_dice": plain["dice"][0],
        "lesion_hd95": plain["hd95_mm"][0],
        "lesion_sensitivity": 100 * both / max(1, (truth == 1).sum()),
        "lesion_specificity": 100 * neither / max(1, (truth == 0).sum()),
        "lesion_accuracy": 100 * (both + neither) / truth.size,
        "missed": plain["missed"][0],
    }
