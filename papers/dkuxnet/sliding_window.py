"""Inference over a whole volume: overlapping crops at fixed strides, mean of their probabilities (M14)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def predict_volume(
    probabilities_of: Callable[[Tensor], Tensor],
    volume: Tensor,
    window: Sequence[int],
    strides: Sequence[int],
    at_once: int = 4,
) -> Tensor:
    """Mean probabilities over all windows of which a voxel is part, by MONAI's sliding window.

    The last window along an axis ends with the volume; a side smaller than the window is padded with zeros on both
    ends.

    Args:
        probabilities_of: (n, 1, *window) -> (n, C, *window).
        volume: (W, H, D).
        window: the training crop.
        strides: along each axis, not larger than the window (protocol: 18, 18, 4).
        at_once: windows per call.

    Returns:
        (C, W, H, D), float32, on the device of the volume.
    """
    from monai.inferers import sliding_window_inference  # takes seconds to import

    # MONAI rounds window * (1 - overlap) down: half a voxel more keeps the stride whatever the rounding
    overlap = [max(0.0, 1 - (stride + 0.5) / side) for stride, side in zip(strides, window, strict=True)]
    return sliding_window_inference(
        volume[None, None], tuple(window), at_once, lambda crops: probabilities_of(crops).float(), overlap
    )[0]
