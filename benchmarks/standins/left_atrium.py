"""Late gadolinium-enhanced MR of the left atrium: anatomy as implicit solids, signal of inversion recovery.

Coordinates are millimetres from the centre of the atrium's body, x to the patient's left, y to posterior, z to
superior, like the axes of the volumes of the 2018 Atrial Segmentation Challenge. Blood has one T1, so the right
atrium, the ventricles, the aorta and the pulmonary artery are as bright as the left atrium: only place and shape
tell them apart, as in patients. Walls of 1 to 2 mm vanish at voxels of 2.5 mm and more, so that the pools touch.

Two scans differ in dose and delay of the contrast agent, in the inversion time, in how well fat was suppressed, in the
gain of the coils (and with it in the z-scores), in noise, and in size, turn, veins and appendage of the atrium:
brightness, size and shape about as much as in the challenge, with a higher contrast.
"""

from dataclasses import dataclass

import numpy as np

# Tissue: proton density, T1 in ms some 15 minutes after contrast, its standard deviation between patients beside
# the common one, which comes from the dose and the time since the injection.
TISSUES = {
    "air": (0.0, 1000.0, 0.0),
    "lung": (0.1, 600.0, 60.0),
    "fat": (0.9, 260.0, 20.0),  # before fat suppression
    "muscle": (0.85, 540.0, 20.0),
    "marrow": (0.35, 330.0, 20.0),
    "liver": (0.9, 370.0, 20.0),
    "oesophagus": (0.7, 380.0, 20.0),
    "myocardium": (0.9, 450.0, 12.0),
    "wall": (0.85, 430.0, 12.0),
    "fibrosis": (0.9, 260.0, 15.0),
    "blood": (1.0, 320.0, 30.0),  # dose and delay
}
CODE = {name: code for code, name in enumerate(TISSUES)}
HALF_HEIGHT_MM = 27.5  # 88 slices of 0.625 mm
SMALLEST_MM = 70.0  # the crop is at least 112 voxels of 0.625 mm wide in x and y
MARGIN_MM = (6.25, 12.5)  # and 10 to 20 voxels more on each side
INVERSION = (0.9, 1.5)  # inversion time over the one that nulls the myocardium: often too long, then all is grey
FAT_LEFT = (0.05, 0.35)  # fat suppression leaves this part
COIL = (0.3, 2.5)  # how much brighter the skin is than the heart, beside an array coil
TEXTURE = 0.4  # standard deviation of the logarithm of the signal of tissue that is not blood
SNR = (7.0, 20.0)  # of blood


@dataclass(frozen=True)
class Scan:
    """One simulated scan, cropped around the atrium as the published volumes are."""

    image: np.ndarray
    """z-scores over the whole scan before cropping, float32 (W, H, D)"""
    label: np.ndarray
    """1 in the left atrium with appendage and the beginning of the veins, uint8 (W, H, D)"""


# --- solids: signed distances, or close to them, negative inside -------------------------------------------


def _ellipsoid(p, centre, radii):
    q = [(axis - c) / r for axis, c, r in zip(p, centre, radii)]
    return (np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) - 1) * np.float32(min(radii))


def _tube(p, start, end, radius_start, radius_end):
    """A straight vessel with round ends, and the position along it, 0 to 1."""
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    axis = end - start
    along = sum((p[k] - start[k]) * axis[k] for k in range(3)) / np.float32(axis @ axis)
    along = np.clip(along, 0, 1)
    squared = sum((p[k] - start[k] - along * axis[k]) ** 2 for k in range(3))
    return np.sqrt(squared) - (radius_start + (radius_end - radius_start) * along), along


def _smooth_union(a, b, width=4.0):
    """Union of two solids with a fillet of about `width` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


def _rotation(angles) -> np.ndarray:
    """Rotation matrix of turns about x, y and z, in radians, float32."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        cosine, sine = np.cos(angle), np.sin(angle)
        one = np.insert(np.insert([[cosine, -sine], [sine, cosine]], axis, 0, axis=0), axis, 0, axis=1)
        one[axis, axis] = 1
        matrix = one @ matrix
    return matrix.astype(np.float32)


