"""Brain MRI built on real anatomy: the MNI152 template that nilearn carries in its wheel.

The template says how often each tissue lies at a place, over 152 people. A subject is one draw from that: the tissue
probabilities are shifted by smooth random fields (which gives it gyri of its own), its sulci and ventricles are
widened by age, and the whole is moved by a random diffeomorphism that is known exactly. Then come the signal
equations of the sequence, the receive field and Rician noise.

    brain = Brain.random(np.random.default_rng(0), age=60)
    maps = tissues(brain, (64, 64, 32), 3.0)                 # tissue -> partial volume (X, Y, Z)
    image = contrast(maps, RELAXATION, T2W)                  # or T1W, FLAIR, PDW, Sequence(tr_ms=..., te_ms=...)
    image = rician(rng, image * bias_field(rng, image.shape, 0.2), snr=25)

Registration: two subjects with the same `folding` are the same anatomy in two shapes, and `displacement` gives the
true field between them. All arrays are (x, y, z) in RAS order and float32, all lengths in mm, all positions in MNI
coordinates. Everything random comes from the `numpy.random.Generator` that is handed in. Nothing is downloaded.

The anatomy is held at 2 mm; finer grids are interpolated, coarser ones averaged. There is no face and no neck.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

CENTRE = (0.0, -18.0, 14.0)
"""Middle of the default grid [mm]: the middle of the brain, somewhat above the thalamus."""
VOXEL, ORIGIN = 2.0, np.array([-97.5, -133.5, -71.5])
"""Grid of the anatomy [mm]."""
KNOT, KNOT_ORIGIN, KNOTS = 6.5, np.array([-130.0, -150.0, -110.0]), (41, 41, 41)
"""Grid on which deformations are held [mm]."""

TISSUES = ("csf", "ventricles", "cortex", "white_matter", "deep_grey", "skull", "scalp")
"""Tissues of `tissues`; what they leave of a voxel is air."""
BRAIN_TISSUES = TISSUES[:5]

RELAXATION = {
    "csf": (4200.0, 1900.0, 1.00),
    "ventricles": (4200.0, 1900.0, 1.00),
    "cortex": (1200.0, 95.0, 0.82),
    "white_matter": (700.0, 75.0, 0.70),
    "deep_grey": (1020.0, 84.0, 0.79),
    "skull": (900.0, 30.0, 0.15),
    "scalp": (420.0, 85.0, 0.80),
}
"""T1 [ms], T2 [ms] and proton density of each tissue at about 1.5 T."""

LABELS = {
    0: "background", 1: "csf", 2: "ventricle_left", 3: "ventricle_right", 4: "cortex_left", 5: "cortex_right",
    6: "white_matter_left", 7: "white_matter_right", 8: "thalamus_left", 9: "thalamus_right", 10: "caudate_left",
    11: "caudate_right", 12: "putamen_left", 13: "putamen_right", 14: "pallidum_left", 15: "pallidum_right",
    16: "hippocampus_left", 17: "hippocampus_right", 18: "brainstem", 19: "cerebellum",
}  # fmt: skip
"""Structures of `labels`."""

# Right-hand deep structures: label of the left one, parts as (centre, radii) in MNI mm, tissue they keep.
_DEEP = (
    (8, [((11, -19, 7), (9, 14, 9))], ("cortex", "white_matter")),
    (14, [((19, -3, 0), (5, 9, 6))], ("cortex", "white_matter")),
    (10, [((12, 13, 5), (6.5, 10, 10)), ((16, -2, 20), (5, 15, 6))], ("cortex",)),
    (12, [((26, 3, 1), (7.5, 17, 11))], ("cortex",)),
    (16, [((27, -22, -14), (8, 18, 6.5))], ("cortex",)),
)
_BRAINSTEM = [((0, -26, -8), 13.0), ((0, -26, -32), 15.0), ((0, -42, -62), 9.0)]


# --- the template ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """The template on the 2 mm grid (98, 116, 94)."""

    probability: np.ndarray
    """float32 (7, X, Y, Z), in the order of TISSUES"""
    structure: np.ndarray
    """uint8 (X, Y, Z): deep structures (label of the left one), 18 brainstem, 19 cerebellum, 0 elsewhere"""
    inside: np.ndarray
    """bool (X, Y, Z): brain and the fluid around it"""


def _read_template(name: str) -> np.ndarray:
    """One map of nilearn's MNI152 at 1 mm, scaled to [0, 1], averaged to 2 mm.

    The file is read where the wheel has put it: importing nilearn itself would take five seconds.
    """
    import nibabel

    folder = Path(find_spec("nilearn").submodule_search_locations[0]) / "datasets" / "data"
    image = nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    data = np.asarray(image.dataobj)[:196, :232, :188].astype(np.float32)
    data = data.reshape(98, 2, 116, 2, 94, 2).mean((1, 3, 5))
    return data / data.max()


def _ellipsoid(points: np.ndarray, centre, radii) -> np.ndarray:
    """Below 1 inside."""
    return sum(((points[i] - centre[i]) / radii[i]) ** 2 for i in range(3))


def _tube(points: np.ndarray, knots) -> np.ndarray:
    """Signed distance [mm] to a chain of tapered capsules."""
    nearest = np.float32(np.inf)
    for (start, r0), (end, r1) in zip(knots, knots[1:]):
        axis = np.subtract(end, start).astype(np.float32)
        along = sum((points[i] - start[i]) * axis[i] for i in range(3)) / float(axis @ axis)
        along = np.clip(along, 0, 1)
        away = np.sqrt(sum((points[i] - start[i] - along * axis[i]) ** 2 for i in range(3)))
        nearest = np.minimum(nearest, away - (r0 + along * (r1 - r0)))
    return nearest


@lru_cache(maxsize=1)
def anatomy() -> Anatomy:
    """Tissue probabilities and structures of the template; made once per process (about two seconds of CPU)."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    t1, grey, white = (_read_template(name) for name in ("t1", "gm", "wm"))
    points = grid_points(t1.shape, VOXEL, ORIGIN + VOXEL * (np.array(t1.shape) - 1) / 2)
    x, y, z = points
    inside = ndimage.binary_fill_holes(ndimage.binary_closing(t1 > 0.1, iterations=3))
    fluid = np.where(inside, np.clip(1 - grey - white, 0, 1), 0)

    # Lateral and third ventricle: fluid that hangs together with the ventricular body, far from the surface.
    depth = ndimage.distance_transform_edt(inside, sampling=VOXEL)
    room = (depth > 18) & (np.abs(x) < 42) & (y > -52) & (y < 40) & (z > -22) & (z < 34)
    cistern = (z < 6) & (np.abs(x) < 16) & (y < -26)  # behind the thalami, outside the brain
    cleft = (np.abs(x) < 12) & ((z < 5) & (y > 10) | (z < -12) | (y < -42) | (y > 34))
    parts, _ = ndimage.label((fluid > 0.35) & room & ~cistern & ~cleft)
    seeds = np.unique(parts[(_ellipsoid(points, (0, 0, 16), (12, 14, 8)) < 1) & (parts > 0)])
    far = np.unique(parts[(np.abs(np.abs(x) - 24) < 6) & (np.abs(y + 38) < 8) & (np.abs(z - 8) < 8) & (parts > 0)])
    core = np.isin(parts, np.union1d(seeds, far))
    ventricle = ndimage.binary_dilation(core, iterations=2) & ~cistern & ~cleft
    # Where white matter meets a ventricle the template calls the mixture grey; give it back to both.
    rim = ndimage.binary_dilation(ventricle, iterations=1) & (white + fluid > 0.25)

    deep, structure = np.zeros_like(grey), np.zeros(grey.shape, np.uint8)
    mirrored = np.stack([np.abs(x), y, z])
    for label, pieces, kinds in _DEEP:
        body = np.minimum.reduce([_ellipsoid(mirrored, centre, radii) for centre, radii in pieces])
        taken = grey + (white if "white_matter" in kinds else 0)
        structure[(body < 1) & (taken > 0.45) & (structure == 0)] = label
    nuclei = (structure > 0) & (structure != 16)
    soft = np.clip(1.6 * ndimage.gaussian_filter(nuclei.astype(np.float32), 0.6), 0, 1)
    wholly = np.isin(structure, (8, 14))
    deep = soft * np.where(ndimage.binary_dilation(wholly), grey + white, grey)
    cortex = grey * (1 - soft)
    white = white * (1 - np.where(ndimage.binary_dilation(wholly), soft, 0))
    moved = np.where(rim & (structure == 0), cortex, 0)
    cortex = cortex - moved
    white, fluid = white + 0.5 * moved, fluid + 0.5 * moved

    solid = inside & (grey + white > 0.5)
    cerebellum_core = (_ellipsoid(mirrored, (18, -62, -38), (26, 22, 12)) < 1) & solid
    cerebrum_core = ((z > 4) | (y > 0) | (np.abs(x) > 58) | (y < -92)) & solid
    stem = (_tube(points, _BRAINSTEM) < 0) & (z < -8) & solid
    markers = np.where(cerebellum_core, 1, np.where(cerebrum_core, 2, np.where(stem, 3, 0)))
    basins = watershed(ndimage.gaussian_filter(1 - t1, 0.5), markers, mask=inside)
    structure[(basins == 1) & solid] = 19
    structure[(basins == 3) & stem] = 18

    # Skull and scalp are shells around the brain; the template has none.
    outside = ndimage.distance_transform_edt(~inside, sampling=VOXEL)
    shell = [
        (np.clip(outside / 2, 0, 1) if edge == 0 else np.clip((edge - outside) / 2 + 0.5, 0, 1)) for edge in (7, 14)
    ]
    head = np.where(inside, 0, np.float32(1))
    csf = np.where(ventricle, 0, fluid) + head * np.clip(1 - outside / 3, 0, 1)
    skull = head * np.clip(outside / 3, 0, 1) * shell[0]
    scalp = head * (1 - shell[0]) * shell[1]
    probability = np.stack([csf, np.where(ventricle, fluid, 0), cortex, white, deep, skull, scalp]).astype(np.float32)
    probability /= np.maximum(probability.sum(0), 1)
    return Anatomy(probability, structure, inside)


