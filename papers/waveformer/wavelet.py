"""The Haar wavelet transform of feature maps, and the Gaussian pyramid on its high-frequency bands (section 2.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HaarDWT2d(nn.Module):
    """One level of the two-dimensional, orthonormal Haar transform (figure 2a, "DWT").

    Without parameters. The bands are those of `pywt.dwt2(x, "haar")`: LL, then the details that are high-pass along
    the rows' direction (horizontal edges), along the columns' direction (vertical edges), and along both.

    Example:
        >>> ll, lh, hl, hh = HaarDWT2d()(torch.ones(1, 1, 4, 6)).unbind(1)
        >>> ll.shape, float(ll.mean()), float(lh.abs().max())
        (torch.Size([1, 1, 2, 3]), 2.0, 0.0)
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W even -> (B, 4, C, H/2, W/2), the bands LL, LH, HL, HH.

        Raises:
            ValueError: an odd height or width.
        """
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ValueError(f"the Haar transform needs even maps, found {x.shape[-2]} x {x.shape[-1]}")
        top, bottom = x[..., 0::2, :], x[..., 1::2, :]
        low, high = top + bottom, top - bottom
        bands = [low[..., 0::2] + low[..., 1::2], high[..., 0::2] + high[..., 1::2]]
        bands += [low[..., 0::2] - low[..., 1::2], high[..., 0::2] - high[..., 1::2]]
        return 0.5 * torch.stack(bands, dim=1)


def gaussian_kernel(level: int) -> Tensor:
    """Kernel that makes level `level` of the pyramid: (2l + 1)², sigma 1.6 · 2^(l/3) pixels (2.02, 2.54)."""
    sigma = 1.6 * 2 ** (level / 3)
    taps = torch.tensor([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-level, level + 1)])
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


def laplacian_pyramid(x: Tensor, levels: int) -> Tensor:
    """Bands of a Gaussian pyramid without subsampling (M4).

    G0 = x; G_l = Gauss_l * G0; L0 = G0, L_l = G_(l-1) - G_l. Beyond the edges there are zeros.

    Args:
        x: (B, C, H, W).
        levels: number of bands, 1 gives x itself.

    Returns:
        (B, C, levels, H, W).

    Example:
        >>> bands = laplacian_pyramid(torch.ones(1, 2, 8, 8), 3)
        >>> bands.shape, bool(bands[:, :, 1:, 2:-2, 2:-2].abs().max() < 1e-6)
        (torch.Size([1, 2, 3, 8, 8]), True)
    """
    bands, before = [x], x
    for level in range(1, levels):
        kernel = gaussian_kernel(level).to(x).expand(x.shape[1], 1, -1, -1)
        smooth = F.conv2d(x, kernel, padding=level, groups=x.shape[1])
        bands.append(before - smooth)
        before = smooth
    return torch.stack(bands, dim=2)


class BoundaryAttention(nn.Module):
    """Attention map from the high-frequency bands (M4; section 2.2, the right branch of figure 2a).

    LH, HL and HH are mixed by a depthwise 3 x 1 x 1 convolution, decomposed by a pyramid, mixed again by a depthwise
    convolution over the levels, and brought to `channels` by a linear layer; a sigmoid ends it.

    Args:
        channels: D; the bands have D/4.
        levels: bands of the pyramid (released script: 1; released default: 3).

    Example:
        >>> BoundaryAttention(16, levels=3)(torch.rand(2, 3, 4, 6, 6)).shape
        torch.Size([2, 36, 16])
    """

    def __init__(self, channels: int, levels: int = 1):
        super().__init__()
        reduced = channels // 4
        self.levels = levels
        self.mix_bands = nn.Conv3d(reduced, reduced, (3, 1, 1), groups=reduced, bias=False)
        self.mix_levels = nn.Conv3d(reduced, reduced, (levels, 1, 1), groups=reduced, bias=False)
        self.expand = nn.Linear(reduced, channels)

    def forward(self, bands: Tensor) -> Tensor:
        """(B, 3, D/4, h, w) -> (B, h·w, D) in 0..1."""
        # A depthwise convolution whose kernel covers the whole first axis is a weighted sum over that axis.
        mixed = torch.einsum("bkchw,ck->bchw", bands, self.mix_bands.weight.flatten(1))
        pyramid = laplacian_pyramid(mixed, self.levels)
        mixed = torch.einsum("bclhw,cl->bhwc", pyramid, self.mix_levels.weight.flatten(1))
        return self.expand(mixed.flatten(1, 2)).sigmoid()
