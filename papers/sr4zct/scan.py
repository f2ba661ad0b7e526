"""A user's own CT: its slices' thickness and overlap, and where its enhanced volume lies."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papers.sr4zct.scaling import SliceGeometry
from shared import dicom, nifti
from shared.dicom_file import quiet, read_file
from shared.errors import InputError
from shared.text_files import number, read_json

LARGEST_HU = 1e6  # of a CT in HU with metal, wide; what is larger is no CT number


@dataclass(frozen=True)
class Scan:
    """An anisotropic CT as it came, turned so that the slices lie along the last axis."""

    hu: Tensor
    """(X, Y, K) float32; x and y are the in-plane axes in the file's order"""
    geometry: SliceGeometry
    image: nifti.Image
    slice_axis: int
    """the file's axis that the slices are stacked along"""

    def isotropic_affine(self) -> np.ndarray:
        """Voxel to world of the enhanced volume, in the file's axis order.

        The first slice reaches r^z / 2 to either side of its centre, and the first new voxel lies at its outer end:
        the origin moves by (r^xy - r^z) / 2 along the slice axis.
        """
        affine = self.image.affine.copy()
        direction = affine[:3, self.slice_axis] / np.linalg.norm(affine[:3, self.slice_axis])
        affine[:3, self.slice_axis] = direction * self.geometry.pixel
        affine[:3, 3] += direction * (self.geometry.pixel - self.geometry.thickness) / 2
        return affine

    def to_file_order(self, volume: Tensor) -> np.ndarray:
        """An (X, Y, Z') volume with the slice axis where the file has it."""
        return np.moveaxis(volume.cpu().numpy(), 2, self.slice_axis)


def read_scan(path: Path, thickness: float | None = None, series_uid: str | None = None) -> Scan:
    """A CT volume as NIfTI or DICOM.

    The slices are stacked along the axis with the largest spacing. That spacing says nothing about their thickness,
    which NIfTI doesn't record. It is, in this order: `thickness`; the element SliceThickness of the DICOM files; the
    "SliceThickness" of a .json beside the NIfTI file, as dcm2niix writes it; with a warning, the spacing.

    Args:
        path: .nii, .nii.gz, a folder with a DICOM series, or a DICOM file.
        thickness: of a slice, mm.
        series_uid: SeriesInstanceUID, for a folder with several series.

    Raises:
        InputError: a missing or broken file, fewer than three slices, pixels that aren't square, or slices no
            thicker than the pixels are wide.
    """
    path = Path(path)
    image = dicom.load_volume(path, series_uid, ndim=3)
    axis = int(np.argmax(image.spacing))
    in_plane = [image.spacing[k] for k in range(3) if k != axis]
    if abs(in_plane[0] - in_plane[1]) > 0.01 * in_plane[0]:
        raise InputError(f"{path}: in-plane pixels must be square, found {in_plane[0]:g} x {in_plane[1]:g} mm")
    if image.shape[axis] < 3:
        raise InputError(f"{path}: a volume needs at least three slices, found {image.shape[axis]}")
    spacing, pixel = image.spacing[axis], float(np.mean(in_plane))
    if thickness is None:
        is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
        thickness = _thickness_of_sidecar(path) if is_nifti else _thickness_of_dicom(path, series_uid)
    if thickness is None:
        thickness = spacing
        warnings.warn(
            f"{path} doesn't say how thick its slices are; taking their spacing, {spacing:g} mm, as if they didn't "
            "overlap. If they do, give the thickness: the wrong one makes artefacts.",
            stacklevel=2,
        )
    if not math.isfinite(thickness) or thickness <= pixel * 1.01:
        raise InputError(
            f"{path}: slices of {thickness:g} mm are no thicker than the pixels are wide ({pixel:g} mm), so there is "
            "nothing to enhance"
        )
    if np.abs(image.data).max() > LARGEST_HU:
        raise InputError(f"{path}: holds values beyond ±{LARGEST_HU:g}, so these aren't CT numbers in HU")
    hu = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.data, axis, 2), dtype=np.float32))
    return Scan(hu, SliceGeometry(pixel, float(thickness), float(thickness - spacing)), image, axis)


def _thickness_of_sidecar(path: Path) -> float | None:
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.exists():
        return None
    found = read_json(sidecar, "what dcm2niix writes, with SliceThickness in mm").get("SliceThickness")
    if found is None:
        return None
    return number(str(found), f"{sidecar}: SliceThickness in mm")


def _thickness_of_dicom(path: Path, series_uid: str | None) -> float | None:
    """The same in all slices of the series; None where the files don't say."""
    with quiet():
        files = [read_file(entry) for entry in (sorted(path.iterdir()) if path.is_dir() else [path]) if entry.is_file()]
        files = [file for file in files if file and series_uid in (None, str(file.get("SeriesInstanceUID")))]
        files = [file for file in files if file.get("SliceThickness") is not None]
        found = {float(file.numbers("SliceThickness", 1)[0]) for file in files}
    if len(found) > 1:
        raise InputError(f"{path}: its slices are {min(found):g} to {max(found):g} mm thick; give one --thickness")
    return next(iter(found), None)