# --- subjects --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brain:
    """A subject. `to_atlas` and `from_atlas` are its shape; `tissues` and `labels` put it on a grid."""

    age: float
    """years: widens sulci and ventricles"""
    folding: int
    """seed of the gyri; subjects with the same one (and age) differ in shape only"""
    matrix: np.ndarray
    """(3, 3) affine part of the map from subject to template, about CENTRE"""
    field: np.ndarray
    """float32 (3, 41, 41, 41) diffeomorphic part: displacement [mm] on the knots, applied after the matrix"""

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        age: float | None = None,
        warp_mm: float = 4.0,
        scale: float = 0.04,
        rotation_deg: float = 3.0,
        folding: int | None = None,
    ) -> "Brain":
        """A random subject.

        Args:
            rng: generator; all draws happen here.
            age: years, 20 to 90; drawn if None.
            warp_mm: standard deviation of each component of the smooth deformation.
            scale: standard deviation of the size along each axis, as a fraction.
            rotation_deg: standard deviation of the head's tilt about each axis.
            folding: seed of the gyri; drawn if None. -1: the template's own, the mean of 152 people.
        """
        drawn_age, drawn_folding = float(rng.uniform(20, 85)), int(rng.integers(2**31))
        age = drawn_age if age is None else float(age)
        turn = np.deg2rad(rng.normal(0, rotation_deg, 3))
        size = 1 + scale * rng.standard_normal(3)
        wide, fine = _smooth_knots(rng, 30.0), _smooth_knots(rng, 14.0)
        velocity = warp_mm * (0.85 * wide + 0.5 * fine)
        velocity += _ventricle_velocity(float(np.clip((age - 45) / 15, -1.5, 3.5)) + 0.8 * rng.standard_normal())
        matrix = _rotation(turn) @ np.diag(1 / size)
        return cls(age, drawn_folding if folding is None else folding, matrix, exponential(velocity))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z [rad]."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _smooth_knots(rng, sigma_mm: float) -> np.ndarray:
    """Smooth random vector field (3, 41, 41, 41), standard deviation 1."""
    from scipy import ndimage

    noise = rng.standard_normal((3, *KNOTS)).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, (0, *[sigma_mm / KNOT] * 3), mode="nearest")
    return noise / noise.std()


