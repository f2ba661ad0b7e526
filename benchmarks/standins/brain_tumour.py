"""Multi-modal MRI of a brain phantom after brain extraction, healthy or with a glioma.

The healthy part stands alone: `healthy_brain` gives tissue labels (folded cortex, white matter, ventricles, deep
nuclei, cerebellum, brainstem) that differ from case to case; `add_gliosis` adds scars and white-matter spots;
`signal` turns tissues into MR signal by the equations of the sequences; `acquire` adds partial volume, receive field
and Rician noise. `plan_glioma` and `add_glioma` grow a tumour with necrosis, enhancing rim and infiltrating oedema;
`healthy_brain` pushes the anatomy aside for it.

All arrays are (x, y, z) in RAS order, all lengths in mm, the origin in the middle of the brain. Everything random
comes from the `numpy.random.Generator` that is handed in.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.special import expit

# Tissue numbers of all label maps.
AIR, CSF, GREY, WHITE, DEEP_GREY, PALLIDUM, FOLIA, SCALP, GLIOSIS, OEDEMA, ENHANCING, NECROSIS, SOLID = range(13)

# T1 [ms], T2 [ms], proton density, gadolinium concentration after injection [mM]; about 1.5 T.
RELAXATION = np.array(
    [
        [1000, 50, 0.00, 0.00],  # air
        [4200, 1900, 1.00, 0.00],  # cerebrospinal fluid
        [1200, 95, 0.82, 0.02],  # grey matter
        [680, 75, 0.70, 0.01],  # white matter
        [1020, 84, 0.79, 0.02],  # caudate, putamen, thalamus
        [880, 62, 0.74, 0.02],  # pallidum: iron shortens T2
        [1050, 88, 0.77, 0.02],  # cerebellar folia: white and grey too fine to tell apart
        [420, 85, 0.62, 0.15],  # scalp, dura and fat that brain extraction has left
        [1050, 132, 0.81, 0.02],  # gliosis: scars and spots
        [1500, 156, 0.88, 0.03],  # oedema and infiltration
        [1500, 150, 0.87, 0.55],  # enhancing rim
        [2400, 300, 0.94, 0.03],  # necrosis
        [1650, 166, 0.89, 0.05],  # solid tumour that does not enhance
    ]
)
MODALITIES = ("t1", "t1ce", "t2", "flair")
RELAXIVITY = 4.5  # of gadolinium, 1 / (mM s)
BRATS_LABEL = {OEDEMA: 2, ENHANCING: 4, NECROSIS: 1, SOLID: 1}


# --- smooth random fields --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """An isotropic grid of voxels, the origin in its middle."""

    shape: tuple[int, int, int]
    voxel_mm: float

    def axis(self, number: int) -> np.ndarray:
        """Positions in mm along one axis."""
        n = self.shape[number]
        return ((np.arange(n) - (n - 1) / 2) * self.voxel_mm).astype(np.float32)

    def coordinates(self) -> np.ndarray:
        """Positions (3, X, Y, Z) in mm."""
        return np.stack(np.meshgrid(*(self.axis(number) for number in range(3)), indexing="ij"))


def smooth_noise(rng, grid: Grid, wavelength_mm: float) -> np.ndarray:
    """Smooth Gaussian random field (X, Y, Z), mean 0, standard deviation 1.

    White noise on a lattice of a quarter of the wavelength, interpolated with cubic B-splines axis by axis.
    """
    step = wavelength_mm / 4
    extent = np.array(grid.shape) * grid.voxel_mm
    field = rng.standard_normal([int(np.ceil(e / step)) + 4 for e in extent]).astype(np.float32)
    for axis in range(3):
        position = (grid.axis(axis) + extent[axis] / 2) / step + 1.0
        first = np.floor(position).astype(int)
        t = position - first
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        matrix = np.zeros((len(position), field.shape[axis]), np.float32)
        for offset in range(4):
            matrix[np.arange(len(position)), first + offset - 1] = weights[offset]
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return (field - field.mean()) / field.std()


# --- shapes: distances in mm, negative inside ------------------------------------------------------------


def ellipsoid(p, centre, radii) -> np.ndarray:
    """Approximate signed distance to an ellipsoid (exact for a sphere)."""
    q = [(p[i] - centre[i]) / radii[i] for i in range(3)]
    f = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + 1e-6
    slope = np.sqrt((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2) + 1e-6
    return f * (f - 1) / slope


def capsule(p, start, end, radius_start, radius_end) -> np.ndarray:
    """Signed distance to a tapered tube between two points."""
    start, axis = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
    along = sum((p[i] - start[i]) * axis[i] for i in range(3)) / float(axis @ axis)
    along = np.clip(along, 0, 1)
    away = np.sqrt(sum((p[i] - start[i] - along * axis[i]) ** 2 for i in range(3)))
    return away - (radius_start + along * (radius_end - radius_start))


def tube(p, points, radii) -> np.ndarray:
    """Signed distance to a chain of tapered tubes."""
    parts = [capsule(p, a, b, r, s) for a, b, r, s in zip(points, points[1:], radii, radii[1:])]
    return reduce(np.minimum, parts)


# --- the healthy brain -----------------------------------------------------------------------------------


@dataclass
class Brain:
    """Tissues of a head on a grid, and the distances that lesions are placed with."""

    grid: Grid
    tissue: np.ndarray
    """uint8 (X, Y, Z), one of the tissue numbers above"""
    brain: np.ndarray
    """bool (X, Y, Z): brain and the fluid around it, without remnants of scalp"""
    depth: np.ndarray
    """float32 (X, Y, Z): mm below the surface of the cerebrum, negative outside"""
    ventricle_distance: np.ndarray
    """float32 (X, Y, Z): mm from the wall of the lateral ventricles, negative inside"""


@dataclass(frozen=True)
class Glioma:
    """Where a tumour grows and how large it gets."""

    centre: np.ndarray
    """(3,) mm"""
    core_mm: float
    """mean radius of the core"""
    oedema_mm: float
    """mean radius of core and oedema together"""
    push_mm: float
    """largest displacement of the healthy anatomy"""
    high_grade: bool
    """with enhancing rim and necrosis"""


def healthy_brain(rng, grid: Grid, glioma: Glioma | None = None) -> Brain:
    """A random brain: size, asymmetry, smooth warp, folding pattern and ventricle size all differ.

    Args:
        rng: generator.
        grid: voxels of about 1 to 2 mm; coarser images are averages of these (`acquire`).
        glioma: makes room for a tumour by pushing the anatomy away from it; draws nothing.
    """
    p = grid.coordinates()
    if glioma is not None:
        offset = p - glioma.centre[:, None, None, None].astype(np.float32)
        distance = np.sqrt((offset**2).sum(0)) + 1e-3
        reach = 1.3 * glioma.oedema_mm
        pulled = glioma.push_mm * (distance / (distance + 6)) * np.exp(-((distance / reach) ** 2))
        p = p - offset / distance * pulled
    scale = rng.normal(1.0, 0.035, 3)
    wide = [2.5 * smooth_noise(rng, grid, 90.0) for _ in range(3)]
    fine = [1.0 * smooth_noise(rng, grid, 35.0) for _ in range(3)]
    p = np.stack([p[i] / scale[i] + wide[i] + fine[i] for i in range(3)]).astype(np.float32)
    x, y, z = p
    side = np.abs(x)
    mirrored = np.stack([side, y, z])

    # Cerebrum: two hemispheres with temporal lobes, flat at the base, and the cleft between them.
    temporal_front = tube(mirrored, [(42, 22, -24), (47, -10, -20), (42, -40, -10)], [13, 17, 17])
    hull = ellipsoid(mirrored, (5, -2, 8), (60, 82, 58))
    base = np.maximum(-14 - 0.1 * y - z, hull)  # the plane on which frontal and occipital lobes rest
    cerebrum = np.minimum(base, temporal_front)
    depth = -cerebrum

    # Sulci are sheets: zeros of a smooth random field, as far down as `sulcus_depth`.
    field = smooth_noise(rng, grid, rng.uniform(26, 32)) + 0.35 * smooth_noise(rng, grid, 16.0)
    gradient = np.sqrt(sum(g**2 for g in np.gradient(field, grid.voxel_mm))) + 0.02
    sulcus_depth = 15 + 4 * smooth_noise(rng, grid, 40.0)
    sheet = np.hypot(np.abs(field) / gradient, np.maximum(depth - sulcus_depth, 0))
    callosum = np.sqrt(((y + 4) / 44) ** 2 + ((z - 4) / 24) ** 2)  # below 1 no cleft separates the hemispheres
    midline = x + 0.8 * smooth_noise(rng, grid, 50.0)
    cleft = np.hypot(midline, np.maximum((1 - callosum) * 26, 0))
    sylvian = np.hypot(z + 6 - 0.25 * y + 1.5 * smooth_noise(rng, grid, 40.0), np.maximum(33 - side, 0))
    sylvian = np.hypot(sylvian, np.maximum(np.abs(y - 2) - 26, 0))
    atrophy = rng.uniform(0.4, 1.3)
    fluid = reduce(np.minimum, [sheet - 0.7 * atrophy, cleft - 0.9 * atrophy, sylvian - 1.2 * atrophy])
    to_pia = np.minimum(depth, fluid)  # mm below the cortical surface
    ribbon = 3.0 + 0.4 * smooth_noise(rng, grid, 30.0)

    tissue = np.full(grid.shape, AIR, np.uint8)
    inside = depth > 0
    tissue[inside] = WHITE
    tissue[inside & (to_pia < ribbon)] = GREY
    tissue[inside & (fluid < 0)] = CSF

    def nucleus(centre, radii, number):
        tissue[ellipsoid(mirrored, centre, radii) < 0] = number

    nucleus((26, 4, 1), (6.5, 17, 11), DEEP_GREY)  # putamen
    nucleus((19.5, 0, -1), (4.0, 9, 7), PALLIDUM)
    nucleus((10.5, -14, 5), (8.5, 14, 9), DEEP_GREY)  # thalamus
    caudate = tube(mirrored, [(14, 24, 6), (17, 6, 17), (21, -20, 20)], [6.5, 4.5, 2.0])
    tissue[caudate < 0] = DEEP_GREY

    # Ventricles.
    widening = rng.uniform(0.6, 1.25)
    lateral = tube(
        mirrored,
        [(13, 34, 5), (8, 12, 14), (10, -14, 18), (22, -38, 9), (25, -58, 6)],
        [w * widening for w in (4.5, 6.0, 6.0, 7.0, 2.5)],
    )
    temporal_horn = tube(mirrored, [(22, -38, 9), (32, -22, -12), (31, -4, -18)], [5 * widening, 2.2, 1.5])
    lateral = np.minimum(lateral, temporal_horn)
    lateral = np.maximum(lateral, 0.9 - side)  # septum pellucidum
    third = ellipsoid(p, (0, -8, 0), (1.6 + 1.6 * widening, 13, 10))
    tissue[np.minimum(lateral, third) < 0] = CSF

    # Hindbrain.
    cerebellum = ellipsoid(p, (0, -52, -33), (50, 33, 26))
    stem = tube(p, [(0, -18, -12), (0, -24, -38), (0, -36, -75)], [13, 14, 8])
    in_cerebellum = (cerebellum < 0) & (depth < -1.5)
    radial = np.hypot(y + 45, z + 36) + 2 * smooth_noise(rng, grid, 30.0)
    folia = np.sin(2 * np.pi * radial / 5.5)
    tissue[in_cerebellum] = FOLIA
    tissue[in_cerebellum & (folia > 0.75) & (cerebellum > -14)] = CSF
    arbor = ellipsoid(mirrored, (15, -50, -38), (16, 11, 8)) + 2 * smooth_noise(rng, grid, 15.0)
    tissue[in_cerebellum & (arbor < 0)] = WHITE
    in_stem = (stem < 0) & (depth < 1)
    tissue[in_stem] = WHITE
    tissue[(ellipsoid(p, (0, -42, -36), (7, 4.5, 9)) < 0) & (depth < 0)] = CSF

    # Fluid around the brain, and what brain extraction leaves of dura and scalp.
    cisterns = ellipsoid(p, (0, -14, -20), (34, 34, 20))
    head = reduce(np.minimum, [cerebrum, cerebellum, stem, cisterns])
    tissue[(tissue == AIR) & (head < 2.0)] = CSF
    brain = tissue != AIR
    patches = smooth_noise(rng, grid, 45.0) + 0.4 * (head - 2.0)
    remnant = (tissue == AIR) & (head < 6.0) & (patches > rng.uniform(1.8, 2.6)) & (z > -20)
    tissue[remnant] = SCALP
    return Brain(grid, tissue, brain, depth.astype(np.float32), lateral.astype(np.float32))


def add_gliosis(rng, brain: Brain) -> np.ndarray:
    """Fraction (X, Y, Z) of gliotic tissue in white matter: scars and small spots, each at a place of its own.

    They are bright on FLAIR and T2 like oedema, and none is a tumour. Number, size and places differ from case to
    case. What would lie at the same place in every brain, caps at the horns of the ventricles, is left out: an error
    that all proposals share could not be told from the lesion by anything that is trained on them.
    """
    load = rng.uniform(0.2, 1.2)
    radii = [rng.uniform(1.5, 2.5 + 2.0 * load) for _ in range(int(rng.integers(2, 6 + int(14 * load))))]  # spots
    radii += [rng.uniform(5.0, 10.0) for _ in range(int(rng.integers(0, 5)))]  # scars
    fraction = np.zeros(brain.grid.shape, np.float32)
    places = np.argwhere((brain.tissue == WHITE) & (brain.depth > 8))
    axes = [brain.grid.axis(number) for number in range(3)]
    for radius in radii:
        place = places[rng.integers(len(places))]
        reach = 3 * radius / brain.grid.voxel_mm
        window = tuple(slice(max(0, int(c - reach)), int(c + reach) + 1) for c in place)
        offsets = [(axes[i][window[i]] - axes[i][place[i]]) / (radius * rng.uniform(0.7, 1.4)) for i in range(3)]
        distance = np.sqrt(sum(np.square(part) for part in np.ix_(*offsets)))
        fraction[window] = np.maximum(fraction[window], expit(4 * (1 - distance)))
    return np.where(brain.tissue == WHITE, fraction, 0).astype(np.float32)


# --- the tumour ------------------------------------------------------------------------------------------


def plan_glioma(rng, volume_ml: tuple[float, float] = (28.0, 115.0)) -> Glioma:
    """A tumour of random size, grade and lobe.

    Args:
        rng: generator.
        volume_ml: range of core and oedema together; a brain has about 1200 ml.
    """
    high_grade = rng.random() < 0.7
    volume = np.exp(rng.uniform(*np.log(volume_ml)))
    oedema_mm = (3 * volume * 1000 / (4 * np.pi)) ** (1 / 3)
    core_mm = oedema_mm * (rng.uniform(0.5, 0.7) if high_grade else rng.uniform(0.55, 0.8))
    side = rng.choice([-1, 1])
    lobes = {"frontal": (27, 38, 20), "parietal": (28, -32, 30), "temporal": (42, -12, -10), "occipital": (24, -58, 12)}
    centre = np.array(lobes[rng.choice(list(lobes))]) + rng.normal(0, 6, 3)
    centre[0] = side * max(centre[0], 14)
    return Glioma(centre, core_mm, oedema_mm, rng.uniform(0.15, 0.45) * core_mm, bool(high_grade))


def add_glioma(rng, brain: Brain, glioma: Glioma) -> dict[int, np.ndarray]:
    """Fractions (X, Y, Z) of the tumour's tissues, tissue number -> values that sum to at most 1.

    The core is lobulated. Oedema spreads through white matter, hardly into grey matter, not into fluid, and fades
    out over some mm.
    """
    grid = brain.grid
    offset = grid.coordinates() - glioma.centre[:, None, None, None].astype(np.float32)
    distance = np.sqrt((offset**2).sum(0))
    lobes = 1 + 0.16 * smooth_noise(rng, grid, 2.0 * glioma.core_mm) + 0.07 * smooth_noise(rng, grid, 9.0)
    core_depth = glioma.core_mm * lobes - distance  # mm below the surface of the core
    fingers = 1 + 0.20 * smooth_noise(rng, grid, 34.0)
    spread = glioma.oedema_mm * fingers * 1.12 - distance
    in_brain = (brain.tissue != AIR) & (brain.tissue != SCALP)
    fluid = brain.tissue == CSF
    grey = np.isin(brain.tissue, (GREY, DEEP_GREY, PALLIDUM, FOLIA))
    soft = rng.uniform(1.2, 2.6)

    core = in_brain & (core_depth > 0) & ~(fluid & ((brain.ventricle_distance < 0) | (brain.depth < 1)))
    oedema = expit((spread - np.where(grey, 5.0, 0.0)) / soft)
    oedema = oedema * in_brain * ~fluid * (brain.depth > -1) * np.where(grey, 0.75, 1.0)
    oedema = np.where(core | (oedema < 0.05), 0, oedema).astype(np.float32)
    fractions = {OEDEMA: oedema}
    if glioma.high_grade:
        rim = 2.5 + 1.5 * np.abs(smooth_noise(rng, grid, 12.0)) + 0.12 * glioma.core_mm
        fractions[ENHANCING] = (core & (core_depth < rim)).astype(np.float32)
        fractions[NECROSIS] = (core & (core_depth >= rim)).astype(np.float32)
    else:
        fractions[SOLID] = core.astype(np.float32)
    return fractions


def brats_labels(fractions: dict[int, np.ndarray], factor: int) -> np.ndarray:
    """uint8 labels 1, 2, 4 as BraTS has them, on a grid that is `factor` times coarser.

    A voxel belongs to the tumour if more than half of it does, and then to the part with the largest share.
    """
    coarse = {number: block_mean(part, factor) for number, part in fractions.items()}
    names = {}
    for number, part in coarse.items():
        names[BRATS_LABEL[number]] = names.get(BRATS_LABEL[number], 0) + part
    labels = np.array(sorted(names), np.uint8)
    stacked = np.stack([names[label] for label in labels])
    return np.where(stacked.sum(0) > 0.5, labels[stacked.argmax(0)], 0).astype(np.uint8)


# --- MR physics ------------------------------------------------------------------------------------------


def signal(relaxation: np.ndarray, modality: str) -> np.ndarray:
    """MR signal (tissues,) of spin echo (T1, T1 with gadolinium, T2) and inversion recovery (FLAIR).

    Args:
        relaxation: (tissues, 4) as `RELAXATION`: T1 and T2 in ms, proton density, gadolinium in mM.
        modality: one of `MODALITIES`.
    """
    t1, t2, density, gadolinium = relaxation.T
    if modality == "t1ce":
        t1 = 1 / (1 / t1 + RELAXIVITY * gadolinium / 1000)
    if modality in ("t1", "t1ce"):
        repetition, echo = 550.0, 12.0
        return density * (1 - np.exp(-repetition / t1)) * np.exp(-echo / t2)
    if modality == "t2":
        repetition, echo = 4500.0, 100.0
        return density * (1 - np.exp(-repetition / t1)) * np.exp(-echo / t2)
    if modality == "flair":
        repetition, inversion, echo = 9000.0, 2450.0, 110.0
        recovered = 1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1)
        return density * np.abs(recovered) * np.exp(-echo / t2)
    raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")


def vary_relaxation(rng, spread: float = 0.04) -> np.ndarray:
    """`RELAXATION` of one subject: T1, T2 and proton density differ by a few percent."""
    factors = np.exp(rng.normal(0, spread, RELAXATION.shape))
    return RELAXATION * factors


def block_mean(values: np.ndarray, factor: int) -> np.ndarray:
    """Average over blocks of `factor`³ voxels: partial volume."""
    if factor == 1:
        return values
    x, y, z = (n // factor for n in values.shape)
    return values.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5))


def receive_field(rng, grid: Grid, strength: float = 0.25) -> np.ndarray:
    """Smooth multiplicative field (X, Y, Z) within 1 ± strength over the brain."""
    field = smooth_noise(rng, grid, 220.0)
    x, y, z = (np.abs(grid.axis(axis)) < extent for axis, extent in enumerate((70, 85, 65)))
    inside = field[np.ix_(x, y, z)]
    field = (field - inside.mean()) / np.abs(inside - inside.mean()).max()
    return 1 + rng.uniform(0.6, 1.0) * strength * np.clip(field, -1.2, 1.2)


def acquire(
    rng, brain: Brain, fractions: dict[int, np.ndarray], factor: int, snr: tuple[float, float] = (12.0, 25.0)
) -> dict[str, np.ndarray]:
    """The four modalities of a brain as int16 volumes, 0 outside, `factor` times coarser than the phantom.

    Args:
        rng: generator.
        brain: tissues.
        fractions: tissue number -> fraction of a voxel that it takes from what is there; later ones on top.
        factor: voxels of the phantom per voxel of the image along each axis.
        snr: range of the mean signal of white matter over the noise's standard deviation.
    """
    relaxation = vary_relaxation(rng)
    grid = Grid(tuple(n // factor for n in brain.grid.shape), brain.grid.voxel_mm * factor)
    kept = block_mean((brain.brain | (brain.tissue == SCALP)).astype(np.float32), factor) > 0.5
    images = {}
    common = receive_field(rng, grid)
    for modality in MODALITIES:
        of_tissue = signal(relaxation, modality).astype(np.float32)
        values = of_tissue[brain.tissue]
        for number, part in fractions.items():
            values = values + part * (of_tissue[number] - values)
        values = block_mean(values, factor) * (0.5 * common + 0.5 * receive_field(rng, grid))
        noise = of_tissue[WHITE] / rng.uniform(*snr)
        real, imaginary = rng.normal(0, noise, (2, *grid.shape)).astype(np.float32)
        magnitude = np.hypot(values + real, imaginary)
        gain = rng.uniform(300, 900) / of_tissue[WHITE]
        images[modality] = np.where(kept, np.maximum(np.rint(magnitude * gain), 1), 0).astype(np.int16)
    return images
