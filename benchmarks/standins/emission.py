"""Emission tomography: expected counts of an activity in an attenuating body, and their noise."""

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.projector import attenuation_factors
from papers.cdinet.system_matrix import pinhole_block


def expected_counts(activity: Tensor, mu: Tensor, geometry: PinholeGeometry, refinement: int = 2) -> Tensor:
    """The noiseless projections of activities on a grid finer than the one they will be reconstructed on.

    Projecting the finer grid avoids the inverse crime of simulating with the very matrix that is used for
    the reconstruction. Attenuation varies slowly, so it is marched on the coarse grid and interpolated.

    Args:
        activity: (B, 1, rX, rY, rZ) with r the refinement: photons emitted per fine voxel.
        mu: (B, 1, X, Y, Z), cm^-1.
        geometry: the scanner, with the coarse grid.

    Returns:
        (B, 1, U, V, A) expected counts, float32; 0 at padding angles.
    """
    fine = geometry.refined(refinement)
    if tuple(activity.shape[1:]) != (1, *fine.image_shape):
        raise ValueError(f"activity must be (B, 1, {fine.image_shape}), got {tuple(activity.shape)}")
    cases = len(activity)
    factors = attenuation_factors(mu, geometry).unflatten(2, geometry.image_shape)  # (B, A, X, Y, Z)
    counts = torch.zeros(cases, 1, *geometry.projection_shape)
    for angle in range(geometry.pinholes):
        block = pinhole_block(fine, angle)  # (U*V, voxels)
        smooth = F.interpolate(factors[:, angle, None], scale_factor=refinement, mode="trilinear")
        arriving = (activity * smooth).flatten(1).numpy()  # (B, voxels)
        projection = scipy.sparse.csr_matrix(block) @ np.ascontiguousarray(arriving.T)
        counts[:, 0, :, :, angle] = torch.from_numpy(projection.T.reshape(cases, *geometry.detector_shape))
    return counts


def poisson_counts(expected: np.ndarray, total: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Whole counts of an acquisition that lasts until `total` counts are expected, and the scale used.

    Args:
        expected: noiseless counts on any scale, any shape.
    """
    scale = total / expected.sum(dtype=np.float64)
    return rng.poisson(expected.astype(np.float64) * scale), float(scale)


def thin(counts: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Keeps each detected photon with probability `fraction`: list-mode decimation of the *same* counts."""
    return rng.binomial(counts, fraction)


def limited_angle_mask(geometry: PinholeGeometry) -> np.ndarray:
    """(U, V, A): 1 at the angles that the limited-angle protocol measures, else 0."""
    return np.broadcast_to(geometry.measured_mask().numpy(), geometry.projection_shape).astype(np.float32)
