"""Overlap of label maps and errors of images, the same ones for every paper of the repository.

**Overlap**, all (B, L) for B cases and L labels: `dice`, `iou`, `sensitivity`, `precision`, each from the counts
of `overlap_counts`.

**Errors of intensities**, all (B,): `mae`, `nmae`, `nmse`, `psnr`.

Surface distances are in `shared.surfaces`, SSIM is in `shared.similarity`.

Conventions that hold in all three:

- The order of arguments is `(prediction, truth)`.
- The first axis is the batch and all the others are space: (B, H, W) or (B, D, H, W). There's no channel
  axis; put channels into the batch with `x.flatten(0, 1)`.
- Segmentations are bool masks, or integer label maps together with `labels=[...]`. Floating-point ones are
  refused: take the argmax or the threshold first. Every integer type is taken, also torch's uint16, uint32 and
  uint64, for which torch itself lacks most operations.
- Results are float64 on the device of `prediction`. Nothing is averaged over cases or labels; `torch.nanmean`
  averages over those that are defined.
- A metric that is 0 / 0, such as the Dice of two empty masks, is NaN unless another value is asked for, so
  that a structure that a case doesn't have neither raises nor lowers an average.
- Different shapes, non-finite intensities and other invalid arguments raise ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "OverlapCounts",
    "dice",
    "iou",
    "mae",
    "nmae",
    "nmse",
    "overlap_counts",
    "precision",
    "psnr",
    "sensitivity",
]

# Labels up to this are counted and found by index. Others are sorted to count them, and found one by one.
LARGEST_INDEXED_LABEL = 1 << 16


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
        prediction: bool masks or label maps of any integer type, (B, *spatial), on any device.
        truth: like `prediction`: the same shape and device, and bool where it is bool.
        labels: the L labels to count, in the order of the result. They may include 0, the background, and
            labels that no map has. None is for bool masks only, whose one label is True.

    Raises:
        ValueError: different shapes or devices, fewer than two axes, no voxels, neither bool nor integer, a
            bool map with an integer one, no or repeated labels, or label maps without `labels`.
    """
    prediction, truth, labels = check_maps(prediction, truth, labels)
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
    if min(labels) >= 0 and max(labels) <= LARGEST_INDEXED_LABEL:
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


def check_maps(prediction: Tensor, truth: Tensor, labels: Sequence[int] | None) -> tuple[Tensor, Tensor, list[int]]:
    """Both maps, of integer types that torch can work with, and the labels; see `overlap_counts`."""
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
        return prediction, truth, [1]
    labels = [int(label) for label in labels]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be one or more different integers, got {labels}.")
    if max(labels) >= 2**63 or min(labels) < -(2**63):
        raise ValueError(f"labels must fit into 64 bits with a sign, got {labels}.")
    return _signed(prediction), _signed(truth), labels


def _signed(maps: Tensor) -> Tensor:
    """uint16, uint32 and uint64 as wider signed integers: torch can't compare, search or count the former."""
    if maps.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return maps
    signed = maps.to(torch.int32 if maps.dtype == torch.uint16 else torch.int64)
    if maps.dtype == torch.uint64 and signed.min() < 0:
        raise ValueError("Label maps of uint64 must hold labels below 2^63.")
    return signed


# ------------------------------------------------------------------------------------------------------------
# Errors of intensities
# ------------------------------------------------------------------------------------------------------------


def mae(prediction: Tensor, truth: Tensor) -> Tensor:
    """The mean absolute error mean |x - y| of each case as (B,), in the unit of the images (HU for CT).

    Args:
        prediction: intensities x, (B, *spatial), of any real type; sums are in float64.
        truth: intensities y of the same shape.

    Raises:
        ValueError: different shapes, fewer than two axes, no voxels, NaN or infinite intensities.
    """
    x, y = check_images(prediction, truth)
    return (x.double() - y.double()).abs().mean(1)


def nmae(prediction: Tensor, truth: Tensor) -> Tensor:
    """The normalised mean absolute error sum |x - y| / sum |y| of each case as (B,).

    Where the truth is zero everywhere it is infinite, or NaN if the prediction is too. Arguments and errors
    are those of `mae`.
    """
    x, y = check_images(prediction, truth)
    y = y.double()
    return (x.double() - y).abs().sum(1) / y.abs().sum(1)


def nmse(prediction: Tensor, truth: Tensor) -> Tensor:
    """The normalised mean squared error sum (x - y)² / sum y² of each case as (B,), as fastMRI defines it.

    Where the truth is zero everywhere it is infinite, or NaN if the prediction is too. Arguments and errors
    are those of `mae`.
    """
    x, y = check_images(prediction, truth)
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
    x, y = check_images(prediction, truth)
    span = check_data_range(data_range, x)
    return 10 * torch.log10(span.square() / (x.double() - y.double()).square().mean(1))


def check_images(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both images as (B, N); see `mae`."""
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
    prediction, truth = (x.double() if x.dtype == torch.uint64 else _signed(x) for x in (prediction, truth))
    return prediction.flatten(1), truth.flatten(1)


def check_data_range(data_range: float | Tensor, images: Tensor) -> Tensor:
    """The data range as a float64 tensor (B,)."""
    if data_range is None:
        raise ValueError("data_range is required: the span of the values that the truth can have.")
    span = torch.as_tensor(data_range, dtype=torch.float64, device=images.device)
    if span.shape not in ((), (len(images),)):
        raise ValueError(f"data_range must be one number or one per case, got the shape {tuple(span.shape)}.")
    if not bool((torch.isfinite(span) & (span > 0)).all()):
        raise ValueError(f"data_range must be positive and finite, got {data_range}.")
    return span.expand(len(images))
