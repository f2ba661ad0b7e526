"""Stacks of slices as the network sees them, the split of the patients, and data sets of slices.

`layouts` says which files are read, `orientation` which end of a stack comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.pcl.augmentation import crop_or_pad, draw_view
from papers.pcl.layouts import Layout, Patient, Volume
from papers.pcl.model import slice_partitions, slice_positions
from papers.pcl.orientation import to_stack
from shared import nifti, resample
from shared.errors import InputError

# --- who is trained on, who is tested ---------------------------------------------------------------------


def split_patients(patients: Sequence[Patient], folds: int, fold: int) -> tuple[list[Patient], list[Patient]]:
    """Training and test patients of one fold of the cross-validation, shuffled with the paper's seed 12345.

    Raises:
        InputError: fewer patients than folds, or no such fold.
    """
    from sklearn.model_selection import KFold

    if folds < 2:
        raise InputError(f"can't cross-validate with {folds} folds: give --folds 2 or more")
    if not 0 <= fold < folds:
        raise InputError(f"there is no fold {fold}: with {folds} folds choose 0 to {folds - 1}")
    if len(patients) < folds:
        raise InputError(f"{len(patients)} patients can't be divided into {folds} folds: lower --folds")
    splits = list(KFold(folds, shuffle=True, random_state=12345).split(np.arange(len(patients))))
    return tuple([patients[index] for index in part] for part in splits[fold])


def draw_labelled(patients: Sequence[Patient], labelled: int, draw: int) -> list[Patient]:
    """The M patients whose labels are used, out of the training fold; draw 0 has the paper's seed 1234.

    The draws for different M are nested: the patients for M = 2 are among those for M = 6.

    Raises:
        InputError: fewer patients than M.
    """
    if not 1 <= labelled <= len(patients):
        raise InputError(f"can't draw {labelled} labelled patients: the training fold has {len(patients)}")
    order = np.random.RandomState(1234 + draw).permutation(len(patients))
    return [patients[index] for index in order[:labelled]]


# --- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """One volume as the network sees it."""

    patient: str
    name: str
    image: np.ndarray
    """(Z, Y, X) float32, z-scored; base (head) first"""
    label: np.ndarray | None
    """(Z, Y, X) uint8 classes"""
    spacing_mm: tuple[float, float, float]
    """of slices, rows and columns"""


def normalise(stack: np.ndarray, clip: bool, path: Path) -> np.ndarray:
    """z-score of a volume, after clipping to the 1st and 99th percentile if `clip`.

    Raises:
        InputError: an image of one value.
    """
    stack = stack.astype(np.float32)
    if clip:
        stack = stack.clip(*np.percentile(stack, (1, 99)).astype(np.float32))  # float64 bounds would promote it
    mean, deviation = stack.mean(dtype=np.float64), stack.std(dtype=np.float64)
    if not deviation > 0:
        raise InputError(f"{path} holds one value only: expected an image with contrast")
    return ((stack - np.float32(mean)) / np.float32(deviation)).astype(np.float32)


def in_plane(stack: nifti.Image, spacing_mm: float | None, label: bool = False) -> nifti.Image:
    """A stack (Z, Y, X) resampled to `spacing_mm` along rows and columns."""
    spacing = (stack.spacing[0], spacing_mm, spacing_mm)
    if spacing_mm is None or np.allclose(spacing, stack.spacing, rtol=1e-3):
        return stack
    return resample.resample_to_spacing(stack, spacing, label=label)


def read_frames(image: nifti.Image, layout: Layout, spacing_mm: float | None) -> tuple[nifti.Image, list[np.ndarray]]:
    """Every frame of a 3D or 4D image as a normalised stack (Z, Y, X), and the resampled image that they lie on.

    Raises:
        InputError: a constant image, or one that can't be resampled.
    """
    stack = in_plane(to_stack(image, layout.slices_along), spacing_mm)
    frames = stack.data[..., None] if stack.data.ndim == 3 else stack.data
    return stack, [normalise(frames[..., number], layout.clip, image.path) for number in range(frames.shape[3])]


def read_label(path: Path, image: nifti.Image, layout: Layout) -> nifti.Image:
    """Classes of the network on the voxels of `image`, uint8.

    Raises:
        InputError: a broken file, other voxels than the image's, labels that the layout does not have, or none of it.
    """
    if layout.ignore_other_labels:
        values = nifti.load(path, ndim=3)
        if not np.array_equal(values.data, np.round(values.data)):
            raise InputError(f"{path} is no label map: expected whole numbers")
    else:
        values = nifti.load_labels(path, {0, *layout.labels}, ndim=3)
    classes = np.zeros(values.shape, np.uint8)
    for value, number in layout.labels.items():
        classes[values.data == value] = number
    if not classes.any():
        raise InputError(f"{path} is empty: expected the labels {', '.join(map(str, layout.labels))} in it")
    return resample.on_grid_of(nifti.make_image(classes, values.affine, path), image)


def spacing_of(layout: Layout, spacing_mm: float | None) -> float | None:
    """In-plane spacing to work at: `spacing_mm`, or the layout's where that is None."""
    return layout.spacing_mm if spacing_mm is None else spacing_mm