class LeftAtriumAnatomy:
    """The thorax around one left atrium; every proportion is drawn from `rng`."""

    def __init__(self, rng: np.random.Generator):
        def near(*values, sd=2.5):
            return np.asarray(values, np.float32) + rng.normal(0, sd, len(values)).astype(np.float32)

        size = rng.normal(1.0, 0.14)
        self.body = near(35, 21, 13, sd=(4, 4, 2)) * size
        edge = self.body * 0.72
        reach = rng.uniform(26, 34, 5)  # how far the veins go on into the lungs
        self.veins = [  # start, end, radii, length that belongs to the label
            (near(-edge[0], 5, 9), near(-edge[0] - reach[0], 4, 14), (8.0, 5.5)),
            (near(-edge[0], 8, -6), near(-edge[0] - reach[1], 24, -11), (7.5, 5.0)),
            (near(edge[0], 7, 10), near(edge[0] + reach[2] * 0.8, 20, 17), (8.0, 5.0)),
            (near(edge[0], 9, -3), near(edge[0] + reach[3] * 0.8, 28, -9), (7.5, 5.0)),
        ]
        variant = rng.random()
        if variant < 0.2:  # a common trunk of the left veins
            self.veins[3] = (self.veins[2][0], *self.veins[3][1:])
        elif variant < 0.4:  # a right middle vein
            self.veins.append((near(-edge[0], 6, 2), near(-edge[0] - reach[4], 12, 4), (5.5, 4.0)))
        self.cut = rng.uniform(0.3, 0.95, len(self.veins)).astype(np.float32)
        neck = near(edge[0] + 12, -22, 11, sd=4)
        bend = rng.uniform(5, 18) * self._direction(rng, (0.3, -0.6, 0.2))
        self.appendage = [  # a root and a lobe that turns off, as in the shapes that are called wing, sock or cactus
            (near(edge[0] * 0.8, -10, 7), neck, (9.5, 6.0)),
            (neck, neck + bend, (6.0, 4.0)),
        ]
        self.lv, self.lv_radii = near(22, -35, -25), near(23, 28, 23, sd=1.5)
        self.wall_mm = rng.uniform(1.0, 2.0)
        self.mitral_mm = rng.uniform(14, 18)  # from the centre of the atrium to the valve
        self.ra, self.ra_radii = near(-37, -25, -12), near(22, 21, 27, sd=2)
        self.rv, self.rv_radii = near(-10, -66, -26), near(34, 20, 26, sd=2)
        self.aorta = (near(-2, -38, -8), near(-16, -36, 45), (14.5, 14.5))
        self.pulmonary = [
            (near(14, -54, 0), near(16, -24, 36), (13, 12)),
            (near(14, -20, 37), near(-50, -8, 35), (11, 9)),
        ]
        self.cava = (near(-36, -20, 5), near(-32, -22, 60), (9, 9))
        self.descending = near(24, 38, sd=3)
        self.descending_radius = rng.uniform(10.5, 13.5)
        self.oesophagus = near(6, 27, sd=2.5)
        self.spine = near(0, 62, sd=2)
        self.patches = rng.normal(size=(rng.integers(3, 9), 3)).astype(np.float32)  # directions of fibrosis
        self.patch_size = rng.uniform(0.15, 0.45, len(self.patches)).astype(np.float32)
        self.waves = rng.normal(0, 2 * np.pi / 130, (6, 3)).astype(np.float32)
        self.wave_mm = rng.normal(0, 2.2, (6, 3)).astype(np.float32)
        self.wave_phase = rng.uniform(0, 2 * np.pi, 6).astype(np.float32)
        self.turn = _rotation(rng.normal(0, np.radians((6, 5, 8))))

    @staticmethod
    def _direction(rng: np.random.Generator, towards: tuple[float, float, float]) -> np.ndarray:
        """A random unit vector, rather in a direction than against it, float32."""
        vector = rng.normal(towards, 0.6)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _deformed(self, x, y, z):
        """Coordinates displaced by a smooth random field of a few mm, the same for every structure."""
        p = [x + 0 * y + 0 * z, y + 0 * x + 0 * z, z + 0 * x + 0 * y]
        moved = [axis.copy() for axis in p]
        for wave, amplitude, phase in zip(self.waves, self.wave_mm, self.wave_phase):
            s = np.sin(wave[0] * p[0] + wave[1] * p[1] + wave[2] * p[2] + phase)
            for axis in range(3):
                moved[axis] += amplitude[axis] * s
        return moved

    def render(self, x, y, z) -> tuple[np.ndarray, np.ndarray]:
        """Tissue codes (see `CODE`) and the mask of the atrium on the grid of three open axes in mm, float32."""
        p = self._deformed(x, y, z)
        tissue = np.full(p[0].shape, CODE["air"], np.uint8)

        def paint(inside, name):
            tissue[inside] = CODE[name]

        trunk = np.sqrt((p[0] / 168) ** 2 + ((p[1] + 5) / 108) ** 2)
        paint(trunk < 1, "fat")
        paint(trunk < 0.9, "muscle")
        mediastinum = _ellipsoid(p, (0, -22, 0), (64, 72, 110))
        for side in (-92, 96):
            lung = _ellipsoid(p, (side, 12, 10), (62, 76, 120))
            paint((lung < 0) & (mediastinum > 0), "lung")
        for side in (-30, 34):  # the lungs reach behind the heart, on both sides of the spine
            recess = _ellipsoid(p, (side * 1.35, 52, 0), (26, 22, 120))
            paint(recess < 0, "lung")
        paint((mediastinum < 0) & (p[1] < 48), "fat")
        paint(_ellipsoid(p, (-75, -10, -105), (75, 75, 72)) < 0, "liver")
        spine = np.hypot(p[0] - self.spine[0], (p[1] - self.spine[1]) * 1.15) - 17
        paint(spine < 0, "muscle")
        paint((spine < -2) & (np.mod(p[2], 26) > 5), "marrow")
        paint(np.hypot(p[0] - self.oesophagus[0], (p[1] - self.oesophagus[1]) * 1.5) < 7, "oesophagus")

        h = [sum(self.turn[row, axis] * p[axis] for axis in range(3)) for row in range(3)]  # the heart is turned
        pools = [
            (_ellipsoid(h, self.rv, self.rv_radii), 4.0, "myocardium"),
            (_ellipsoid(h, self.ra, self.ra_radii), 1.2, "wall"),
            (_tube(h, *self.aorta[:2], *self.aorta[2])[0], 1.5, "wall"),
            (_tube(h, *self.cava[:2], *self.cava[2])[0], 1.0, "wall"),
            *[(_tube(h, start, end, *radii)[0], 1.2, "wall") for start, end, radii in self.pulmonary],
            (np.hypot(p[0] - self.descending[0], p[1] - self.descending[1]) - self.descending_radius, 1.8, "wall"),
        ]
        lv = _ellipsoid(h, self.lv, self.lv_radii)
        veins = [_tube(h, start, end, *radii) for start, end, radii in self.veins]
        atrium = _ellipsoid(h, (0, 0, 0), self.body)
        for start, end, radii in self.appendage:
            atrium = _smooth_union(atrium, _tube(h, start, end, *radii)[0])
        with_veins = atrium
        for vein, _ in veins:
            with_veins = _smooth_union(with_veins, vein)
        towards_valve = self.lv / np.linalg.norm(self.lv)
        beyond_valve = sum(axis * n for axis, n in zip(h, towards_valve)) - self.mitral_mm

        # every pool first with its wall, then with its blood; the left atrium last, so that it stays whole
        for distance, thickness, name in pools:
            paint(distance < thickness, name)
        paint(lv < 9, "myocardium")
        for distance, _, _ in pools:
            paint(distance < 0, "blood")
        paint(lv < 0, "blood")
        left = np.maximum(with_veins, beyond_valve)
        paint(left < self.wall_mm, "wall")
        paint((left < self.wall_mm) & self._fibrosis(h), "fibrosis")
        # the mitral orifice: the leaflets are thin, the pools almost touch
        orifice = (np.maximum(lv, atrium) < 3) & (np.abs(beyond_valve) < 8)
        paint(orifice & (beyond_valve > 1.2), "blood")
        paint(left < 0, "blood")

        in_vein = np.zeros(tissue.shape, bool)
        for (distance, along), cut in zip(veins, self.cut):
            in_vein |= (distance < 1.5) & (along < cut)
        mask = (left < 0) & ((atrium < 1.5) | in_vein)
        return tissue, mask

    def _fibrosis(self, p) -> np.ndarray:
        """Where the direction from the centre of the atrium lies in one of the patches."""
        q = [axis / r for axis, r in zip(p, self.body)]
        length = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + 1e-6
        found = np.zeros(p[0].shape, bool)
        for direction, size in zip(self.patches, self.patch_size):
            unit = direction / np.linalg.norm(direction)
            cosine = (q[0] * unit[0] + q[1] * unit[1] + q[2] * unit[2]) / length
            found |= cosine > np.cos(size)
        return found


