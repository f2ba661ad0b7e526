"""Inference over a whole volume: overlapping crops at fixed strides, mean of their probabilities (M14)."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First voxels of the windows along one axis; the last one ends with the volume.

    Example:
        >>> window_starts(150, 112, 18)
        [0, 18, 36, 38]
    """
    count = math.ceil((side - window) / stride) + 1
    return [min(number * stride, side - window) for number in range(count)]


@torch.no_grad()
def predict_volume(
    probabilities_of: Callable[[Tensor], Tensor],
    volume: Tensor,
    window: Sequence[int],
    strides: Sequence[int],
    at_once: int = 4,
) -> Tensor:
    """Mean probabilities over all windows of which a voxel is part.

    Args:
        probabilities_of: (n, 1, *window) -> (n, C, *window).
        volume: (W, H, D); a side smaller than the window is padded with zeros on both ends.
        window: the training crop.
        strides: along each axis (protocol: 18, 18, 4).
        at_once: windows per call.

    Returns:
        (C, W, H, D), float32, on the device of the volume.
    """
    missing = [max(size - side, 0) for size, side in zip(window, volume.shape)]
    before = [gap // 2 for gap in missing]
    padding = [amount for gap, start in zip(missing[::-1], before[::-1]) for amount in (start, gap - start)]
    padded = F.pad(volume, padding)
    corners = list(itertools.product(*map(window_starts, padded.shape, window, strides)))
    places = [tuple(slice(c, c + size) for c, size in zip(corner, window)) for corner in corners]
    total, count = None, torch.zeros_like(padded)
    for start in range(0, len(places), at_once):
        some = places[start : start + at_once]
        result = probabilities_of(torch.stack([padded[place] for place in some])[:, None]).float()
        if total is None:
            total = padded.new_zeros(result.shape[1], *padded.shape)
        for place, part in zip(some, result):
            total[(slice(None), *place)] += part
            count[place] += 1
    inside = tuple(slice(start, start + side) for start, side in zip(before, volume.shape))
    return (total / count)[(slice(None), *inside)]
