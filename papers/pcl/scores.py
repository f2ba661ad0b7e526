"""What is measured: Dice per patient and of a fold, how well features tell a slice's position, false negatives."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from papers.pcl.atlas import Atlas
from papers.pcl.data import Stack
from papers.pcl.model import false_negative_rate, positive_mask, slice_partitions, slice_positions
from shared.finite import finite
from shared.metrics import overlap_counts

NEIGHBOURS = 10  # of the position probe
SLICES_AT_ONCE = 32


def pad_to_multiple(stack: Tensor, multiple: int = 16) -> tuple[Tensor, tuple[slice, slice]]:
    """(..., H, W) padded with zeros on both sides, and where the image lies in that."""
    padding, inside = [], []
    for length in stack.shape[-2:]:
        missing = -length % multiple
        padding.append((missing // 2, missing - missing // 2))
        inside.append(slice(missing // 2, missing // 2 + length))
    return torch.nn.functional.pad(stack, (*padding[1], *padding[0])), tuple(inside)


def probabilities(network, stack: np.ndarray, device, name: str) -> Tensor:
    """Softmax (Z, classes, Y, X) of a stack (Z, Y, X), slice by slice, whole slices padded to multiples of 16.

    Raises:
        InputError: it is not finite; the sentence names `name`.
    """
    network.eval()
    parts, positions = [], slice_positions(len(stack)).split(SLICES_AT_ONCE)
    with torch.no_grad():
        for part, where in zip(torch.as_tensor(stack).split(SLICES_AT_ONCE), positions):
            padded, (rows, columns) = pad_to_multiple(part[:, None])
            known = (where.to(device),) if isinstance(network, Atlas) else ()
            parts.append(network(padded.to(device), *known).softmax(1)[..., rows, columns].cpu())
    return finite(torch.cat(parts), f"the segmentation of {name}")


def overlap(network, stacks: Sequence[Stack], device, classes: int) -> dict[str, tuple]:
    """Per patient (intersection, predicted + true), int64 arrays of the foreground classes over all slices."""
    totals: dict[str, tuple] = {}
    for stack in stacks:
        found = probabilities(network, stack.image, device, stack.name).argmax(1)
        counts = overlap_counts(found[None], torch.as_tensor(stack.label).long()[None], range(1, classes + 1))
        both, sizes = counts.intersection[0], (counts.prediction + counts.truth)[0]
        before = totals.get(stack.patient, (0, 0))
        totals[stack.patient] = (before[0] + both, before[1] + sizes)
    return totals


def dice_of(both, sizes) -> list[float]:
    """Dice of each class from its counts; 1 where neither map has the class."""
    return [2 * int(a) / int(b) if b else 1.0 for a, b in zip(both, sizes)]


def dice_of_fold(totals: dict[str, tuple]) -> float:
    """Foreground Dice as in the released code (bf339fc): counts of the whole fold, then the mean over the classes."""
    classes = dice_of(sum(both for both, _ in totals.values()), sum(sizes for _, sizes in totals.values()))
    return sum(classes) / len(classes)


def fold_dice(network, stacks: Sequence[Stack], device, classes: int) -> float:
    """`dice_of_fold` of a network's segmentations."""
    return dice_of_fold(overlap(network, stacks, device, classes))


def slice_features(model, stacks: Sequence[Stack], device) -> np.ndarray:
    """Features (N, 16f) of all slices of some stacks: global averages of the encoder's centre.

    Raises:
        InputError: they are not finite.
    """
    parts = []
    with torch.no_grad():
        for stack in stacks:
            for part in torch.as_tensor(stack.image).split(SLICES_AT_ONCE):
                padded, _ = pad_to_multiple(part[:, None])
                features = model.encoder(padded.to(device))[-1].mean((2, 3)).float().cpu()
                parts.append(finite(features, f"the features of {stack.name}"))
    return torch.cat(parts).numpy()


def all_positions(stacks: Sequence[Stack]) -> np.ndarray:
    return np.concatenate([slice_positions(len(stack.image)).numpy() for stack in stacks])


def position_errors(model, reference: Sequence[Stack], stacks: Sequence[Stack], device) -> np.ndarray:
    """Absolute error of the position of every slice of `stacks`, predicted by its nearest slices in `reference`.

    k-NN regression (k = 10, cosine distance) on the features; no weight is trained.
    """
    from sklearn.neighbors import KNeighborsRegressor

    known = all_positions(reference)
    probe = KNeighborsRegressor(min(NEIGHBOURS, len(known)), metric="cosine")
    probe.fit(slice_features(model, reference, device), known)
    return np.abs(probe.predict(slice_features(model, stacks, device)) - all_positions(stacks))


def false_negatives(config, stacks: Sequence[Stack]) -> np.ndarray:
    """False-negative rate of a method's mask for every slice, over all pairs of slices of `stacks` (C5)."""
    positions = torch.from_numpy(all_positions(stacks))
    partitions = torch.cat([slice_partitions(len(stack.image), config.partitions) for stack in stacks])
    mask = positive_mask(config.method, positions, partitions, config.threshold)
    return false_negative_rate(mask, positions, config.threshold).numpy()
