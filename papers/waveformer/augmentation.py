"""Random augmentations of a slice and its label (the released recipe), as one resampling and two filters.

The released code draws up to four of flips, noise, blur, contrast, scale, rotation, shear, piecewise affine and
translation. The geometric ones are joined into one map, so that image and label are resampled once.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = ("flip", "noise", "blur", "contrast", "scale", "rotate", "shear", "piecewise", "translate")


def draw(low: float, high: float) -> float:
    """A uniform random number from torch's generator."""
    return low + (high - low) * float(torch.rand(()))


def geometry(chosen: Sequence[str], height: int, width: int) -> Tensor | None:
    """Sampling grid (H, W, 2) for `grid_sample`, in -1..1, or None if nothing geometric was chosen."""
    matrix = torch.eye(2)
    shift = torch.zeros(2)
    if "flip" in chosen:
        axis = int(torch.randint(0, 2, ()))
        matrix[axis, axis] = -1.0
    if "scale" in chosen:
        matrix = matrix / math.exp(draw(math.log(0.5), math.log(2.0)))
    if "rotate" in chosen:
        angle = math.radians(draw(-40, 40))
        matrix = matrix @ torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if "shear" in chosen:
        matrix = matrix @ torch.tensor([[1.0, math.tan(math.radians(draw(-16, 16)))], [0.0, 1.0]])
    if "translate" in chosen:
        shift = 2 * torch.tensor([draw(-0.2, 0.2), draw(-0.2, 0.2)])
    if not {"flip", "scale", "rotate", "shear", "translate", "piecewise"} & set(chosen):
        return None
    y, x = torch.meshgrid(
        (2 * torch.arange(height) + 1) / height - 1, (2 * torch.arange(width) + 1) / width - 1, indexing="ij"
    )
    grid = torch.stack([x, y], dim=-1) @ matrix.T + shift
    if "piecewise" in chosen:  # points of a 5 x 5 lattice move by 3 % of the image
        moved = F.interpolate(0.06 * torch.randn(1, 2, 5, 5), (height, width), mode="bilinear", align_corners=True)
        grid = grid + moved[0].permute(1, 2, 0)
    return grid


def augment(image: Tensor, label: Tensor, allowed: Sequence[str], most: int = 4) -> tuple[Tensor, Tensor]:
    """Up to `most` of the `allowed` augmentations, drawn by torch's generator.

    Args:
        image: (3, H, W) in -1..1.
        label: (H, W).
        allowed: out of `ALL`. Flips, scale 0.5 to 2, rotation +-40 degrees, shear +-16 degrees, translation +-20 %,
            contrast 0.5 to 1.5.

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
    if grid is not None:
        image = F.grid_sample(image[None] + 1, grid[None], mode="bilinear", align_corners=False)[0] - 1
        as_image = label[None, None].float()
        label = F.grid_sample(as_image, grid[None], mode="nearest", align_corners=False)[0, 0].to(label.dtype)
    if "blur" in chosen:
        sigma = draw(0.1, 1.5)
        taps = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
        taps = taps / taps.sum()
        for shape, padding in (((1, 9), (4, 4, 0, 0)), ((9, 1), (0, 0, 4, 4))):
            padded = F.pad(image[:, None], padding, mode="replicate")
            image = F.conv2d(padded, taps.view(1, 1, *shape))[:, 0]
    if "contrast" in chosen:
        image = (image * draw(0.5, 1.5)).clamp(-1, 1)
    if "noise" in chosen:
        image = image + draw(0, 0.1) * torch.randn(image.shape[1:])
    return image, label
