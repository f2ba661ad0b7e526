"""What is measured in a trajectory: PSNR after each recorded number of updates, and what it says about stopping."""

import torch
from torch import Tensor

from shared.metrics import psnr

EARLY = {2: 500 / 7000, 4: 2000 / 7000}
"""factor -> share of the updates in which the paper calls dmDIP the slower learner (section 3.4)"""
ROUNDING = 1e-4
"""dB that PSNR may be lower by arithmetic alone"""
PEAK = 0.999
"""quantile of the high-resolution section that PSNR takes as its peak"""


def trajectory_psnr(images: Tensor, truth: Tensor) -> Tensor:
    """PSNR [dB], (snapshots, contrasts) float64, of images (snapshots, contrasts, H, W).

    Args:
        images: in the units of the files.
        truth: (contrasts, H, W).
    """
    peak = torch.quantile(truth.flatten(1).double(), PEAK, dim=1)
    columns = [
        psnr(images[:, number], one.expand(len(images), *one.shape), data_range=float(top))
        for number, (one, top) in enumerate(zip(truth, peak))
    ]
    return torch.stack(columns, dim=1)


def summary(values: Tensor, raw: Tensor, factor: int) -> dict[str, list[float]]:
    """Numbers of each contrast, and their mean over contrasts as the last of each list.

    Args:
        values: PSNR over the updates (snapshots, contrasts).
        raw: the same without k-space replacement.
        factor: r.

    Returns:
        psnr: of the last result; best: of the best one, which nobody can know without the truth; fall: from the best
        to the last; wobble: standard deviation over the second half; early and late: means over the updates in which
        the paper calls dmDIP the slower learner, and over all others; gain: the smallest rise by replacement at any
        snapshot; lowered: share of snapshots at which replacement lowers PSNR.
    """
    count = len(values)
    split = min(max(1, round(EARLY.get(factor, EARLY[4]) * count)), count - 1)
    found = {
        "psnr": values[-1],
        "best": values.amax(0),
        "fall": values.amax(0) - values[-1],
        "wobble": values[count // 2 :].std(0, correction=0),
        "early": values[:split].mean(0),
        "late": values[split:].mean(0),
        "gain": (values - raw).amin(0),
        "lowered": (values < raw - ROUNDING).double().mean(0),
    }
    return {name: [*value.tolist(), float(value.mean())] for name, value in found.items()}
