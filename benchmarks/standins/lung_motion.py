"""Breathing lungs in 4D-CT: branching vessels, a diaphragm that moves, and sliding along the chest wall.

The anatomy is drawn once, at maximum expiration (T50). A phase t has a displacement field u_t on its own coordinates:
what is at x in phase t is at x + u_t(x) at expiration. Inside the rib cage everything follows that field; ribs and
chest wall stay where they are, so lung and liver slide along them. Air is drawn in: the density of the parenchyma
falls with the volume that the field makes room for. All positions are (x, y, z) in mm, R, A, S.
"""

from dataclasses import dataclass

import numpy as np

HALF_CAGE = np.array([125.0, 85.0, 135.0])
"""Half-axes of the rib cage [mm]"""


@dataclass(frozen=True)
class Chest:
    """A patient."""

    scale: np.ndarray
    """size along each axis, about 1"""
    domes: np.ndarray
    """(2,) height of the right and the left dome of the diaphragm at expiration [mm]"""
    stroke_mm: np.ndarray
    """(2,) descent of each dome from expiration to inspiration"""
    expansion_mm: float
    """forward motion of the front at inspiration"""
    waves: np.ndarray
    """(3, 6) amplitudes [mm], frequencies and phases of regional motion"""
    segments: np.ndarray
    """(S, 7) vessels: start, end, radius [mm], at expiration"""
    knots: np.ndarray
    """(N, 3) bifurcations [mm], at expiration"""
    parenchyma_hu: float
    """CT number of the lung at expiration"""


