"""The simple controls: principal components of healthy slices, and the mean healthy scan. No network is trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError


class PrincipalComponents(nn.Module):
    """Mean and leading principal components of slices; a reconstruction is the projection onto them.

    Args:
        height, width: pixels.
        number: components; those that the slices don't have are 0.

    Example:
        >>> model = PrincipalComponents(6, 4, number=3)
        >>> model.fit(torch.rand(20, 1, 6, 4))
        >>> model.reconstruct(torch.rand(2, 1, 6, 4)).shape
        torch.Size([2, 1, 6, 4])
    """

    calls_per_slice = 0

    def __init__(self, height: int, width: int, number: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(height * width))
        self.register_buffer("components", torch.zeros(number, height * width))

    def fit(self, slices: Tensor) -> None:
        """Mean and components of (N, 1, H, W)."""
        flat = slices.flatten(1)
        self.mean.copy_(flat.mean(0))
        found = torch.linalg.svd(flat - self.mean, full_matrices=False)[2][: len(self.components)]
        self.components[: len(found)] = found

    def reconstruct(self, z: Tensor) -> Tensor:
        """(B, 1, H, W) to the nearest slice that the components express."""
        codes = (z.flatten(1) - self.mean) @ self.components.T
        return (self.mean + codes @ self.components).view_as(z)


class MeanVolume(nn.Module):
    """Mean healthy scan, voxel by voxel: what registration to an atlas alone gives.

    Scans of another depth are stretched to that of the mean, and the mean to theirs.

    Args:
        height, width, depth: voxels of the mean.

    Example:
        >>> model = MeanVolume(6, 4, depth=5)
        >>> model.fit([torch.rand(5, 1, 6, 4), torch.rand(9, 1, 6, 4)], [torch.arange(5), torch.arange(8)])
        >>> model.reconstruct(depth=7).shape
        torch.Size([7, 1, 6, 4])
    """

    calls_per_slice = 0

    def __init__(self, height: int, width: int, depth: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(depth, 1, height, width))

    def fit(self, scans: list[Tensor], healthy: list[Tensor]) -> None:
        """Mean of scans (D, 1, H, W) over those whose slice at a height is healthy; `healthy` are these indices.

        A height without one gets the mean of the nearest height that has one.

        Raises:
            InputError: no scan has a healthy slice.
        """
        depth = len(self.mean)
        if not any(map(len, healthy)):
            raise InputError("no training volume has a slice without lesion: nothing healthy to learn from")
        weights = [torch.zeros(len(scan), 1, 1, 1).index_fill(0, where, 1) for scan, where in zip(scans, healthy)]
        total = sum(stretched(scan * weight, depth) for scan, weight in zip(scans, weights))
        count = sum(stretched(weight, depth) for weight in weights)
        covered = count.flatten().nonzero()[:, 0]
        nearest = covered[(torch.arange(depth)[:, None] - covered).abs().argmin(1)]
        self.mean.copy_((total / count)[nearest])

    def reconstruct(self, depth: int) -> Tensor:
        """The mean with that many slices, (depth, 1, H, W)."""
        return stretched(self.mean, depth)


def stretched(slices: Tensor, depth: int) -> Tensor:
    """(D, 1, H, W) to (depth, 1, H, W), linearly between slices; the first and the last stay."""
    if len(slices) == depth:
        return slices
    volume, size = slices.movedim(0, 1)[None], (depth, *slices.shape[2:])
    return functional.interpolate(volume, size, mode="trilinear", align_corners=True)[0].movedim(1, 0)
