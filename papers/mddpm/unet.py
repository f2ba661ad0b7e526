"""The U-Net of guided diffusion, as the released code sets it up: it sees a noisy slice and the time step (M3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups; fewer for narrow networks, so that a group has at least 4 channels."""
    groups = 32 if channels >= 128 else max(1, channels // 4)
    return nn.GroupNorm(groups, channels)


def zero(layer: nn.Module) -> None:
    """Weights and bias 0: the block starts as the identity, the network with the prediction 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the time step, (B,) to (B, channels), wavelengths from 2π to 20000π."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    phase = t[:, None].float() * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with a skip; the time scales and shifts between them; may halve or double the size."""

    def __init__(self, channels: int, out: int, embedding: int, resize: str = ""):
        super().__init__()
        self.resize = resize
        self.before = nn.Sequential(norm(channels), nn.SiLU())
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * out)
        self.norm = norm(out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero(self.second)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resize == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.first(self._resized(self.before(x)))
        scale, shift = self.time(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = self.second(F.silu(self.norm(hidden) * (1 + scale) + shift))
        return self.skip(self._resized(x)) + hidden


class SelfAttention(nn.Module):
    """Attention between all pixels, heads of 64 channels, with a skip."""

    def __init__(self, channels: int, head_channels: int = 64):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2)).view(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        mixed = F.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (q, k, v)))
        return x + self.out(mixed.transpose(2, 3).reshape(b, c, h * w)).view(b, c, h, w)


class UNet(nn.Module):
    """Predicts ẑ₀ from z_t and t.

    Args:
        width: channels at full resolution (released code: 128).
        multipliers: channels of each level, in widths (released code: 1, 2, 2); each level halves the size.
        blocks: residual blocks per level (released code: 3).
        channels: of the image.

    Shapes:
        (B, channels, H, W) and (B,) time steps to (B, channels, H, W); H and W divisible by 2^(levels - 1).

    Example:
        >>> UNet(width=8, blocks=1)(torch.zeros(2, 1, 48, 48), torch.tensor([0, 500])).shape
        torch.Size([2, 1, 48, 48])
    """

    def __init__(self, width: int = 128, multipliers: tuple[int, ...] = (1, 2, 2), blocks: int = 3, channels: int = 1):
        super().__init__()
        self.width, self.divisor = width, 2 ** (len(multipliers) - 1)
        embedding = 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, skips = width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(ResBlock(now, multiplier * width, embedding))
                now = multiplier * width
                skips.append(now)
            if level < len(multipliers) - 1:
                self.down.append(ResBlock(now, now, embedding, "down"))
                skips.append(now)
        self.middle = nn.ModuleList([ResBlock(now, now, embedding), SelfAttention(now), ResBlock(now, now, embedding)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(ResBlock(now + skips.pop(), multiplier * width, embedding))
                now = multiplier * width
            if level > 0:
                self.up.append(ResBlock(now, now, embedding, "up"))
        self.out = nn.Sequential(norm(now), nn.SiLU(), nn.Conv2d(now, channels, 3, padding=1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero(self.out[-1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            raise ValueError(f"height and width must be divisible by {self.divisor}, found {tuple(x.shape[2:])}")
        embedding = self.time(time_embedding(t, self.width))
        x = self.stem(x)
        skips = [x]
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        first, attention, second = self.middle
        x = second(attention(first(x, embedding)), embedding)
        for block in self.up:
            x = block(x if block.resize == "up" else torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)
