"""Maximum-likelihood expectation maximisation: from counts to an image (M1, and M10 with attenuation)."""

import torch
from torch import Tensor

from papers.cdinet.projector import Projector
from shared.errors import InputError


@torch.no_grad()
def ml_em(
    projector: Projector,
    projections: Tensor,
    iterations: int = 30,
    mu: Tensor | None = None,
    angles_mask: Tensor | None = None,
    initial: Tensor | None = None,
) -> Tensor:
    """x ← x / (Aᵀ1) · Aᵀ(p / (A x)), starting from a uniform image.

    Every update keeps the image non-negative and makes the forward projection's total equal to that of the
    measured counts. Voxels that no measured row sees stay 0.

    With limited angles, only the measured rows enter the sensitivity Aᵀ1 and the ratio. The alternative,
    taking unmeasured rows as counts of 0, would tell the reconstruction that no photon went there and pull
    the image towards 0 wherever those detectors look.

    Args:
        projector: the scanner.
        projections: (B, 1, U, V, A) counts.
        iterations: 30 in the paper.
        mu: (B, 1, X, Y, Z) attenuation map in cm^-1 for an attenuation-corrected reconstruction (M10), else
            None (M1).
        angles_mask: 1 where measured, else 0, of any shape that broadcasts to the projections, such as (A,);
            None uses all rows.
        initial: (B, 1, X, Y, Z) positive start image.

    Returns:
        (B, 1, X, Y, Z), photons emitted per voxel, float32.

    Raises:
        InputError: negative or non-finite counts or attenuation, or tensors of the wrong shape.

    Example:
        >>> from papers.cdinet.geometry import PinholeGeometry
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> projector = Projector.from_geometry(geometry)
        >>> counts = projector.forward_project(torch.rand(1, 1, 12, 12, 8))
        >>> image = ml_em(projector, counts, angles_mask=geometry.measured_mask())
        >>> image.shape, bool(image.min() >= 0)
        (torch.Size([1, 1, 12, 12, 8]), True)
    """
    _check_not_negative(projections, "projections")
    operator = projector
    if mu is not None:
        _check_not_negative(mu, "attenuation map")
        operator = projector.with_attenuation(mu)
    mask = torch.ones_like(projections, dtype=torch.float32)
    if angles_mask is not None:
        mask = mask * angles_mask.to(mask)
    measured = projections.float() * mask
    sensitivity = operator.back_project(mask)
    seen = sensitivity > 0
    image = torch.ones_like(sensitivity) if initial is None else initial.float()
    image = torch.where(seen, image, 0.0)
    for _ in range(iterations):
        expected = operator.forward_project(image)
        ratio = torch.where(expected > 1e-30, measured / expected, 0.0)  # rows that see only empty voxels say nothing
        image = torch.where(seen, image * operator.back_project(ratio) / sensitivity, 0.0)
    return image


def _check_not_negative(tensor: Tensor, what: str) -> None:
    if not torch.isfinite(tensor).all() or (tensor < 0).any():
        raise InputError(f"ML-EM needs {what} that are finite and not negative; clamp predictions at 0 first.")
