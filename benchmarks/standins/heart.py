"""A beating heart in its surroundings, and the cine MR that shows it in short-axis slices.

Geometry is analytic and in millimetres. The long axis of the left ventricle is z, 0 at the apex of its cavity
and growing to the base; a slice is the plane (x, y) as it is displayed: x to the right (the patient's left
and posterior), y down (inferior). The right ventricle lies to the left, the anterior chest wall at the upper
left, the left lung to the right, the diaphragm with liver and stomach below.

    heart = Heart.random(np.random.default_rng(0), "NOR")
    grid = Grid((96, 96), 2.0, np.arange(10) * 9.0 - 4.0, thickness_mm=8.0)
    cine = acquire(paint(heart, grid, contraction_curve(8), bssfp_values(rng)), rng, noise=0.04)
    structures = label(heart, grid, contraction=0.0)  # at end-diastole, see STRUCTURES

`paint` takes one value a tissue, so any other modality is another table of values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

# Structures of `label`; what a data set does not annotate, its stand-in sets to 0.
STRUCTURES = {"rv": 1, "myocardium": 2, "lv": 3, "rv_wall": 4, "la": 5, "ra": 6, "great_vessels": 7, "aorta": 8}
GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")  # the five groups of ACDC

# T1 and T2 in ms at 1.5 T, and proton density relative to water.
TISSUES = {
    "air": (1.0, 1.0, 0.0),
    "lung": (1200.0, 40.0, 0.12),
    "blood": (1550.0, 240.0, 0.95),
    "myocardium": (1030.0, 48.0, 0.80),
    "fat": (290.0, 85.0, 0.90),
    "muscle": (1000.0, 38.0, 0.78),
    "liver": (590.0, 46.0, 0.75),
    "spleen": (1050.0, 78.0, 0.80),
    "stomach": (1500.0, 180.0, 0.75),
    "marrow": (550.0, 52.0, 0.65),
}


@dataclass(frozen=True)
class Grid:
    """Where slices lie: (rows, columns) of square pixels about the origin, and the height z of each slice."""

    shape: tuple[int, int]
    """rows, columns"""
    pixel_mm: float
    z_mm: np.ndarray
    """(Z,) height of the middle of each slice"""
    thickness_mm: float
    shifts_mm: np.ndarray | None = None
    """(Z, 2) x and y by which each slice is off its place: breath-holds differ"""

    def points(self, z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (Z, 1, X), y (Z, Y, 1), z (Z, 1, 1) of all pixels, float32."""
        rows, columns = self.shape
        y = (np.arange(rows) - (rows - 1) / 2) * self.pixel_mm
        x = (np.arange(columns) - (columns - 1) / 2) * self.pixel_mm
        shifts = np.zeros((len(z_mm), 2)) if self.shifts_mm is None else self.shifts_mm
        x = x[None, None, :] - shifts[:, 0, None, None]
        y = y[None, :, None] - shifts[:, 1, None, None]
        return x.astype(np.float32), y.astype(np.float32), np.asarray(z_mm, np.float32)[:, None, None]


