"""The twelve corruptions of training, revision and detection (M4), vectorised over the batch.

Each is a function `(images, u, noise, field) -> images` of images (B, C, H, W) in [0, 1], C 1 or 3, and of random
numbers that were drawn before: `u` (B, 6) uniform in [0, 1), `noise` (B, C, H, W) standard normal, `field` (B, H, W)
uniform. Row b alone decides what happens to image b, so every image gets a corruption of its own, whatever the batch.
Strengths are the defaults of Albumentations 1.3, which the authors used, without its rounding to 8 bits.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PARAMETERS = 6  # uniform numbers per image and corruption


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform in [0, 1) to uniform in [low, high), shaped (B, 1, 1, 1) for images."""
    return (low + (high - low) * u)[:, None, None, None]


def one_of(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform in [0, 1) to an integer in low..high, both included."""
    return (low + (u * (high - low + 1)).long()).clamp(max=high)


def filter_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate image b with kernel b, (B, K, K), K odd; borders are mirrored without repeating the edge."""
    size = kernels.shape[-1]
    count, channels, height, width = images.shape
    padded = F.pad(images, [size // 2] * 4, mode="reflect").reshape(1, count * channels, height + size - 1, -1)
    weights = kernels.to(images.dtype).repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded, weights, groups=count * channels).reshape(images.shape)


def grey(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def rgb_to_hsv(images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB to hue, saturation, value, all in [0, 1]."""
    value, argument = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    red, green, blue = images.unbind(1)
    safe = chroma.clamp(min=1e-12)
    sectors = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    hue = (sectors.gather(1, argument[:, None])[:, 0] / 6) % 1.0
    saturation = chroma / value.clamp(min=1e-12)
    return torch.stack([torch.where(chroma > 0, hue, 0.0), saturation, value], dim=1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Inverse of `rgb_to_hsv`."""
    hue, saturation, value = hsv.unbind(1)
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def pixel_dropout(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """1 % of the pixels become black, in all channels."""
    return images * (field >= 0.01)[:, None]


GAUSSIANS = {3: [0, 0, 16, 32, 16, 0, 0], 5: [0, 4, 16, 24, 16, 4, 0], 7: [2, 7, 14, 18, 14, 7, 2]}
"""64 times the weights of OpenCV's small kernels, by their size"""


def gaussian_blur(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Kernel of 3, 5 or 7 pixels.

    A size from 3 to 7 is drawn, and an even one enlarged by one, so that the probabilities are 0.2, 0.4 and 0.4.
    """
    lines = torch.tensor(list(GAUSSIANS.values()), device=images.device) / 64
    line = lines[one_of(u[:, 0], 3, 7) // 2 - 1]
    return filter_each(images, line[:, :, None] * line[:, None, :])


ORDERS = list(itertools.permutations(range(4)))


def colour_jitter(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Brightness, contrast, saturation (factors 0.8 to 1.2) and hue (± 0.2 of the circle), in random order.

    Grey images keep brightness and contrast alone.
    """
    factors = 0.8 + 0.4 * u[:, :3, None, None, None]
    shift = -0.2 + 0.4 * u[:, 3, None, None]

    def brightness(x, k):
        return x * factors[k, 0]

    def contrast(x, k):
        return factors[k, 1] * x + (1 - factors[k, 1]) * grey(x).mean((1, 2, 3), keepdim=True)

    def saturation(x, k):
        return factors[k, 2] * x + (1 - factors[k, 2]) * grey(x)

    def hue(x, k):
        hsv = rgb_to_hsv(x)
        return hsv_to_rgb(torch.cat([((hsv[:, 0] + shift[k]) % 1.0)[:, None], hsv[:, 1:]], dim=1))

    steps = (brightness, contrast) if images.shape[1] == 1 else (brightness, contrast, saturation, hue)
    order = torch.tensor(ORDERS, device=images.device)[one_of(u[:, 4], 0, len(ORDERS) - 1)]
    images = images.clone()
    for place in range(4):
        for number, step in enumerate(steps):
            k = (order[:, place] == number).nonzero()[:, 0]
            if len(k):
                images[k] = step(images[k], k).clamp(0, 1)
    return images


def area_matrix(inside: int, outside: int) -> Tensor:
    """(outside, inside): each row averages the interval of the input that an output pixel covers."""
    edges = torch.arange(outside + 1, dtype=torch.float64) * inside / outside
    pixels = torch.arange(inside, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return overlap.clamp(min=0) * outside / inside


def averaged(images: Tensor, side: int) -> Tensor:
    """(B, C, H, H) to (B, C, side, side) by areas: each pixel is the mean over what it covers."""
    if images.shape[-1] == side:
        return images
    matrix = area_matrix(images.shape[-1], side).to(images)
    return matrix @ images @ matrix.T


def cell_matrices(edges: Tensor, cells: int) -> Tensor:
    """(B, cells, N): each row averages what lies between two neighbours of `edges` (B, cells + 1) over N pixels.

    A cell that is empty, or lies beyond the last pixel, gets zeros.
    """
    pixels = torch.arange(cells, device=edges.device)
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    overlap = (torch.minimum(high, pixels + 1.0) - torch.maximum(low, pixels)).clamp(min=0)
    return overlap / overlap.sum(2, keepdim=True).clamp(min=1e-12)


def downscale(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Reduced to 50 to 90 % of the side and enlarged again, both by areas: each pixel is the mean over what it covers.

    A reduced pixel covers exactly 1 / scale pixels, though the number of them is rounded, as in OpenCV.
    """
    side = images.shape[-1]
    scale = 0.5 + 0.4 * u[:, :1].double()
    size = torch.round(scale * side)
    places = torch.arange(side + 1, device=images.device).double()
    down = cell_matrices((places.minimum(size) / scale).clamp(max=side), side)
    up = cell_matrices(places * size / side, side)
    matrices = (up @ down).to(images)
    return torch.einsum("bij,bcjk,blk->bcil", matrices, images, matrices)


def gaussian_noise(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Variance 10 to 50 on the scale of 8 bits, in each channel."""
    return images + noise * between(u[:, 0], 10, 50).sqrt() / 255


def inversion(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """The negative."""
    return 1 - images


def motion_kernels(u: Tensor) -> Tensor:
    """(B, 7, 7): straight lines of equal weights between two random points of a 3, 5 or 7 pixel square."""
    size = 3 + 2 * one_of(u[:, 0], 0, 2)

    def point(v):
        return torch.minimum((v * size).long(), size - 1)

    x0, y0, x1 = point(u[:, 1]), point(u[:, 2]), point(u[:, 3])
    anywhere = point(u[:, 4])
    another = (y0 + 1 + torch.minimum((u[:, 4] * (size - 1)).long(), size - 2)) % size  # never y0
    y1 = torch.where(x0 == x1, another, anywhere)
    steps = torch.maximum((x1 - x0).abs(), (y1 - y0).abs())
    t = torch.arange(7, device=u.device)[None].clamp(max=steps[:, None])  # (B, 7): past the end, the end again
    margin = (7 - size)[:, None] // 2
    x = torch.round(x0[:, None] + t * (x1 - x0)[:, None] / steps[:, None]).long() + margin
    y = torch.round(y0[:, None] + t * (y1 - y0)[:, None] / steps[:, None]).long() + margin
    kernels = torch.zeros(len(u), 49, device=u.device).scatter_(1, y * 7 + x, 1.0)
    return (kernels / kernels.sum(1, keepdim=True)).reshape(-1, 7, 7)


def motion_blur(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Average along a straight line of at most 7 pixels."""
    return filter_each(images, motion_kernels(u))


def multiplicative_noise(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """One factor of 0.9 to 1.1 for the image."""
    return images * between(u[:, 0], 0.9, 1.1)


def brightness_contrast(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Factor 0.8 to 1.2, then offset ± 0.2."""
    return images * between(u[:, 0], 0.8, 1.2) + between(u[:, 1], -0.2, 0.2)


def gamma(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Exponent 0.8 to 1.2."""
    return images.clamp(min=0) ** between(u[:, 0], 0.8, 1.2)


def solarize(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """The negative, where the grey level is at least 128 of 255."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def sharpen(images: Tensor, u: Tensor, noise: Tensor, field: Tensor) -> Tensor:
    """Blend of 20 to 50 % of a Laplacian filter whose lightness is 0.5 to 1."""
    alpha, lightness = 0.2 + 0.3 * u[:, 0], 0.5 + 0.5 * u[:, 1]
    kernels = -alpha[:, None, None] * torch.ones(3, 3, device=images.device)
    kernels[:, 1, 1] = 1 - alpha + alpha * (8 + lightness)
    return filter_each(images, kernels)


CORRUPTIONS = {
    function.__name__: function
    for function in (
        pixel_dropout,
        gaussian_blur,
        colour_jitter,
        downscale,
        gaussian_noise,
        inversion,
        motion_blur,
        multiplicative_noise,
        brightness_contrast,
        gamma,
        solarize,
        sharpen,
    )
}


class Draws(NamedTuple):
    """All chance in the corruption of B images; made by `draw`, `draw_one_type` or `draw_detection`."""

    applied: Tensor
    """(B, 12) bool: which corruptions"""
    uniform: Tensor
    """(B, 12, 6) uniform in [0, 1): their parameters"""
    noise: Tensor
    """(B, C, H, W) standard normal"""
    field: Tensor
    """(B, H, W) uniform in [0, 1)"""


def draw(count: int, shape: tuple[int, ...], probability: float = 0.25, generator=None) -> Draws:
    """Random numbers for `count` images of `shape` (C, H, W); each corruption is applied with `probability`."""
    kinds = len(CORRUPTIONS)
    return Draws(
        torch.rand(count, kinds, generator=generator) < probability,
        torch.rand(count, kinds, PARAMETERS, generator=generator),
        torch.randn(count, *shape, generator=generator),
        torch.rand(count, *shape[1:], generator=generator),
    )


def draw_one_type(name: str, count: int, shape: tuple[int, ...], generator=None) -> Draws:
    """One corruption for all images (section 3.3), parameters of their own for each image (released code: the same for
    all)."""
    applied = torch.tensor([known == name for known in CORRUPTIONS]).repeat(count, 1)
    return draw(count, shape, generator=generator)._replace(applied=applied)


def draw_detection(count: int, shape: tuple[int, ...], generator=None) -> Draws:
    """Half of the images get one of the twelve corruptions, for section 3.4: labels are `applied.any(1)`."""
    half = torch.rand(count, 1, generator=generator) < 0.5
    kind = torch.randint(len(CORRUPTIONS), (count,), generator=generator)
    applied = half & F.one_hot(kind, len(CORRUPTIONS)).bool()
    return draw(count, shape, generator=generator)._replace(applied=applied)


def corrupt(images: Tensor, draws: Draws) -> Tensor:
    """Apply the drawn corruptions, one after the other, to images (B, C, H, W) in [0, 1]; clipped after each.

    >>> images = torch.rand(8, 3, 28, 28)
    >>> corrupt(images, draw(8, (3, 28, 28))).shape
    torch.Size([8, 3, 28, 28])
    """
    images = images.clone()
    for number, function in enumerate(CORRUPTIONS.values()):
        k = draws.applied[:, number].nonzero()[:, 0]
        if len(k):
            images[k] = function(images[k], draws.uniform[k, number], draws.noise[k], draws.field[k]).clamp(0, 1)
    return images