@lru_cache(maxsize=1)
def _towards_ventricles() -> np.ndarray:
    """(3, 41, 41, 41) field [mm] that points into the lateral ventricles and is at most 1 mm long."""
    from scipy import ndimage

    at = grid_points(KNOTS, KNOT, KNOT_ORIGIN + KNOT * (np.array(KNOTS) - 1) / 2)
    near = ndimage.gaussian_filter(anatomy().probability[1], 9.0 / VOXEL)
    slope = np.stack(np.gradient(_sample(near, (at - ORIGIN[:, None, None, None]) / VOXEL)))
    return (slope / np.sqrt((slope**2).sum(0)).max()).astype(np.float32)


def _ventricle_velocity(amount_mm: float) -> np.ndarray:
    """Velocity that widens (positive) or narrows the ventricles: the wall moves by about `amount_mm`."""
    return np.float32(amount_mm) * _towards_ventricles()


def _sample(volume: np.ndarray, index: np.ndarray, order: int = 1) -> np.ndarray:
    """Value of (X, Y, Z) at fractional indices (3, ...); the edge is repeated."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(volume, index, order=order, mode="nearest", prefilter=order > 1)


def exponential(velocity: np.ndarray, squarings: int = 5) -> np.ndarray:
    """Displacement (3, ...) [mm] of the flow of a stationary velocity [mm], by scaling and squaring: a
    diffeomorphism, whose inverse is `exponential(-velocity)` up to discretisation."""
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in velocity.shape[1:]), indexing="ij"))
    field = (velocity / 2**squarings).astype(np.float32)
    for _ in range(squarings):
        moved = index + field / KNOT
        field = field + np.stack([_sample(part, moved) for part in field])
    return field


# --- grids and maps between them -------------------------------------------------------------------------


def grid_affine(shape, spacing_mm, centre_mm=CENTRE) -> np.ndarray:
    """Affine (4, 4) from voxel index to position [mm]; `spacing_mm` is one number or three."""
    affine = np.diag([*np.broadcast_to(np.asarray(spacing_mm, float), 3), 1.0])
    affine[:3, 3] = np.asarray(centre_mm) - np.diag(affine)[:3] * (np.array(shape) - 1) / 2
    return affine


def grid_points(shape, spacing_mm, centre_mm=CENTRE) -> np.ndarray:
    """Positions (3, X, Y, Z) [mm] of the voxels."""
    affine = grid_affine(shape, spacing_mm, centre_mm)
    axes = [(affine[i, 3] + affine[i, i] * np.arange(shape[i])).astype(np.float32) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def to_atlas(brain: Brain, points: np.ndarray) -> np.ndarray:
    """Where in the template the subject's positions (3, ...) [mm] lie."""
    centre = np.reshape(CENTRE, (3,) + (1,) * (points.ndim - 1)).astype(np.float32)
    points = np.tensordot(brain.matrix.astype(np.float32), points - centre, axes=1) + centre
    index = (points - KNOT_ORIGIN.reshape(centre.shape).astype(np.float32)) / np.float32(KNOT)
    return points + np.stack([_sample(part, index) for part in brain.field])


