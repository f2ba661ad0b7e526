"""Choosing t for one's own stacks: how many positive pairs a batch has."""

from pathlib import Path


def expected_positives(slices: list[int], batch_size: int, method: str, threshold: float, partitions: int = 4) -> float:
    """Positives per anchor to expect in a batch of slices drawn at random from stacks of these lengths.

    The other view of the slice, and both views of every one of the B - 1 others with the probability that
    two different slices are a positive pair.
    """
    import torch

    from papers.pcl.model import positive_mask, slice_partitions, slice_positions

    positions = torch.cat([slice_positions(length) for length in slices])
    parts = torch.cat([slice_partitions(length, partitions) for length in slices])
    count = len(positions)
    pairs = positive_mask(method, positions, parts, threshold).sum().item() - count
    return 1 + 2 * (min(batch_size, count) - 1) * pairs / max(count * (count - 1), 1)


def pairs(
    data: Path,
    layout: str = "auto",
    batch_size: int = 32,
    thresholds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
) -> None:
    """Print how many positive pairs each threshold t gives on your own stacks.

    Choose t as the fraction of the stack over which the anatomy looks alike; an anchor needs some positives
    beyond its own other view, and most of the batch must stay negative.

    Args:
        data: a data set, or any folder of NIfTI stacks.
        layout: acdc, chd, mmwhs, hvsmr, stacks or auto.
        batch_size: slices per batch.
        thresholds: to try.
    """
    import numpy as np

    from papers.pcl.layouts import find_patients
    from papers.pcl.orientation import slice_axis
    from shared import nifti
    from shared.errors import InputError

    if batch_size < 1 or not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise InputError("expected --batch-size of 1 or more, and --thresholds above 0 and at most 1")
    found, patients = find_patients(data, layout)
    lengths, heights = [], []
    for volume in (volume for patient in patients for volume in patient.volumes):
        image = nifti.load(volume.image, ndim={3, 4})
        axis = slice_axis(image, found.slices_along)
        lengths.append(image.shape[axis])
        heights.append(image.shape[axis] * image.spacing[axis])
    length, height = np.median(lengths), np.median(heights)
    print(
        f"{len(lengths)} stacks ({found.name}), {min(lengths)} to {max(lengths)} slices, median {length:g} slices and "
        f"{height:.0f} mm; batches of {batch_size} slices, {2 * batch_size - 1} other views for each anchor"
    )
    print(f"{'':12s} {'positives per anchor':>21s} {'of all':>7s} {'slices':>7s} {'mm':>6s}")
    rows = [("GCL", "gcl", 1.0), *((f"PCL t = {t:g}", "pcl", t) for t in thresholds)]
    for name, method, threshold in rows:
        count = expected_positives(lengths, batch_size, method, threshold)
        reach = f"{threshold * length:7.1f} {threshold * height:6.0f}" if method == "pcl" else ""
        print(f"{name:12s} {count:21.1f} {count / (2 * batch_size - 1):7.0%} {reach}")
