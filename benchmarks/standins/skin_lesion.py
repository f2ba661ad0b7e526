"""A dermoscopic photograph of a random pigmented lesion, with its mask.

Light passes the epidermis twice and is absorbed by melanin and blood (Beer-Lambert, one coefficient per colour), over
a scattering dermis. The lesion is more melanin within an irregular border, with a pigment network, globules, uneven
pigment and sometimes a bluish veil; around it are skin relief, hairs, gel bubbles, a vignette and sensor noise.
"""

import numpy as np
from scipy import ndimage

from benchmarks.standins.chest_ct import smooth_noise

# absorption per unit of pigment in red, green, blue; melanin falls with the wavelength, blood peaks in the green
MELANIN = np.array([0.55, 0.85, 1.25], np.float32)
BLOOD = np.array([0.12, 0.85, 0.75], np.float32)
DERMIS = np.array([0.95, 0.80, 0.70], np.float32)  # reflectance


def skin_lesion(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph, uint8 (H, W, 3), and mask of the lesion, bool (H, W).

    Args:
        rng: of the patient and the picture.
        height, width: pixels.
    """
    side = min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    shape = (height, width)

    def noise(part: float) -> np.ndarray:  # smooth over `part` of the picture
        return smooth_noise(rng, shape, part * side)

    centre = np.array([height, width]) * (0.5 + rng.uniform(-0.1, 0.1, 2))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.75, 1.3)
    y, x = rows - centre[0], columns - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = side * rng.uniform(0.14, 0.36)
    level = 1 - np.hypot(along / stretch, across * stretch) / radius  # 1 in the middle, 0 at the border
    level += rng.uniform(0.1, 0.25) * noise(0.09) + rng.uniform(0.02, 0.08) * noise(0.025)
    parts, count = ndimage.label(ndimage.binary_fill_holes(level > 0))
    mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else level > level.max() - 0.1
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    inside = 1 / (1 + np.exp(-distance / (side * rng.uniform(0.006, 0.03))))  # sharp or blurred border

    pigment = rng.uniform(0.3, 1.0) * (1 + 0.35 * noise(0.08))
    ridges = np.exp(-np.abs(noise(0.012)) * 3)  # the network: lines around holes
    globules = np.clip(noise(0.018) - 1.2, 0, 1)
    pigment = pigment * (1 + rng.uniform(0, 0.5) * (ridges - 0.5)) + rng.uniform(0, 0.8) * globules
    melanin = rng.uniform(0.05, 0.3) * (1 + 0.1 * noise(0.2)) + inside * np.clip(pigment, 0.1, None)
    blood = 0.12 + 0.05 * noise(0.12) + rng.uniform(0, 0.3) * inside * np.clip(noise(0.06), 0, None)
    relief = np.exp(-np.abs(noise(0.02)) * 6)  # skin lines
    melanin = melanin + 0.04 * relief
    light = DERMIS * np.exp(-melanin[..., None] * MELANIN - np.clip(blood, 0, None)[..., None] * BLOOD)
    if rng.random() < 0.25:  # a bluish-white veil
        veil = inside * np.clip(noise(0.1), 0, 1) * 0.5
        light = light * (1 - veil[..., None]) + veil[..., None] * np.array([0.5, 0.56, 0.68], np.float32)

    for _ in range(rng.integers(0, 14)):  # hairs
        start = rng.uniform(0, [height, width])
        turn, length = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.3, 1.0)
        steps = np.linspace(0, 1, int(2 * length))
        bend = turn + rng.uniform(-0.8, 0.8) * steps
        path = start + np.cumsum(np.stack([np.sin(bend), np.cos(bend)], 1) * length / len(steps), axis=0)
        inside_picture = ((path >= 0) & (path < [height - 1, width - 1])).all(1)
        drawn = np.zeros(shape, np.float32)
        drawn[tuple(path[inside_picture].round().astype(int).T)] = 1
        drawn = np.clip(ndimage.gaussian_filter(drawn, rng.uniform(0.45, 0.8) * max(side / 128, 0.5)) * 2.2, 0, 1)
        light = light * (1 - 0.8 * drawn[..., None])
    for _ in range(rng.integers(0, 5)):  # bubbles in the gel
        place, size = rng.uniform(0, [height, width]), side * rng.uniform(0.01, 0.035)
        ring = np.exp(-((np.hypot(rows - place[0], columns - place[1]) - size) ** 2) / 2)
        light = light + 0.25 * ring[..., None]

    away = np.hypot(rows - height / 2, columns - width / 2) / (0.5 * np.hypot(height, width))
    light = light * (1 - rng.uniform(0.1, 0.6) * away**3)[..., None] * rng.uniform(0.85, 1.1)
    if rng.random() < 0.25:  # the round field of a dermatoscope
        light = light * (1 / (1 + np.exp((away - rng.uniform(0.86, 0.95)) * 80)))[..., None]
    light = light * rng.uniform(0.93, 1.07, 3).astype(np.float32)  # white balance
    light = ndimage.gaussian_filter(light, (0.5, 0.5, 0)) + 0.012 * rng.standard_normal((height, width, 3))
    return np.round(255 * np.clip(light, 0, 1) ** (1 / 1.15)).astype(np.uint8), mask