def from_atlas(brain: Brain, points: np.ndarray, iterations: int = 25) -> np.ndarray:
    """Inverse of `to_atlas`, by fixed-point iteration; accurate to about 0.01 mm."""
    inverse = np.linalg.inv(brain.matrix).astype(np.float32)
    guess = points.astype(np.float32)
    for _ in range(iterations):
        guess = guess + np.tensordot(inverse, points - to_atlas(brain, guess), axes=1)
    return guess


def displacement(fixed: Brain, moving: Brain, shape, spacing_mm, centre_mm=CENTRE) -> np.ndarray:
    """True displacement (3, X, Y, Z) [mm] for registration: what is at x in `fixed` is at x + u(x) in `moving`."""
    points = grid_points(shape, spacing_mm, centre_mm)
    return from_atlas(moving, to_atlas(fixed, points)) - points


def same_anatomy(rng: np.random.Generator, brain: Brain, **shape) -> Brain:
    """Another shape of the same brain: new matrix and deformation, same gyri and sulci (for registration)."""
    return Brain.random(rng, age=brain.age, folding=brain.folding, **shape)


# --- a subject on a grid ---------------------------------------------------------------------------------


def _smooth_noise(rng, shape, knot: float) -> np.ndarray:
    """Smooth Gaussian field, standard deviation 1: white noise on knots that far apart, as a cubic B-spline."""
    field = rng.standard_normal([int(np.ceil(n / knot)) + 3 for n in shape]).astype(np.float32)
    for axis in range(3):
        position = np.arange(shape[axis]) / knot
        first = np.floor(position).astype(int)
        t = position - first
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        matrix = np.zeros((len(position), field.shape[axis]), np.float32)
        for offset in range(4):
            matrix[np.arange(len(position)), first + offset] = weights[offset]
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return (field - field.mean()) / field.std()


