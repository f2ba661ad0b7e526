"""The corruptions of the robustness curves (section 3.5): ImageNet-C without glass blur, severities 1 to 5.

Each is a function `(images, severity, generator) -> images` of a batch (B, C, H, W) in [0, 1] on the CPU, C 1 or 3;
every image gets random numbers of its own. Operators and strengths are those of the package that the authors used
(imagecorruptions 1.1.2), after Hendrycks and Dietterich (2019) and Michaelis et al. (2019), for images of any size;
frost is drawn by a fractal instead of pasted from photographs. `corrupt_at` has the enlargement around them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.unoranic.corruptions import area_matrix, averaged, filter_each, grey, hsv_to_rgb, rgb_to_hsv

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: Tensor, severity: int, generator=None) -> Tensor:
    """Normal noise."""
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return images + scale * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, severity: int, generator=None) -> Tensor:
    """Poisson noise of so many photons at full intensity."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return torch.poisson(images * photons, generator) / photons


def impulse_noise(images: Tensor, severity: int, generator=None) -> Tensor:
    """A share of the values becomes 0 or 1."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit = torch.rand(images.shape, generator=generator) < share
    salt = torch.rand(images.shape, generator=generator) < 0.5
    return torch.where(hit, salt.to(images.dtype), images)


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """(size, size), sum 1."""
    offsets = torch.arange(size) - size // 2
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def defocus_blur(images: Tensor, severity: int, generator=None) -> Tensor:
    """Disc with a slightly blurred rim."""
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    half, size = (8, 3) if radius <= 8 else (radius, 5)
    line = torch.arange(-half, half + 1)
    disc = (line[:, None] ** 2 + line**2 <= radius**2).float()
    disc = filter_each((disc / disc.sum())[None, None], gaussian_kernel(size, alias)[None])[0]
    return filter_each(images, disc.expand(len(images), -1, -1))


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Image b moved by `down[b]` rows and `right[b]` columns; the edge is repeated."""
    count, channels, height, width = images.shape
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def smear(images: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """One-sided motion blur along `angle[b]` in degrees; the trace is as long as 2 radius + 1 pixels at most."""
    length = 2 * radius + 1
    weights = torch.exp(-(torch.arange(length) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    direction = torch.deg2rad(angle.double())
    down, right = torch.sin(direction), torch.cos(direction)
    height, width = images.shape[-2:]
    blurred, going = torch.zeros_like(images), torch.ones(len(images), dtype=torch.bool)
    for step in range(length):
        rows = -torch.ceil(step * down - 0.5).long()
        columns = -torch.ceil(step * right - 0.5).long()
        going = going & (rows.abs() < height) & (columns.abs() < width)  # a trace ends where it leaves the image
        moved = shifted(images, torch.where(going, rows, 0), torch.where(going, columns, 0))
        blurred += weights[step] * moved * going[:, None, None, None]
    return blurred


def motion_blur(images: Tensor, severity: int, generator=None) -> Tensor:
    """Smear in a direction within 45 degrees of horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return smear(images, radius, sigma, -45 + 90 * torch.rand(len(images), generator=generator))


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of the image, enlarged to its size (linear interpolation, corner pixels kept)."""
    side = images.shape[-1]
    part = math.ceil(side / factor)
    top = (side - part) // 2
    larger = F.interpolate(
        images[..., top : top + part, top : top + part],
        size=(round(part * factor),) * 2,
        mode="bilinear",
        align_corners=True,
    )
    trim = (larger.shape[-1] - side) // 2
    return larger[..., trim : trim + side, trim : trim + side]


def zoom_blur(images: Tensor, severity: int, generator=None) -> Tensor:
    """Mean of the image and of enlarged copies."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    count = math.ceil(round((most - 1) / step, 6))
    factors = [1 + step * k for k in range(count)]
    return (images + sum(zoomed(images, factor) for factor in factors)) / (len(factors) + 1)


def snow(images: Tensor, severity: int, generator=None) -> Tensor:
    """Flakes with a trace, from above, over a paler image."""
    mean, spread, zoom, threshold, radius, sigma, weight = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    count, _, height, width = images.shape
    flakes = zoomed(mean + spread * torch.randn(count, 1, height, width, generator=generator), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = smear(flakes, radius, sigma, -135 + 90 * torch.rand(count, generator=generator))
    paler = weight * images + (1 - weight) * torch.maximum(images, 1.5 * grey(images) + 0.5)
    return paler + flakes + torch.rot90(flakes, 2, (2, 3))


def plasma(count: int, side: int, decay: float, generator=None) -> Tensor:
    """(count, side, side): diamond-square fractals in [0, 1], periodic; the smallest power of 2 is cut to `side`.

    The random displacement falls by the square of `decay` with each halving, as in the released package.
    """
    size = 2 ** max(1, math.ceil(math.log2(side)))
    field = torch.zeros(count, size, size)
    step, amplitude = size, 100.0**2

    def displaced(total: Tensor) -> Tensor:
        return total / 4 + amplitude * (2 * torch.rand(total.shape, generator=generator) - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = displaced(rows + rows.roll(-1, 2))
        centres, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        field[:, ::step, half::step] = displaced(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        field[:, half::step, ::step] = displaced(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, amplitude = half, amplitude / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    return (field / field.amax((1, 2), keepdim=True))[:, :side, :side]


def fog(images: Tensor, severity: int, generator=None) -> Tensor:
    """A cloud over the image, scaled back to its range."""
    weight, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    most = images.amax((1, 2, 3), keepdim=True)
    cloud = plasma(len(images), images.shape[-1], decay, generator)[:, None]
    return (images + weight * cloud) * most / (most + weight)


def frost(images: Tensor, severity: int, generator=None) -> Tensor:
    """Pale crystals over a darker image. The crystals are the ridges of a fractal; ImageNet-C has photographs."""
    keep, weight = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    texture = plasma(len(images), images.shape[-1], 1.6, generator)[:, None]
    crystals = (1 - (2 * texture - 1).abs()) ** 3
    return keep * images + weight * crystals


def brightness(images: Tensor, severity: int, generator=None) -> Tensor:
    """Added to the value of HSV, hue and saturation kept."""
    offset = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    if images.shape[1] == 1:
        return images + offset
    hsv = rgb_to_hsv(images)
    return hsv_to_rgb(torch.cat([hsv[:, :2], (hsv[:, 2:] + offset).clamp(0, 1)], dim=1))


def contrast(images: Tensor, severity: int, generator=None) -> Tensor:
    """Pulled towards the mean of each channel."""
    keep = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * keep + mean


def smooth(field: Tensor, sigma: float) -> Tensor:
    """Gaussian filter cut off at 3 sigma, of (B, 1, H, W); borders are mirrored with the edge repeated."""
    side, reach = field.shape[-1], int(3 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    mirrored = (torch.arange(side)[:, None] + offsets) % (2 * side)
    mirrored = torch.where(mirrored < side, mirrored, 2 * side - 1 - mirrored)
    matrix = torch.zeros(side, side).scatter_add_(1, mirrored, (line / line.sum()).expand(side, -1).contiguous())
    return matrix @ field @ matrix.T


def elastic_transform(images: Tensor, severity: int, generator=None) -> Tensor:
    """A displacement of each pixel, smoothed over a hundredth of the side; borders are mirrored, the edge repeated."""
    count, _, side, _ = images.shape
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    displacement = 0.005 * side * (2 * torch.rand(2, count, 1, side, side, generator=generator) - 1)
    right, down = (strength * smooth(part, 0.01 * side)[:, 0] for part in displacement)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grid = (2 * torch.stack([columns + right, rows + down], dim=-1) + 1) / side - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def nearest_matrix(inside: int, outside: int) -> Tensor:
    """(outside, inside): each output pixel copies the input pixel under its centre."""
    index = ((torch.arange(outside) + 0.5) * inside / outside).long()
    return F.one_hot(index, inside).double()


def pixelate(images: Tensor, severity: int, generator=None) -> Tensor:
    """Averaged down, enlarged by copying."""
    side = images.shape[-1]
    size = int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1])
    matrix = (nearest_matrix(size, side) @ area_matrix(side, size)).to(images)
    return matrix @ images @ matrix.T


LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
] + [[99] * 8] * 4


def compressed(plane: Tensor, table: list[list[int]], quality: int) -> Tensor:
    """(B, H, W) in 0..255, sides multiples of 8: each block of 8 x 8 pixels with quantised cosine coefficients."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)
    k = torch.arange(8)
    cosines = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * torch.where(k == 0, 0.125, 0.25).sqrt()[:, None]
    count, height, width = plane.shape
    blocks = plane.reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3) - 128
    coefficients = torch.round(cosines @ blocks @ cosines.T / steps) * steps
    blocks = cosines.T @ coefficients @ cosines + 128
    return blocks.transpose(2, 3).reshape(count, height, width).round().clamp(0, 255)


def enlarged_by_triangle(plane: Tensor) -> Tensor:
    """(B, H, W) to twice the size as JPEG decoders do: 3/4 of the nearest value and 1/4 of the next, per axis."""
    for _ in range(2):
        before = torch.cat([plane[..., :1], plane[..., :-1]], dim=-1)
        after = torch.cat([plane[..., 1:], plane[..., -1:]], dim=-1)
        pairs = torch.stack([(3 * plane + before) / 4, (3 * plane + after) / 4], dim=-1)
        plane = pairs.flatten(-2).transpose(1, 2)
    return plane


def jpeg_compression(images: Tensor, severity: int, generator=None) -> Tensor:
    """JPEG with colour at half resolution, quality 25 to 7."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    height, width = images.shape[-2:]
    margins = [0, -width % 16, 0, -height % 16]
    levels = F.pad((255 * images).round(), margins, mode="replicate")
    if images.shape[1] == 1:
        return compressed(levels[:, 0], LUMINANCE, quality)[:, None, :height, :width] / 255
    red, green, blue = levels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [128 + (blue - luma) * 0.564334, 128 + (red - luma) * 0.713267]
    luma = compressed(luma.round(), LUMINANCE, quality)
    half = [F.avg_pool2d(plane[:, None], 2)[:, 0].round() for plane in colours]
    cb, cr = (enlarged_by_triangle(compressed(plane, CHROMINANCE, quality)) - 128 for plane in half)
    decoded = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], dim=1)
    return decoded[..., :height, :width].round() / 255


COMMON_CORRUPTIONS = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")


def corrupt_at(name: str, images: Tensor, severity: int, generator=None) -> Tensor:
    """Images (B, C, H, W) in [0, 1] under one of `COMMON_CORRUPTIONS` at severity 1 to 5, clipped to [0, 1].

    As in the released code, images of less than 32 pixels are enlarged to 32, corrupted and averaged down again; grey
    ones are corrupted as three equal channels, noise being different in each, whose mean is taken.

    >>> corrupt_at("fog", torch.rand(4, 1, 28, 28), severity=3).shape
    torch.Size([4, 1, 28, 28])
    """
    side, is_grey = images.shape[-1], images.shape[1] == 1
    larger = averaged(images.expand(-1, 3, -1, -1), max(side, 32))
    found = averaged(COMMON_CORRUPTIONS[name](larger, severity, generator).clamp(0, 1), side)
    return found.mean(1, keepdim=True) if is_grey else found
