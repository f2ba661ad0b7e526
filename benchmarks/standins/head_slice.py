"""Axial MR slices of a head at the level of the lateral ventricles: anatomy, contrast, noise; known masks.

Coordinates are in units of half the field of view, x to the right and y to the front of the head. The cortex
is folded by construction: sulci run along the zero lines of band-passed noise and narrow with depth; what lies
close to fluid is grey matter.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

OVERSAMPLING = 2  # the anatomy is drawn finer and averaged: partial volume


@dataclass(frozen=True)
class Head:
    """Tissue fractions (size, size) each, and the masks that are known exactly."""

    tissues: dict[str, np.ndarray]
    """share of each tissue in each pixel: scalp, skull, fluid, grey, white, deep; what is left is air"""
    ventricles: np.ndarray
    """(size, size) bool"""
    white: np.ndarray
    """(size, size) bool"""


def smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Gaussian noise blurred to a scale of `sigma` pixels, standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return noise / noise.std()


def folds(rng: np.random.Generator, size: int, wavelength: float) -> np.ndarray:
    """Band-passed noise of one wavelength (in pixels): its zero lines meander like sulci."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    band = np.exp(-(((frequency - 1 / wavelength) * wavelength * 2.5) ** 2))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * band).real
    return field / field.std()


