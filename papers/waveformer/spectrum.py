"""How much of a feature map's energy lies at high spatial frequencies (figure 3, claim C4)."""

import torch
from torch import Tensor


def high_frequency_share(maps: Tensor) -> Tensor:
    """Share of the spectral energy above half the Nyquist frequency, without the mean, summed over the channels.

    Args:
        maps: (B, D, H, W), both sides at least 2.

    Returns:
        (B,) in 0..1; 0 for constant maps.

    Example:
        >>> checkerboard = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()
        >>> high_frequency_share(checkerboard.expand(1, 3, 8, 8))
        tensor([1.])
    """
    height, width = maps.shape[-2:]
    power = torch.fft.fft2(maps.float()).abs().square().sum(dim=1)  # (B, H, W)
    rows = torch.fft.fftfreq(height, device=maps.device)[:, None]
    columns = torch.fft.fftfreq(width, device=maps.device)
    radius = torch.hypot(rows.expand(height, width), columns.expand(height, width))
    power = power * (radius > 0)
    total = power.sum(dim=(1, 2))
    high = (power * (radius > 0.25)).sum(dim=(1, 2))
    return torch.where(total > 0, high / total.clamp(min=1e-30), torch.zeros_like(total))
