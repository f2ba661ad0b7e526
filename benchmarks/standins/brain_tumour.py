"""Multi-modal MRI of a head phantom, healthy or with a glioma, after brain extraction.

The healthy part stands alone: `healthy_brain` gives tissue labels (folded cortex, white matter, ventricles, deep
nuclei, cerebellum, brainstem) that differ from case to case, `age_related_lesions` adds what a radiologist calls
unspecific, `signal` turns tissues into MR signal by the equations of the sequences, and `acquire` adds partial
volume, receive field and Rician noise. `glioma` grows a tumour with necrosis, enhancing rim and infiltrating
oedema, which pushes the healthy anatomy aside.

All arrays are (x, y, z) in RAS order, all lengths in mm, the origin in the middle of the brain near the anterior
commissure. Everything random comes from the `numpy.random.Generator` that is handed in.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# Tissue numbers of all label maps.
AIR, CSF, GREY, WHITE, DEEP_GREY, PALLIDUM, CEREBELLUM, SCALP, GLIOSIS, OEDEMA, ENHANCING, NECROSIS, TUMOUR = range(13)

# T1 [ms], T2 [ms], proton density, gadolinium concentration after injection [mM]; about 1.5 T.
TISSUES = np.array(
    [
        [1000, 50, 0.00, 0.00],  # air
        [4200, 1900, 1.00, 0.00],  # cerebrospinal fluid
        [1350, 95, 0.82, 0.02],  # grey matter
        [850, 75, 0.70, 0.01],  # white matter
        [1150, 82, 0.80, 0.02],  # caudate, putamen, thalamus
        [1000, 62, 0.76, 0.02],  # pallidum: iron shortens T2
        [1200, 88, 0.78, 0.02],  # cerebellar folia, white and grey too fine to tell apart
        [420, 85, 0.95, 0.15],  # scalp, dura and fat that brain extraction left
        [1150, 125, 0.80, 0.02],  # gliosis: caps and spots
        [1500, 150, 0.88, 0.03],  # vasogenic oedema and infiltration
        [1500, 120, 0.86, 0.55],  # enhancing rim
        [2400, 320, 0.94, 0.03],  # necrosis
        [1600, 165, 0.89, 0.04],  # solid tumour that does not enhance
    ],
    dtype=np.float64,
)
MODALITIES = ("t1", "t1ce", "t2", "flair")
RELAXIVITY = 4.5  # of gadolinium, 1 / (mM s)


@dataclass(frozen=True)
class Brain:
    """A head on a grid of isotropic voxels."""

    tissue: np.ndarray
    """uint8 (X, Y, Z), one of the tissue numbers above"""
    mask: np.ndarray
    """bool (X, Y, Z): what brain extraction keeps, remnants of scalp included"""
    depth: np.ndarray
    """float32 (X, Y, Z): mm below the outer surface of the brain, negative outside"""
    ventricle_distance: np.ndarray
    """float32 (X, Y, Z): mm from the wall of the lateral ventricles, negative inside"""
    coordinates: np.ndarray
    """float32 (3, X, Y, Z): position in mm of each voxel"""
    voxel_mm: float
    """edge of a voxel"""


def grid(shape: tuple[int, int, int], voxel_mm: float) -> np.ndarray:
    """Positions (3, X, Y, Z) in mm of the voxel centres, the origin in the middle."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * voxel_mm for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def smooth_noise(rng, coordinates: np.ndarray, wavelength_mm: float) -> np.ndarray:
    """A smooth Gaussian random field of about this wavelength, mean 0, standard deviation 1.

    White noise on a lattice of a quarter of the wavelength, smoothed there and interpolated.
    """
    step = wavelength_mm / 4
    low = coordinates.reshape(3, -1).min(axis=1)
    high = coordinates.reshape(3, -1).max(axis=1)
    shape = tuple(int(n) for n in np.ceil((high - low) / step) + 4)
    lattice = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 1.0, mode="wrap")
    lattice = (lattice - lattice.mean()) / lattice.std()
    spline = ndimage.spline_filter(lattice, order=2, output=np.float32)
    axes = [coordinates[i].min() + 0 * coordinates[i].max() for i in range(3)]
    if _is_regular(coordinates):
        # on a grid the three axes can be interpolated one after the other
        values = lattice
        for axis in range(3):
            line = np.moveaxis(coordinates[axis], axis, 0).reshape(coordinates.shape[axis + 1], -1)[:, 0]
            position = (line - axes[axis]) / step + 1.0
            values = _interpolate_axis(values, position, axis)
        return values.astype(np.float32)
    position = (coordinates - low[:, None, None, None]) / step + 1.0
    return ndimage.map_coordinates(spline, position, order=2, prefilter=False, output=np.float32)


def _is_regular(coordinates: np.ndarray) -> bool:
    return all(
        np.ptp(np.moveaxis(coordinates[axis], axis, 0).reshape(coordinates.shape[axis + 1], -1), axis=1).max() < 1e-4
        for axis in range(3)
    )


def _interpolate_axis(values: np.ndarray, position: np.ndarray, axis: int) -> np.ndarray:
    """Cubic B-spline smoothing along one axis: a matrix with four entries a row."""
    index = np.floor(position).astype(int)
    t = position - index
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    matrix = np.zeros((len(position), values.shape[axis]), np.float32)
    for offset in range(4):
        matrix[np.arange(len(position)), np.clip(index + offset - 1, 0, values.shape[axis] - 1)] += weights[offset]
    return np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
