"""The reconstruction baseline ("AE" in Table 1): what an autoencoder of normal tissue can't reconstruct is lesion."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from papers.cgc.brightness import bright_channel
from papers.cgc.data import Case


class AutoEncoder(nn.Module):
    """Convolutional autoencoder of regions with a short code, too short for the details of a lesion.

    Args:
        channels: of the image.
        patch: size of a region (z, y, x), divisible by 2 as often as there are widths after the first.
        widths: channels of each level, full resolution first.
        code: length of the code of a region.

    Example:
        >>> AutoEncoder(1, (8, 8, 8), (4, 8), code=2)(torch.rand(1, 1, 8, 8, 8)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    def __init__(
        self, channels: int, patch: tuple[int, int, int], widths: tuple[int, ...] = (32, 64, 128), code: int = 128
    ):
        super().__init__()
        small = [n // 2 ** (len(widths) - 1) for n in patch]
        down: list[nn.Module] = []
        for before, width, stride in zip((channels, *widths), widths, (1, *[2] * len(widths))):
            down += [nn.Conv3d(before, width, 3, stride, padding=1), nn.BatchNorm3d(width), nn.LeakyReLU(0.01)]
        up: list[nn.Module] = []
        for before, width in zip(widths[::-1], widths[-2::-1]):
            up += [nn.ConvTranspose3d(before, width, 2, stride=2), nn.BatchNorm3d(width), nn.LeakyReLU(0.01)]
        cells = widths[-1] * math.prod(small)
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(cells, code))
        self.decoder = nn.Sequential(nn.Linear(code, cells), nn.LeakyReLU(0.01), nn.Unflatten(1, (widths[-1], *small)))
        self.upwards = nn.Sequential(*up, nn.Conv3d(widths[0], channels, 3, padding=1))
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *patch) -> reconstruction of the same shape."""
        return self.upwards(self.decoder(self.encoder(image)))


def residual(case: Case, reconstruction: Tensor, median: int) -> np.ndarray:
    """How much brighter than its reconstruction a voxel is on FLAIR or CT: float32 (D, H, W), 0 outside the brain.

    Smoothed by a median filter of so many voxels (1 is none), and 0 at the edge of the brain, where reconstructions are
    always poor.
    """
    channel = bright_channel(case.modalities)
    difference = (case.image[channel] - reconstruction[channel]).clamp(min=0).numpy()
    inner = ndimage.binary_erosion(case.brain.numpy())
    return ndimage.median_filter(difference * inner, median) * inner
