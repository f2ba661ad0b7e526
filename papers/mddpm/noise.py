"""Simplex noise (section 3.1, after AnoDDPM): the noise of the forward process. Vectorised, on torch's generator."""

import math

import torch
from torch import Tensor

SKEW = (math.sqrt(3) - 1) / 2
UNSKEW = (3 - math.sqrt(3)) / 6
SCALE = 99.20433458  # brings the extremes of 2-D simplex noise with unit gradients to -1 and 1
DIRECTIONS = 16


def simplex(x: Tensor, y: Tensor, table: Tensor) -> Tensor:
    """2-D simplex noise: smooth, zero at the corners of a triangular lattice of side about 1, in [-1, 1].

    Args:
        x, y: positions, any shape (...).
        table: (256,) permutation of 0 to 255, the noise's seed.

    Returns:
        (...) values.
    """
    s = (x + y) * SKEW
    i, j = torch.floor(x + s), torch.floor(y + s)
    u = (i + j) * UNSKEW
    x0, y0 = x - (i - u), y - (j - u)  # from the cell's first corner
    lower = (x0 > y0).to(x.dtype)  # which of the cell's two triangles
    i, j = i.long(), j.long()
    angle = torch.arange(256, dtype=x.dtype) * (2 * math.pi / DIRECTIONS)
    gradient_x, gradient_y = angle.cos(), angle.sin()
    total = torch.zeros_like(x)
    for di, dj in ((0, 0), (lower, 1 - lower), (1, 1)):
        shift = UNSKEW * (di + dj)
        dx, dy = x0 - di + shift, y0 - dj + shift
        if isinstance(di, Tensor):
            di, dj = di.long(), dj.long()
        corner = table[(i + di + table[(j + dj) & 255]) & 255]
        falloff = (0.5 - dx * dx - dy * dy).clamp_min(0).square().square()
        total = total + falloff * (gradient_x[corner] * dx + gradient_y[corner] * dy)
    return SCALE * total


def simplex_field(
    height: int, width: int, octaves: int = 6, persistence: float = 0.8, wavelength: float = 64.0
) -> Tensor:
    """One slice's noise (H, W): octaves of simplex noise, each of half the wavelength of the one before.

    A new permutation and new offsets are drawn for every call, so no two slices share a field. The amplitudes are
    1, persistence, persistence squared, ...; the sum is not normalised, as in the released code; its standard
    deviation is about 0.9, near the 1 of eq. 3.

    Args:
        height, width: pixels.
        octaves: number of octaves (released code: 6).
        persistence: amplitude of an octave over that of the one before (released code: 0.8).
        wavelength: of the first octave, in pixels (released code: 64).

    Example:
        >>> simplex_field(96, 96).shape
        torch.Size([96, 96])
    """
    table = torch.randperm(256)
    halvings = 2.0 ** torch.arange(octaves)
    offset = 256 * torch.rand(2, octaves, 1, 1)
    y = torch.arange(height).view(1, -1, 1) * (halvings / wavelength).view(-1, 1, 1) + offset[0]
    x = torch.arange(width).view(1, 1, -1) * (halvings / wavelength).view(-1, 1, 1) + offset[1]
    amplitude = persistence ** torch.arange(octaves)
    values = simplex(x.expand(-1, height, -1), y.expand(-1, -1, width), table)
    return torch.einsum("o,ohw->hw", amplitude, values)


def draw_noise(kind: str, height: int, width: int, wavelength: float = 64.0) -> Tensor:
    """Noise (H, W) of one slice from torch's generator: "simplex", or "gaussian" (white, standard deviation 1)."""
    if kind == "gaussian":
        return torch.randn(height, width)
    return simplex_field(height, width, wavelength=wavelength)
