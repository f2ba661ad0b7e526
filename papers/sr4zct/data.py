"""Thin-slice CT volumes in the layout of MSD Task06_Lung, a user's own scan, and the training pairs made from them.

DATA/imagesTr/lung_*.nii.gz, CT numbers in HU, slices of 1 mm or less. Arrays are (X, Y, Z) float32; a coronal image
is (Z, X), a sagittal one (Z, Y).
"""

import json
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.sr4zct.scaling import SliceGeometry, box_matrix, degrade, multiply_along, upscale
from shared import dicom, nifti, resample
from shared.errors import InputError

HU_RANGE = (-1024.0, 2000.0)  # metal and calibration outliers beyond are clipped in data sets, not in a user's scan
BODY_HU = -500.0


def parse_setting(text: str, pixel: float) -> SliceGeometry:
    """ "5/2.5" -> slices that are 5 pixels thick and overlap by 2.5 pixels of side `pixel` mm.

    Raises:
        InputError: not two numbers, or an impossible geometry.
    """
    try:
        thickness, overlap = (float(part) for part in text.split("/"))
    except ValueError as error:
        raise InputError(f"setting '{text}': expected thickness/overlap in pixels, such as 5/2.5") from error
    return SliceGeometry(pixel, thickness * pixel, overlap * pixel)


# --- data sets of thin slices, from which thick ones are simulated -----------------------------------------


@dataclass(frozen=True)
class ThinVolume:
    """A volume with in-plane pixels of the wanted side and slices as thin as the scanner gave them."""

    name: str
    hu: Tensor
    """(X, Y, Z) float32"""
    pixel: float
    """mm in-plane"""
    slice_mm: float
    """mm between slices, which is taken for their thickness as well"""

    def acquire(self, geometry: SliceGeometry) -> Tensor:
        """(X, Y, K): what a scanner with such slices would have given, by exact integration over their thickness."""
        across = SliceGeometry(self.slice_mm, geometry.thickness, geometry.overlap)
        return multiply_along(box_matrix(self.hu.shape[2], across), self.hu, 2).contiguous()

    def reference(self) -> Tensor:
        """(X, Y, Z'): the volume with isotropic voxels, exact means along z."""
        if math.isclose(self.slice_mm, self.pixel, rel_tol=1e-4):
            return self.hu
        return self.acquire(SliceGeometry(self.pixel, self.pixel, 0.0))


def read_thin_volume(root: Path, name: str, pixel: float) -> ThinVolume:
    """`imagesTr/<name>.nii.gz` of a data set, its in-plane pixels averaged (exact area means) to `pixel` mm.

    Raises:
        InputError: no such folder or file; a broken file; pixels that aren't square or are larger than asked for;
            slices thicker than the pixels; no CT numbers.
    """
    root = Path(root)
    path = root / "imagesTr" / f"{name}.nii.gz"
    if not (root / "imagesTr").is_dir():
        raise InputError(f"{root}: expected imagesTr/lung_*.nii.gz; is this the folder of Task06_Lung?")
    image = resample.to_ras(nifti.load(path, ndim=3, dtype=np.float32))
    in_plane, other, slice_mm = image.spacing
    if abs(in_plane - other) > 1e-3 * in_plane:
        raise InputError(f"{path}: in-plane pixels must be square, found {in_plane:g} x {other:g} mm")
    if in_plane > pixel * 1.001 or slice_mm > pixel * 1.001:
        raise InputError(
            f"{path}: voxels of {in_plane:g} x {other:g} x {slice_mm:g} mm are too large for a reference of "
            f"{pixel:g} mm; set pixel to {max(in_plane, slice_mm):g} or more"
        )
    if image.data.min() > -200:
        raise InputError(f"{path}: no value below -200, so these aren't CT numbers in HU")
    hu = torch.from_numpy(np.ascontiguousarray(image.data)).clamp_(*HU_RANGE)
    if in_plane < pixel * 0.999:
        for axis in (0, 1):
            means = box_matrix(hu.shape[axis], SliceGeometry(in_plane, pixel, 0.0))
            hu = multiply_along(means, hu, axis).contiguous()
    return ThinVolume(name, hu, pixel, slice_mm)


def body_box(reference: Tensor) -> tuple[slice, slice]:
    """Columns and rows (x, y) that hold the body in any slice: the smallest box around all above -500 HU."""
    shadow = (reference > BODY_HU).any(2)
    if not shadow.any():
        return slice(0, reference.shape[0]), slice(0, reference.shape[1])
    x, y = shadow.any(1).nonzero()[:, 0], shadow.any(0).nonzero()[:, 0]
    return slice(int(x[0]), int(x[-1]) + 1), slice(int(y[0]), int(y[-1]) + 1)


# --- a user's own scan -------------------------------------------------------------------------------------


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