@lru_cache(maxsize=4)
def _subject_probability(age: float, folding: int) -> np.ndarray:
    """Tissue maps (7, X, Y, Z) of one person in the template's space: a draw from the probabilities."""
    template = anatomy()
    if folding < 0:
        return template.probability
    rng = np.random.default_rng([folding, 152])
    corners = [np.flatnonzero(template.inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(corner[0], corner[-1] + 1) for corner in corners)
    where = template.inside[box]
    before = template.probability[:5, *box][:, where]
    log = np.log(before + np.float32(0.01))
    for tissue, strength in ((0, 0.8), (2, 0.9), (3, 0.9)):
        fields = 0.8 * _smooth_noise(rng, where.shape, 3.2) + 0.6 * _smooth_noise(rng, where.shape, 2.0)
        log[tissue] += np.float32(strength) * fields[where]
    log[0] += np.float32(0.9 * np.clip((age - 45) / 40, -0.6, 1.1))
    sharp = np.exp((log - log.max(0)) / np.float32(0.6))
    maps = template.probability.copy()
    maps[:5, *box][:, where] = sharp * (np.minimum(before.sum(0), 1) / sharp.sum(0))
    return maps


def tissues(brain: Brain, shape, spacing_mm, centre_mm=CENTRE, points: np.ndarray | None = None) -> dict:
    """Partial-volume maps of a subject.

    Args:
        brain: the subject.
        shape: (X, Y, Z) voxels.
        spacing_mm: voxel size, one number or three.
        centre_mm: position of the grid's middle.
        points: (3, X, Y, Z) positions to look at instead of the grid's own, e.g. pushed aside by a tumour.

    Returns:
        tissue -> float32 (X, Y, Z) in [0, 1]; the sum over TISSUES is at most 1, the rest is air.
    """
    from scipy import ndimage

    points = grid_points(shape, spacing_mm, centre_mm) if points is None else points
    index = (to_atlas(brain, points) - ORIGIN.reshape(3, 1, 1, 1).astype(np.float32)) / np.float32(VOXEL)
    spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3)
    sigma = 0.42 * np.sqrt(np.maximum(spacing**2 - VOXEL**2, 0)) / VOXEL  # a voxel averages what it covers
    maps = {}
    for name, volume in zip(TISSUES, _subject_probability(brain.age, brain.folding)):
        volume = ndimage.gaussian_filter(volume, sigma, mode="nearest", truncate=2.5) if sigma.any() else volume
        maps[name] = np.clip(_sample(volume, index), 0, 1)
    return maps


def brain_mask(maps: dict) -> np.ndarray:
    """bool (X, Y, Z): brain and the fluid around it, what brain extraction keeps."""
    return sum(maps[name] for name in BRAIN_TISSUES) > 0.5