def read_volume(volume: Volume, layout: Layout, spacing_mm: float | None) -> Stack:
    """A labelled volume."""
    image = nifti.load(volume.image, ndim=3)
    label = to_stack(read_label(volume.label, image, layout), layout.slices_along)
    stack, (voxels,) = read_frames(image, layout, spacing_mm)
    return Stack(volume.patient, volume.name, voxels, in_plane(label, spacing_mm, label=True).data, stack.spacing)


def read_labelled(patients: Sequence[Patient], layout: Layout, spacing_mm: float | None) -> list[Stack]:
    """The labelled volumes of some patients.

    Raises:
        InputError: a layout without labels, or as `read_frames` and `read_label`.
    """
    if not layout.labels:
        raise InputError(f"the layout {layout.name} has no labels: fine-tune on acdc, chd, mmwhs or hvsmr")
    wanted = spacing_of(layout, spacing_mm)
    return [read_volume(volume, layout, wanted) for patient in patients for volume in patient.volumes]


def read_unlabelled(
    patients: Sequence[Patient], layout: Layout, spacing_mm: float | None, cine: bool = True
) -> list[Stack]:
    """All volumes of some patients for pre-training: with `cine` every frame of it, where there is one."""
    wanted, stacks = spacing_of(layout, spacing_mm), []
    for patient in patients:
        paths = [patient.cine] if cine and patient.cine else [volume.image for volume in patient.volumes]
        for path in paths:
            stack, frames = read_frames(nifti.load(path, ndim={3, 4}), layout, wanted)
            for number, frame in enumerate(frames):
                stacks.append(Stack(patient.name, f"{path.name}#{number}", frame, None, stack.spacing[:3]))
    return stacks


# --- data sets of slices ---------------------------------------------------------------------------------


class SliceViews(Dataset):
    """Slices for pre-training: a patch, what its two views are drawn with, position and partition (M5, M6).

    An item is a dict: "image" (1, size, size), "position" in (0, 1], "partition" 0 to partitions - 1, and what
    `augmentation.view` takes for each of two views: "matrix" (2, 2, 2), "strength" (2,), "sigma" (2,) and "noise"
    (2, 2, size, size). Both views are of the same patch.

    Args:
        stacks: every volume or frame of the training patients.
        size: side of the patch.
        partitions: of GCL.
        **augmentation: further arguments of `augmentation.draw_view`.
    """

    def __init__(self, stacks: Sequence[Stack], size: int, partitions: int = 4, **augmentation):
        self.stacks, self.size, self.augmentation = list(stacks), size, augmentation
        lengths = [len(stack.image) for stack in self.stacks]
        self.slices = [(s, z) for s, length in enumerate(lengths) for z in range(length)]
        self.positions = [slice_positions(length) for length in lengths]
        self.partitions = [slice_partitions(length, partitions) for length in lengths]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        stack, z = self.slices[index]
        image = torch.from_numpy(self.stacks[stack].image[z])[None]
        patch = crop_or_pad(image, self.size, random=True)
        drawn = [draw_view(self.size, **self.augmentation) for _ in range(2)]
        return {
            "image": patch,
            "position": self.positions[stack][z],
            "partition": self.partitions[stack][z],
            **{name: torch.stack([view[name] for view in drawn]) for name in drawn[0]},
        }


class LabelledSlices(Dataset):
    """Slices for fine-tuning: "image" (1, size, size) and "label" (size, size) of whole numbers.

    Args:
        stacks: labelled volumes.
        size: side of the patch.
        augmented: with what `augmentation.view` takes: "matrix" (2, 2), "strength", "sigma", "noise" (2, size, size).
        **augmentation: further arguments of `augmentation.draw_view`.
    """

    def __init__(self, stacks: Sequence[Stack], size: int, augmented: bool = True, **augmentation):
        self.stacks, self.size = list(stacks), size
        self.augmentation, self.augmented = augmentation, augmented
        self.slices = [(s, z) for s, stack in enumerate(self.stacks) for z in range(len(stack.image))]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        stack, z = self.slices[index]
        both = np.stack([self.stacks[stack].image[z], self.stacks[stack].label[z].astype(np.float32)])
        patch = crop_or_pad(torch.from_numpy(both), self.size, random=True)
        drawn = draw_view(self.size, **self.augmentation) if self.augmented else {}
        return {"image": patch[:1], "label": patch[1].long(), **drawn}