@dataclass(frozen=True)
class Heart:
    """One patient: lengths in mm at end-diastole, angles in radians as displayed (0 right, pi/2 down)."""

    length: float = 88.0
    """of the left ventricle, apex of the cavity to the mitral valve"""
    radius: float = 24.0
    """largest inner radius of the left ventricle"""
    wall: float = 9.5
    """thickness of its wall"""
    septal_wall: float = 0.0
    """further thickness of the septum (hypertrophic cardiomyopathy)"""
    shortening: float = 0.34
    """fraction by which the inner radius shrinks until end-systole"""
    thickening: float = 0.45
    """fraction by which the wall thickens"""
    infarct: float = 0.0
    """fraction of the contraction that an infarcted sector has lost"""
    infarct_angle: float = -1.5
    rv_width: float = 30.0
    """largest width of the right ventricle, septum to free wall"""
    rv_apex: float = 0.14
    """height of the right ventricle's apex, as a fraction of the length"""
    rv_shortening: float = 0.35
    septum_angle: float = math.pi
    """direction from the left ventricle to the middle of the septum"""
    centre: tuple[float, float] = (0.0, 0.0)
    """x, y of the long axis at half its length"""
    tilt: tuple[float, float] = (0.0, 0.0)
    """x, y that the axis gains from apex to base"""
    size: float = 1.0
    """of the body around the heart"""
    roundness: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """second and third harmonics of the inner outline: amplitude, phase, amplitude, phase"""
    stomach_gas: bool = False
    surroundings: dict = field(default_factory=dict)
    """x, y offsets in mm of aorta, spine, liver, stomach, atria"""

    @staticmethod
    def random(rng: np.random.Generator, group: str = "NOR") -> "Heart":
        """A patient of one of the five groups of ACDC: normal, infarct, dilated, hypertrophic, right ventricle."""
        if group not in GROUPS:
            raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
        size = rng.normal(1.0, 0.07)
        dilated, thick, right = (group == name for name in ("DCM", "HCM", "RV"))
        shortening = rng.normal(0.33, 0.03)
        if dilated:
            shortening = rng.uniform(0.06, 0.16)
        if thick:
            shortening = rng.normal(0.40, 0.03)
        infarct = rng.uniform(0.6, 1.0) if group == "MINF" else 0.0
        names = ("aorta", "spine", "liver", "stomach", "atria")
        return Heart(
            length=size * rng.normal(88, 5) * (1.1 if dilated else 1.0),
            radius=size * rng.normal(24, 1.8) * (1.35 if dilated else 0.92 if thick else 1.0),
            wall=size * (rng.normal(9.3, 0.9) * (0.85 if dilated else 1.35 if thick else 1.0)),
            septal_wall=rng.uniform(3, 8) if thick else 0.0,
            shortening=float(shortening),
            thickening=0.15 if dilated else 0.45,
            infarct=float(infarct),
            infarct_angle=float(rng.uniform(-math.pi, math.pi)),
            rv_width=size * rng.normal(29, 3.5) * (1.45 if right else 1.0),
            rv_apex=float(rng.uniform(0.06, 0.22)),
            rv_shortening=float(rng.uniform(0.1, 0.2) if right else rng.normal(0.36, 0.05)),
            septum_angle=float(math.pi + rng.normal(0.15, 0.25)),
            centre=tuple(rng.normal(0, 8, 2).tolist()),
            tilt=tuple(rng.normal(0, 6, 2).tolist()),
            size=float(size),
            roundness=tuple(rng.normal(0, [0.03, math.pi, 0.02, math.pi]).tolist()),
            stomach_gas=bool(rng.random() < 0.4),
            surroundings={name: tuple(rng.normal(0, 6, 2).tolist()) for name in names},
        )

    def at(self, contraction: float) -> "Phase":
        """The heart at a phase: 0 end-diastole, 1 end-systole."""
        return Phase(self, float(contraction))


def contraction_curve(phases: int) -> np.ndarray:
    """(phases,) contraction over one cycle: systole takes a third of it and filling has two steps."""
    time = np.arange(phases) / phases
    systole = np.sin(np.clip(time / 0.35, 0, 1) * math.pi / 2) ** 2
    filling = 1 - 0.75 / (1 + np.exp(-(time - 0.52) / 0.04)) - 0.25 / (1 + np.exp(-(time - 0.86) / 0.03))
    return np.where(time <= 0.35, systole, np.clip(filling, 0, 1))


def _wrap(angle: np.ndarray) -> np.ndarray:
    """The same angle between -pi and pi."""
    return (angle + np.float32(math.pi)) % np.float32(2 * math.pi) - np.float32(math.pi)


def _ellipse(x, y, centre: tuple[float, float], axes: tuple, angle: float = 0.0):
    """About the distance in mm outside an ellipse (negative inside); its half-axes may vary from slice to slice."""
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = x - centre[0], y - centre[1]
    a, b = (np.maximum(axis, 1e-3) for axis in axes)
    q = np.sqrt(((u * cos + v * sin) / a) ** 2 + ((v * cos - u * sin) / b) ** 2)
    return (q - 1) * np.minimum(a, b)


