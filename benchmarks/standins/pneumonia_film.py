"""Simulated chest films of children, frontal, with and without pneumonia: line integrals of attenuation.

The thickness of soft tissue, bone and lung along each ray is given by ellipsoids and curved tubes; the film shows the
logarithm of the transmission, so that dense parts are white, as radiologists have it.
"""

import numpy as np
from scipy import ndimage

SOFT, BONE, LUNG = 0.20, 0.46, 0.055  # attenuation in 1 / cm at about 50 keV


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """(size, size) noise of about unit variance, correlated over `scale` pixels."""
    coarse = max(1, int(scale / 2))  # what varies slowly is drawn on a coarser grid
    count = -(-size // coarse) + 1
    field = ndimage.gaussian_filter(rng.standard_normal((count, count)), scale / coarse, mode="reflect")
    places = np.arange(size) / coarse
    low = places.astype(int)
    rest = places - low
    field = field[low] * (1 - rest)[:, None] + field[low + 1 - (rest == 0)] * rest[:, None]
    field = field[:, low] * (1 - rest) + field[:, low + 1 - (rest == 0)] * rest
    return field / field.std()


def ellipsoid(x, y, centre, half, depth, angle=0.0) -> np.ndarray:
    """Thickness in cm along the ray of an ellipsoid with half axes `half` in the film and `depth` across it."""
    dx, dy = x - centre[0], y - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / half[0]
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / half[1]
    return 2 * depth * np.sqrt(np.clip(1 - u**2 - v**2, 0, None))


def tube(distance, radius) -> np.ndarray:
    """Thickness of a tube whose axis passes the ray at `distance`, both in cm."""
    return 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))


def soft_step(value, width) -> np.ndarray:
    """From 0 to 1 as `value` goes from -width to width."""
    return np.clip(value / (2 * width) + 0.5, 0, 1)


def lungs(x, y, rng: np.random.Generator) -> list[np.ndarray]:
    """Thickness in cm of the right and the left lung (the patient's right is on the left of the film)."""
    found = []
    height = rng.uniform(0.88, 1.1)  # depth of breath
    for side in (-1, 1):
        centre = (side * rng.uniform(3.7, 4.2), -0.2 + rng.normal(0, 0.15))
        half = (rng.uniform(3.0, 3.5), 6.3 * height)
        lung = ellipsoid(x, y, centre, half, rng.uniform(4.2, 5.0), side * rng.uniform(0.02, 0.12))
        dome = y - (4.3 * height + 0.05 * (x - centre[0] + side * 0.4) ** 2 - (0.9 if side < 0 else 0.4))
        lung = lung * (1 - soft_step(dome, 0.25))  # diaphragm
        found.append(lung * soft_step(side * x - rng.uniform(0.9, 1.4), 0.3))
    return found


def bones(x, y, rng: np.random.Generator) -> np.ndarray:
    """Thickness in cm of bone: spine, ribs from behind and from the front, clavicles."""
    spine = tube(x - rng.normal(0, 0.08), 0.9) * (0.75 + 0.25 * np.cos(2 * np.pi * y / 1.5 + rng.uniform(0, 6)))
    bone = 0.5 * spine
    spacing = rng.uniform(1.35, 1.6)
    for k in range(-5, 6):
        arch = k * spacing + rng.normal(0, 0.05) + 0.4
        wide = np.abs(x) / 7.2
        back = arch - 0.6 + 1.9 * wide**1.6
        bone = bone + 1.0 * tube(y - back, 0.34) * soft_step(6.9 - np.abs(x), 0.3) * soft_step(np.abs(x) - 0.9, 0.2)
        front = arch + 3.4 - 2.6 * wide
        bone = bone + 0.6 * tube(y - front, 0.36) * soft_step(6.9 - np.abs(x), 0.3) * soft_step(np.abs(x) - 2.6, 0.6)
    collar = -5.9 + rng.normal(0, 0.2) - 0.16 * np.abs(x) + 0.05 * np.sin(np.abs(x))
    return bone + 0.7 * tube(y - collar, 0.36) * soft_step(np.abs(x) - 0.9, 0.3) * soft_step(7.5 - np.abs(x), 0.3)


