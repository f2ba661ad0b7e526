"""Scores of a segmentation: TransUNet's protocol, which the paper's table follows, and one without its quirks."""

import math
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
    """Dice in percent and 95 % Hausdorff distance in mm of each label.

    NaN where neither has the label. Where only one has it, Dice is 0 and the distance the diagonal of the volume.
    """
    from shared.metrics import dice
    from shared.surfaces import hd95

    p, t = (torch.from_numpy(np.asarray(x, np.uint8))[None] for x in (prediction, truth))
    diagonal = math.hypot(*(side * mm for side, mm in zip(truth.shape, spacing)))
    distance = hd95(p, t, spacing, labels, convention="pooled", one_empty=diagonal)[0].tolist()
    return {"dice": [100 * value for value in dice(p, t, labels)[0].tolist()], "hd95_mm": distance}
