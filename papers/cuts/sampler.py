"""Anchors and their positives within one image (sections 3 and 3.1.1; M2 and M3).

Proximity first (candidates lie around the anchor), then structural similarity of the patches. Everything is
drawn from torch's generator, so that a data set's `__getitem__` can call it.
"""

import torch
from torch import Tensor


def patches_at(image: Tensor, pixels: Tensor, patch: int = 5) -> Tensor:
    """Patches (..., C, p, p) of `image` (C, H, W) around `pixels` (..., 2), at least p // 2 from the border."""
    reach = torch.arange(patch) - patch // 2
    rows = pixels[..., 0, None, None] + reach[:, None]
    columns = pixels[..., 1, None, None] + reach
    return image[:, rows, columns].movedim(0, -3)


def patch_ssim(anchor: Tensor, other: Tensor) -> Tensor:
    """SSIM of patches (..., C, p, p) with one uniform window of the patch's size, mean over the channels.

    The closed form of what `skimage.metrics.structural_similarity` gives for such patches: means, sample
    variances and covariance; the data range is 2, that of an image in [-1, 1].

    Example:
        >>> x = torch.rand(3, 5, 5)
        >>> patch_ssim(x, x).item()
        1.0
    """
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    x, y = anchor.flatten(-2), other.flatten(-2)
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    dx, dy = x - mean_x[..., None], y - mean_y[..., None]
    samples = x.shape[-1] - 1
    var_x, var_y, covariance = (dx * dx).sum(-1) / samples, (dy * dy).sum(-1) / samples, (dx * dy).sum(-1) / samples
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(-1)


def draw_anchors(shape: tuple[int, int], anchors: int = 16, patch: int = 5) -> Tensor:
    """M2: `anchors` random pixels (S, 2) of an image (H, W), at least half a patch from its border."""
    border = patch // 2
    return torch.stack([torch.randint(border, side - border, (anchors,)) for side in shape], dim=-1)


def towards_centre(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """The diagonal neighbours of `pixels` (S, 2) on the side of the image's centre."""
    centre = torch.tensor([(side - 1) / 2 for side in shape])
    return pixels + torch.where(pixels < centre, 1, -1)


def draw_positives(
    image: Tensor, anchors: Tensor, candidates: int = 10, radius: int = 5, patch: int = 5, threshold: float = 0.5
) -> Tensor:
    """M3: the positive (S, 2) of each anchor (S, 2).

    Of `candidates` random pixels within `radius` rows and columns of the anchor, the one whose patch is the
    most similar (SSIM), if it reaches `threshold`; else the diagonal neighbour towards the centre. A
    candidate that fell on the anchor itself doesn't count.

    Args:
        image: (C, H, W) in [-1, 1].

    Example:
        >>> image = torch.rand(1, 32, 32)
        >>> anchors = draw_anchors((32, 32))
        >>> (draw_positives(image, anchors) - anchors).abs().amax().item() <= 5
        True
    """
    shape, border = image.shape[1:], patch // 2
    offsets = torch.randint(-radius, radius + 1, (len(anchors), candidates, 2))
    near = anchors[:, None] + offsets
    near = torch.stack([near[..., axis].clamp(border, shape[axis] - 1 - border) for axis in (0, 1)], dim=-1)
    similarity = patch_ssim(patches_at(image, anchors, patch)[:, None], patches_at(image, near, patch))
    similarity[(near == anchors[:, None]).all(-1)] = -torch.inf
    best = similarity.argmax(1)
    found = similarity.amax(1) >= threshold
    return torch.where(found[:, None], near[torch.arange(len(anchors)), best], towards_centre(anchors, shape))
