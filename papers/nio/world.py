"""From a field on the network's grid to millimetres at the voxels of the user's image, and to a file for SimpleITK."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from papers.nio.model import sample, unit_to_voxel
from shared import nifti
from shared.files import write_atomically


def pad_to_multiple(image: nifti.Image, multiple: int) -> nifti.Image:
    """A volume with zeros at the end of its axes, so that all sizes are multiples."""
    margins = [(0, -size % multiple) for size in image.shape]
    return replace(image, data=np.pad(image.data, margins))


def world_displacement(field: Tensor, grid: nifti.Image, fixed: nifti.Image) -> np.ndarray:
    """Displacement (3, X, Y, Z) [mm, RAS] at the voxels of the fixed image, from a unit field on `grid`."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij")).reshape(3, -1)
    to_grid = np.linalg.inv(grid.affine) @ fixed.affine
    index = (to_grid[:3, :3] @ indices + to_grid[:3, 3:]).reshape(3, *fixed.shape)
    sizes = np.reshape(grid.shape, (3, 1, 1, 1))
    points = torch.from_numpy((2 * index / (sizes - 1) - 1).astype(np.float32))[None]
    voxels = sample(unit_to_voxel(field), points)[0].numpy().astype(np.float64)
    return np.einsum("ab,bxyz->axyz", grid.affine[:3, :3], voxels)


def warp_in_world(moving: nifti.Image, fixed: nifti.Image, displacement: np.ndarray) -> np.ndarray:
    """The moving image at x + u(x), float32 on the fixed image's grid; 0 outside of the moving image."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij")).reshape(3, -1)
    world = fixed.affine[:3, :3] @ indices + fixed.affine[:3, 3:] + displacement.reshape(3, -1)
    back = np.linalg.inv(moving.affine)
    index = (back[:3, :3] @ world + back[:3, 3:]).reshape(3, *fixed.shape)
    return map_coordinates(np.asarray(moving.data, np.float32), index, order=1, mode="constant", cval=0.0)


def save_displacement(displacement: np.ndarray, fixed: nifti.Image, path: Path) -> None:
    """Write a field (3, X, Y, Z) [mm, RAS] as the vector image that SimpleITK and ITK read (components in LPS)."""
    import SimpleITK as sitk

    lps = displacement * np.reshape([-1.0, -1.0, 1.0], (3, 1, 1, 1))
    like = nifti.to_sitk(fixed)
    image = sitk.GetImageFromArray(np.ascontiguousarray(lps.transpose(3, 2, 1, 0)).astype(np.float32), isVector=True)
    image.CopyInformation(like)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else ".nii"

    def write(temporary: Path) -> None:
        named = temporary.with_name(temporary.name + suffix)  # ITK chooses the format by the suffix
        sitk.WriteImage(image, str(named))
        named.replace(temporary)

    write_atomically(path, write)
