"""A random adult chest at the level of the heart: anatomy, attenuation at 140 keV and tracer uptake.

Coordinates are millimetres in the patient, origin in the midline half-way between breastbone and back at
the level of the heart: x towards the patient's left, y towards the back, z towards the head (LPS). Organs
are implicit surfaces with approximate signed distances, painted one over the other with edges one voxel
soft. Arms are up, as in the scanner.
"""

import math
from dataclasses import dataclass

import numpy as np

LABELS = {
    "air": 0, "soft tissue": 1, "fat": 2, "lung": 3, "spine": 4, "sternum": 5, "rib": 6, "liver": 7, "spleen": 8,
    "stomach": 9, "blood": 10, "right ventricle": 11, "myocardium": 12, "defect": 13,
}  # fmt: skip

# Linear attenuation at 140 keV, cm^-1, and uptake relative to the healthy wall of the left ventricle. Uptake of
# liver, spleen and defect differs between patients and is a field of Torso.
MU = {
    "soft tissue": 0.150, "fat": 0.138, "lung": 0.045, "spine": 0.25, "sternum": 0.25, "rib": 0.23, "liver": 0.158,
    "spleen": 0.156, "stomach": 0.145, "blood": 0.155, "right ventricle": 0.154, "myocardium": 0.154, "defect": 0.154,
}  # fmt: skip
UPTAKE = {
    "soft tissue": 0.08, "fat": 0.03, "lung": 0.04, "spine": 0.10, "sternum": 0.06, "rib": 0.05, "stomach": 0.07,
    "blood": 0.10, "right ventricle": 0.30, "myocardium": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """What a scanner sees of a torso on its grid, each (X, Y, Z): labels (uint8, see LABELS), mu_map in
    cm^-1 and activity relative to the healthy left-ventricular wall."""

    labels: np.ndarray
    mu_map: np.ndarray
    activity: np.ndarray


@dataclass(frozen=True)
class Torso:
    """One patient. Lengths in mm, angles in radians, uptakes relative to the healthy myocardium.

    Example:
        >>> torso = Torso.random(np.random.default_rng(0))
        >>> anatomy = torso.render((28, 28, 16), voxel_mm=10.0, centre_mm=torso.heart_centre)
        >>> anatomy.mu_map.shape, bool(anatomy.activity.max() <= 1.2)
        ((28, 28, 16), True)
    """

    half_width: float
    half_depth: float
    fat: float  # thickness under the skin
    breast: float  # radius; 0 for none
    lung_mu: float
    diaphragm: float  # height of the right dome below the heart's centre
    heart_centre: tuple[float, float, float]
    azimuth: float  # of the heart's axis (base to apex): 0 is anterior, pi/2 the patient's left
    descent: float  # of the axis below the horizontal
    length: float  # semi-axis of the left ventricle's outer surface along its axis
    radius: float  # and across
    wall: float
    liver_uptake: float
    spleen_uptake: float
    defect_uptake: float  # 1 for a healthy heart
    defect_angle: float  # around the axis
    defect_width: float  # half-width around the axis
    defect_along: float  # its centre along the axis, -1 base to 1 apex
    mottle_phase: tuple[float, ...]  # of the slow variation of uptake within organs

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Torso":
        """A patient drawn from `rng`; the same generator state gives the same patient."""
        has_breasts = rng.random() < 0.45
        has_defect = rng.random() < 0.6
        half_width, half_depth = rng.uniform(150, 180), rng.uniform(104, 125)
        radius = rng.uniform(29, 34)
        return cls(
            half_width=half_width,
            half_depth=half_depth,
            fat=rng.uniform(7, 22),
            breast=rng.uniform(45, 70) if has_breasts else 0.0,
            lung_mu=MU["lung"] * rng.uniform(0.85, 1.15),
            diaphragm=rng.uniform(18, 34),
            heart_centre=(rng.uniform(36, 50), -half_depth + rng.uniform(74, 86), rng.uniform(-5, 5)),
            azimuth=math.radians(rng.uniform(35, 65)),
            descent=math.radians(rng.uniform(10, 35)),
            length=rng.uniform(44, 54),
            radius=radius,
            wall=rng.uniform(10, 14),
            liver_uptake=rng.uniform(0.4, 0.9),
            spleen_uptake=rng.uniform(0.25, 0.5),
            defect_uptake=rng.uniform(0.2, 0.6) if has_defect else 1.0,
            defect_angle=rng.uniform(-math.pi, math.pi),
            defect_width=rng.uniform(0.45, 0.9),
            defect_along=rng.uniform(-0.2, 0.7),
            mottle_phase=tuple(rng.uniform(0, 2 * math.pi, 6).tolist()),
        )

    def render(
        self,
        shape: tuple[int, int, int],
        voxel_mm: float,
        centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Anatomy:
        """Voxelises the patient on a grid of cubic voxels whose centre lies at `centre_mm` of the patient."""
        x, y, z = (
            (np.arange(n, dtype=np.float32) - (n - 1) / 2) * voxel_mm + np.float32(c) for n, c in zip(shape, centre_mm)
        )
        x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
        painter = _Painter(tuple(shape), voxel_mm)
        self._paint_chest(painter, x, y, z)
        self._paint_abdomen(painter, x, y, z)
        self._paint_heart(painter, x, y, z)
        phase = self.mottle_phase
        mottle = np.sin(x / 23 + phase[0]) * np.sin(y / 19 + phase[1]) * np.sin(z / 21 + phase[2]) + np.sin(
            x / 11 + phase[3]
        ) * np.sin(y / 13 + phase[4]) * np.sin(z / 12 + phase[5])
        activity = painter.activity * (1 + 0.04 * mottle)
        return Anatomy(painter.labels, painter.mu, activity.astype(np.float32))

    def _paint_chest(self, painter: "_Painter", x, y, z) -> None:
        a, b = self.half_width, self.half_depth
        skin = _superellipse(x, y, a, b)
        if self.breast:
            for side in (-1, 1):
                centre = (side * 0.48 * a, -b + 6, 12.0)
                skin = np.minimum(
                    skin, _ellipsoid(x, y, z, centre, (self.breast, 0.62 * self.breast, 0.95 * self.breast))
                )
        painter.paint("fat", skin)
        painter.paint("soft tissue", _superellipse(x, y, a - self.fat, b - self.fat))

        wall = self.fat + 16  # skin to pleura
        cavity = _superellipse(x, y, a - wall, b - wall)
        # Ribs run in the chest wall and slope down from the spine to the front.
        slope = z + 0.30 * (-y) + 4.0 * np.cos(x / 60)
        ribs = np.abs((slope + 200) % 27.0 - 13.5) - 4.5
        in_wall = np.abs(cavity - 4.5) - 4.0
        painter.paint("rib", np.maximum(np.maximum(ribs, in_wall), 14 - np.abs(x)))
        for side in (-1, 1):  # the left lung leaves room for the heart, which is painted later
            lung = _ellipsoid(x, y, z, (side * 0.46 * a, 0.07 * b, 45), (0.40 * a, 0.92 * (b - wall), 150))
            mediastinum = 28 - 16 * (y / b) ** 2 - side * x
            painter.paint("lung", np.maximum(np.maximum(lung, cavity), mediastinum), mu=self.lung_mu)
        painter.paint("blood", np.hypot(x - 22, y - (b - 78)) - 11 + 0 * z)  # descending aorta
        painter.paint("spine", _ellipsoid(x, y, 0 * z, (0, b - self.fat - 46, 0), (20, 17, 1)))
        painter.paint("spine", np.maximum(np.abs(x) - 4, np.abs(y - (b - self.fat - 20)) - 14) + 0 * z)
        painter.paint("sternum", np.maximum(np.abs(x) - 17, np.abs(y + b - self.fat - 9) - 5) + 0 * z)

    def _paint_abdomen(self, painter: "_Painter", x, y, z) -> None:
        a, b = self.half_width, self.half_depth
        inside = _superellipse(x, y, a - self.fat - 18, b - self.fat - 18)
        # Two domes; below them there is no lung.
        right = z + self.diaphragm + ((x + 0.42 * a) ** 2 + y**2) / 260
        left = z + self.diaphragm + 14 + ((x - 0.42 * a) ** 2 + y**2) / 260
        below = np.maximum(np.minimum(right, left), inside)
        painter.paint("soft tissue", below)
        cx, cy, cz = self.heart_centre
        floor = cz - self.inferior_reach  # the inferior wall rests on the diaphragm and the liver's left lobe
        liver_right = _ellipsoid(x, y, z, (-0.42 * a, 4, -self.diaphragm - 62), (0.52 * a, 0.74 * b, 64))
        liver_left = _ellipsoid(x, y, z, (0.02 * a, cy + 6, floor - 24), (0.33 * a, 0.34 * b, 25))
        painter.paint("liver", np.maximum(np.minimum(liver_right, liver_left), inside), uptake=self.liver_uptake)
        stomach = _ellipsoid(x, y, z, (0.40 * a, -0.10 * b, floor - 36), (0.22 * a, 0.36 * b, 30))
        painter.paint("stomach", np.maximum(stomach, inside))
        spleen = _ellipsoid(x, y, z, (0.58 * a, 0.42 * b, -self.diaphragm - 52), (0.15 * a, 0.32 * b, 42))
        painter.paint("spleen", np.maximum(spleen, inside), uptake=self.spleen_uptake)

    @property
    def inferior_reach(self) -> float:
        """How far the left ventricle reaches below the heart's centre, mm."""
        return math.hypot(self.radius * math.cos(self.descent), self.length * math.sin(self.descent))

    def _paint_heart(self, painter: "_Painter", x, y, z) -> None:
        cx, cy, cz = self.heart_centre
        apex = np.array(
            [
                math.sin(self.azimuth) * math.cos(self.descent),
                -math.cos(self.azimuth) * math.cos(self.descent),
                -math.sin(self.descent),
            ]
        )
        septal = np.cross((0.0, 0.0, 1.0), apex)  # horizontal, across the axis, towards the septum (right, front)
        septal = -septal / np.linalg.norm(septal)
        septal *= np.sign(septal @ (-1.0, -1.0, 0.0))
        superior = np.cross(septal, apex)
        superior *= np.sign(superior[2])
        long, across, up = (
            (x - cx) * e[0] + (y - cy) * e[1] + (z - cz) * e[2] for e in (apex, septal, superior)
        )  # coordinates of the heart, (X, Y, Z) each
        length, radius, wall = self.length, self.radius, self.wall

        # Pericardial tissue, atria behind the base, and the right ventricle wrapped around the septum.
        centre = (-8, 0.30 * radius, 0)
        painter.paint("soft tissue", _ellipsoid(long, across, up, centre, (length + 14, 1.55 * radius, radius + 8)))
        painter.paint("blood", _ellipsoid(long, across, up, (-0.95 * length, 4, 4), (24, 30, 26)))
        right_outer = _ellipsoid(
            long, across, up, (-6, 0.85 * radius, -2), (0.88 * length, 0.92 * radius, 0.85 * radius)
        )
        base = -0.45 * length - long  # > 0 behind the basal plane
        right_outer = np.maximum(right_outer, base)
        painter.paint("right ventricle", right_outer)
        painter.paint("blood", right_outer + 4.0)

        outer = _ellipsoid(long, across, up, (0, 0, 0), (length, radius, radius))
        inner = _ellipsoid(long, across, up, (0, 0, 0), (length - wall, radius - wall, radius - wall))
        painter.paint("myocardium", np.maximum(outer, base))
        if self.defect_uptake < 1.0:
            angle = np.arctan2(up, across) - self.defect_angle
            angle = np.abs((angle + math.pi) % (2 * math.pi) - math.pi)  # distance around the axis
            aside = (angle - self.defect_width) * (radius - wall / 2)  # mm outside the sector
            along = np.abs(long - self.defect_along * length) - 0.35 * length
            sector = np.maximum(np.maximum(aside, along), np.maximum(outer, base))
            painter.paint("defect", sector, uptake=self.defect_uptake)
        painter.paint("blood", np.maximum(inner, base))


class _Painter:
    """Three volumes that organs are painted into, the later over the earlier."""

    def __init__(self, shape: tuple[int, int, int], voxel_mm: float):
        self.voxel_mm = voxel_mm
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.mu = np.zeros(shape, dtype=np.float32)
        self.activity = np.zeros(shape, dtype=np.float32)

    def paint(self, organ: str, distance: np.ndarray, mu: float | None = None, uptake: float | None = None) -> None:
        """`distance`: mm outside the organ's surface, negative inside; the edge is one voxel soft."""
        distance = np.broadcast_to(np.asarray(distance, dtype=np.float32), self.mu.shape)
        fraction = np.clip(0.5 - distance / np.float32(self.voxel_mm), 0.0, 1.0)
        self.mu += fraction * (np.float32(MU[organ] if mu is None else mu) - self.mu)
        self.activity += fraction * (np.float32(UPTAKE[organ] if uptake is None else uptake) - self.activity)
        self.labels[fraction > 0.5] = LABELS[organ]


def _ellipsoid(x, y, z, centre, semi_axes) -> np.ndarray:
    """Approximate signed distance to an ellipsoid, mm; exact on the surface, first order near it."""
    offsets = [(p - np.float32(c)) / np.float32(s) for p, c, s in zip((x, y, z), centre, semi_axes)]
    level = np.sqrt(sum(o**2 for o in offsets) + np.float32(1e-12))
    slope = np.sqrt(sum((o / np.float32(s)) ** 2 for o, s in zip(offsets, semi_axes)) + np.float32(1e-12))
    return level * (level - 1) / slope


def _superellipse(x, y, half_width: float, half_depth: float, exponent: float = 2.6) -> np.ndarray:
    """Approximate signed distance to an upright cylinder with a superelliptic section, mm, (X, Y, 1)."""
    u, v = np.abs(x) / np.float32(half_width), np.abs(y) / np.float32(half_depth)
    level = (u**exponent + v**exponent + 1e-12) ** (1 / exponent)
    slope = np.hypot((u / level) ** (exponent - 1) / half_width, (v / level) ** (exponent - 1) / half_depth)
    return (level - 1) / slope