def inversion_recovery_signal(rng: np.random.Generator) -> np.ndarray:
    """Magnitude signal of every tissue code in an inversion-recovery gradient echo, float32.

    rho |1 - 2 exp(-TI / T1) + exp(-TR / T1)|, with the inversion time TI between `INVERSION` times that which nulls the
    myocardium, and TR the patient's heartbeat. Of fat's signal `FAT_LEFT` remain.
    """
    t1 = rng.normal(1, 0.07) * np.array([rng.normal(mean, sd) for _, mean, sd in TISSUES.values()])
    density = np.array([density for density, _, _ in TISSUES.values()])
    density[CODE["fat"]] *= rng.uniform(*FAT_LEFT)
    repetition = rng.uniform(750, 1050)
    muscle = t1[CODE["myocardium"]]
    null = muscle * (np.log(2) - np.log1p(np.exp(-repetition / muscle)))
    inversion = null * rng.uniform(*INVERSION)
    return (density * np.abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))).astype(np.float32)


def simulate(rng: np.random.Generator, voxel_mm: float) -> Scan:
    """One scan at a voxel size; the anatomy does not depend on it.

    Args:
        rng: of everything random. Texture and noise come last, for they depend on the voxel size.
        voxel_mm: isotropic (published volumes: 0.625). Above 1 mm the anatomy is rendered twice as fine.
    """
    from scipy.ndimage import gaussian_filter

    anatomy, signal, gain = LeftAtriumAnatomy(rng), inversion_recovery_signal(rng), CoilGain(rng)
    noise_sd, breathing = signal[CODE["blood"]] / rng.uniform(*SNR), rng.uniform(0, 0.8) * np.array([0, 0.7, 1.0])
    margins = rng.uniform(*MARGIN_MM, 4)
    slab = rng.uniform(-4, 4)  # where the stack of slices was put
    coarse = [np.arange(-r, r, 4, dtype=np.float32) for r in (100, 76, HALF_HEIGHT_MM)]
    _, mask = anatomy.render(*np.ix_(coarse[0], coarse[1], coarse[2] + slab))
    bounds = []
    for axis in range(2):
        occupied = coarse[axis][mask.any(axis=tuple({0, 1, 2} - {axis}))]
        low, high = occupied[0] - 2, occupied[-1] + 2
        wider = max(SMALLEST_MM - (high - low), 0) / 2
        low, high = low - wider - margins[2 * axis], high + wider + margins[2 * axis + 1]
        bounds.append((low, round(float(high - low) / voxel_mm)))
    bounds.append((slab - HALF_HEIGHT_MM, round(2 * HALF_HEIGHT_MM / voxel_mm)))

    factor = 2 if voxel_mm > 1 else 1
    fine = [low + (np.arange(count * factor) + 0.5) * voxel_mm / factor for low, count in bounds]
    tissue, mask = anatomy.render(*np.ix_(*[axis.astype(np.float32) for axis in fine]))
    shape = [count for _, count in bounds]
    blocks = [side for count in shape for side in (count, factor)]
    textured = signal[tissue] * _texture(rng, tissue.shape, voxel_mm / factor)
    image = np.where(tissue == CODE["blood"], signal[CODE["blood"]], textured)
    image = image.reshape(blocks).mean(axis=(1, 3, 5))
    label = (mask.reshape(blocks).mean(axis=(1, 3, 5)) >= 0.5).astype(np.uint8)

    # sampled at 1.25 x 1.25 x 2.5 mm, breathing blurs along y and z
    acquired = np.array([1.25, 1.25, 2.5]) / 2.355
    image = gaussian_filter(image, np.hypot(acquired, breathing) / voxel_mm)
    open_axes = np.ix_(*[low + (np.arange(count) + 0.5) * voxel_mm for low, count in bounds])
    noise = noise_sd * rng.standard_normal((2, *shape))
    image = np.hypot(image * gain(*open_axes) + noise[0], noise[1])

    mean, sd = _scan_statistics(anatomy, signal, gain, noise_sd)
    return Scan(((image - mean) / sd).astype(np.float32), label)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], voxel_mm: float) -> np.ndarray:
    """Factors around 1 for tissue that is not blood: small vessels, nodes and fat in it, some 4 mm wide, float32."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 4 / voxel_mm)
    return np.exp(TEXTURE * field / field.std())


class CoilGain:
    """Sensitivity of the receive coils, about 1 at the heart and larger near the skin; drawn from `rng`."""

    def __init__(self, rng: np.random.Generator):
        self.slope, self.curve = rng.normal([0, -0.25, 0], 0.3), rng.normal(0, 0.3)
        self.near = rng.uniform(*COIL)

    def __call__(self, x, y, z) -> np.ndarray:
        """Gain on three open axes in mm."""
        smooth = np.exp(
            sum(a * c / 100 for a, c in zip(self.slope, (x, y, z))) + self.curve * ((x / 100) ** 2 + (y / 100) ** 2)
        )
        depth = 108 * np.clip(1 - np.sqrt((x / 168) ** 2 + ((y + 5) / 108) ** 2), 0, 1)  # mm below the skin
        return smooth + self.near * np.exp(-depth / 25)


def _scan_statistics(
    anatomy: LeftAtriumAnatomy, signal: np.ndarray, gain: CoilGain, noise_sd: float
) -> tuple[float, float]:
    """Mean and standard deviation over the whole field of view, 360 mm wide, from a coarse render of it."""
    grid = np.ix_(*[np.arange(-r, r, 12, dtype=np.float32) for r in (180, 180, HALF_HEIGHT_MM)])
    values = signal[anatomy.render(*grid)[0]] * gain(*grid)
    values = np.hypot(values, noise_sd * np.sqrt(np.pi / 2) * (values == 0) + noise_sd * (values > 0))
    return float(values.mean()), float(values.std())