def cage(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Below 1 inside the rib cage: an ellipsoid, open below."""
    x, y, z = (points[i] / (HALF_CAGE[i] * scale[i]) for i in range(3))
    return x**2 + y**2 + np.where(z > 0, np.abs(z) ** 2.4, 0.15 * z**2)


def mediastinum(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Below 1 in heart, great vessels and spine."""
    x, y, z = (points[i] / scale[i] for i in range(3))
    heart = ((x + 25) / 52) ** 2 + ((y - 22) / 48) ** 2 + ((z + 45) / 55) ** 2
    trunk = (x / (20 + 0.06 * np.abs(z))) ** 2 + ((y - 2) / 55) ** 2
    spine = (x / 30) ** 2 + ((y + 68) / 26) ** 2
    return np.minimum(np.minimum(heart, trunk), spine)


def diaphragm(points: np.ndarray, chest: Chest) -> np.ndarray:
    """Height above the diaphragm at expiration [mm]; two domes that fall off towards the wall."""
    x, y = points[0] / chest.scale[0], points[1] / chest.scale[1]
    right = chest.domes[0] - 0.008 * (x - 65) ** 2 - 0.007 * y**2
    left = chest.domes[1] - 0.008 * (x + 65) ** 2 - 0.007 * y**2
    return points[2] - np.maximum(right, left)


def lung_side(points: np.ndarray, chest: Chest) -> np.ndarray:
    """1 in the right lung, 2 in the left one, 0 elsewhere, at expiration."""
    inside = (cage(points, chest.scale) < 1) & (mediastinum(points, chest.scale) > 1) & (diaphragm(points, chest) > 0)
    return np.where(inside, np.where(points[0] > 0, 1, 2), 0).astype(np.uint8)


def _tree(rng: np.random.Generator, side: int, chest_scale: np.ndarray, inside, generations: int):
    """Segments and bifurcations of one lung's vessels, grown from the hilum."""
    sign = 1 if side == 1 else -1
    hilum = np.array([sign * 32.0, -5.0, 0.0]) * chest_scale
    segments, knots = [], []
    tips = []
    for target in ((95, 0, 75), (100, 35, -10), (85, -45, -35), (70, 30, -55)):
        direction = np.array([sign * target[0], target[1], target[2]]) * chest_scale - hilum
        tips.append((hilum, direction / np.linalg.norm(direction), 5.2, 34.0))
    for generation in range(generations):
        following = []
        for start, direction, radius, length in tips:
            end = start + direction * length * rng.uniform(0.8, 1.2)
            if generation > 0 and not inside(end):
                continue
            segments.append([*start, *end, radius])
            knots.append(end)
            plane = np.linalg.qr(np.column_stack([direction, rng.standard_normal((3, 2))]))[0][:, 1:]
            turn = rng.uniform(0, 2 * np.pi)
            aside = plane @ np.array([np.cos(turn), np.sin(turn)])
            for way in (1, -1):
                angle = np.deg2rad(rng.uniform(25, 50))
                child = np.cos(angle) * direction + way * np.sin(angle) * aside
                following.append((end, child / np.linalg.norm(child), 0.8 * radius, 0.82 * length))
        tips = following
    return segments, knots


def make_chest(rng: np.random.Generator, generations: int = 5, stroke_mm: float | None = None) -> Chest:
    """A random patient.

    Args:
        rng: generator.
        generations: of the vessels.
        stroke_mm: mean descent of the diaphragm; drawn between 12 and 45 if None.
    """
    scale = 1 + 0.06 * rng.standard_normal(3)
    stroke = rng.uniform(12, 45) if stroke_mm is None else stroke_mm
    waves = np.stack([rng.normal(0, 1.2, 6), rng.uniform(0.5, 1.3, 6), rng.uniform(0, 2 * np.pi, 6)])
    chest = Chest(
        scale=scale,
        domes=np.array([rng.uniform(-45, -30), rng.uniform(-55, -38)]),
        stroke_mm=stroke * rng.uniform(0.85, 1.15, 2),
        expansion_mm=rng.uniform(2, 8),
        waves=waves,
        segments=np.zeros((0, 7)),
        knots=np.zeros((0, 3)),
        parenchyma_hu=rng.uniform(-800, -720),
    )
    segments, knots = [], []
    for side in (1, 2):

        def inside(point: np.ndarray, side: int = side) -> bool:
            near = cage(point, scale) < 0.9
            return bool(near and diaphragm(point, chest) > 4 and lung_side(point[:, None], chest)[0] == side)

        grown, ends = _tree(rng, side, scale, inside, generations)
        segments += grown
        knots += [end for end in ends if inside(end)]
    return Chest(**{**chest.__dict__, "segments": np.array(segments), "knots": np.array(knots)})


def displacement(chest: Chest, points: np.ndarray, phase: float) -> np.ndarray:
    """u_t (3, ...) [mm] inside the rib cage: from phase coordinates to those of expiration.

    Args:
        points: (3, ...) [mm], in the coordinates of the phase.
        phase: 0 at expiration, 1 at maximum inspiration.
    """
    x, y, z = points
    base = chest.domes.mean() - chest.stroke_mm.mean()
    top = 0.85 * HALF_CAGE[2] * chest.scale[2]
    depth = np.clip((top - z) / (top - base), 0, 1.25)  # 0 at the apex, 1 at the base
    side = 1 / (1 + np.exp(-x / 15))
    stroke = chest.stroke_mm[0] * side + chest.stroke_mm[1] * (1 - side)
    wall = np.clip(1 - cage(points, chest.scale), 0, 1)  # motion across the wall dies out towards it
    back = 0.8 + 0.2 * np.clip(-y / 60, -1, 1)  # the back moves more
    up = stroke * depth**1.6 * back
    forward = -chest.expansion_mm * wall * np.clip(y / 60 + 0.5, 0, 1.2)
    waves = [np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)]
    for number, (amplitude, frequency, start) in enumerate(chest.waves.T):
        along = points[number % 3] / 60 + 0.6 * points[(number + 1) % 3] / 60
        waves[number % 3] = waves[number % 3] + amplitude * np.sin(2 * np.pi * frequency * along / 2 + start)
    ripple = np.stack(waves) * np.minimum(1, 2 * wall) * np.clip(depth, 0, 1)
    return (phase * (np.stack([np.zeros_like(x), forward, up]) + ripple)).astype(points.dtype)