def read_scan(path: Path, thickness: float | None = None) -> Scan:
    """A CT volume as NIfTI, or a folder with one DICOM series.

    The slices are stacked along the axis with the largest spacing. That spacing says nothing about their thickness,
    which NIfTI doesn't record. It is, in this order: `thickness`; the tag SliceThickness of the DICOM files; the
    "SliceThickness" of a .json beside the NIfTI file, as dcm2niix writes it; with a warning, the spacing.

    Args:
        path: .nii, .nii.gz, or a folder.
        thickness: of a slice, mm.

    Raises:
        InputError: a missing or broken file, fewer than three slices, pixels that aren't square, or slices no
            thicker than the pixels are wide.
    """
    path = Path(path)
    image = dicom.load(path) if path.is_dir() else nifti.load(path, ndim=3)
    axis = int(np.argmax(image.spacing))
    in_plane = [image.spacing[k] for k in range(3) if k != axis]
    if abs(in_plane[0] - in_plane[1]) > 0.01 * in_plane[0]:
        raise InputError(f"{path}: in-plane pixels must be square, found {in_plane[0]:g} x {in_plane[1]:g} mm")
    if image.shape[axis] < 3:
        raise InputError(f"{path}: a volume needs at least three slices, found {image.shape[axis]}")
    spacing, pixel = image.spacing[axis], float(np.mean(in_plane))
    if thickness is None:
        thickness = _thickness_of_dicom(path) if path.is_dir() else _thickness_of_sidecar(path)
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
    hu = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.data, axis, 2), dtype=np.float32))
    return Scan(hu, SliceGeometry(pixel, float(thickness), float(thickness - spacing)), image, axis)


def _thickness_of_sidecar(path: Path) -> float | None:
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.is_file():
        return None
    try:
        content = json.loads(sidecar.read_text("utf-8"))
        return float(content["SliceThickness"]) if "SliceThickness" in content else None
    except (ValueError, TypeError) as error:
        raise InputError(f"{sidecar}: expected JSON as dcm2niix writes it, with SliceThickness in mm") from error


def _thickness_of_dicom(folder: Path) -> float | None:
    import SimpleITK as sitk

    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    reader = sitk.ImageFileReader()
    reader.SetFileName(names[0])
    reader.ReadImageInformation()
    try:
        return float(reader.GetMetaData("0018|0050"))
    except (RuntimeError, ValueError):  # no such tag, or an empty one
        return None


# --- training pairs ----------------------------------------------------------------------------------------


def random_crop(pair: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
    """The same random square of two images, (side, side) or less where the image is smaller; 0 is the whole image."""
    if not side:
        return pair
    height, width = pair[0].shape
    top = int(torch.randint(max(0, height - side) + 1, ()))
    left = int(torch.randint(max(0, width - side) + 1, ()))
    return tuple(image[top : top + side, left : left + side] for image in pair)


class Pairs(Dataset, ABC):
    """Training pairs: dictionaries of "input" and "target", (1, H, W) in HU. The blurred axis is the vertical one."""

    crop = 0

    @abstractmethod
    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Input and target, (H, W) each, whole."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        degraded, target = random_crop(self.pair(index), self.crop)
        return {"input": degraded[None].contiguous(), "target": target[None].contiguous()}

    def examples(self, count: int = 32) -> tuple[Tensor, Tensor]:
        """Pixels of some pairs, evenly chosen, for the scale layers of the network."""
        pairs = [self.pair(int(index)) for index in np.linspace(0, len(self) - 1, min(count, len(self)))]
        degraded, targets = zip(*pairs)
        return tuple(torch.cat([image.flatten() for image in images]) for images in (degraded, targets))


class AxialPairs(Pairs):
    """The 2 Z pairs of SR4ZCT from the axial images of one volume (M1-M4, section 2).

    Pair 2 i is (F_up^ver F_down^ver a_i, a_i). Pair 2 i + 1 is (R F_up^hor F_down^hor a_i, R a_i) with the rotation R
    by 90°, so that the degradation is vertical as in coronal and sagittal images.

    Args:
        volume: (X, Y, K) in HU; its axial images are taken as (Y, X).
        geometry: of the through-plane images to be imitated; the true one unless an error is made on purpose (M10).
        samples: points per thickness in F_down.
        smore_stride: SMORE's convolution with this stride instead of F_down (M9); 0 is SR4ZCT.
        crop: side of the square that is trained on, pixels; 0 is the whole image (paper).

    Raises:
        InputError: (on access) an image too small for two slices of that geometry.

    Example:
        >>> pairs = AxialPairs(torch.rand(32, 32, 5), SliceGeometry(1.0, 5.0, 2.5))
        >>> len(pairs), pairs[0]["input"].shape
        (10, torch.Size([1, 32, 32]))
    """

    def __init__(self, volume: Tensor, geometry: SliceGeometry, samples: int = 9, smore_stride: int = 0, crop: int = 0):
        self.images = volume.permute(2, 1, 0).contiguous()  # (K, Y, X)
        self.geometry, self.samples, self.smore_stride, self.crop = geometry, samples, smore_stride, crop

    def __len__(self) -> int:
        return 2 * len(self.images)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index // 2]
        if index % 2 == 0:
            return degrade(image, self.geometry, -2, self.samples, self.smore_stride), image
        degraded = degrade(image, self.geometry, -1, self.samples, self.smore_stride)
        return torch.rot90(degraded), torch.rot90(image)


class ThroughPlanePairs(Pairs):
    """Pairs of the supervised baseline: interpolated and true coronal or sagittal images of other volumes (M8).

    Args:
        volumes: thin-slice volumes.
        geometry: of the slices that are simulated from them.
        view: "cor" or "sag".
        crop: as in `AxialPairs`.
    """

    def __init__(self, volumes: list[ThinVolume], geometry: SliceGeometry, view: str, crop: int = 0):
        order = {"cor": (1, 2, 0), "sag": (0, 2, 1)}[view]
        self.crop = crop
        self.images: list[tuple[Tensor, Tensor]] = []
        for volume in volumes:
            low, high = upscale(volume.acquire(geometry), geometry), volume.reference()
            height = min(low.shape[2], high.shape[2])
            pair = (low[..., :height].permute(order), high[..., :height].permute(order))
            self.images += list(zip(*pair))

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index]
