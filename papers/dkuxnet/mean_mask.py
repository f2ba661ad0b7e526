"""The simplest control: the mean of the labelled masks, which lies on every scan in the same way.

The published volumes are cropped around the atrium, so that where a voxel is in the volume says much about it.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanMask(nn.Module):
    """Share of every class at every place of the volume, over the labelled scans; nothing else of a scan is looked at.

    Args:
        classes: K.
        grid: voxels that the masks are brought to.

    Example:
        >>> model = MeanMask(2, (4, 4, 2))
        >>> mask = torch.zeros(8, 8, 4, dtype=torch.uint8); mask[:, 4:] = 1
        >>> model.fit([mask])
        >>> model.probabilities((2, 2, 1))[1].flatten()
        tensor([0., 1., 0., 1.])
    """

    def __init__(self, classes: int, grid: Sequence[int]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, *grid))

    def fit(self, labels: Iterable[Tensor]) -> None:
        """Take the mean of masks (W, H, D), whose sizes may differ."""
        shares = []
        for label in labels:
            one_hot = F.one_hot(label.long(), len(self.mean)).movedim(-1, 0).float()
            shares.append(resized(one_hot, self.mean.shape[1:]))
        self.mean.copy_(torch.stack(shares).mean(dim=0))

    def probabilities(self, shape: Sequence[int]) -> Tensor:
        """(K, *shape) for a volume of this shape."""
        return resized(self.mean, shape)


def resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """(K, W, H, D) -> (K, *shape), trilinear, the same outer borders."""
    return F.interpolate(maps[None], tuple(shape), mode="trilinear", align_corners=False)[0]
