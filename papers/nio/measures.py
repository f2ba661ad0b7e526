"""What is measured of a registration: Dice, worst cases, Jacobian determinant, target registration error (M10)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from papers.nio.model import resize, sample, unit_to_voxel, voxel_to_unit, warp


def field_on(field: Tensor, size: Sequence[int]) -> Tensor:
    """A unit field on a grid of another size over the same field of view, edge to edge.

    Unit coordinates end at the centres of the outer voxels, so they are not quite the same on the two grids.
    """
    factor = torch.tensor([a / b for a, b in zip(size, field.shape[2:])], device=field.device).view(1, 3, 1, 1, 1)
    return voxel_to_unit(resize(unit_to_voxel(field), size) * factor)


def warp_labels(labels: np.ndarray, field: Tensor) -> Tensor:
    """Labels of the moving scan in the fixed scan's space, nearest neighbour, as int64 (1, X, Y, Z).

    Args:
        labels: (X, Y, Z), perhaps on a finer grid than the field.
        field: unit field (1, 3, ...).
    """
    moved = warp(torch.from_numpy(labels.astype(np.float32))[None, None], field_on(field, labels.shape), "nearest")
    return moved[:, 0].round().long()


def mean_dice(moving: np.ndarray, fixed: np.ndarray, field: Tensor, labels: Sequence[int]) -> float:
    """Mean Dice over the structures that the fixed scan has."""
    from shared.metrics import dice

    truth = torch.from_numpy(fixed.astype(np.int64))[None]
    present = [label for label in labels if (truth == label).any()]
    return float(dice(warp_labels(moving, field), truth, present).mean())


def worst_share(scores: Sequence[float], share: float = 0.3) -> list[float]:
    """The lowest `share` of the scores in ascending order, at least one. Their mean is DSC30.

    Example:
        >>> worst_share([0.5, 0.9, 0.1, 0.7, 0.8, 0.6, 0.3, 0.4, 0.2, 1.0])
        [0.1, 0.2, 0.3]
    """
    return sorted(scores)[: max(1, round(share * len(scores)))]


def jacobian_determinant(field: Tensor) -> Tensor:
    """|J_Φ| of Φ = id + u, (B, X - 1, Y - 1, Z - 1), by forward differences in voxels.

    It is the factor by which a volume element changes, so it does not depend on the voxel size.
    """
    voxels = unit_to_voxel(field)
    size = [n - 1 for n in field.shape[2:]]
    rows = [torch.diff(voxels, dim=2 + axis)[:, :, : size[0], : size[1], : size[2]] for axis in range(3)]
    jacobian = torch.stack(rows, dim=-1).permute(0, 2, 3, 4, 1, 5) + torch.eye(3, device=field.device)
    return torch.linalg.det(jacobian)


def to_unit(points_mm: np.ndarray, origin_mm, spacing_mm, shape) -> Tensor:
    """Positions (N, 3) [mm] in unit coordinates of a grid, (1, 3, N, 1, 1)."""
    index = (points_mm - np.asarray(origin_mm)) / np.asarray(spacing_mm)
    unit = 2 * index / (np.asarray(shape) - 1) - 1
    return torch.from_numpy(unit.T.astype(np.float32))[None, :, :, None, None]


def landmark_errors(field: Tensor, fixed_mm: np.ndarray, moving_mm: np.ndarray, origin_mm, spacing_mm) -> np.ndarray:
    """Distance [mm] between Φ(landmark of the fixed scan) and the landmark of the moving scan, (N,).

    Args:
        field: unit field (1, 3, X, Y, Z) on a grid that both scans share.
        fixed_mm, moving_mm: positions (N, 3).
        origin_mm, spacing_mm: of the grid.
    """
    points = to_unit(fixed_mm, origin_mm, spacing_mm, field.shape[2:])
    voxels = sample(unit_to_voxel(field), points)[0, :, :, 0, 0].numpy().T
    return np.linalg.norm(fixed_mm + voxels * np.asarray(spacing_mm) - moving_mm, axis=1)
