"""Surface distances of label maps in mm, all (B, L) for B cases and L labels.

`surface_metrics` gives HD95, ASSD and NSD at the price of one; `hd95`, `hausdorff_distance`, `assd`, `asd` and
`nsd` give one each. Whoever needs something else calls `surface_distances` once and derives the rest from its
result with `hausdorff_from_distances`, `assd_from_distances`, `asd_from_distances` and `nsd_from_distances`.

The conventions are those of `shared.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.metrics import LARGEST_INDEXED_LABEL, check_maps
from shared.nearest_surface import directed_distances

__all__ = [
    "LabelDistances",
    "asd",
    "asd_from_distances",
    "assd",
    "assd_from_distances",
    "hausdorff_distance",
    "hausdorff_from_distances",
    "hd95",
    "nsd",
    "nsd_from_distances",
    "surface_distances",
    "surface_metrics",
]

HAUSDORFF_CONVENTIONS = ("max_of_directed", "pooled")


class LabelDistances(NamedTuple):
    """The two sets of surface distances of one label of one case, 1-D float64 CPU tensors in mm, in no given
    order.

    An empty mask has no surface: its set is empty, and all distances to it in the other set are infinite.
    """

    prediction_to_truth: Tensor
    """For every surface voxel of the prediction, the distance to the nearest surface voxel of the truth."""
    truth_to_prediction: Tensor
    """For every surface voxel of the truth, the distance to the nearest surface voxel of the prediction."""


def surface_distances(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
) -> list[list[LabelDistances]]:
    """What all surface metrics are made of: the distances between the two surfaces, for every case and label.

    The surface of a mask is the voxels of the mask of which a face-connected neighbour isn't in it; beyond
    the border of the image nothing is. That's the mask XOR its erosion with the 4- or 6-neighbourhood, as in
    MONAI and medpy. The distance is Euclidean, between voxel centres, and exact.

    The library surface-distance of DeepMind puts surface elements on voxel corners instead and weights them
    by area, so its values differ from these by definition.

    The work is on the CPU, whatever the device of the maps, of which only the part around each label is
    copied.

    Method: for one surface, the distance to it along the axis of finest spacing is tabulated for every voxel.
    Each surface voxel of the other mask then looks into the columns around its own, nearest first, and stops
    as soon as the next column is further than the best that it has found. Voxels that haven't finished after
    some 1000 columns are left to a k-d tree.

    Args:
        prediction: bool masks or integer label maps of shape (B, H, W) or (B, D, H, W).
        truth: like `prediction`.
        spacing: the voxel size in mm along the spatial axes in the order of the tensor's axes, the same for all
            cases; or one such sequence per case. Mind that SimpleITK's `GetSpacing` is (x, y, z) while the axes
            of its arrays are (z, y, x).
        labels: as for `overlap_counts`. A label that neither map of a case has costs nothing there.

    Returns:
        `distances[b][l]` for case b and label `labels[l]`.

    Raises:
        ValueError: as for `overlap_counts`, or neither two nor three spatial axes, or a spacing that isn't a
            positive finite number for every axis.

    >>> p = torch.zeros(1, 5, 5, dtype=torch.bool); t = p.clone()
    >>> p[0, 1, 1] = t[0, 1, 4] = True
    >>> surface_distances(p, t, spacing=(1.0, 0.5))[0][0].prediction_to_truth
    tensor([1.5000], dtype=torch.float64)
    """
    prediction, truth, labels = check_maps(prediction, truth, labels)
    spacings = _check_spacing(spacing, prediction)
    none = torch.empty(0, dtype=torch.float64)
    result = []
    for p_case, t_case, mm in zip(prediction, truth, spacings):
        boxes = _label_boxes(p_case, t_case, labels)
        row = []
        for label, box in zip(labels, boxes):
            if box is None:
                row.append(LabelDistances(none, none))
                continue
            p, t = (_mask_of(x[box], label).cpu().numpy() for x in (p_case, t_case))
            row.append(LabelDistances(*(torch.from_numpy(d) for d in directed_distances(p, t, mm))))
        result.append(row)
    return result


def surface_metrics(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    nsd_tolerance: float | Sequence[float] | None = None,
    convention: str = "max_of_directed",
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> dict[str, Tensor]:
    """HD95 and ASSD in mm, and NSD where a tolerance is given, from one computation of the distances.

    Args:
        prediction, truth, spacing, labels: as for `surface_distances`.
        nsd_tolerance: the tolerance of the NSD in mm: one number, or one per label. None leaves the NSD out.
        convention: of the HD95, see `hausdorff_from_distances`.
        both_empty: the value of all metrics where both masks are empty.
        one_empty: the distance in mm where only one mask is empty. Some challenges use the diagonal of the
            image. The NSD is 0 there.

    Returns:
        A dict of (B, L) tensors under "hd95", "assd" and, with `nsd_tolerance`, "nsd".

    >>> mask = torch.zeros(1, 8, 8, 8, dtype=torch.bool); mask[:, 2:6, 2:6, 2:6] = True
    >>> m = surface_metrics(mask.roll(1, dims=1), mask, spacing=(3.0, 1.0, 1.0), nsd_tolerance=2.0)
    >>> m["hd95"].item(), m["nsd"].item()
    (3.0, 0.7142857142857143)
    """
    distances = surface_distances(prediction, truth, spacing, labels)
    empty = {"both_empty": both_empty, "one_empty": one_empty}
    result = {
        "hd95": hausdorff_from_distances(distances, 95.0, convention=convention, **empty),
        "assd": assd_from_distances(distances, **empty),
    }
    if nsd_tolerance is not None:
        result["nsd"] = nsd_from_distances(distances, nsd_tolerance, both_empty=both_empty)
    return {name: value.to(prediction.device) for name, value in result.items()}


def hausdorff_distance(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    percentile: float = 100.0,
    convention: str = "max_of_directed",
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> Tensor:
    """The Hausdorff distance in mm, or a percentile of it, as (B, L).

    `surface_distances` describes the first four arguments, `hausdorff_from_distances` the others.
    """
    distances = surface_distances(prediction, truth, spacing, labels)
    empty = {"both_empty": both_empty, "one_empty": one_empty}
    result = hausdorff_from_distances(distances, percentile, convention=convention, **empty)
    return result.to(prediction.device)


def hd95(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    convention: str = "max_of_directed",
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> Tensor:
    """The 95 % Hausdorff distance in mm as (B, L): `hausdorff_distance` with `percentile=95`."""
    empty = {"both_empty": both_empty, "one_empty": one_empty}
    return hausdorff_distance(prediction, truth, spacing, labels, percentile=95.0, convention=convention, **empty)


def assd(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> Tensor:
    """The average symmetric surface distance in mm as (B, L).

    `surface_distances` describes the first four arguments, `assd_from_distances` the others.
    """
    distances = surface_distances(prediction, truth, spacing, labels)
    return assd_from_distances(distances, both_empty=both_empty, one_empty=one_empty).to(prediction.device)


def asd(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> Tensor:
    """The directed average surface distance from the prediction to the truth in mm as (B, L).

    `surface_distances` describes the first four arguments, `asd_from_distances` the others.
    """
    distances = surface_distances(prediction, truth, spacing, labels)
    return asd_from_distances(distances, both_empty=both_empty, one_empty=one_empty).to(prediction.device)


def nsd(
    prediction: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    tolerance: float | Sequence[float],
    both_empty: float = math.nan,
) -> Tensor:
    """The normalised surface Dice at a tolerance in mm as (B, L), in [0, 1].

    `surface_distances` describes the first four arguments, `nsd_from_distances` the others.
    """
    distances = surface_distances(prediction, truth, spacing, labels)
    return nsd_from_distances(distances, tolerance, both_empty=both_empty).to(prediction.device)


def hausdorff_from_distances(
    distances: list[list[LabelDistances]],
    percentile: float = 95.0,
    *,
    convention: str = "max_of_directed",
    both_empty: float = math.nan,
    one_empty: float = math.inf,
) -> Tensor:
    """The Hausdorff distance at a percentile, in mm, as a (B, L) CPU tensor.

    Args:
        distances: from `surface_distances`.
        percentile: in [0, 100]; 100 is the Hausdorff distance, 95 the HD95. Between two distances it
            interpolates linearly, like `numpy.percentile` and `torch.quantile`.
        convention: "max_of_directed" takes the percentile of each directed set and then the larger of the
            two, as MONAI's `compute_hausdorff_distance` does (and, with surface elements weighted by area,
            the library surface-distance). "pooled" takes one percentile of both sets together, as medpy's `hd95` does;
            it's mostly the smaller one. At 100 the two are the same.
        both_empty: the value where both masks are empty. MONAI's is NaN; 0 counts such a case as perfect.
        one_empty: the value in mm where only one mask is empty.

    Raises:
        ValueError: a percentile outside [0, 100] or an unknown convention.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in [0, 100], got {percentile}.")
    if convention not in HAUSDORFF_CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(HAUSDORFF_CONVENTIONS)}, got {convention!r}.")

    def value(p: np.ndarray, t: np.ndarray) -> float:
        if convention == "pooled":
            return np.percentile(np.concatenate((p, t)), percentile)
        return max(np.percentile(p, percentile), np.percentile(t, percentile))

    return _per_label(distances, value, both_empty, one_empty)