@dataclass(frozen=True)
class Phase:
    """Distances in mm to the structures of a heart at one phase, negative inside."""

    heart: Heart
    contraction: float

    def distances(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
        """Structures in the order in which they are painted, later over earlier; broadcasting (Z, Y, X)."""
        h, c = self.heart, self.contraction
        length = h.length * (1 - 0.15 * c * h.shortening / 0.33)  # the base comes down, the apex stays
        shift = (z / h.length - 0.5).clip(-0.7, 0.8)
        x, y = x - h.centre[0] - h.tilt[0] * shift, y - h.centre[1] - h.tilt[1] * shift
        rho, theta = np.hypot(x, y), np.arctan2(y, x)
        from_septum = _wrap(theta - h.septum_angle)

        # Left ventricle: two ellipsoids, widest at 0.8 of the length; the outer one reaches below the apex.
        sector = np.exp(-(_wrap(theta - h.infarct_angle) ** 2) / 0.9)
        active = c * (1 - h.infarct * sector)
        a2, p2, a3, p3 = h.roundness
        outline = 1 + a2 * np.cos(2 * theta - p2) + a3 * np.cos(3 * theta - p3)
        inner_profile = np.sqrt((1 - ((z / length - 0.8) / 0.8) ** 2).clip(0))
        inner = h.radius * (1 - h.shortening * active) * outline * inner_profile
        apex_wall = 0.6 * h.wall
        height = (z + apex_wall) / (length + apex_wall)
        outer_profile = np.sqrt((1 - ((height - 0.8) / 0.8) ** 2).clip(0))
        septal = h.septal_wall * np.cos(from_septum).clip(0) ** 2 * (1 - 0.5 * h.infarct * sector)
        thickness = (h.wall * (1 - 0.3 * h.infarct * sector) + septal) * (1 + h.thickening * active)
        outer = (h.radius * (1 - h.shortening * active) * outline + thickness) * outer_profile
        above = z - length
        cavity = np.maximum(rho - np.minimum(inner, outer), above)
        epicardium = np.maximum(np.maximum(rho - outer, above), -z - apex_wall)
        outer_end = np.where(above > 0, outer * np.exp(-((above.clip(0) / 25) ** 2)), outer)

        # Right ventricle: a crescent on the septum that begins above the apex and opens towards the base.
        rise = ((z / length - h.rv_apex) / (0.75 - h.rv_apex)).clip(0, 1)
        spread = 0.95 + 0.55 * rise
        width = h.rv_width * (1 - h.rv_shortening * c) * rise**0.7
        crescent = width * (1 - (from_septum / spread) ** 2).clip(0) ** 0.6
        end = 1.04 * length + 4
        rv = np.maximum(np.maximum(rho - outer_end - crescent, outer_end - rho), z - end)
        rv = np.where(crescent > 1.0, rv, np.maximum(rv, 3.0))
        rv_wall = np.maximum(np.maximum(rho - outer_end - crescent - 3.5 * (crescent > 1.0), outer_end - rho), z - end)

        # Papillary muscles belong to the cavity, as in ACDC's annotation.
        middle = inner * 0.62
        muscle_radius = 4.3 * (1 + 0.2 * c) * h.size * np.sin((z / length - 0.2).clip(0, 0.5) / 0.5 * math.pi)
        papillary = np.full(np.broadcast_shapes(rho.shape, z.shape), np.float32(50))
        for angle in (h.septum_angle + 2.3, h.septum_angle - 2.2):
            distance = np.hypot(x - middle * math.cos(angle), y - middle * math.sin(angle)) - muscle_radius
            papillary = np.minimum(papillary, np.where(muscle_radius > 0.8, distance, 50))

        # Above the valve plane: atria, the root of the aorta and the pulmonary trunk.
        ax, ay = h.surroundings.get("atria", (0, 0))
        opening = (1 - np.exp(-above.clip(0) / 6)) * h.size
        closed = np.where(above > 0, 0, 50)
        cs, ss = math.cos(h.septum_angle), math.sin(h.septum_angle)
        la = _ellipse(x, y, (12 + 0.3 * ax, 14 + 0.3 * ay), (26 * opening, 19 * opening), 0.5) + closed
        ra = _ellipse(x, y, (38 * cs - 3, 38 * ss + 24), (22 * opening, 20 * opening)) + closed
        root = _ellipse(x, y, (20 * cs + 4, 20 * ss - 10), (13 * h.size, 13 * h.size)) + np.where(above > -4, 0, 50)
        trunk = _ellipse(x, y, (28 * cs + 12, 28 * ss - 30), (12 * opening, 12 * opening)) + closed
        sac = np.minimum.reduce([rho - outer_end, rv_wall, la, ra, root, trunk])
        sac = np.where(z > -apex_wall, sac + np.sin(2 * theta + 1.0), 50)
        return {
            "sac": sac, "rv_wall": rv_wall, "rv": rv, "trunk": trunk, "ra": ra, "la": la,
            "epicardium": epicardium, "lv": cavity, "root": root, "papillary": papillary,
        }  # fmt: skip

    def body(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
        """What lies around the heart, in the order of painting; lungs are what is left in the chest."""
        h, s = self.heart, self.heart.size
        around = {name: h.surroundings.get(name, (0, 0)) for name in ("aorta", "spine", "liver", "stomach")}
        level = z / h.length  # 0 apex, 1 base
        body = _ellipse(x, y, (44 * s, 22 * s), (142 * s, 112 * s), 0.45)
        chest = body + 24 * s
        diaphragm = 26 * s + 34 * level + 0.0026 * (x + 12 - around["liver"][0]) ** 2 + around["liver"][1] - y
        (ax, ay), (px, py) = around["aorta"], around["spine"]
        aorta = _ellipse(x, y, (66 * s + 0.5 * ax, 34 * s + 0.5 * ay), (11.5 * s, 11.5 * s))
        spine = _ellipse(x, y, (96 * s + 0.5 * px, 58 * s + 0.5 * py), (21 * s, 19 * s))
        gx, gy = around["stomach"]
        # Only in the lower half of the stack: the stomach, and the spleen behind it.
        fade = 1 - ((level - 0.35) / 0.3).clip(0, 1)
        stomach = _ellipse(x, y, (22 * s + gx, 60 * s + 26 * level + gy), (30 * s * fade, 20 * s * fade), 0.2)
        stomach = np.where(fade > 0.05, stomach, 50)
        spleen = _ellipse(x, y, (62 * s + gx, 74 * s + 30 * level), (22 * s * fade, 15 * s * fade), -0.5)
        spleen = np.where(fade > 0.05, spleen, 50)
        return {
            "body": body, "wall": body + 13 * s, "chest": chest,
            "liver": np.maximum(diaphragm, chest), "stomach": np.maximum(stomach, chest),
            "spleen": np.maximum(spleen, chest), "spine": spine, "aorta": aorta,
        }  # fmt: skip


# Which tissue each structure is made of, in the order of painting: first the surroundings, then the heart.
AROUND = {
    "body": "fat", "wall": "muscle", "chest": "lung", "liver": "liver", "stomach": "stomach", "spleen": "spleen",
    "spine": "marrow", "aorta": "blood",
}  # fmt: skip
INSIDE = {
    "sac": "fat", "rv_wall": "myocardium", "rv": "blood", "trunk": "blood", "ra": "blood", "la": "blood",
    "epicardium": "myocardium", "lv": "blood", "root": "blood", "papillary": "myocardium",
}  # fmt: skip
EPICARDIAL_FAT_MM = 2.2


def paint(
    heart: Heart, grid: Grid, contractions: Sequence[float], values: dict[str, float], sublevels: int = 3
) -> np.ndarray:
    """Slices (P, Z, Y, X), float32, of a quantity that has one value per tissue, at P phases.

    Pixels at a border hold a mixture by area, and every slice is the mean over its thickness.

    Args:
        contractions: of each phase, 0 end-diastole to 1 end-systole.
        values: of the keys of TISSUES.
        sublevels: planes within the thickness that are averaged.
    """

    def cover(plane: np.ndarray, distance: np.ndarray, value: float) -> None:
        plane += np.clip(0.5 - distance / grid.pixel_mm, 0, 1) * (value - plane)

    total = np.zeros((len(contractions), len(grid.z_mm), *grid.shape), np.float32)
    if heart.stomach_gas:
        values = {**values, "stomach": values["air"]}
    for offset in (np.arange(sublevels) - (sublevels - 1) / 2) / sublevels * grid.thickness_mm:
        x, y, z = grid.points(grid.z_mm + offset)
        around = np.full(total.shape[1:], values["air"], np.float32)
        for name, distance in heart.at(0.0).body(x, y, z).items():
            cover(around, distance, values[AROUND[name]])
        for number, contraction in enumerate(contractions):
            plane = around.copy()
            for name, distance in heart.at(contraction).distances(x, y, z).items():
                grown = EPICARDIAL_FAT_MM * heart.size if name == "sac" else 0.0
                cover(plane, distance - grown, values[INSIDE[name]])
            total[number] += plane / sublevels
    return total


def label(heart: Heart, grid: Grid, contraction: float) -> np.ndarray:
    """Structure at the middle of each slice (Z, Y, X), uint8, numbers of STRUCTURES; 0 is everything else."""
    x, y, z = grid.points(grid.z_mm)
    phase = heart.at(contraction)
    distances = phase.distances(x, y, z)
    result = np.zeros((len(grid.z_mm), *grid.shape), np.uint8)
    result[np.broadcast_to(phase.body(x, y, z)["aorta"] < 0, result.shape)] = STRUCTURES["aorta"]
    order = {
        "rv_wall": "rv_wall", "rv": "rv", "trunk": "great_vessels", "ra": "ra", "la": "la",
        "epicardium": "myocardium", "lv": "lv", "root": "great_vessels",
    }  # fmt: skip
    for name, structure in order.items():
        result[np.broadcast_to(distances[name] < 0, result.shape)] = STRUCTURES[structure]
    return result


def bssfp_values(
    rng: np.random.Generator, variation: float = 0.12, flip_degrees: float | None = None, contrast_agent: float = 0.0
) -> dict[str, float]:
    """Signal of every tissue in balanced steady-state free precession, the sequence of cine MR.

    M = PD sin(a) exp(-TE/T2) / (1 + cos(a) + (1 - cos(a)) T1/T2), on resonance with TR much shorter than T2.

    Args:
        variation: standard deviation of the logarithm of T1, T2 and density over patients.
        flip_degrees: flip angle a; None draws 45 to 70.
        contrast_agent: concentration times relaxivity in blood, 1/s, which shortens its T1.
    """
    angle = math.radians(rng.uniform(45, 70) if flip_degrees is None else flip_degrees)
    signals = {}
    for tissue, (t1, t2, density) in TISSUES.items():
        t1, t2, density = np.array([t1, t2, density]) * np.exp(rng.normal(0, variation, 3) * [1, 1, 0.5])
        share = {"blood": 1.0, "myocardium": 0.35}.get(tissue, 0.3)
        t1 = 1000 / (1000 / t1 + contrast_agent * share)
        t2 = min(t2, t1)
        cos = math.cos(angle)
        signals[tissue] = float(density * math.sin(angle) * math.exp(-1.5 / t2) / (1 + cos + (1 - cos) * t1 / t2))
    signals["air"] = 0.0
    return signals


def acquire(
    image: np.ndarray, rng: np.random.Generator, noise: float = 0.03, resolution: float = 0.75, bias: float = 0.35
) -> np.ndarray:
    """What the scanner makes of the signal: texture, coil sensitivity, sampling of k-space, Rician noise.

    Args:
        image: (..., Z, Y, X) signal; leading axes are phases of one examination, with the same coils.
        noise: standard deviation of the complex noise per channel, relative to the 99th percentile of the signal.
        resolution: fraction of k-space that is sampled along the rows (phase encoding).
        bias: strength of the coils' sensitivity field (standard deviation of its logarithm).

    Returns:
        magnitude, float32, of the same shape.
    """
    rows, columns = image.shape[-2:]
    texture = gaussian_filter(rng.normal(0, 1, image.shape[-3:]).astype(np.float32), (0, 1.2, 1.2))
    image = image * (1 + 0.05 * texture / max(texture.std(), 1e-6))
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    terms = np.stack([x, y, x * y, x**2 - 1 / 3, y**2 - 1 / 3])
    weights = rng.normal(0, [0.5, 0.5, 0.3, 0.3, 0.3]) - [0.4, 0.4, 0, 0, 0]  # surface coils lie on the chest
    image = image * np.exp(bias * np.tensordot(weights, terms, 1)).astype(np.float32)
    spectrum = np.fft.rfft2(image)
    frequency = np.abs(np.fft.fftfreq(rows))[:, None]
    spectrum *= np.clip((0.5 * resolution - frequency) / 0.05 + 0.5, 0, 1)
    image = np.fft.irfft2(spectrum, s=(rows, columns)).astype(np.float32)
    sigma = noise * np.percentile(image, 99)
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))