def distance_to_curve(x: np.ndarray, y: np.ndarray, points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Distance to a smooth curve through `points` (K, 2), less its width there: negative inside."""
    from scipy.interpolate import make_interp_spline

    knots = np.linspace(0, 1, len(points))
    curve = make_interp_spline(knots, np.c_[points, widths], k=2)(np.linspace(0, 1, 6 * len(points)))
    x, y = x.astype(np.float32), y.astype(np.float32)
    nearest = np.full(x.shape, np.inf, np.float32)
    for column, row, width in curve.astype(np.float32):
        np.minimum(nearest, np.sqrt((x - column) ** 2 + (y - row) ** 2) - width, out=nearest)
    return nearest


def make_head(rng: np.random.Generator, size: int = 128, ventricle_width: tuple[float, float] = (0.8, 1.7)) -> Head:
    """A random head.

    Args:
        size: pixels along each side.
        ventricle_width: range of the width of the ventricles, 1 is a healthy adult, 1.7 marked atrophy.
    """
    n = size * OVERSAMPLING
    columns, rows = np.meshgrid((np.arange(n) + 0.5) / n * 2 - 1, 1 - (np.arange(n) + 0.5) / n * 2)
    angle = rng.uniform(-0.12, 0.12)
    x = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(-0.04, 0.04)
    y = -columns * np.sin(angle) + rows * np.cos(angle) + rng.uniform(-0.04, 0.04)
    x = x + 0.012 * smooth_noise(rng, n, n / 14)
    y = y + 0.012 * smooth_noise(rng, n, n / 14)

    # Head, skull and brain are nested ellipses; the brain is a little narrower at the front.
    half_width, half_length = rng.uniform(0.68, 0.74), rng.uniform(0.84, 0.9)
    radius = np.hypot(x / (half_width * (1 - 0.1 * y)), y / half_length)
    scalp = (radius < 1) & (radius >= 0.925)
    skull = (radius < 0.925) & (radius >= 0.86)
    inside = radius < 0.86
    atrophy = rng.uniform(*ventricle_width)
    brain = radius < 0.835 - 0.008 * atrophy

    # Sulci, the fissure between the hemispheres and the Sylvian fissures.
    depth = ndimage.distance_transform_edt(brain) / n * 2
    field = folds(rng, n, n * rng.uniform(0.11, 0.135))
    sulci = np.abs(field) < (0.16 + 0.06 * atrophy) * np.clip(1 - depth / 0.24, 0, 1)
    midline = np.abs(x + 0.01 * np.sin(6 * y))
    sulci |= (midline < 0.012) & ((y > 0.42) | (y < -0.46))
    for side in (-1, 1):
        fissure = np.array([[side * 0.62, 0.12], [side * 0.47, 0.06], [side * 0.42, -0.08]])
        sulci |= distance_to_curve(x, y, fissure + rng.normal(0, 0.015, (3, 2)), np.array([0.03, 0.022, 0.01])) < 0
    sulci &= brain

    # Lateral ventricles: a frontal horn, a body near the midline and a trigone on either side.
    lateral = np.zeros_like(brain)
    deep = np.zeros_like(brain)
    for side in (-1, 1):
        wide = atrophy * rng.uniform(0.85, 1.15)
        curve = np.array([[0.17, 0.34], [0.09, 0.2], [0.06, 0.02], [0.12, -0.17], [0.24, -0.35]])
        curve += rng.normal(0, 0.012, curve.shape)
        curve[:, 0] = side * (curve[:, 0] + 0.02 * (wide - 1) + 0.01)
        widths = wide * np.array([0.035, 0.06, 0.045, 0.055, 0.075]) * rng.uniform(0.85, 1.15, 5)
        lateral |= distance_to_curve(x, y, curve, widths) < 0
        caudate = np.array([[side * 0.27, 0.3], [side * 0.19, 0.12]])
        thalamus = np.array([[side * 0.17, 0.0], [side * 0.22, -0.12]])
        putamen = np.array([[side * 0.36, 0.2], [side * 0.38, -0.02]])
        for points, width in ((caudate, 0.05), (thalamus, 0.075), (putamen, 0.05)):
            points = np.insert(points, 1, points.mean(0) + rng.normal(0, 0.01, 2), axis=0)
            deep |= distance_to_curve(x, y, points, width * np.array([0.8, 1.1, 0.8])) < 0
    lateral &= midline > 0.008  # septum pellucidum
    third = (midline < 0.012 + 0.01 * atrophy) & (y < 0.02) & (y > -0.14)

    fluid = (inside & ~brain) | sulci | lateral | third
    cortex_fluid = (inside & ~brain) | sulci | ~inside
    thickness = 0.042 * (1 + 0.15 * smooth_noise(rng, n, n / 20))
    grey = brain & ~fluid & (ndimage.distance_transform_edt(~cortex_fluid) / n * 2 < thickness)
    deep &= brain & ~fluid & ~grey
    white = brain & ~fluid & ~grey & ~deep

    def share(mask: np.ndarray) -> np.ndarray:
        return mask.reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3))

    parts = {"scalp": scalp, "skull": skull, "fluid": fluid, "grey": grey, "white": white, "deep": deep}
    return Head({name: share(mask) for name, mask in parts.items()}, share(lateral) > 0.5, share(white) > 0.5)


def contrast(head: Head, intensities: dict[str, float], rng: np.random.Generator, texture: float = 0.03) -> np.ndarray:
    """Signal without noise: mean of each tissue, with a texture of its own at the scale of 1.5 pixels.

    Args:
        intensities: signal per tissue; air has none.
        texture: standard deviation relative to the signal.
    """
    size = head.ventricles.shape[0]
    signal = np.zeros((size, size))
    for name, share in head.tissues.items():
        signal += share * intensities[name] * (1 + texture * smooth_noise(rng, size, 1.5))
    return signal


def acquire(signal: np.ndarray, rng: np.random.Generator, noise: float, bias: float = 0.25) -> np.ndarray:
    """Receive-coil bias, point spread of the sampled k-space, Rician noise.

    Args:
        noise: standard deviation in each channel, in units of the signal.
        bias: largest deviation of the bias field from 1.
    """
    size = signal.shape[0]
    field = smooth_noise(rng, size, size / 3)
    field = 1 + bias * field / np.abs(field).max()
    signal = ndimage.gaussian_filter(signal * field, 0.5)
    real, imaginary = rng.normal(0, noise, (2, size, size))
    return np.hypot(signal + real, imaginary)