def assd_from_distances(
    distances: list[list[LabelDistances]], *, both_empty: float = math.nan, one_empty: float = math.inf
) -> Tensor:
    """The average symmetric surface distance in mm as a (B, L) CPU tensor.

    It is the mean of both directed sets taken together, as in MONAI and in medpy from 0.5 on, so a larger
    surface weighs more. (Older versions of medpy averaged the two directed means instead.) `both_empty` and
    `one_empty` are as for `hausdorff_from_distances`.
    """
    return _per_label(distances, lambda p, t: (p.sum() + t.sum()) / (p.size + t.size), both_empty, one_empty)


def asd_from_distances(
    distances: list[list[LabelDistances]], *, both_empty: float = math.nan, one_empty: float = math.inf
) -> Tensor:
    """The average distance from the prediction's surface to the truth's in mm, as a (B, L) CPU tensor.

    It isn't symmetric: a prediction that misses half of a structure can still have a small one. `both_empty`
    and `one_empty` are as for `hausdorff_from_distances`.
    """
    return _per_label(distances, lambda p, t: p.mean(), both_empty, one_empty)


def nsd_from_distances(
    distances: list[list[LabelDistances]], tolerance: float | Sequence[float], *, both_empty: float = math.nan
) -> Tensor:
    """The normalised surface Dice as a (B, L) CPU tensor: the fraction of both surfaces within the tolerance.

    Surface voxels all count the same, as in MONAI's `compute_surface_dice` without subvoxels; the original
    (Nikolov et al. 2018, arXiv:1809.04430) weights surface elements by area. A distance of the tolerance is
    within it, also where rounding puts it above by a part in a million: 3 voxels of 0.7 mm are within 2.1 mm.

    Args:
        distances: from `surface_distances`.
        tolerance: in mm, at least 0: one number, or one per label.
        both_empty: the value where both masks are empty. Where only one is, the NSD is 0.

    Raises:
        ValueError: a tolerance that is negative or not finite, or not as many as there are labels.
    """
    count = len(distances[0])
    tolerances = [float(x) for x in tolerance] if np.ndim(tolerance) else [float(tolerance)] * count
    if len(tolerances) != count:
        raise ValueError(f"tolerance must be one number or one per label ({count}), got {len(tolerances)}.")
    if not all(math.isfinite(x) and x >= 0 for x in tolerances):
        raise ValueError(f"tolerance must be finite and at least 0 mm, got {tolerance}.")
    columns = []
    for index, limit in enumerate(tolerances):
        limit *= 1 + 1e-6

        def value(p: np.ndarray, t: np.ndarray, limit: float = limit) -> float:
            return (np.count_nonzero(p <= limit) + np.count_nonzero(t <= limit)) / (p.size + t.size)

        columns.append(_per_label([[row[index]] for row in distances], value, both_empty, 0.0))
    return torch.cat(columns, dim=1)


