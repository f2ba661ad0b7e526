"""Thin-slice CT volumes in the layout of MSD Task06_Lung, and the training pairs that are made from volumes.

DATA/imagesTr/lung_*.nii.gz, CT numbers in HU, slices of 1 mm or less. Arrays are (X, Y, Z) float32; a coronal image
is (Z, X), a sagittal one (Z, Y).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.sr4zct.scaling import SliceGeometry, box_matrix, degrade, multiply_along, upscale
from shared import nifti, resample
from shared.errors import InputError

HU_RANGE = (-1024.0, 2000.0)  # metal and calibration outliers beyond are clipped in data sets, not in a user's scan
BODY_HU = -500.0
KEPT_BYTES = 2**28  # of training inputs in memory: blurring an image takes about as long as a small network's update


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
        self.kept: dict[int, Tensor] | None = {} if 2 * self.images.nbytes <= KEPT_BYTES else None

    def __len__(self) -> int:
        return 2 * len(self.images)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index // 2]
        return self._input(index), image if index % 2 == 0 else torch.rot90(image)

    def _input(self, index: int) -> Tensor:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        axis = -2 if index % 2 == 0 else -1
        degraded = degrade(self.images[index // 2], self.geometry, axis, self.samples, self.smore_stride)
        degraded = degraded if axis == -2 else torch.rot90(degraded)
        if self.kept is not None:
            self.kept[index] = degraded
        return degraded


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
