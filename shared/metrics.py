"""Metrics for segmentation and for image quality, the same ones for every paper of the repository.

**Overlap** of label maps, all (B, L) for B cases and L labels: `dice`, `iou`, `sensitivity`, `precision`,
each from the counts of `overlap_counts`.

**Surface distance** of label maps in mm, all (B, L): `surface_metrics` gives HD95, ASSD and NSD at the price
of one; `hd95`, `hausdorff_distance`, `assd`, `asd` and `nsd` give one each. Whoever needs something else
calls `surface_distances` once and derives the rest from its result with `hausdorff_from_distances`,
`assd_from_distances`, `asd_from_distances` and `nsd_from_distances`.

**Image quality**, all (B,): `mae`, `nmae`, `nmse`, `psnr`, `ssim`.

Conventions that hold everywhere:

- The order of arguments is `(prediction, truth)`.
- The first axis is the batch and all the others are space: (B, H, W) or (B, D, H, W). There's no channel
  axis; put channels into the batch with `x.flatten(0, 1)`.
- Segmentations are bool masks, or integer label maps together with `labels=[...]`. Floating-point ones are
  refused: take the argmax or the threshold first.
- Results are float64 on the device of `prediction`. Nothing is averaged over cases or labels; `torch.nanmean`
  averages over those that are defined.
- A metric that is 0 / 0, such as the Dice of two empty masks, is NaN unless another value is asked for, so
  that a structure that a case doesn't have neither raises nor lowers an average.
- Different shapes, non-finite intensities and other invalid arguments raise ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LabelDistances",
    "OverlapCounts",
    "asd",
    "asd_from_distances",
    "assd",
    "assd_from_distances",
    "dice",
    "hausdorff_distance",
    "hausdorff_from_distances",
    "hd95",
    "iou",
    "mae",
    "nmae",
    "nmse",
    "nsd",
    "nsd_from_distances",
    "overlap_counts",
    "precision",
    "psnr",
    "sensitivity",
    "ssim",
    "surface_distances",
    "surface_metrics",
]

HAUSDORFF_CONVENTIONS = ("max_of_directed", "pooled")

# Labels up to this are counted and found by index. Others are sorted to count them, and found one by one.
_LARGEST_INDEXED_LABEL = 1 << 16
# How many columns around a voxel the search for the nearest surface looks into before a k-d tree takes over.
_SEARCHED_COLUMNS = 1024
# Voxels per moment that SSIM works on at a time: small enough for the cache of one core.
_SSIM_CHUNK = 1 << 17


# ------------------------------------------------------------------------------------------------------------
# Overlap
# ------------------------------------------------------------------------------------------------------------


class OverlapCounts(NamedTuple):
    """Voxel counts of every case and label, each an int64 tensor of shape (B, L)."""

    intersection: Tensor
    """Voxels with the label in both maps: the true positives."""
    prediction: Tensor
    """Voxels with the label in the prediction: true and false positives."""
    truth: Tensor
    """Voxels with the label in the truth: true positives and false negatives."""


def overlap_counts(prediction: Tensor, truth: Tensor, labels: Sequence[int] | None = None) -> OverlapCounts:
    """Counts the voxels from which every overlap metric follows.

    The cost is three histograms per case, whatever the number of labels.

    Args:
        prediction: bool masks or integer label maps, (B, *spatial), on any device.
        truth: like `prediction`: the same shape and device, and bool where it is bool.
        labels: the L labels to count, in the order of the result. They may include 0, the background, and
            labels that no map has. None is for bool masks only, whose one label is True.

    Raises:
        ValueError: different shapes or devices, fewer than two axes, no voxels, neither bool nor integer, a
            bool map with an integer one, no or repeated labels, or label maps without `labels`.
    """
    labels = _check_maps(prediction, truth, labels)
    if prediction.dtype == torch.bool:
        p, t = prediction.flatten(1), truth.flatten(1)
        if p.device.type == "cpu":  # NumPy counts bools many times faster than torch.
            triples = [(a & b, a, b) for a, b in zip(p.numpy(), t.numpy())]
            counts = torch.tensor([[np.count_nonzero(x) for x in triple] for triple in triples])
        else:
            counts = torch.stack([x.sum(1, dtype=torch.int64) for x in (p & t, p, t)], dim=1)
        return OverlapCounts(*_of_mask(list(counts.split(1, dim=1)), labels, p.shape[1]))
    p, labels_index, bins = _label_bins(prediction.flatten(1), labels)
    t, _, _ = _label_bins(truth.flatten(1), labels)
    rows = []
    for p_case, t_case in zip(p, t):
        both = p_case[p_case == t_case]
        histograms = [torch.bincount(x, minlength=bins) for x in (both, p_case, t_case)]
        rows.append(torch.stack(histograms)[:, labels_index])
    return OverlapCounts(*torch.stack(rows, dim=1))


def dice(
    prediction: Tensor, truth: Tensor, labels: Sequence[int] | None = None, *, undefined: float = math.nan
) -> Tensor:
    """The Dice similarity coefficient 2 |P ∩ T| / (|P| + |T|), in [0, 1], as (B, L).

    Empty masks: where both are empty it is `undefined` (NaN by default; 1 is the convention of BraTS); where
    one is, 0. Arguments and errors are those of `overlap_counts`.

    >>> p = torch.tensor([[[0, 1, 1, 2]]]); t = torch.tensor([[[1, 1, 1, 2]]])
    >>> dice(p, t, labels=[1, 2, 3])
    tensor([[0.8000, 1.0000,    nan]], dtype=torch.float64)
    """
    c = overlap_counts(prediction, truth, labels)
    return _ratio(2 * c.intersection, c.prediction + c.truth, undefined)


def iou(
    prediction: Tensor, truth: Tensor, labels: Sequence[int] | None = None, *, undefined: float = math.nan
) -> Tensor:
    """Intersection over union (the Jaccard index) |P ∩ T| / |P ∪ T|, in [0, 1], as (B, L).

    Empty masks: where both are empty it is `undefined`; where one is, 0. Arguments and errors are those of
    `overlap_counts`.
    """
    c = overlap_counts(prediction, truth, labels)
    return _ratio(c.intersection, c.prediction + c.truth - c.intersection, undefined)


def sensitivity(
    prediction: Tensor, truth: Tensor, labels: Sequence[int] | None = None, *, undefined: float = math.nan
) -> Tensor:
    """Sensitivity (recall) |P ∩ T| / |T|, in [0, 1], as (B, L).

    Empty masks: where the truth is empty, there was nothing to find and it is `undefined`, whatever the
    prediction; where only the prediction is, 0. Arguments and errors are those of `overlap_counts`.
    """
    c = overlap_counts(prediction, truth, labels)
    return _ratio(c.intersection, c.truth, undefined)


def precision(
    prediction: Tensor, truth: Tensor, labels: Sequence[int] | None = None, *, undefined: float = math.nan
) -> Tensor:
    """Precision (positive predictive value) |P ∩ T| / |P|, in [0, 1], as (B, L).

    Empty masks: where the prediction is empty, nothing was claimed and it is `undefined`, whatever the truth;
    where only the truth is, 0. Arguments and errors are those of `overlap_counts`.
    """
    c = overlap_counts(prediction, truth, labels)
    return _ratio(c.intersection, c.prediction, undefined)


def _ratio(numerator: Tensor, denominator: Tensor, undefined: float) -> Tensor:
    ratio = numerator.double() / denominator
    return torch.where(denominator == 0, torch.full_like(ratio, undefined), ratio)


def _of_mask(counts: list[Tensor], labels: list[int], voxels: int) -> list[Tensor]:
    """Spreads the counts of bool masks, each (B, 1), to labels: True is 1, False is 0 and others are
    absent."""
    both, p, t = counts
    zero = torch.zeros_like(p)
    of_label = {1: (both, p, t), 0: (voxels - p - t + both, voxels - p, voxels - t)}
    columns = [of_label.get(label, (zero, zero, zero)) for label in labels]
    return [torch.cat(column, dim=1) for column in zip(*columns)]


def _label_bins(maps: Tensor, labels: list[int]) -> tuple[Tensor, Tensor, int]:
    """Maps (B, N) as non-negative integers fit for bincount, the bin of each label, and the number of bins.

    Small labels are their own bins and everything else shares the last one. Negative or huge labels are
    numbered in sorted order instead, so that the histogram stays short.
    """
    if min(labels) >= 0 and max(labels) <= _LARGEST_INDEXED_LABEL:
        bins = max(labels) + 2
        low, high = (int(v) for v in torch.aminmax(maps))
        if low < 0 or high >= bins:
            maps = maps.long()
            maps = torch.where((maps < 0) | (maps >= bins), bins - 1, maps)
        return maps, torch.tensor(labels, device=maps.device), bins
    ordered = torch.tensor(sorted(labels), device=maps.device)
    maps = maps.long()
    position = torch.searchsorted(ordered, maps).clamp_(max=len(labels) - 1)
    maps = torch.where(ordered[position] == maps, position, len(labels))
    return maps, torch.searchsorted(ordered, torch.tensor(labels, device=maps.device)), len(labels) + 1


def _check_maps(prediction: Tensor, truth: Tensor, labels: Sequence[int] | None) -> list[int]:
    for name, x in (("prediction", prediction), ("truth", truth)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(x).__name__}.")
        if x.is_floating_point() or x.is_complex():
            raise ValueError(f"{name} must be a bool mask or integer label map, got {x.dtype}; discretise it.")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}."
        )
    if prediction.device != truth.device:
        raise ValueError(
            f"prediction and truth must be on the same device, got {prediction.device} and {truth.device}."
        )
    if prediction.ndim < 2 or prediction.numel() == 0:
        raise ValueError(f"Maps must have the shape (B, *spatial) and voxels, got {tuple(prediction.shape)}.")
    if (prediction.dtype == torch.bool) != (truth.dtype == torch.bool):
        raise ValueError(f"Both maps must be bool or both integer, got {prediction.dtype} and {truth.dtype}.")
    if labels is None:
        if prediction.dtype != torch.bool:
            raise ValueError("labels is required for integer label maps, for instance labels=[1].")
        return [1]
    labels = [int(label) for label in labels]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be one or more different integers, got {labels}.")
    return labels


# ------------------------------------------------------------------------------------------------------------
# Surface distance
# ------------------------------------------------------------------------------------------------------------


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
    by area, so its values differ from these by
    definition.

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
    labels = _check_maps(prediction, truth, labels)
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
            row.append(LabelDistances(*(torch.from_numpy(d) for d in _mask_distances(p, t, mm))))
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
    """The average distance from the surface of the prediction to that of the truth in mm, as a (B, L) CPU
    tensor.

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
    if not many or min(labels) < 1 or max(labels) > _LARGEST_INDEXED_LABEL:
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