def consolidation(x, y, lung: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Share of the air that fluid has replaced: lobar, patchy or diffuse, with branching bronchi left open."""
    size = len(x)
    share = np.zeros_like(x)
    for _ in range(rng.integers(1, 4)):
        side = rng.integers(2)
        inside = np.argwhere(lung[side] > 3)
        row, column = inside[rng.integers(len(inside))]
        spread = rng.uniform(0.9, 2.6)
        distance = np.hypot(x - x[row, column], (y - y[row, column]) * rng.uniform(0.7, 1.2))
        ragged = distance / spread + 0.35 * smooth_noise(rng, size, size / 16)
        blob = np.clip(1.25 - ragged, 0, 1) * rng.uniform(0.4, 1.0) * (lung[side] > 0)
        hilum = (-1 if side == 0 else 1) * 1.6
        theta = np.arctan2(y - 0.3, x - hilum)
        bronchi = np.cos(theta * rng.uniform(9, 13) + 0.5 * smooth_noise(rng, size, size / 12)) > 0.86
        share = np.maximum(share, blob * (1 - 0.45 * bronchi))
    if rng.random() < 0.4:  # diffuse haze around the hila
        share = np.maximum(share, rng.uniform(0.15, 0.45) * np.exp(-((np.abs(x) - 2) ** 2 + y**2) / 18))
    return share * np.clip(0.8 + 0.3 * smooth_noise(rng, size, size / 28), 0, 1.2)


def make_chest_film(rng: np.random.Generator, pneumonia: bool, size: int = 112) -> np.ndarray:
    """One film, (size, size) uint8. Turn, size, breath, exposure, contrast, scatter and noise vary."""
    y, x = ((np.mgrid[:size, :size] + 0.5) / size - 0.5) * rng.uniform(13.5, 16.5)  # cm
    angle = rng.normal(0, 0.04)
    x, y = np.cos(angle) * x + np.sin(angle) * y + rng.normal(0, 0.4), np.cos(angle) * y - np.sin(angle) * x
    y = y + rng.normal(0, 0.5)
    body = ellipsoid(x, y, (0, 3), (8.2, 17), 6.5)
    shoulders = ellipsoid(x, y, (0, -4.6), (11.5, 2.6), 3.0, rng.normal(0, 0.05))
    neck = ellipsoid(x, y, (0, -8.5), (2.4, 3.6), 1.8)
    arms = sum(ellipsoid(x, y, (side * 10.4, 2), (2.0, 9), 2.2, side * 0.15) for side in (-1, 1))
    lung = lungs(x, y, rng)
    air = lung[0] + lung[1]
    heart = ellipsoid(x, y, (rng.uniform(0.7, 1.3), 2.3), (rng.uniform(2.9, 3.7), rng.uniform(2.6, 3.2)), 3.4, 0.5)
    thymus = ellipsoid(x, y, (0, -3.4), (rng.uniform(1.2, 2.2), 3.2), 2.0)
    air = np.clip(air - 0.75 * heart - 0.6 * thymus, 0, None)
    trachea = tube(x - rng.normal(0, 0.15), 0.5) * soft_step(-2.2 - y, 0.6)
    markings = np.zeros_like(x)
    for side in (-1, 1):  # vessels fan out from the hila
        theta = np.arctan2(y - 0.3, side * x - 1.4)
        reach = np.hypot(y - 0.3, side * x - 1.4)
        fan = np.abs(np.sin(theta * rng.uniform(5, 8) + rng.uniform(0, 6) + 0.4 * smooth_noise(rng, size, size / 14)))
        markings += (fan > 0.8) * np.exp(-reach / 2.8) * (side * x > 0)
    filled = rng.uniform(0.1, 0.3) * markings
    if pneumonia:
        filled = np.maximum(filled, consolidation(x, y, lung, rng))
    tissue = np.maximum(body, shoulders) * 0.75 + 0.25 * (body + shoulders) + arms + neck
    soft = np.clip(tissue - air - trachea, 0, None)
    integral = SOFT * (soft + air * filled) + LUNG * air * (1 - filled) + (BONE - SOFT) * bones(x, y, rng) * (body > 1)
    scatter = ndimage.gaussian_filter(np.exp(-integral), size / 9)
    transmission = np.exp(-integral) + rng.uniform(0.2, 0.5) * scatter
    photons = rng.uniform(4e3, 1.6e4)
    transmission = transmission + np.sqrt(transmission / photons) * rng.standard_normal(x.shape)
    density = -np.log(np.clip(transmission, 1e-4, None))
    density = ndimage.gaussian_filter(density, 0.6)
    low, high = np.quantile(density, [0.01, 0.99])
    film = (density - low) / (high - low) * rng.uniform(0.75, 1.0) + rng.uniform(0.0, 0.12)
    film = np.clip(film, 0, 1) ** rng.uniform(0.8, 1.25)
    return (255 * film).round().astype(np.uint8)
