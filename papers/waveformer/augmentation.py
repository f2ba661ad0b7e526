"""Random augmentations of a slice and its label: the kinds, probabilities and ranges of the released list.

The geometric ones among those drawn are joined into one map, so that image and label are resampled once. The
README says what else differs from the released code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GEOMETRIC = ("flip_ud", "flip_lr", "scale", "rotate", "shear", "piecewise", "translate")
ALL = (*GEOMETRIC, "noise", "blur", "contrast")
NOISE = 0.005
"""standard deviation in units of the range of intensities"""
BLUR = 1.0 / 512
"""sigma in units of the image's side: a pixel of a CT slice"""


def draw(low: float, high: float) -> float:
    """A uniform random number from torch's generator."""
    return low + (high - low) * float(torch.rand(()))


def affine(name: str) -> Tensor:
    """A random 3 x 3 map of sampling positions (x, y, 1), both in -1..1."""
    matrix = torch.eye(3)
    if name in ("flip_ud", "flip_lr"):  # chosen ones happen half of the time
        axis = int(name == "flip_ud")
        matrix[axis, axis] = -1.0 if draw(0, 1) < 0.5 else 1.0
    elif name == "scale":  # each direction by itself
        matrix[0, 0], matrix[1, 1] = 1 / draw(0.5, 2), 1 / draw(0.5, 2)
    elif name == "rotate":
        angle = math.radians(draw(-40, 40))
        matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    elif name == "shear":
        matrix[0, 1] = math.tan(math.radians(draw(-16, 16)))
    elif name == "translate":
        matrix[:2, 2] = 2 * torch.tensor([draw(-0.2, 0.2), draw(-0.2, 0.2)])
    return matrix


def geometry(chosen: Sequence[str], height: int, width: int) -> Tensor | None:
    """Sampling grid (H, W, 2) for `grid_sample`, in -1..1, or None if nothing geometric was chosen."""
    if not set(chosen) & set(GEOMETRIC):
        return None
    matrix = torch.eye(3)
    for name in chosen:
        matrix = matrix @ affine(name)
    y, x = torch.meshgrid(
        (2 * torch.arange(height) + 1) / height - 1, (2 * torch.arange(width) + 1) / width - 1, indexing="ij"
    )
    grid = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ matrix[:2].T
    if "piecewise" in chosen:  # the points of a 4 x 4 lattice move by 0.8 to 3 % of the image
        moved = 2 * draw(0.008, 0.03) * torch.randn(1, 2, 4, 4)
        moved = F.interpolate(moved, (height, width), mode="bilinear", align_corners=True)
        grid = grid + moved[0].permute(1, 2, 0)
    return grid


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (C, H, W) with edges repeated; sigma in pixels."""
    reach = max(1, math.ceil(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(image[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0]


def augment(image: Tensor, label: Tensor, allowed: Sequence[str], most: int = 4) -> tuple[Tensor, Tensor]:
    """None to `most` of the `allowed` augmentations in random order, drawn by torch's generator.

    Args:
        image: (3, H, W) in -1..1.
        label: (H, W).
        allowed: out of `ALL`. Flips; scale 0.5 to 2 in each direction; rotation by up to 40 degrees; shear by up to 16;
            translation by up to 20 %; contrast 0.5 to 1.5, about the lowest value; blur; noise.

    Returns:
        both, resampled together: bilinear for the image, nearest for the label; outside is the lowest value and 0.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(allowed) - set(ALL)
    if unknown:
        raise ValueError(f"unknown augmentations {sorted(unknown)}: choose from {ALL}")
    count = min(int(torch.randint(0, most + 1, ())), len(allowed))
    chosen = [allowed[k] for k in torch.randperm(len(allowed))[:count].tolist()]
    grid = geometry(chosen, *label.shape)
    image = image + 1  # so that zero is the lowest value
    if grid is not None:
        image = F.grid_sample(image[None], grid[None], mode="bilinear", align_corners=False)[0]
        as_image = label[None, None].float()
        label = F.grid_sample(as_image, grid[None], mode="nearest", align_corners=False)[0, 0].to(label.dtype)
    for name in chosen:
        if name == "blur":
            image = blurred(image, BLUR * image.shape[-1])
        elif name == "contrast":
            image = image * draw(0.5, 1.5)
        elif name == "noise":
            image = image + 2 * NOISE * torch.randn(image.shape[1:])
    return image - 1, label
