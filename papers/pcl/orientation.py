"""Where a slice lies in the patient, whatever the order of the file: what the position label stands on (M5).

The slice axis is the thickest one, and its direction follows from the affine, so that every stack begins at the end
that lies to the right, behind and above (base of the heart, head) and ends at the other (apex, feet).
"""

from typing import Literal

import numpy as np

from shared import nifti

TO_APEX = np.array([-1.0, 1.0, -1.0])  # left, front, feet in RAS: from the base of the heart to its apex
THICKER = 1.5  # slices this many times thicker than the pixels are wide settle the slice axis


def directions(image: nifti.Image) -> np.ndarray:
    """(3, 3) RAS unit vectors, one column for each voxel axis."""
    return image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)


def slice_axis(image: nifti.Image, slices_along: Literal["third", "superior"] = "third") -> int:
    """Axis of `image.data` along which the slices are stacked.

    The thickest one, if its spacing is 1.5 times that of the two others or more. Else, for short-axis stacks
    ("third"), the third axis of the file, and for axial CT ("superior") the one that points to the head or feet.
    """
    spacing = np.array(image.spacing)
    thickest = int(spacing.argmax())
    if spacing[thickest] >= THICKER * np.delete(spacing, thickest).max():
        return thickest
    return 2 if slices_along == "third" else int(np.abs(directions(image)[2]).argmax())


def to_stack(image: nifti.Image, slices_along: Literal["third", "superior"] = "third") -> nifti.Image:
    """The image with its voxels as (slice, row, column), or (slice, row, column, frame), at the same places.

    Slices run from the base of the heart to the apex (head to feet), rows towards the feet (in axial slices: the
    back), columns to the patient's left (if they run front to back: to the back).
    """
    from nibabel.orientations import io_orientation

    unit, axis = directions(image), slice_axis(image, slices_along)
    world = io_orientation(image.affine)[:, 0]  # closest world axis of each voxel axis: 0 R, 1 A, 2 S
    column, row = sorted((index for index in range(3) if index != axis), key=lambda index: world[index])
    order = (axis, row, column)
    reversed_ = [bool(unit[:, axis] @ TO_APEX < 0), *(bool(unit[int(world[i]), i] > 0) for i in (row, column))]
    to_old = np.zeros((4, 4))  # from voxels of the stack to voxels of the file
    to_old[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, reversed_)):
        to_old[old, new] = -1 if flip else 1
        to_old[old, 3] = image.data.shape[old] - 1 if flip else 0
    data = image.data.transpose(*order, *range(3, image.data.ndim))
    steps = tuple(slice(None, None, -1 if flip else None) for flip in reversed_)
    return nifti.make_image(np.ascontiguousarray(data[steps]), image.affine @ to_old, image.path)
