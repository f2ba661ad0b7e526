"""Masked DDPM: noise a slice once, predict the clean slice in one pass, compare (sections 2.2 and 2.3).

Slices are (B, 1, H, W) in [0, 1] with background 0. The network works in [-1, 1].
"""

import math

import torch
from torch import Tensor, nn


def cosine_alpha_bar(steps: int = 1000, largest_beta: float = 0.999) -> Tensor:
    """ᾱ_t of eq. 3 for t = 0, ..., steps - 1, with the cosine schedule of β (released code).

    Returns:
        float32 (steps,), falling from nearly 1 to nearly 0; about 0.49 in the middle.
    """

    def curve(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - curve((t + 1) / steps) / curve(t / steps), largest_beta) for t in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0).float()


def grid_boxes(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The fixed grid of boxes of pDDPM: grid × grid, row by row; 2 gives four boxes of half the side."""
    rows = [slice(i * height // grid, (i + 1) * height // grid) for i in range(grid)]
    columns = [slice(i * width // grid, (i + 1) * width // grid) for i in range(grid)]
    return [(row, column) for row in rows for column in columns]


def box_mask(height: int, width: int, grid: int, number: int) -> Tensor:
    """float32 (H, W), 1 inside box `number` of the grid; all 1 for grid 1."""
    mask = torch.zeros(height, width)
    mask[grid_boxes(height, width, grid)[number]] = 1
    return mask


class DirectDiffusion(nn.Module):
    """Forward process (M2) and direct prediction of z₀ (M3, M5) around a network.

    Args:
        network: (z_t, t) to ẑ₀, both (B, 1, H, W).
        steps: T (released code: 1000).
        grid: 1 noises the whole slice. 2 is pDDPM: one of 2 × 2 boxes is noised and the rest stays as context.

    Example:
        >>> from papers.mddpm.unet import UNet
        >>> model = DirectDiffusion(UNet(width=8, blocks=1))
        >>> slices = torch.rand(2, 1, 48, 48)
        >>> model.reconstruct(slices, torch.randn(2, 1, 48, 48), t=499).shape
        torch.Size([2, 1, 48, 48])
    """

    def __init__(self, network: nn.Module, steps: int = 1000, grid: int = 1):
        super().__init__()
        self.network, self.grid = network, grid
        self.register_buffer("alpha_bar", cosine_alpha_bar(steps), persistent=False)

    @property
    def calls_per_slice(self) -> int:
        """Network calls for one reconstruction: 1, or one for each box."""
        return self.grid**2

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = √ᾱ_t z + √(1 - ᾱ_t) ε (eq. 3), in [-1, 1] where there is no noise; t is (B,)."""
        level = self.alpha_bar[t].view(-1, 1, 1, 1)
        return level.sqrt() * (2 * z - 1) + (1 - level).sqrt() * noise

    def forward(self, z: Tensor, noise: Tensor, t: Tensor, box: Tensor | None = None) -> Tensor:
        """ẑ₀ in [0, 1] from the (masked) slice z.

        Args:
            z: (B, 1, H, W) slice before the forward process, z_M in training.
            noise: (B, 1, H, W) ε.
            t: (B,) time steps, counted from 0.
            box: (B, 1, H, W), 1 where noise is added; everywhere if None.
        """
        noisy = self.noised(z, noise, t)
        if box is not None:
            noisy = torch.where(box > 0, noisy, 2 * z - 1)
        return (self.network(noisy, t) + 1) / 2

    def reconstruct(self, z: Tensor, noise: Tensor, t: int = 499) -> Tensor:
        """Pseudo-healthy slice at the fixed time step, without a reverse chain and without masking (M5).

        pDDPM takes its boxes one after the other and puts the results together.
        """
        times = torch.full((len(z),), t, device=z.device)
        if self.grid == 1:
            return self(z, noise, times)
        whole = torch.zeros_like(z)
        for rows, columns in grid_boxes(*z.shape[2:], self.grid):
            box = torch.zeros_like(z)
            box[..., rows, columns] = 1
            whole[..., rows, columns] = self(z, noise, times, box)[..., rows, columns]
        return whole


def reconstruction_loss(prediction: Tensor, clean: Tensor, box: Tensor | None = None) -> Tensor:
    """L = mean |z₀ - ẑ₀| (eq. 5, M4), z₀ the slice before masking; over the noised boxes only where `box` is given."""
    error = (prediction.float() - clean).abs()
    return error.mean() if box is None else (error * box).sum() / box.sum()