def to_phase(chest: Chest, points: np.ndarray, phase: float, iterations: int = 60) -> np.ndarray:
    """Positions (3, N) of expiration in the coordinates of a phase: solves x + u(x) = point by fixed point."""
    guess = points.copy()
    for _ in range(iterations):
        guess = guess + 0.7 * (points - guess - displacement(chest, guess, phase))
    return guess


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside (negative), 0 outside, over about `width` mm."""
    return np.clip(0.5 - distance / width, 0, 1)


def vessels(chest: Chest, axes: list[np.ndarray], blur_mm: float) -> np.ndarray:
    """Share of vessel (X, Y, Z) on a grid at expiration; each segment is drawn in its own box."""
    share = np.zeros([len(axis) for axis in axes], np.float32)
    for *ends, radius in chest.segments:
        start, end = np.array(ends[:3]), np.array(ends[3:])
        reach = radius + blur_mm
        box = []
        for axis, a, b in zip(axes, start, end):
            first, last = np.searchsorted(axis, [min(a, b) - reach, max(a, b) + reach])
            box.append(slice(first, last))
        points = np.stack(np.meshgrid(*(axis[part] for axis, part in zip(axes, box)), indexing="ij"))
        if points.size == 0:
            continue
        direction = end - start
        offset = points - start[:, None, None, None]
        along = np.clip(np.tensordot(direction, offset, 1) / (direction @ direction), 0, 1)
        away = np.sqrt(((offset - direction[:, None, None, None] * along) ** 2).sum(0))
        share[tuple(box)] = np.maximum(share[tuple(box)], _soft(away - radius, blur_mm))
    return share


def ct(chest: Chest, size, spacing_mm, phase: float, rng: np.random.Generator, noise_hu: float = 25.0):
    """CT numbers and lung mask of a phase on a grid centred on the chest.

    Returns:
        int16 HU (X, Y, Z) and bool (X, Y, Z).
    """
    from scipy.ndimage import map_coordinates

    axes = [((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(size, spacing_mm)]
    axes[2] = axes[2] + 10
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    u = displacement(chest, points, phase)
    before = points + u  # where it was at expiration
    side = lung_side(before, chest)
    inside = cage(points, chest.scale) < 1
    lung = inside & (side > 0)

    fine = [np.arange(a[0] - 6, a[-1] + 56, 0.6 * min(spacing_mm), dtype=np.float32) for a in axes]
    share = vessels(chest, fine, blur_mm=1.2 * min(spacing_mm))
    index = np.stack([(before[i] - fine[i][0]) / (fine[i][1] - fine[i][0]) for i in range(3)])
    share = map_coordinates(share, index, order=1, mode="nearest")

    gradient = [np.gradient(part, *spacing_mm) for part in u]
    jacobian = np.linalg.det(np.moveaxis(np.array(gradient), (0, 1), (-2, -1)) + np.eye(3, dtype=np.float32))
    air = chest.parenchyma_hu + 1000
    parenchyma = air * np.clip(jacobian, 0.3, 1.3) - 1000  # mass per volume follows the expansion
    texture = 12 * np.sin(before[0] / 9) * np.sin(before[1] / 11 + 1) * np.sin(before[2] / 8 + 2)
    image = np.where(lung, parenchyma + texture, 40.0)
    image = np.where(lung, image + share * (40 - image), image)
    # Chest wall: ribs in bands, muscle, fat, skin, air. It stays where it is.
    ring = cage(points, chest.scale)
    outer = (points[0] / (HALF_CAGE[0] * 1.28)) ** 2 + (points[1] / (HALF_CAGE[1] * 1.35)) ** 2
    slope = points[2] + 0.5 * points[1]
    ribs = (ring > 1.06) & (ring < 1.3) & (np.cos(2 * np.pi * slope / 28) > 0.35)
    wall = np.where(ribs, 320.0, np.where(ring < 1.35, 45.0, -90.0))
    image = np.where(inside, image, wall)
    bone = ((points[0] / 18) ** 2 + ((points[1] + 72 * chest.scale[1]) / 17) ** 2) < 1
    image = np.where(bone, 260.0, image)
    image = np.where(outer > 1, -1000.0, image)
    image = image + noise_hu * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, -1024, 1500).astype(np.int16), lung & (outer < 1) & ~bone
