"""A contrast-enhanced CT of a random abdomen, in Hounsfield units, with eight organs labelled.

Coordinates are millimetres in the patient: x towards the patient's left, y towards the back, z towards the head (LPS),
z = 0 at the second lumbar vertebra. Organs are implicit surfaces with approximate signed distances, bent by a smooth
random field and painted one over the other with edges one pixel soft; thick slices average sub-slices. Neighbours
overlap in CT number, and bowel loops, duodenum and veins look like organs, so place and shape must be learnt.

The noise is that of filtered back-projection: quantum noise of every ray, with a variance that grows with the
attenuation along it, through the ramp filter. It gives the grain and the streaks between the ribs and the spine.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from benchmarks.standins.chest_ct import smooth_noise

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")  # 1 to 8
MU_WATER = 0.019  # per mm, at 70 keV


@dataclass(frozen=True)
class Scan:
    """One CT: `hu` int16 and `labels` uint8 (0, or 1 + index in ORGANS), each (X, Y, Z) in LPS order; spacing in mm."""

    hu: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]


def abdomen_ct(
    rng: np.random.Generator,
    pixels: int,
    slices: int,
    field_of_view: float | None = None,
    top: float = 118.0,
    bottom: float = -62.0,
    thickness: float = 5.0,
) -> Scan:
    """One patient's scan.

    Args:
        rng: of the patient and the scan.
        pixels: of a side of the square slices.
        slices: evenly spaced between `bottom` and `top`, the lowest first.
        field_of_view: mm; None is that of the patient.
        top, bottom: of the scan, mm.
        thickness: of a slice, mm.
    """
    half_width = rng.uniform(138, 172)
    half_depth = half_width * rng.uniform(0.66, 0.78)
    field_of_view = field_of_view or 2 * half_width + rng.uniform(6, 30)
    pixel = field_of_view / pixels
    spacing_z = (top - bottom) / slices
    centres = bottom + (np.arange(slices) + 0.5) * spacing_z
    offsets = (-thickness / 3, 0.0, thickness / 3)
    z = (centres[:, None] + np.array(offsets)).ravel()  # three sub-slices for each slice
    xy = (np.arange(pixels) - (pixels - 1) / 2) * pixel
    painter = _Painter(xy + rng.uniform(-4, 4), xy + rng.uniform(-6, 6), z, pixel, rng)
    _Abdomen(half_width, half_depth, rng).paint(painter)
    hu = painter.hu.reshape(pixels, pixels, slices, 3).mean(axis=3)
    labels = painter.labels.reshape(pixels, pixels, slices, 3)[..., 1]
    hu = ndimage.gaussian_filter(hu, (0.8, 0.8, 0), truncate=3)  # point spread of the scanner
    hu += fbp_noise(hu, pixel, rng, level=rng.uniform(11, 20))
    hu = np.clip(np.round(hu), -1024, 3071).astype(np.int16)
    return Scan(hu, np.ascontiguousarray(labels), (pixel, pixel, spacing_z))


def fbp_noise(hu: np.ndarray, pixel: float, rng: np.random.Generator, level: float, angles: int = 40) -> np.ndarray:
    """Noise of filtered back-projection for each slice of (X, Y, Z), in HU.

    The logarithm of a Poisson count N has the variance 1/N, and N falls as exp(-line integral). Each ray's noise is
    filtered by a ramp with a Hann window and smeared back along the ray.

    Args:
        hu: the noiseless volume.
        pixel: side, mm.
        level: standard deviation in HU over all pixels.
        angles: of the parallel-beam scanner over 180 degrees.
    """
    width, depth, slices = hu.shape
    mu = (np.maximum(hu, -1000) * 1e-3 + 1).astype(np.float32).reshape(-1, slices) * np.float32(MU_WATER * pixel)
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(depth) - (depth - 1) / 2
    rays = int(math.ceil(math.hypot(width, depth))) + 3
    frequency = np.fft.rfftfreq(rays)
    ramp = frequency * (0.5 + 0.5 * np.cos(2 * np.pi * frequency))
    noise = np.zeros((width * depth, slices), np.float32)
    for angle in (np.arange(angles) + rng.random()) * math.pi / angles:
        place = (x[:, None] * math.cos(angle) + y[None] * math.sin(angle)).ravel() + rays / 2
        first = place.astype(np.intp)
        right = (place - first).astype(np.float32)[:, None]
        order = np.argsort(first, kind="stable")
        starts = np.searchsorted(first[order], np.arange(rays))
        sums = np.add.reduceat(np.concatenate([mu[order], np.zeros((1, slices), np.float32)]), starts, axis=0)
        sums[np.diff(np.append(starts, len(order))) == 0] = 0
        deviation = np.exp(0.5 * np.minimum(sums, 12.0))
        filtered = np.fft.irfft(
            np.fft.rfft(deviation * rng.standard_normal(sums.shape, dtype=np.float32), axis=0) * ramp[:, None],
            rays, axis=0,
        ).astype(np.float32)  # fmt: skip
        noise += filtered[first] * (1 - right) + filtered[first + 1] * right
    noise *= np.float32(level) / noise.std()
    return noise.reshape(hu.shape)


class _Painter:
    """A volume of CT numbers and one of labels; structures are painted in order, the later over the earlier."""

    def __init__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, pixel: float, rng: np.random.Generator):
        shape = (len(x), len(y), len(z))
        self.pixel, self.rng = np.float32(pixel), rng
        self.hu = np.full(shape, -1000, np.float32)
        self.labels = np.zeros(shape, np.uint8)
        grid = np.meshgrid(x, y, z, indexing="ij", sparse=True)
        # the anatomy is bent by some millimetres, smoothly over some centimetres
        self.coordinates = [
            (axis + amplitude * self._field(rng, x, y, z, 45.0)).astype(np.float32)
            for axis, amplitude in zip(grid, (5.0, 5.0, 6.0))
        ]
        self.grain = self._field(rng, x, y, z, 7.0)  # texture and lobules, centimetre scale
        self.fine = self._field(rng, x, y, z, 3.5)

    @staticmethod
    def _field(rng, x, y, z, length: float) -> np.ndarray:
        """Smooth random field of unit variance with correlation length `length` mm, on the volume's grid."""
        step = length / 2
        counts = [int(abs(axis[-1] - axis[0]) / step) + 6 for axis in (x, y, z)]
        coarse = smooth_noise(rng, tuple(counts), 1.2)
        places = [(axis - axis[0]) / step + 2 for axis in (x, y, z)]
        for dimension, place in enumerate(places):  # separable linear interpolation
            low = place.astype(int)
            weight = (place - low).reshape([-1 if d == dimension else 1 for d in range(3)]).astype(np.float32)
            coarse = np.take(coarse, low, dimension) * (1 - weight) + np.take(coarse, low + 1, dimension) * weight
        return coarse

    def box(self, low, high):
        """Slices of the voxels that can lie between two corners, with a margin for the bending."""
        parts = []
        for dimension, (axis, a, b) in enumerate(zip(self.coordinates, low, high)):
            others = tuple(d for d in range(3) if d != dimension)
            inside = np.flatnonzero((axis.max(axis=others) >= a - 3) & (axis.min(axis=others) <= b + 3))
            if len(inside) == 0:
                return None
            parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return tuple(parts)

    def paint(self, distance, hu, label: int | None = None, part=(slice(None),) * 3) -> None:
        """`distance`: mm outside the surface in `part` of the volume; `hu`: number or array."""
        fraction = np.clip(0.5 - distance / self.pixel, 0, 1)
        self.hu[part] += fraction * (hu - self.hu[part])
        if label is not None:
            self.labels[part][fraction > 0.5] = label

    def ellipsoid(self, centre, axes, part=(slice(None),) * 3, tilt: float = 0.0):
        """Approximate signed distance; `tilt` turns it in the x-z plane, radians."""
        x, y, z = (axis[part] - np.float32(c) for axis, c in zip(self.coordinates, centre))
        if tilt:
            x, z = x * math.cos(tilt) - z * math.sin(tilt), x * math.sin(tilt) + z * math.cos(tilt)
        offsets = [p / np.float32(s) for p, s in zip((x, y, z), axes)]
        level = np.sqrt(sum(o * o for o in offsets) + np.float32(1e-6))
        slope = np.sqrt(sum((o / np.float32(s)) ** 2 for o, s in zip(offsets, axes)) + np.float32(1e-8))
        return level * (level - 1) / slope

    def tube(self, points: np.ndarray, radii: np.ndarray):
        """Signed distance to a chain of tapered capsules, and the part of the volume that holds it, or None."""
        reach = radii.max() + 4
        part = self.box(points.min(axis=0) - reach, points.max(axis=0) + reach)
        if part is None:
            return None
        x, y, z = (axis[part] for axis in self.coordinates)
        best = None
        for a, b, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:]):
            along = (b - a).astype(np.float32)
            t = (x - a[0]) * along[0] + (y - a[1]) * along[1] + (z - a[2]) * along[2]
            t = np.clip(t / max(float(along @ along), 1e-3), 0, 1).astype(np.float32)
            square = (x - a[0] - t * along[0]) ** 2 + (y - a[1] - t * along[1]) ** 2 + (z - a[2] - t * along[2]) ** 2
            distance = np.sqrt(square) - (np.float32(r0) + t * np.float32(r1 - r0))
            best = distance if best is None else np.minimum(best, distance)
        return best.astype(np.float32), part


