"""Random views of a slice: mirroring, and an elastic and affine deformation or a random crop (M6).

All randomness is torch's, so that a data set seeded per sample gives the same view again.
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


def smooth_noise(size: int, sigma: float) -> Tensor:
    """(2, size, size): uniform noise in [-1, 1] under a Gaussian of `sigma` pixels, zeros outside."""
    radius = min(size - 1, math.ceil(4 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    noise = torch.rand(2, 1, size, size) * 2 - 1
    noise = F.conv2d(noise, taps.view(1, 1, -1, 1), padding=(radius, 0))
    return F.conv2d(noise, taps.view(1, 1, 1, -1), padding=(0, radius))[:, 0]


def deform(
    image: Tensor,
    size: int,
    label: Tensor | None = None,
    alpha: tuple[float, float] = (100.0, 350.0),
    sigma: tuple[float, float] = (14.0, 17.0),
    scale: tuple[float, float] = (0.7, 1.3),
) -> tuple[Tensor, Tensor | None]:
    """A patch seen through a random elastic field, rotation and scale; cubic, zeros beyond the image's border.

    Args:
        image: (C, H, W).
        size: of the patch.
        label: (H, W) whole numbers; nearest neighbour.
        alpha, sigma: ranges of the elastic field's strength and smoothness in pixels.
        scale: range of the magnification's inverse: 1.3 shows 1.3 times as much.
    """
    height, width = image.shape[-2:]
    angle = float(torch.rand(()) * 2 * math.pi)
    factor, strength, smoothness = (low + (high - low) * float(torch.rand(())) for low, high in (scale, alpha, sigma))
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")) + strength * smooth_noise(size, smoothness)
    cos, sin = math.cos(angle), math.sin(angle)
    rotated = torch.stack([cos * grid[0] - sin * grid[1], sin * grid[0] + cos * grid[1]]) * factor
    # The patch lies anywhere in the image where it is smaller than that.
    centre = []
    for length in (height, width):
        spare = max(length - size, 0)
        centre.append((length - 1) / 2 + float(torch.rand(()) - 0.5) * spare)
    rows = (rotated[0] + centre[0]) * 2 / max(height - 1, 1) - 1
    columns = (rotated[1] + centre[1]) * 2 / max(width - 1, 1) - 1
    where = torch.stack([columns, rows], dim=-1)[None]
    seen = F.grid_sample(image[None], where, mode="bicubic", padding_mode="zeros", align_corners=True)[0]
    if label is None:
        return seen, None
    moved = F.grid_sample(label[None, None].float(), where, mode="nearest", align_corners=True)[0, 0]
    return seen, moved.to(label.dtype)


def augment(
    image: Tensor,
    size: int,
    label: Tensor | None = None,
    probability: float = 0.67,
    alpha: tuple[float, float] = (100.0, 350.0),
    sigma: tuple[float, float] = (14.0, 17.0),
    scale: tuple[float, float] = (0.7, 1.3),
) -> tuple[Tensor, Tensor | None]:
    """One random view: deformed with `probability`, else a random crop; then mirrored along each axis or not.

    Args:
        image: (C, H, W).
        size: of the square patch.
        label: (H, W) whole numbers, seen through the same deformation.

    Example:
        >>> view, _ = augment(torch.randn(1, 90, 70), 64)
        >>> view.shape
        torch.Size([1, 64, 64])
    """
    if torch.rand(()) < probability:
        image, label = deform(image, size, label, alpha, sigma, scale)
    elif label is None:
        image = crop_or_pad(image, size, random=True)
    else:
        both = crop_or_pad(torch.cat([image, label[None].to(image.dtype)]), size, random=True)
        image, label = both[:-1], both[-1].to(label.dtype)
    axes = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
    return image.flip(axes), None if label is None else label.flip(axes)
