"""Random views of a slice: mirroring, and an elastic deformation with rotation and scaling (M6).

What is random is drawn slice by slice, in the data set; the views of a whole batch are then made at once, on the
device of the training. Here a view is an image seen at the places

    A (x + strength * G_sigma noise),    A = mirror * rotation * scale,

around the middle of the patch, and zero beyond it. One that is only mirrored has no noise and a diagonal A.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_or_pad(image: Tensor, size: int, random: bool = False) -> Tensor:
    """(C, H, W) to (C, size, size): the centre, or a random part where the image is larger; zeros around it."""
    corner, padding = [], []
    for length in image.shape[-2:]:
        spare = length - size
        place = int(torch.randint(spare + 1, ())) if random and spare > 0 else max(spare, 0) // 2
        corner.append(place)
        missing = max(-spare, 0)
        padding.append((missing // 2, missing - missing // 2))
    part = image[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return F.pad(part, (*padding[1], *padding[0]))


def draw_view(
    size: int,
    probability: float = 0.67,
    alpha: tuple[float, float] = (100.0, 350.0),
    sigma: tuple[float, float] = (14.0, 17.0),
    scale: tuple[float, float] = (0.7, 1.3),
) -> dict[str, Tensor]:
    """What one random view is made with; all randomness is torch's.

    Args:
        size: of the square patch.
        probability: of a deformation; else the view is only mirrored.
        alpha, sigma: ranges of the elastic field's strength and smoothness in pixels.
        scale: range of the magnification's inverse: 1.3 shows 1.3 times as much.

    Returns:
        "matrix" (2, 2) of rows and columns, "strength" and "sigma" (), "noise" (2, size, size) in [-1, 1].
    """
    chance, turn, *uniform = torch.rand(5).tolist()
    mirror = 1.0 - 2.0 * (torch.rand(2) < 0.5).float()
    if chance >= probability:
        return {
            "matrix": torch.diag(mirror),
            "strength": torch.tensor(0.0),
            "sigma": torch.tensor(1.0),
            "noise": torch.zeros(2, size, size),
        }
    factor, strength, width = (low + (high - low) * u for (low, high), u in zip((scale, alpha, sigma), uniform))
    cos, sin = factor * math.cos(2 * math.pi * turn), factor * math.sin(2 * math.pi * turn)
    return {
        "matrix": mirror[:, None] * torch.tensor([[cos, -sin], [sin, cos]]),
        "strength": torch.tensor(strength),
        "sigma": torch.tensor(width),
        "noise": torch.rand(2, size, size) * 2 - 1,
    }


def smooth(noise: Tensor, sigma: Tensor) -> Tensor:
    """(B, 2, S, S) under a Gaussian of `sigma` (B,) pixels, cut off at four of them; zeros outside of the patch."""
    radius = (4 * sigma + 0.5).floor()[:, None]
    offset = torch.arange(-int(radius.max()), int(radius.max()) + 1, device=noise.device)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= radius)
    total = taps.sum(1)[:, None, None]
    axis = torch.arange(noise.shape[-1], device=noise.device)
    apart = (axis[:, None] - axis).abs()
    kernel = torch.exp(-0.5 * (apart / sigma[:, None, None]) ** 2) * (apart <= radius[:, :, None]) / total
    return kernel[:, None] @ noise @ kernel[:, None]  # along the rows, along the columns; the kernel is symmetric


def view(
    image: Tensor, matrix: Tensor, strength: Tensor, sigma: Tensor, noise: Tensor, label: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A batch of patches as `draw_view` says, cubic; zeros beyond the patch's border.

    Args:
        image: (B, C, S, S).
        matrix: (B, 2, 2).
        strength, sigma: (B,).
        noise: (B, 2, S, S).
        label: (B, S, S) whole numbers, seen at the same places; nearest neighbour.

    Example:
        >>> drawn = draw_view(64)
        >>> seen, _ = view(torch.randn(1, 1, 64, 64), **{name: value[None] for name, value in drawn.items()})
        >>> seen.shape
        torch.Size([1, 1, 64, 64])
    """
    size = image.shape[-1]
    axis = torch.arange(size, dtype=torch.float32, device=image.device) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")) + strength[:, None, None, None] * smooth(noise, sigma)
    places = torch.einsum("bij,bjyx->byxi", matrix, grid).flip(-1) * 2 / max(size - 1, 1)  # columns come first
    seen = F.grid_sample(image, places, mode="bicubic", padding_mode="zeros", align_corners=True)
    if label is None:
        return seen, None
    moved = F.grid_sample(label[:, None].float(), places, mode="nearest", align_corners=True)[:, 0]
    return seen, moved.to(label.dtype)