def _per_label(distances, value, both_empty: float, one_empty: float) -> Tensor:
    def of(pair: LabelDistances) -> float:
        p, t = (x.numpy() for x in pair)
        if p.size and t.size:
            return float(value(p, t))
        return one_empty if p.size or t.size else both_empty

    return torch.tensor([[of(pair) for pair in row] for row in distances], dtype=torch.float64)


def _check_spacing(spacing, prediction: Tensor) -> np.ndarray:
    """The spacing as (B, D)."""
    axes = prediction.ndim - 1
    if axes not in (2, 3):
        raise ValueError(f"Surface metrics need two or three spatial axes, got {tuple(prediction.shape)}.")
    expected = f"spacing must be {axes} numbers in mm, or as many for each case, got {spacing}."
    try:
        mm = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(expected) from error
    if mm.shape == (axes,):
        mm = np.broadcast_to(mm, (len(prediction), axes))
    if mm.shape != (len(prediction), axes):
        raise ValueError(expected)
    if not (np.isfinite(mm).all() and (mm > 0).all()):
        raise ValueError(f"spacing must be positive and finite, got {spacing}.")
    return mm


def _mask_of(maps: Tensor, label: int) -> Tensor:
    """The mask of a label. A bool map has the labels 0 and 1."""
    if maps.dtype == torch.bool:
        return maps if label == 1 else ~maps if label == 0 else torch.zeros_like(maps)
    info = torch.iinfo(maps.dtype)
    return maps == label if info.min <= label <= info.max else torch.zeros_like(maps, dtype=torch.bool)


def _label_boxes(p: Tensor, t: Tensor, labels: list[int]) -> list[tuple[slice, ...] | None]:
    """The bounding box of each label in both maps together; None for a label that neither has."""
    many = len(labels) > 4 and p.dtype != torch.bool and p.device.type == "cpu"
    if not many or min(labels) < 1 or max(labels) > LARGEST_INDEXED_LABEL:
        return [_mask_box(_mask_of(p, label) | _mask_of(t, label)) for label in labels]
    from scipy.ndimage import find_objects

    found = [find_objects(x.numpy(), max_label=max(labels)) for x in (p, t)]
    boxes = []
    for label in labels:
        pair = [boxes_of[label - 1] for boxes_of in found if boxes_of[label - 1] is not None]
        union = (slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*pair))
        boxes.append(tuple(union) if pair else None)
    return boxes


def _mask_box(mask: Tensor) -> tuple[slice, ...] | None:
    box = []
    projection = mask.any(0)
    for axis in range(mask.ndim):
        if axis == 0:
            line = mask.flatten(1).any(1)
        else:
            others = [k for k in range(projection.ndim) if k != axis - 1]
            line = projection.any(others[0]) if others else projection
        inside = torch.nonzero(line)
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