def labels(brain: Brain, shape, spacing_mm, centre_mm=CENTRE, points: np.ndarray | None = None) -> np.ndarray:
    """Structures of a subject, uint8 (X, Y, Z), numbered as in LABELS; consistent with `tissues`."""
    points = grid_points(shape, spacing_mm, centre_mm) if points is None else points
    atlas = to_atlas(brain, points)
    index = (atlas - ORIGIN.reshape(3, 1, 1, 1).astype(np.float32)) / np.float32(VOXEL)
    maps = tissues(brain, shape, spacing_mm, centre_mm, points)
    stack = np.stack([maps[name] for name in TISSUES])
    kind = np.where(stack.sum(0) > 0.5, stack.argmax(0), len(TISSUES))
    structure = _sample(anatomy().structure, index, order=0)
    right = (atlas[0] > 0).astype(np.uint8)
    table = np.array([1, 2, 4, 6, 6, 0, 0, 0], np.uint8)  # deep grey beside the nuclei counts as white matter
    found = table[kind]
    found += right * (found >= 2)
    solid = (kind >= 2) & (kind <= 4)
    paired = (structure > 0) & (structure < 18)
    return np.where(solid & (structure > 0), structure + right * paired, found).astype(np.uint8)


def paint(maps: dict, name: str, fraction: np.ndarray) -> dict:
    """Maps in which `fraction` of each voxel has become tissue `name` (a lesion, say), the rest scaled down."""
    kept = 1 - fraction
    painted = {tissue: volume * kept for tissue, volume in maps.items()}
    painted[name] = painted.get(name, 0) + fraction
    return painted


# --- the scanner -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequence:
    """Spin echo, or inversion recovery where `ti_ms` is given."""

    tr_ms: float
    """repetition time"""
    te_ms: float
    """echo time"""
    ti_ms: float | None = None
    """inversion time"""


T1W = Sequence(tr_ms=500, te_ms=12)
T2W = Sequence(tr_ms=4000, te_ms=100)
PDW = Sequence(tr_ms=4000, te_ms=15)
FLAIR = Sequence(tr_ms=9000, te_ms=110, ti_ms=2446)
MPRAGE = Sequence(tr_ms=2300, te_ms=3, ti_ms=900)
"""Usual settings; FLAIR's inversion time nulls cerebrospinal fluid."""


def signal(t1_ms: float, t2_ms: float, density: float, sequence: Sequence) -> float:
    """Signal of a tissue: PD (1 - e^(-TR/T1)) e^(-TE/T2), or PD |1 - 2 e^(-TI/T1) + e^(-TR/T1)| e^(-TE/T2)."""
    recovery = 1 - np.exp(-sequence.tr_ms / t1_ms)
    if sequence.ti_ms is not None:
        recovery = abs(1 - 2 * np.exp(-sequence.ti_ms / t1_ms) + np.exp(-sequence.tr_ms / t1_ms))
    return float(density * recovery * np.exp(-sequence.te_ms / t2_ms))


def contrast(maps: dict, relaxation: dict, sequence: Sequence) -> np.ndarray:
    """Image (X, Y, Z): the tissues' signals, mixed by partial volume.

    Args:
        maps: tissue -> partial volume, from `tissues`; further ones (lesions, see `paint`) are welcome.
        relaxation: tissue -> (T1 [ms], T2 [ms], proton density) for each key of `maps`.
        sequence: T1W, T2W, PDW, FLAIR, MPRAGE or your own.
    """
    return sum(np.float32(signal(*relaxation[name], sequence)) * volume for name, volume in maps.items())


def bias_field(rng: np.random.Generator, shape, strength: float) -> np.ndarray:
    """Receive field (X, Y, Z): smooth, positive, mean 1, standard deviation of about `strength`."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [x, y, z, x * y, x * z, y * z, x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3]
    field = sum(np.float32(weight) * term for weight, term in zip(rng.standard_normal(len(terms)), terms))
    field = np.broadcast_to(field, tuple(shape))
    field = np.exp(np.float32(strength) * (field - field.mean()) / max(float(field.std()), 1e-6))
    return (field / field.mean()).astype(np.float32)


def rician(rng: np.random.Generator, image: np.ndarray, snr: float) -> np.ndarray:
    """Magnitude of the image with complex noise; `snr` is the median of the object's signal over sigma."""
    bright = image[image > 0.05 * image.max()]
    sigma = np.float32((float(np.median(bright)) if bright.size else 1.0) / snr)
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    return np.hypot(image + real, imaginary).astype(np.float32)