def spline(points, count: int = 14) -> np.ndarray:
    """A smooth curve through control points (N, 3), as `count` points."""
    from scipy.interpolate import CubicSpline

    points = np.asarray(points, float)
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    return CubicSpline(length, points)(np.linspace(0, length[-1], count))


class _Abdomen:
    """A patient: sizes, places and CT numbers, drawn from `rng`."""

    def __init__(self, half_width: float, half_depth: float, rng: np.random.Generator):
        self.a, self.b, self.rng = half_width, half_depth, rng
        self.fat = rng.uniform(7, 24)
        self.wall = self.fat + rng.uniform(11, 15)
        self.arterial = rng.random() < 0.3  # else portal venous
        u = rng.uniform
        self.hu = {
            "liver": u(60, 80) if self.arterial else u(84, 114),
            "spleen": u(95, 125) if not self.arterial else u(85, 120),
            "cortex": u(150, 195),
            "medulla": u(120, 160) if not self.arterial else u(60, 85),
            "pancreas": u(72, 102) if not self.arterial else u(85, 112),
            "aorta": u(130, 180) if not self.arterial else u(215, 280),
            "vein": u(125, 165) if not self.arterial else u(70, 110),
            "gallbladder": u(2, 22), "muscle": u(52, 66), "fat": u(-112, -96), "bowel": u(62, 96),
        }  # fmt: skip
        self.spine_y = self.b - self.fat - u(40, 46)
        self.shift = u(-10, 10)  # of the upper abdominal organs along z

    def paint(self, p: _Painter) -> None:
        self._body(p)
        self._gut(p)
        self._vessels(p)
        self._kidneys(p)
        self._spleen(p)
        self._liver(p)
        self._stomach(p)
        self._pancreas(p)
        self._lungs(p)

    def _shell(self, p: _Painter, inset: float):
        """Signed distance to the body's outline, `inset` mm under the skin."""
        x, y, _ = p.coordinates
        a, b = np.float32(self.a - inset), np.float32(self.b - inset)
        u, v = np.abs(x) / a, np.abs(y) / b
        level = (u**2.5 + v**2.5 + np.float32(1e-9)) ** np.float32(0.4)
        return (level - 1) * np.float32(min(self.a, self.b) - inset)

    def _body(self, p: _Painter) -> None:
        x, y, z = p.coordinates
        p.paint(self._shell(p, 0), np.float32(45.0))
        p.paint(self._shell(p, 2.0), np.float32(self.hu["fat"]) + 5 * p.grain)
        wall = self._shell(p, self.fat)
        p.paint(wall, np.float32(self.hu["muscle"]) - 45 * np.clip(p.fine - 1.2, 0, 1))
        self.inside = self._shell(p, self.wall)
        # ribs: arcs in the wall that slope down to the front, absent below the twelfth
        slope = z + 0.42 * y + np.float32(6)
        ribs = np.abs((slope + 400) % 30 - 15) - 5
        ribs = np.maximum(np.maximum(ribs, np.abs(wall + 5.0) - 3.6), 22 - z - 0.5 * y)
        ribs = np.maximum(ribs, 25 - np.abs(x))
        p.paint(ribs, np.float32(330) + 250 * np.clip(ribs + 2.0, 0, 1))
        p.paint(np.maximum(self.inside, y - np.float32(self.spine_y) - 8), np.float32(self.hu["fat"]) + 7 * p.grain)
        for side in (-1, 1):  # erector spinae, psoas, and the crura of the diaphragm
            erector = p.ellipsoid((side * 34, self.spine_y + 30, 0), (31, 21, 900))
            p.paint(erector, np.float32(self.hu["muscle"]) - 60 * np.clip(p.fine - 0.9, 0, 1))
            psoas = p.ellipsoid((side * 37, self.spine_y - 2, -60), (17, 19, 62))
            p.paint(psoas, np.float32(self.hu["muscle"]))
            crus = p.ellipsoid((side * 15, self.spine_y - 24, 40), (9, 8, 60))
            p.paint(crus, np.float32(self.hu["muscle"]))
        body = p.ellipsoid((0, self.spine_y, 0), (23, 18, 900))
        disc = np.abs((z + 300) % 36 - 18) > 14
        cortex = np.clip(1.6 + body / 3, 0, 1)  # 1 at the surface
        p.paint(body, np.where(disc, np.float32(95), 190 + 300 * cortex + 30 * p.fine))
        arch = np.maximum(np.abs(x) - 13, np.abs(y - np.float32(self.spine_y + 28)) - 13)
        p.paint(arch, np.float32(380) + 60 * p.fine)
        p.paint(np.maximum(np.abs(x) - 4, np.abs(y - np.float32(self.spine_y + 47)) - 15), np.float32(350))
        p.paint(p.ellipsoid((0, self.spine_y + 25, 0), (10, 8, 900)), np.float32(35))

    def _gut(self, p: _Painter) -> None:
        """Small bowel and colon: walls like pancreas, contents of fluid, gas, stool or contrast medium."""
        rng, a, b = self.rng, self.a, self.b
        loops = rng.integers(7, 12)
        contrast = rng.random() < 0.4
        for _ in range(loops):
            start = np.array([rng.uniform(-0.5, 0.5) * a, rng.uniform(-0.55, -0.05) * b, rng.uniform(-75, -5)])
            steps = rng.normal(0, 1, (3, 3)) * (26, 16, 18)
            points = np.vstack([start, start + np.cumsum(steps, axis=0)])
            points[:, 1] = np.clip(points[:, 1], -0.62 * b, 0.15 * b)
            points[:, 2] = np.minimum(points[:, 2], 2)
            found = p.tube(spline(points, 8), np.full(8, rng.uniform(9, 14)))
            self._bowel(p, found, rng.choice([30.0, 250.0 if contrast else 20.0, -800.0], p=[0.6, 0.3, 0.1]))
        colon = {
            "ascending": [(-0.62 * a, 0.15 * b, -80), (-0.62 * a, 0.1 * b, -30), (-0.55 * a, -0.05 * b, 0)],
            "transverse": [(-0.5 * a, -0.5 * b, -12), (0, -0.66 * b, -30), (0.5 * a, -0.4 * b, 12)],
            "descending": [(0.68 * a, 0.05 * b, 30), (0.7 * a, 0.25 * b, -20), (0.66 * a, 0.2 * b, -80)],
        }
        for points in colon.values():
            moved = np.array(points) + rng.normal(0, 5, (3, 3))
            found = p.tube(spline(moved, 8), rng.uniform(12, 19, 8))
            self._bowel(p, found, float(rng.choice([-820.0, 40.0])), stool=0.5)

    def _bowel(self, p: _Painter, found, content: float, stool: float = 0.0) -> None:
        if found is None:
            return
        distance, part = found
        distance = np.maximum(distance, self.inside[part])
        p.paint(distance, np.float32(self.hu["bowel"]), part=part)
        mottled = np.float32(content) * (1 - stool * (p.fine[part] > 0.3)) + 10 * p.grain[part]
        p.paint(distance + 3.5, mottled, part=part)

    def _vessels(self, p: _Painter) -> None:
        rng = self.rng
        self.aorta_x = rng.uniform(6, 14)
        front = self.spine_y - 21
        radius = rng.uniform(8.5, 12)
        line = [(self.aorta_x - 3, front - 4, 140), (self.aorta_x + 1, front - 3, 50), (self.aorta_x, front, -90)]
        cava = [(-24, front - 14, 140), (-22, front - 6, 60), (-19, front, -90)]
        wide = rng.uniform(9, 12.5)
        distance, part = p.tube(spline(cava, 6), np.linspace(wide + 1, wide - 1, 6))
        p.paint(distance, np.float32(self.hu["vein"] - rng.uniform(0, 35)), part=part)
        # superior mesenteric artery and vein, with branches in the mesentery
        for side, hu, r in ((6, self.hu["aorta"], 3.2), (-8, self.hu["vein"], 5.0)):
            points = [(side, front - 24, 26), (side, front - 36, 0), (side - 3, front - 44, -80)]
            distance, part = p.tube(spline(points, 6), np.full(6, r))
            p.paint(distance, np.float32(hu), part=part)
            for _ in range(4):
                end = (rng.uniform(-60, 70), -0.45 * self.b + rng.uniform(-10, 20), rng.uniform(-80, 0))
                found = p.tube(spline([points[1], end], 4), np.linspace(2.4, 1.2, 4))
                if found:
                    p.paint(found[0], np.float32(hu), part=found[1])
        distance, part = p.tube(spline(line, 7), np.linspace(radius + 1, radius - 1.5, 7))
        p.paint(distance, np.float32(self.hu["aorta"]) + 4 * p.fine[part], 1, part)
        if rng.random() < 0.5:  # calcified plaque
            plaque = np.maximum(np.abs(distance + 1.0) - 1.2, 1.1 - p.grain[part])
            p.paint(plaque, np.float32(480), part=part)

    def _kidneys(self, p: _Painter) -> None:
        rng = self.rng
        for side, label in ((1, 3), (-1, 4)):
            size = rng.uniform(0.9, 1.1)
            axes = np.array([27, 29, 54]) * size
            centre = np.array([side * rng.uniform(60, 68), self.spine_y - rng.uniform(0, 12), rng.uniform(-2, 12)])
            centre[2] -= 12 * (side < 0)
            part = p.box(centre - axes - 8, centre + axes + 8)
            if part is None:
                continue
            tilt = side * rng.uniform(0.12, 0.3)
            outer = p.ellipsoid(centre, axes, part, tilt) + 1.2 * p.grain[part]
            hilum = p.ellipsoid(centre - (side * 23, 3, 0), (17, 11, 21), part, tilt)
            outer = np.maximum(outer, -hilum)
            outer = np.maximum(outer, self.inside[part] - 3)
            depth = np.clip((-outer - 5) / 3, 0, 1)  # 0 in the cortex, 1 in the pyramids
            pyramids = depth * np.clip(0.5 + 1.2 * p.grain[part], 0, 1)
            hu = np.float32(self.hu["cortex"]) + pyramids * np.float32(self.hu["medulla"] - self.hu["cortex"])
            p.paint(outer, hu, label, part)
            pelvis = p.ellipsoid(centre - (side * 17, 2, 0), (9, 5, 13), part, tilt)
            p.paint(pelvis, np.float32(12), part=part)
            if rng.random() < 0.25:  # a cyst belongs to the kidney
                place = centre + axes * rng.normal(0, 0.45, 3)
                cyst = np.maximum(p.ellipsoid(place, [rng.uniform(4, 11)] * 3, part), outer)
                p.paint(cyst, np.float32(6), label, part)

    def _spleen(self, p: _Painter) -> None:
        rng, a, b = self.rng, self.a, self.b
        size = rng.uniform(0.82, 1.18)
        centre = np.array([0.66 * a, 0.32 * b, 62 + self.shift])
        axes = np.array([0.23 * a, 0.42 * b, 46]) * size
        part = p.box(centre - axes - 8, centre + axes + 8)
        outer = p.ellipsoid(centre, axes, part, -0.2)
        hollow = p.ellipsoid(centre - (0.22 * a, 0.12 * b, 4), (0.17 * a, 0.32 * b, 40), part)
        outer = np.maximum(np.maximum(outer, -hollow), self.inside[part] + 2) + 1.0 * p.grain[part]
        texture = 16 * np.sin(3 * p.grain[part]) if self.arterial else 3 * p.fine[part]
        p.paint(outer, np.float32(self.hu["spleen"]) + texture, 7, part)

    def _liver(self, p: _Painter) -> None:
        rng, a, b = self.rng, self.a, self.b
        low = rng.uniform(-45, -5)  # lower edge of the right lobe
        middle = (low + 135 + self.shift) / 2
        right = p.ellipsoid((-0.44 * a, 0.02 * b, middle), (0.52 * a, 0.78 * b, 140 - middle), tilt=-0.12)
        left = p.ellipsoid(
            (rng.uniform(0.0, 0.12) * a, -0.45 * b, 72 + self.shift),
            (rng.uniform(0.3, 0.5) * a, 0.34 * b, 42),
            tilt=0.2,
        )
        # the visceral surface is hollow: it leaves room for kidney, duodenum and stomach
        x, y, z = p.coordinates
        visceral = 0.75 * (x + 0.28 * a) + 0.35 * y - 0.9 * (z - 18 - self.shift)
        right = np.maximum(right, visceral)
        kidney = p.ellipsoid((-64, self.spine_y - 6, -8), (36, 40, 62))
        liver = np.maximum(np.maximum(np.minimum(right, left), -kidney), self.inside + 1.5)
        fissure = np.maximum(np.abs(x + 6 - 0.12 * y) - 2.5, 0.25 * b + y)  # falciform ligament
        fissure = np.maximum(fissure, z - 88 - self.shift)
        liver = np.maximum(liver, -fissure)
        cava = np.hypot(x + 23, y - (self.spine_y - 32)) - 13
        liver = np.maximum(liver, -cava)
        spine = np.hypot(x, y - self.spine_y + 6) - 36
        liver = np.maximum(liver, -spine)
        p.paint(liver, np.float32(self.hu["liver"]) + 3 * p.fine, 5)
        vein = np.float32(self.hu["vein"] if not self.arterial else self.hu["liver"] + 8)
        root = np.array([-30.0, -2.0, 34 + self.shift])  # portal vein
        apex = np.array([-23.0, self.spine_y - 38, 100 + self.shift])  # confluence of the hepatic veins
        for start, count, wide in ((root, 7, 6.5), (apex, 6, 5.0)):
            for _ in range(count):
                end = np.array([rng.uniform(-0.8, -0.1) * a, rng.uniform(-0.5, 0.5) * b, rng.uniform(15, 100)])
                bend = (start + end) / 2 + rng.normal(0, 6, 3)
                found = p.tube(spline([start, bend, end], 6), np.linspace(wide, 1.5, 6))
                if found:
                    distance, part = found
                    p.paint(np.maximum(distance, liver[part] + 2), vein, part=part)
        if rng.random() < 0.85:  # the others have lost their gallbladder
            neck = np.array([-0.24 * a + rng.normal(0, 4), -0.16 * b, 22 + self.shift])
            fundus = neck + (rng.uniform(-26, -8), rng.uniform(-44, -26), rng.uniform(-40, -20))
            radius = rng.uniform(12, 19)
            found = p.tube(spline([neck, (neck + fundus) / 2, fundus], 6), np.linspace(0.45, 1, 6) * radius)
            distance, part = found
            distance = np.maximum(distance, self.inside[part] + 4)
            p.paint(distance, np.float32(self.hu["bowel"] - 20), 2, part)
            p.paint(distance + 2, np.float32(self.hu["gallbladder"]), 2, part)
        found = p.tube(spline([root, (-14, 0.02 * b, 22), (-4, 0.06 * b, 14)], 5), np.full(5, 6.0))
        p.paint(found[0], np.float32(self.hu["vein"]), part=found[1])

    def _stomach(self, p: _Painter) -> None:
        rng, a, b, s = self.rng, self.a, self.b, self.shift
        full = rng.uniform(0.7, 1.2)
        points = [
            (0.40 * a, 0.22 * b, 100 + s), (0.44 * a, -0.05 * b, 78 + s), (0.40 * a, -0.38 * b, 48 + s),
            (0.2 * a, -0.52 * b, 22 + s), (-0.04 * a, -0.46 * b, 16 + s), (-0.16 * a, -0.36 * b, 24 + s),
        ]  # fmt: skip
        points = np.array(points) + rng.normal(0, 4, (6, 3))
        radii = np.interp(np.linspace(0, 1, 12), np.linspace(0, 1, 6), [25, 27, 23, 18, 13, 8]) * full
        distance, part = p.tube(spline(points, 12), radii)
        distance = np.maximum(distance + 2.0 * p.grain[part], self.inside[part] + 2)
        distance = np.maximum(distance, -p.ellipsoid((0.6 * a, 0.36 * b, 62 + s), (0.2 * a, 0.3 * b, 40), part))
        y = p.coordinates[1][part]
        p.paint(distance, np.float32(self.hu["bowel"]) + 6 * p.fine[part], 8, part)
        kind = rng.choice(["water", "food", "contrast"], p=[0.4, 0.35, 0.25])
        base = {"water": 10.0, "food": 40.0, "contrast": 190.0}[kind]
        content = np.float32(base) + (40 * np.sign(p.fine[part]) if kind == "food" else 4 * p.fine[part])
        level = rng.uniform(-0.55, -0.25) * b  # gas lies in front
        content = np.where(y < level, np.float32(-930), content)
        p.paint(distance + rng.uniform(4, 6), content, 8, part)

    def _pancreas(self, p: _Painter) -> None:
        rng, a, b, s = self.rng, self.a, self.b, 0.6 * self.shift
        front = self.spine_y - 42  # of the great vessels
        head = np.array([-30 + rng.normal(0, 4), front + 8, 2 + s])
        points = [
            head + (2, 4, -16), head, (-8, front - 6, 14 + s), (20, front - 12 + rng.normal(0, 4), 24 + s),
            (0.3 * a, front + rng.uniform(-6, 6), 34 + s + rng.normal(0, 5)),
            (0.46 * a, 0.16 * b + rng.normal(0, 5), 44 + s + rng.normal(0, 6)),
        ]  # fmt: skip
        duodenum = [
            (-0.16 * a, -0.34 * b, 24 + s), head + (-24, -6, 10), head + (-25, 4, -14),
            head + (0, 8, -32), (14, front + 10, -28 + s),
        ]  # fmt: skip
        self._bowel(p, p.tube(spline(duodenum, 10), np.full(10, rng.uniform(9, 12))), 20.0)
        curve = spline(points, 16)
        phase, waves = rng.uniform(0, 2 * math.pi), rng.uniform(1.5, 3)
        t = np.linspace(0, 1, 16)
        curve[:, 2] += 4 * np.sin(2 * math.pi * waves * t + phase) * t
        curve[:, 1] += 3 * np.cos(2 * math.pi * waves * t + phase) * t
        size = rng.uniform(0.8, 1.1)
        radii = size * np.interp(t, [0, 0.15, 0.35, 0.6, 0.85, 1], [11, 15, 9.5, 11.5, 11, 7.5])
        # the splenic vein runs along its back
        found = p.tube(curve[6:] + (0, 9.0, 2), np.full(10, 3.6))
        if found:
            p.paint(found[0], np.float32(self.hu["vein"]), part=found[1])
        distance, part = p.tube(curve, radii)
        lobules = 1.5 * p.fine[part] + 1.5 * p.grain[part]  # mm in and out of the smooth outline
        distance = distance + lobules
        clefts = np.clip(2.0 * (p.fine[part] - 1.1), 0, 1) * rng.uniform(0.3, 1)  # fat between lobules
        hu = np.float32(self.hu["pancreas"]) + clefts * np.float32(self.hu["fat"] - self.hu["pancreas"])
        p.paint(distance, hu + 4 * p.fine[part], 6, part)

    def _lungs(self, p: _Painter) -> None:
        """Bases of the lungs over the domes of the diaphragm, and the recesses behind liver and spleen."""
        x, y, z = p.coordinates
        a = self.a
        for side, dome in ((-1, 118 + self.shift), (1, 108 + self.shift)):
            height = dome - ((x - side * 0.45 * a) ** 2 + 0.9 * (y + 6) ** 2) / 150
            lung = np.maximum(np.maximum(height + 8 - z, self.inside + 1) * 0.6, 24 - side * x)
            lung = np.maximum(lung, np.float32(22 + self.shift) - z)
            p.paint(lung, np.float32(-850) + 25 * p.grain, 0)
