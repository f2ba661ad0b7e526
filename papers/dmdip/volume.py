"""A user's own volume: its sections along one axis, finer in the plane of these, with an affine that says so."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared import nifti, resample
from shared.errors import InputError

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""axis of a volume (R, A, S) across the sections"""


@dataclass(frozen=True)
class Sections:
    """A volume (R, A, S) as sections."""

    image: nifti.Image
    """as in the file"""
    axis: int
    """across the sections"""

    def tensor(self) -> Tensor:
        """(sections, h, w) float32, the two axes of a section in the order R, A, S."""
        ordered = resample.to_ras(self.image).data.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(ordered, self.axis, 0)))

    def finer(self, sections: Tensor, factor: int) -> tuple[np.ndarray, np.ndarray]:
        """Voxels (R, A, S) and affine of sections (n, r h, r w): sample 0 stays where it is, see kspace.py."""
        affine = resample.to_ras(self.image).affine.copy()
        for axis in range(3):
            if axis != self.axis:
                affine[:3, axis] /= factor
        return np.ascontiguousarray(np.moveaxis(sections.numpy(), 0, self.axis)), affine


def read_sections(path: Path, plane: str, like: Sections | None = None) -> Sections:
    """A volume for `apply`.

    Args:
        path: .nii or .nii.gz.
        plane: of the sections: coronal, axial, sagittal.
        like: another contrast, on whose voxels this one must lie.

    Raises:
        InputError: a broken file, no volume, nothing above zero, or voxels that aren't those of `like`.
    """
    image = nifti.load(path, ndim=3, dtype=np.float32)
    if like is not None:
        image = resample.on_grid_of(image, like.image)
    if not 0 < image.data.max() < 1e18:
        raise InputError(f"{path}: expected an image with values from 0 to 1e18, its largest is {image.data.max():g}")
    sections = Sections(image, AXES[plane])
    if min(sections.tensor().shape[1:]) < 4:
        raise InputError(f"{path}: its {plane} sections are of {tuple(sections.tensor().shape[1:])} voxels: too small")
    return sections


def check_lies_on(fine: Sections, low: Sections) -> None:
    """Sample n of the low volume has to be sample r n of the finer one in the plane, and sections the same.

    Raises:
        InputError: sizes that aren't a whole multiple, or voxels at other places.
    """
    name, of = fine.image.path, low.image.path
    whole, part = resample.to_ras(fine.image), resample.to_ras(low.image)
    times = [a // b for a, b in zip(whole.shape, part.shape)]
    fits = [times[axis] == 1 if axis == fine.axis else times[axis] >= 2 for axis in range(3)]
    if not all(fits) or any(a % b for a, b in zip(whole.shape, part.shape)):
        raise InputError(
            f"{name}: its {whole.shape} voxels (R, A, S) are no whole multiple in the plane of the {part.shape} of {of}"
        )
    expected = nifti.make_image(part.data, whole.affine @ np.diag([*times, 1.0]))
    difference = nifti.grid_difference(part, expected)
    if difference:
        raise InputError(
            f"{name} does not lie on {of}, each voxel of which must have its centre on every "
            f"{' x '.join(map(str, times))}th voxel of the finer one, from the first: {difference}; resample it"
        )


def write_sections(path: Path, sections: Sections, fine: Tensor, factor: int) -> None:
    """Write sections (n, r h, r w) as a float32 volume (R, A, S) with its own affine."""
    data, affine = sections.finer(fine, factor)
    nifti.save(path, data.astype(np.float32), affine=affine)
