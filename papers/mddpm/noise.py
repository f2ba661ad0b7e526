"""OpenSimplex noise in two dimensions, in octaves (section 3.1, after AnoDDPM): the noise of the forward process.

The noise at a position p is a sum over the points q of a triangular lattice of side √2,

    n(p) = 1/47 Σ_q max(0, 2 - |p - q|²)⁴ g_q · (p - q),

where a permutation of 0 to 255 chooses the gradient g_q of each point among (±5, ±2) and (±2, ±5). Only these gradients
are random, so that the weights of the sum are computed once for each size of slices. All draws are torch's.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

SQUISH = (math.sqrt(3) - 1) / 2
"""the lattice point (i, j) lies at (i + SQUISH (i + j), j + SQUISH (i + j))"""
STRETCH = (1 / math.sqrt(3) - 1) / 2
"""of the inverse map"""
GRADIENTS = ((5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5))
SCALE = 1 / 47
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2))
"""from the cell of a position: all lattice points that can be nearer to it than √2"""


def lattice(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lattice points around positions, and their weights in the sum.

    Args:
        x, y: positions, any shape (...).

    Returns:
        i, j (8, ...) int64: the points. weights (2, 8, ...): factors of the two components of their gradients.
    """
    stretched = (x + y) * STRETCH
    corners = torch.tensor(CORNERS).T.reshape(2, len(CORNERS), *[1] * x.dim())
    i, j = torch.floor(x + stretched).long() + corners[0], torch.floor(y + stretched).long() + corners[1]
    away = torch.stack([x - i, y - j]) - SQUISH * (i + j).to(x.dtype)
    return i, j, SCALE * (2 - away.square().sum(0)).clamp_min(0) ** 4 * away


def gradients(i: Tensor, j: Tensor, table: Tensor) -> Tensor:
    """Gradients (2, ...) of the lattice points i, j (...) under a permutation (256,) of 0 to 255."""
    chosen = table[(table[i & 255] + j) & 255] // 2 % len(GRADIENTS)
    return torch.tensor(GRADIENTS, dtype=torch.float64).T[:, chosen]


def opensimplex(x: Tensor, y: Tensor, table: Tensor) -> Tensor:
    """Noise (...) at positions (...), float64; `table` is a permutation (256,) of 0 to 255, the noise's seed."""
    i, j, weights = lattice(x, y)
    return (weights * gradients(i, j, table)).sum((0, 1))


@lru_cache(maxsize=8)
def octaves_of(height: int, width: int, octaves: int, persistence: float, wavelength: float):
    """The sum of octaves as a linear map: from the gradients of lattice points to the pixels.

    Returns:
        points (2, P) int64, and a sparse float32 matrix (H·W, 2 P), for all first components, then the second ones.
    """
    from scipy.sparse import csr_matrix

    scale = (2.0 ** torch.arange(octaves, dtype=torch.float64) / wavelength).view(-1, 1, 1)
    y, x = torch.arange(height).view(1, -1, 1) * scale, torch.arange(width).view(1, 1, -1) * scale
    i, j, weights = lattice(x.expand(-1, height, -1), y.expand(-1, -1, width))  # (8, octaves, H, W)
    weights = weights * (persistence ** torch.arange(octaves, dtype=torch.float64)).view(-1, 1, 1)
    points, which = torch.unique(torch.stack([i.flatten(), j.flatten()]), dim=1, return_inverse=True)
    pixels = torch.arange(height * width).expand(len(CORNERS) * octaves, -1).flatten()
    place = (torch.cat([pixels, pixels]).numpy(), torch.cat([which, which + points.shape[1]]).numpy())
    matrix = csr_matrix((weights.flatten().float().numpy(), place), (height * width, 2 * points.shape[1]))
    matrix.eliminate_zeros()
    return points, matrix


def simplex_field(
    height: int, width: int, octaves: int = 6, persistence: float = 0.8, wavelength: float = 64.0
) -> Tensor:
    """A field (H, W): octaves of noise, each of half the wavelength of the one before, under one new permutation.

    The amplitudes are 1, persistence, persistence squared, ... and the sum is not normalised: its standard deviation
    on 96 × 96 pixels is 0.58, not the 1 of eq. 3. All octaves begin at the first pixel, where the noise is 0.

    Args:
        height, width: pixels.
        octaves: number of octaves (released code: 6).
        persistence: amplitude of an octave over that of the one before (released code: 0.8).
        wavelength: of the first octave, in pixels (released code: 64).

    Example:
        >>> simplex_field(96, 96).shape
        torch.Size([96, 96])
    """
    points, matrix = octaves_of(height, width, octaves, persistence, wavelength)
    drawn = gradients(*points, torch.randperm(256)).float()
    return torch.from_numpy(matrix @ drawn.flatten().numpy()).view(height, width)


def draw_noise(
    kind: Literal["simplex", "gaussian"], count: int, height: int, width: int, wavelength: float = 64.0
) -> Tensor:
    """ε of a batch of slices, (count, 1, H, W).

    "simplex" is one field, the same for all slices of the batch (released code); "gaussian" is white, with a standard
    deviation of 1 and another draw for each slice.

    Example:
        >>> draw_noise("simplex", 4, 48, 48).shape
        torch.Size([4, 1, 48, 48])
    """
    if kind == "gaussian":
        return torch.randn(count, 1, height, width)
    return simplex_field(height, width, wavelength=wavelength).expand(count, 1, -1, -1)
