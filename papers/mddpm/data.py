"""Reads the layout that the released code's preprocessing leaves (section 3.1).

    DATA/splits/IXI_train_fold0.csv, IXI_val_fold0.csv         healthy volumes
    DATA/splits/Brats21_val.csv, Brats21_test.csv, ...         patients, for each test set
    DATA/Train/ixi/{t2,mask}/<ID>_{t2,mask}.nii.gz
    DATA/Test/Brats21/{t2,mask,seg}/<ID>_{t2,mask,seg}.nii.gz

The tables have the columns img_name, age, label, img_path, mask_path, seg_path; paths are relative to DATA. A volume
of a training table may have a lesion mask too: its slices with lesion are then left out, so that a set without
healthy people can be used.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.mddpm.masking import MaskingBlock
from papers.mddpm.model import box_mask
from papers.mddpm.noise import draw_noise
from shared import nifti, resample
from shared.errors import InputError

COLUMNS = ("img_name", "img_path", "mask_path", "seg_path")


@dataclass(frozen=True)
class Preparation:
    """What is done to a volume on loading (released code)."""

    curvature_flow: int = 3
    """iterations of curvature-flow smoothing with time step 0.125; 0 is none"""
    crop: tuple[int, int, int] = (192, 192, 100)
    """voxels to crop or pad to before downsampling; 0 leaves an axis as it is"""
    downsample: tuple[int, int, int] = (2, 2, 2)
    """factor along each axis"""


@dataclass
class Volume:
    """One subject, ready for the network."""

    name: str
    image: np.ndarray
    """float32 (X, Y, Z) in [0, 1]: 1st to 99th percentile of the brain; 0 outside of it"""
    mask: np.ndarray
    """bool (X, Y, Z)"""
    seg: np.ndarray | None
    """bool (X, Y, Z), the lesion, where there is a mask of it"""
    grid: nifti.Image
    """the prepared image with its affine, for writing results"""


def read_table(root: Path, name: str) -> list[dict[str, str]]:
    """Rows of `splits/<name>.csv`.

    Raises:
        InputError: no data set, no table, missing columns, or no rows.
    """
    root = Path(root)
    if not (root / "splits").is_dir():
        raise InputError(f"{root} has no folder splits/: expected a data set with the tables of its splits")
    path = root / "splits" / f"{name}.csv"
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.csv"))) or "none"
        raise InputError(f"{path}: there is no such table; the data set has {found}; choose sets with --train-set ...")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as a table in UTF-8; save it as CSV again") from error
    missing = [column for column in COLUMNS if rows and rows[0].get(column) is None]
    if not rows or missing:
        raise InputError(f"{path}: expected rows with the columns {', '.join(COLUMNS)}, found none or no {missing}")
    return rows


def crop_or_pad(volume: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """The middle of a volume (X, Y, Z) at the given size, with zeros where it is smaller; size 0 keeps an axis."""
    for axis, wanted in enumerate(size):
        have = volume.shape[axis]
        if wanted and wanted < have:
            first = (have - wanted) // 2
            volume = np.take(volume, range(first, first + wanted), axis)
        elif wanted > have:
            before = (wanted - have) // 2
            padding = [(0, 0)] * volume.ndim
            padding[axis] = (before, wanted - have - before)
            volume = np.pad(volume, padding)
    return volume


def _regrid(image: nifti.Image, data: np.ndarray, preparation: Preparation, label: bool) -> nifti.Image:
    """Crop or pad about the middle, then downsample; the affine follows."""
    cropped = crop_or_pad(data, preparation.crop)
    affine = image.affine.copy()
    first = [(have - now) // 2 if now < have else -((now - have) // 2) for have, now in zip(data.shape, cropped.shape)]
    affine[:3, 3] = (image.affine @ [*first, 1])[:3]
    regridded = nifti.make_image(cropped, affine, image.path)
    if tuple(preparation.downsample) == (1, 1, 1):
        return regridded
    spacing = [size * factor for size, factor in zip(regridded.spacing, preparation.downsample)]
    flat = min(regridded.shape) < 4
    return resample.resample_to_spacing(
        regridded, spacing, label=label, interpolation="linear" if label or flat else "bspline"
    )


def prepare(image: nifti.Image, mask: nifti.Image, seg: nifti.Image | None, preparation: Preparation) -> Volume:
    """Smooth, crop, scale to [0, 1] between the 1st and 99th percentile of the brain, downsample.

    Raises:
        InputError: an empty mask, shapes that differ, or a brain of one intensity.
    """
    for other in (mask, seg):
        if other is not None and other.shape != image.shape:
            raise InputError(f"{other.path} has the shape {other.shape}, expected that of {image.path}, {image.shape}")
    data, brain = image.data.astype(np.float32), mask.data > 0
    if not brain.any():
        raise InputError(f"{mask.path}: the brain mask is empty")
    if preparation.curvature_flow:
        import SimpleITK as sitk

        smoothed = sitk.CurvatureFlow(sitk.GetImageFromArray(data), 0.125, preparation.curvature_flow)
        data = sitk.GetArrayFromImage(smoothed)
    low, high = np.percentile(data[brain], (1, 99)).astype(np.float32)
    if not high > low:
        raise InputError(f"{image.path}: the brain has one intensity only ({low:g}); is this the right file?")
    scaled = np.where(brain, np.clip((data - low) / (high - low), 0, 1), 0).astype(np.float32)
    grid = _regrid(image, scaled, preparation, label=False)
    small_mask = _regrid(image, brain.astype(np.uint8), preparation, label=True).data > 0
    small_seg = None
    if seg is not None:
        small_seg = _regrid(image, (seg.data > 0).astype(np.uint8), preparation, label=True).data > 0
    values = np.where(small_mask, np.clip(grid.data, 0, 1), 0).astype(np.float32)
    return Volume(Path(image.path).name if image.path else "", values, small_mask, small_seg, grid)


def read_volume(root: Path, row: dict[str, str], preparation: Preparation) -> Volume:
    """One subject of a table.

    Raises:
        InputError: a file that is missing or broken, or files that don't fit together.
    """

    def path(column: str) -> Path:
        return Path(root) / row[column].strip().lstrip("/")

    image = nifti.load(path("img_path"), ndim=3)
    mask = nifti.load_labels(path("mask_path"), 2, ndim=3)
    seg = nifti.load_labels(path("seg_path"), 256, ndim=3) if row["seg_path"].strip() else None
    volume = prepare(image, mask, seg, preparation)
    volume.name = row["img_name"]
    return volume


def read_volumes(root: Path, table: str, preparation: Preparation) -> list[Volume]:
    """All subjects of `splits/<table>.csv`, with slices of one size.

    Raises:
        InputError: see `read_table` and `read_volume`, or slices of different sizes.
    """
    volumes = [read_volume(root, row, preparation) for row in read_table(root, table)]
    sizes = {volume.image.shape[:2] for volume in volumes}
    if len(sizes) > 1:
        raise InputError(f"{root}: the slices of {table} have different sizes {sorted(sizes)}; set --crop")
    return volumes


def healthy_slices(volume: Volume) -> np.ndarray:
    """Indices of the slices with brain and, where there is a lesion mask, without lesion."""
    usable = volume.mask.any((0, 1))
    if volume.seg is not None:
        usable &= ~volume.seg.any((0, 1))
    return np.flatnonzero(usable)


class HealthySlices(Dataset):
    """Random slices of healthy volumes with everything that a training step draws.

    An item is a dict: `clean` z₀ and `masked` z_M, float32 (1, H, W) in [0, 1]; `noise` ε (1, H, W); `t`; `box`
    (1, H, W), 1 where noise is added. For an autoencoder it is `clean` and `code`, the noise of the code. All
    randomness is torch's.

    Args:
        volumes: of `read_volumes`.
        per_volume: items per volume in one pass (released code: 6).
        masking: the masking block.
        noise: "simplex" or "gaussian".
        wavelength: of the noise's first octave, in pixels.
        steps: T.
        grid: boxes per side; 1 noises the whole slice.
        latent: length of an autoencoder's code; 0 for a diffusion model.
    """

    def __init__(
        self,
        volumes: list[Volume],
        per_volume: int,
        masking: MaskingBlock,
        noise: str,
        wavelength: float,
        steps: int,
        grid: int,
        latent: int = 0,
    ):
        self.slices = [(volume, healthy_slices(volume)) for volume in volumes]
        self.slices = [(volume, indices) for volume, indices in self.slices if len(indices)]
        if not self.slices:
            raise InputError("no training volume has a slice without lesion: nothing healthy to learn from")
        self.per_volume, self.masking, self.noise, self.wavelength = per_volume, masking, noise, wavelength
        self.steps, self.grid, self.latent = steps, grid, latent

    def __len__(self) -> int:
        return len(self.slices) * self.per_volume

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        volume, indices = self.slices[index // self.per_volume]
        number = indices[int(torch.randint(len(indices), ()))]
        clean = torch.from_numpy(volume.image[:, :, number].copy())
        masked = self.masking(clean, torch.from_numpy(volume.mask[:, :, number].copy()))
        item = {"clean": clean[None]}
        if self.latent:
            return {**item, "code": torch.randn(self.latent)}
        item["masked"] = masked[None]
        item["noise"] = draw_noise(self.noise, *clean.shape, self.wavelength)[None]
        item["t"] = torch.randint(self.steps, ())
        item["box"] = box_mask(*clean.shape, self.grid, int(torch.randint(self.grid**2, ())))[None]
        return item
