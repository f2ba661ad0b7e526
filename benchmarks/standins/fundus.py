"""Colour fundus photographs with geographic atrophy: optics, pigment, vessels, disc, lesion; known mask.

Reflectance is built up in layers, as the light meets them: the choroid with its broad vessels, the pigment
epithelium that hides it (and is missing in the atrophy), the macular pigment, retinal vessels that absorb
green and blue, the disc. Then come illumination, haze, the aperture and the film's noise.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

OVERSAMPLING = 2


@dataclass(frozen=True)
class Fundus:
    """A photograph and its lesion."""

    image: np.ndarray
    """(size, size, 3) uint8"""
    atrophy: np.ndarray
    """(size, size) bool"""


def smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Gaussian noise blurred to a scale of `sigma` pixels, standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return noise / noise.std()


def draw_vessel(canvas: np.ndarray, path: np.ndarray, widths: np.ndarray) -> None:
    """Add a tube along `path` (K, 2) in pixels (row, column); the canvas takes the largest depth of blood."""
    size = canvas.shape[0]
    for (row, column), width in zip(path, widths):
        reach = int(np.ceil(width)) + 1
        top, left = int(row) - reach, int(column) - reach
        if top < 0 or left < 0 or top + 2 * reach + 1 > size or left + 2 * reach + 1 > size:
            continue
        rows, columns = np.mgrid[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        chord = np.sqrt(np.clip(1 - ((rows - row) ** 2 + (columns - column) ** 2) / width**2, 0, 1))
        window = canvas[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        np.maximum(window, chord * min(width / 3, 1.0), out=window)


def grow_vessels(rng: np.random.Generator, n: int, disc: np.ndarray, macula: np.ndarray) -> np.ndarray:
    """Depth of blood (n, n): two arcades that bend around the macula, nasal vessels, and their branches."""
    canvas = np.zeros((n, n))
    away = np.sign(macula[1] - disc[1])  # +1: the macula lies to the right of the disc
    starts = []
    for up in (-1, 1):
        starts += [(np.arctan2(up * 1.0, away * rng.uniform(0.3, 0.6)), 2.6, up * away * rng.uniform(0.75, 1.0))]
        starts += [(np.arctan2(up * 1.0, away * rng.uniform(0.0, 0.3)), 2.0, up * away * rng.uniform(0.5, 0.8))]
        starts += [(np.arctan2(up * 1.0, -away * rng.uniform(0.5, 1.2)), 1.7, rng.uniform(-0.3, 0.3))]
    queue = [(disc.copy(), angle, width * n / 256, bend, 0.8 * n) for angle, width, bend in starts]
    while queue:
        point, angle, width, bend, length = queue.pop()
        steps = max(4, int(length))
        turn = -bend * 1.6 / (0.8 * n) + 0.02 * ndimage.gaussian_filter1d(rng.normal(size=steps), 6) * 2
        angles = angle + np.cumsum(turn)
        path = point + np.cumsum(np.c_[np.sin(angles), np.cos(angles)], axis=0)
        widths = width * np.linspace(1, 0.45, steps)
        draw_vessel(canvas, path, widths)
        if width > 0.9 * n / 256:
            for _ in range(rng.integers(2, 5)):
                at = int(rng.uniform(0.15, 0.8) * steps)
                side = rng.choice([-1, 1])
                child = (
                    path[at],
                    angles[at] + side * rng.uniform(0.5, 1.0),
                    widths[at] * 0.6,
                    0.0,
                    0.45 * (steps - at),
                )
                queue.append(child)
    return canvas


def lesion_mask(rng: np.random.Generator, n: int, centre: np.ndarray, area: float) -> np.ndarray:
    """(n, n) bool: a lobulated patch of the wanted area (share of the image) around `centre`, often with
    satellites, sometimes sparing the fovea."""
    rows, columns = np.mgrid[:n, :n]
    field = np.full((n, n), -np.inf)
    radius = np.sqrt(area / np.pi) * n
    for lobe in range(rng.integers(2, 6)):
        offset = rng.normal(0, 0.4, 2) * radius if lobe else np.zeros(2)
        stretch = rng.uniform(0.8, 1.25)
        distance = np.hypot((rows - centre[0] - offset[0]) * stretch, (columns - centre[1] - offset[1]) / stretch)
        field = np.maximum(field, -distance / (radius * rng.uniform(0.6, 1.0)))
    field = field + 0.06 * smooth_noise(rng, n, n / 40) + 0.1 * smooth_noise(rng, n, n / 16)
    if rng.random() < 0.25:  # foveal sparing
        field -= 1.2 * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (0.28 * radius) ** 2)
    threshold = np.quantile(field, 1 - area)
    return field > threshold


def make_fundus(rng: np.random.Generator, size: int = 128) -> Fundus:
    """A random photograph of `size` x `size` pixels."""
    n = size * OVERSAMPLING
    rows, columns = np.mgrid[:n, :n].astype(float)
    side = rng.choice([-1, 1])  # +1: the disc is on the right
    macula = n * np.array([rng.uniform(0.46, 0.54), 0.5 + rng.uniform(-0.06, 0.06)])
    disc = macula + n * np.array([rng.uniform(-0.06, 0.02), side * rng.uniform(0.34, 0.4)])
    aperture = np.hypot(rows - n / 2, columns - n / 2) < n * rng.uniform(0.485, 0.51)
    aperture &= np.abs(rows - n / 2) < n * rng.uniform(0.46, 0.5)

    # Choroid: broad, tortuous vessels between pale stroma, seen through the pigment epithelium.
    stroma = smooth_noise(rng, n, n / 70)
    choroid = 1 - 0.5 * np.exp(-((stroma / 0.45) ** 2))
    choroid = 0.85 * ndimage.gaussian_filter(choroid, n / 220) + 0.08 * smooth_noise(rng, n, n / 30)
    atrophy = lesion_mask(rng, n, macula + n * rng.normal(0, 0.04, 2), np.exp(rng.uniform(np.log(0.02), np.log(0.2))))
    edge = ndimage.gaussian_filter(atrophy.astype(float), n / 110)
    pigment = 1 + 0.12 * smooth_noise(rng, n, n / 8) + 0.1 * smooth_noise(rng, n, n / 120)
    pigment = np.clip(pigment * (1 - rng.uniform(0.2, 0.6) * edge), 0, None)
    rim = ndimage.gaussian_filter(atrophy.astype(float), n / 60) * (1 - edge)  # hyperpigmented border
    pigment += rng.uniform(0.0, 0.5) * rim
    drusen = np.clip(smooth_noise(rng, n, n / 110) - rng.uniform(2.2, 3.0), 0, 0.8)
    drusen *= np.exp(-((np.hypot(rows - macula[0], columns - macula[1]) / (0.28 * n)) ** 2))

    # Absorption per channel (red, green, blue) of pigment, blood and macular pigment.
    base = np.array([1.0, rng.uniform(0.62, 0.8), rng.uniform(0.3, 0.5)])
    density = rng.uniform(0.6, 0.95)
    colour = base * np.exp(-pigment[..., None] * density * np.array([0.22, 0.62, 0.95]))
    colour = colour * (0.55 + 0.45 * choroid[..., None] * (0.6 + 0.4 * edge[..., None]))
    fovea = np.exp(-((np.hypot(rows - macula[0], columns - macula[1]) / (0.11 * n)) ** 2)) * (1 - edge)
    colour *= np.exp(-fovea[..., None] * np.array([0.12, 0.3, 0.45]))
    colour += 0.25 * drusen[..., None] * np.array([0.8, 0.75, 0.4])
    disc_radius = n * rng.uniform(0.062, 0.075)
    on_disc = 1 / (1 + np.exp((np.hypot(rows - disc[0], (columns - disc[1]) * 1.1) - disc_radius) / (n / 160)))
    cup = np.exp(-((np.hypot(rows - disc[0], columns - disc[1]) / (0.6 * disc_radius)) ** 2))
    disc_colour = np.array([0.98, 0.78, 0.5]) * (0.82 + 0.18 * cup[..., None])
    colour = colour * (1 - 0.85 * on_disc[..., None]) + 0.85 * on_disc[..., None] * disc_colour
    blood = ndimage.gaussian_filter(grow_vessels(rng, n, disc, macula), 0.6)
    colour *= np.exp(-blood[..., None] * np.array([0.35, 1.0, 0.9]))

    # Illumination falls off from a centre that is not the picture's; a crescent of haze lies at one edge.
    lamp = n * (0.5 + rng.normal(0, 0.06, 2))
    fall = 1 - rng.uniform(0.35, 0.6) * (np.hypot(rows - lamp[0], columns - lamp[1]) / (0.5 * n)) ** 2 * 0.8
    image = colour * np.clip(fall, 0.15, None)[..., None] * rng.uniform(0.8, 1.05)
    theta = rng.uniform(0, 2 * np.pi)
    towards = ((rows - n / 2) * np.sin(theta) + (columns - n / 2) * np.cos(theta)) / (n / 2)
    haze = rng.uniform(0.05, 0.35) * np.clip(towards - 0.55, 0, None) * 2
    image = image + haze[..., None] * rng.uniform(0.4, 1.0, 3) + 0.02
    image *= ndimage.gaussian_filter(aperture.astype(float), n / 256)[..., None]

    image = ndimage.gaussian_filter(image, (0.8, 0.8, 0))
    image = image.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).mean(axis=(1, 3))
    grain = rng.normal(0, 0.018, (size, size, 1)) + rng.normal(0, 0.014, (size, size, 3))
    image = np.clip(image + grain * np.sqrt(np.clip(image, 0.002, 1)) * 1.5, 0, 1)
    mask = atrophy.reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3)) > 0.5
    return Fundus((255 * image).round().astype(np.uint8), mask)