def _mask_distances(p: np.ndarray, t: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directed distance sets of two bool masks in mm. The masks touch all sides of the array
    together."""
    finest = int(np.argmin(spacing))
    order = [finest, *(k for k in range(p.ndim) if k != finest)]
    spacing = spacing[order]
    surfaces = [_surface(np.ascontiguousarray(x.transpose(order))) for x in (p, t)]
    if p.ndim == 2:
        surfaces = [x[:, :, None] for x in surfaces]
        spacing = np.append(spacing, 1.0)
    indices = [np.flatnonzero(x) for x in surfaces]
    if not all(len(x) for x in indices):
        return tuple(np.full(len(x), np.inf) for x in indices)
    voxels = [np.unravel_index(x, surfaces[0].shape) for x in indices]
    return (
        _nearest(voxels[0], voxels[1], surfaces[1], spacing),
        _nearest(voxels[1], voxels[0], surfaces[0], spacing),
    )


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of the mask with a face-connected neighbour that isn't in it; outside the array nothing
    is."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        x, m = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        x[0] = False
        x[-1] = False
        x[1:] &= m[:-1]
        x[:-1] &= m[1:]
    return mask ^ inner


def _nearest(points, targets, surface: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The distance in mm from each point to the nearest voxel of a surface.

    Args:
        points: three index arrays (N,) of voxels.
        targets: three index arrays (M,), M > 0: the voxels of the surface.
        surface: the surface as a bool array (n0, n1, n2).
        spacing: in mm along the three axes, the finest first.

    Every column along axis 0 holds, for every voxel, the distance to the nearest surface voxel of that
    column. The nearest surface voxel of a point is in one of the columns around it, of which none further
    away (in the plane of axes 1 and 2) than the best distance so far can improve on it.
    """
    n0, n1, n2 = surface.shape
    # The reach of the search in the plane, such that it covers about `_SEARCHED_COLUMNS` columns.
    if n2 == 1:
        reach = _SEARCHED_COLUMNS * spacing[1] / 2
    else:
        reach = math.sqrt(_SEARCHED_COLUMNS * spacing[1] * spacing[2] / math.pi)
    r1, r2 = (min(n - 1, int(reach / mm)) for n, mm in zip((n1, n2), spacing[1:]))
    planar = np.add.outer((np.arange(-r1, r1 + 1) * spacing[1]) ** 2, (np.arange(-r2, r2 + 1) * spacing[2]) ** 2)
    complete = math.hypot((n1 - 1) * spacing[1], (n2 - 1) * spacing[2]) <= reach
    width = n2 + 2 * r2
    shift = np.add.outer(np.arange(-r1, r1 + 1) * width, np.arange(-r2, r2 + 1)).ravel()
    planar = planar.ravel()
    order = np.argsort(planar, kind="stable")
    order = order[: np.searchsorted(planar[order], reach * reach, side="right")]
    planar, shift = planar[order], shift[order]

    # Distances in voxels along the columns, n0 where a column is empty, with a margin of empty columns.
    dtype = np.int16 if n0 < 16000 else np.int32
    table = np.full((n0, n1 + 2 * r1, width), n0, dtype)
    along = table[:, r1 : r1 + n1, r2 : r2 + n2]
    along[surface] = 0
    step = np.empty(along.shape[1:], dtype)
    for k in range(1, n0):
        np.minimum(along[k], np.add(along[k - 1], 1, out=step), out=along[k])
    for k in range(n0 - 2, -1, -1):
        np.minimum(along[k], np.add(along[k + 1], 1, out=step), out=along[k])
    table = table.reshape(-1)
    squared = (np.arange(n0 + 1) * spacing[0]) ** 2
    squared[n0] = np.inf

    best = squared[table.take(_flat(points, n1 + 2 * r1, width, r1, r2))]
    active = np.flatnonzero(best > 0)
    base, least = _flat([x[active] for x in points], n1 + 2 * r1, width, r1, r2), best[active]
    start, size = 1, 4
    while start < len(shift) and len(active):
        block = slice(start, start + size)
        found = squared.take(table.take(shift[block, None] + base))
        found += planar[block, None]
        np.minimum(least, found.min(axis=0), out=least)
        start, size = start + size, min(2 * size, 16)
        if start < len(shift):
            keep = least > planar[start]
            if not keep.all():
                best[active] = least
                active, base, least = active[keep], base[keep], least[keep]
    best[active] = least
    distance = np.sqrt(best)
    if complete:
        return distance
    rest = np.flatnonzero(distance > reach)
    if len(rest):
        from scipy.spatial import cKDTree

        tree = cKDTree(np.stack(targets, axis=1) * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
        far = np.stack([x[rest] for x in points], axis=1) * spacing
        distance[rest] = tree.query(far, workers=torch.get_num_threads())[0]
    return distance


def _flat(voxels, height: int, width: int, margin1: int, margin2: int) -> np.ndarray:
    """Flat indices of voxels in an array (n0, height, width) that has margins along its last two axes."""
    return (voxels[0] * height + voxels[1] + margin1) * width + voxels[2] + margin2


# ------------------------------------------------------------------------------------------------------------
# Image quality
# ------------------------------------------------------------------------------------------------------------


def mae(prediction: Tensor, truth: Tensor) -> Tensor:
    """The mean absolute error mean |x - y| of each case as (B,), in the unit of the images (HU for CT).

    Args:
        prediction: intensities x, (B, *spatial), of any real type; sums are in float64.
        truth: intensities y of the same shape.

    Raises:
        ValueError: different shapes, fewer than two axes, no voxels, NaN or infinite intensities.
    """
    x, y = _check_images(prediction, truth)
    return (x.double() - y.double()).abs().mean(1)


def nmae(prediction: Tensor, truth: Tensor) -> Tensor:
    """The normalised mean absolute error sum |x - y| / sum |y| of each case as (B,).

    Where the truth is zero everywhere it is infinite, or NaN if the prediction is too. Arguments and errors
    are those of `mae`.
    """
    x, y = _check_images(prediction, truth)
    y = y.double()
    return (x.double() - y).abs().sum(1) / y.abs().sum(1)


def nmse(prediction: Tensor, truth: Tensor) -> Tensor:
    """The normalised mean squared error sum (x - y)² / sum y² of each case as (B,), as fastMRI defines it.

    Where the truth is zero everywhere it is infinite, or NaN if the prediction is too. Arguments and errors
    are those of `mae`.
    """
    x, y = _check_images(prediction, truth)
    y = y.double()
    return (x.double() - y).square().sum(1) / y.square().sum(1)


def psnr(prediction: Tensor, truth: Tensor, *, data_range: float | Tensor) -> Tensor:
    """The peak signal-to-noise ratio 10 log10(R² / mean (x - y)²) of each case in dB, as (B,).

    Identical images have an infinite one.

    Args:
        prediction, truth: as for `mae`.
        data_range: R, the span of the values that the truth can have: one number, or a tensor (B,) of one per
            case. There's no default, because the choice changes the result: 1 for images in [0, 1], the
            maximum of the volume for fastMRI.

    Raises:
        ValueError: as for `mae`, or a `data_range` that isn't positive and finite.

    >>> psnr(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.1), data_range=1.0)
    tensor([20.0000], dtype=torch.float64)
    """
    x, y = _check_images(prediction, truth)
    span = _check_data_range(data_range, x)
    return 10 * torch.log10(span.square() / (x.double() - y.double()).square().mean(1))


def ssim(
    prediction: Tensor,
    truth: Tensor,
    *,
    data_range: float | Tensor,
    window: str = "gaussian",
    sigma: float = 1.5,
    win_size: int = 7,
    sample_covariance: bool | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """The mean structural similarity of each case as (B,), at most 1 (Wang et al. 2004,
    doi:10.1109/TIP.2003.819861).

    It is that of `skimage.metrics.structural_similarity`: the mean leaves out the voxels whose window reaches
    over the border. For images with three spatial axes the window is three-dimensional; fastMRI's SSIM is the
    mean over 2-D slices instead, which is `ssim(x.flatten(0, 1), ...)`.

    The moments are computed in float64 whatever the type of the images, so the result for float32 is that of
    the same values in float64, to 1e-10. It is
    differentiable in both images; `1 - ssim(...).mean()` is a loss.

    Args:
        prediction, truth: intensities of shape (B, H, W) or (B, D, H, W) of any real type, at least as large
            as the window along each spatial axis.
        data_range: the span of the values that the truth can have, as for `psnr`. There's no default.
        window: "gaussian" is that of the paper, of the width `sigma` in voxels, cut off at 3.5 sigma (11 taps
            for 1.5). "uniform" is scikit-image's default, a box of `win_size` voxels along each axis.
        sigma: the width of the Gaussian window; ignored for the uniform one.
        win_size: the odd size of the uniform window, at least 3; ignored for the Gaussian one.
        sample_covariance: whether (co)variances are those of a sample, multiplied by N / (N - 1) for the N
            voxels of the window. None means what's usual: False for the Gaussian window, as in the paper, and
            True for the uniform one. scikit-image has True for both unless `use_sample_covariance=False`.
        k1, k2: the constants of the paper, not negative.

    Raises:
        ValueError: as for `psnr`; neither two nor three spatial axes; images smaller than the window; an
            unknown window, an even or too small `win_size`, a `sigma` that isn't positive, a negative
            constant.

    >>> x = torch.rand(2, 16, 16, 16)
    >>> ssim(x, x, data_range=1.0)
    tensor([1., 1.], dtype=torch.float64)
    """
    x, y = _check_images(prediction, truth)
    span = _check_data_range(data_range, x)
    axes = prediction.ndim - 1
    if axes not in (2, 3):
        raise ValueError(f"SSIM needs two or three spatial axes, got the shape {tuple(prediction.shape)}.")
    if k1 < 0 or k2 < 0:
        raise ValueError(f"k1 and k2 must not be negative, got {k1} and {k2}.")
    taps = _ssim_taps(window, sigma, win_size)
    size = len(taps)
    if min(prediction.shape[1:]) < size:
        raise ValueError(
            f"Images must have at least {size} voxels along each spatial axis, "
            f"got {tuple(prediction.shape)}; channels belong into the batch axis."
        )
    if sample_covariance is None:
        sample_covariance = window == "uniform"
    norm = size**axes / (size**axes - 1) if sample_covariance else 1.0

    # Chunks of cases and of rows along the first spatial axis, such that all moments of a chunk stay in the
    # cache.
    shape = prediction.shape[1:]
    x, y = x.reshape(prediction.shape), y.reshape(prediction.shape)
    rows = shape[0] - size + 1
    chunk = _SSIM_CHUNK * (1 if x.device.type == "cpu" else 64)
    rows_at_once = min(rows, max(8, chunk // (shape.numel() // shape[0])))
    cases_at_once = max(1, chunk // shape.numel())
    groups = [slice(case, case + cases_at_once) for case in range(0, len(x), cases_at_once)]
    starts = range(0, rows, rows_at_once)
    constants = [[(k * span[some]).square().view(-1, *[1] * axes) for k in (k1, k2)] for some in groups]

    def chunk_sum(job: tuple[int, int]) -> Tensor:
        group, start = job
        window_rows = slice(start, min(start + rows_at_once, rows) + size - 1)
        a, b = (image[groups[group], window_rows].double() for image in (x, y))
        return _ssim_map(a, b, taps, norm, *constants[group]).flatten(1).sum(1)

    jobs = [(group, start) for group in range(len(groups)) for start in starts]
    graph = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if graph or x.device.type != "cpu":
        sums = [chunk_sum(job) for job in jobs]
    else:
        sums = _map_in_threads(chunk_sum, jobs)
    totals = [sum(sums[k * len(starts) : (k + 1) * len(starts)]) for k in range(len(groups))]
    return torch.cat(totals) / math.prod(n - size + 1 for n in shape)


def _map_in_threads(function: Callable, jobs: list) -> list[Tensor]:
    """The results of the jobs, without gradients, computed by as many threads as torch has for one operation.

    Each thread does its operations alone. Torch would share out every small operation among its threads and wait
    for the slowest, which on a busy machine takes ten times as long.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(jobs))

    def without_gradients(job) -> Tensor:
        with torch.no_grad():
            return function(job)

    if count <= 1:
        return [without_gradients(job) for job in jobs]
    try:
        # The number of threads belongs to the thread that sets it, but new threads start with the latest one.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(without_gradients, jobs))
    finally:
        torch.set_num_threads(threads)


def _ssim_taps(window: str, sigma: float, win_size: int) -> list[float]:
    if window == "uniform":
        if win_size < 3 or win_size % 2 == 0:
            raise ValueError(f"win_size must be odd and at least 3, got {win_size}.")
        return [1 / win_size] * win_size
    if window != "gaussian":
        raise ValueError(f"window must be gaussian or uniform, got {window!r}.")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive and finite, got {sigma}.")
    radius = int(3.5 * sigma + 0.5)
    if radius == 0:
        raise ValueError(f"sigma must be at least 0.15 voxels for a window of more than one, got {sigma}.")
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return [tap / sum(taps) for tap in taps]


def _ssim_map(x: Tensor, y: Tensor, taps: list[float], norm: float, c1: Tensor, c2: Tensor) -> Tensor:
    """SSIM at all voxels whose window is inside. The two variances occur only as their sum, hence four
    moments."""
    moments = torch.stack((x, y, x * x + y * y, x * y))
    for axis in range(2, moments.ndim):
        length = moments.shape[axis] - len(taps) + 1
        filtered = moments.narrow(axis, 0, length) * taps[0]
        for k, tap in enumerate(taps[1:], start=1):
            filtered.add_(moments.narrow(axis, k, length), alpha=tap)
        moments = filtered
    ux, uy, squares, uxy = moments.unbind()
    mean_squares = ux * ux + uy * uy
    mean_product = ux * uy
    variances = norm * (squares - mean_squares)
    covariance = norm * (uxy - mean_product)
    numerator = (2 * mean_product + c1) * (2 * covariance + c2)
    return numerator / ((mean_squares + c1) * (variances + c2))


def _check_images(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both images as (B, N)."""
    for name, x in (("prediction", prediction), ("truth", truth)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(x).__name__}.")
        if x.is_complex():
            raise ValueError(f"{name} must be real, got {x.dtype}; take the magnitude first.")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}."
        )
    if prediction.device != truth.device:
        raise ValueError(
            f"prediction and truth must be on the same device, got {prediction.device} and {truth.device}."
        )
    if prediction.ndim < 2 or prediction.numel() == 0:
        raise ValueError(f"Images must be (B, *spatial) and have voxels, got {tuple(prediction.shape)}.")
    for name, x in (("prediction", prediction), ("truth", truth)):
        if x.is_floating_point() and not all(math.isfinite(v) for v in torch.aminmax(x.detach())):
            raise ValueError(f"{name} has NaN or infinite intensities.")
    return prediction.flatten(1), truth.flatten(1)


def _check_data_range(data_range: float | Tensor, images: Tensor) -> Tensor:
    """The data range as a float64 tensor (B,)."""
    if data_range is None:
        raise ValueError("data_range is required: the span of the values that the truth can have.")
    span = torch.as_tensor(data_range, dtype=torch.float64, device=images.device)
    if span.shape not in ((), (len(images),)):
        raise ValueError(f"data_range must be one number or one per case, got the shape {tuple(span.shape)}.")
    if not bool((torch.isfinite(span) & (span > 0)).all()):
        raise ValueError(f"data_range must be positive and finite, got {data_range}.")
    return span.expand(len(images))
