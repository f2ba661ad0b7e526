"""Reads the layout that the released code's preprocessing leaves (section 3.1).

    DATA/splits/IXI_train_fold0.csv, IXI_val_fold0.csv         healthy volumes
    DATA/splits/Brats21_val.csv, Brats21_test.csv, ...         patients, for each test set
    DATA/Train/ixi/{t2,mask}/<ID>_{t2,mask}.nii.gz
    DATA/Test/Brats21/{t2,mask,seg}/<ID>_{t2,mask,seg}.nii.gz

The tables have the columns img_name, age, label, img_path, mask_path, seg_path; paths are relative to DATA. A volume
of a training table may have a lesion mask too: its slices with lesion are then left out, so that a set without
healthy people can be used. Volumes of any orientation are brought to R, A, S axes, and their masks with them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.mddpm.masking import MaskingBlock
from papers.mddpm.model import box_mask
from shared import nifti, resample
from shared.errors import InputError
from shared.files import inside, refuse_duplicates, refuse_overlap
from shared.finite import finite
from shared.text_files import read_csv_rows

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
    """float32 (X, Y, Z) in [0, 1]: 1st to 99th percentile of the brain that is left after cropping; 0 outside of it"""
    mask: np.ndarray
    """bool (X, Y, Z)"""
    seg: np.ndarray | None
    """bool (X, Y, Z), the lesion, where there is a mask of it"""
    grid: nifti.Image
    """the prepared image with its affine, for writing results"""
    window: tuple[float, float] = (0.0, 1.0)
    """intensities of the scan that became 0 and 1"""


def read_table(root: Path, name: str) -> list[dict[str, str]]:
    """Rows of `splits/<name>.csv`.

    Raises:
        InputError: no data set, no table, or one that is broken, has no rows, or names a subject or an image twice.
    """
    root = Path(root)
    if not (root / "splits").is_dir():
        raise InputError(f"{root} has no folder splits/: expected a data set with the tables of its splits")
    path = root / "splits" / f"{name}.csv"
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.csv"))) or "none"
        raise InputError(f"{path}: there is no such table; the data set has {found}; choose sets with --train-set ...")
    rows = read_csv_rows(path, COLUMNS, unique="img_name")
    for row in rows:
        if not row["img_name"].strip():
            raise InputError(f"{path}: a row has no img_name")
    refuse_duplicates([row["img_path"].strip() for row in rows], f"{path}: values of 'img_path'")
    return rows


def refuse_shared_cases(root: Path, train: str, tests: list[str], validations: list[str]) -> None:
    """No subject of the training table or a test table may be in any other table; those for validation may overlap.

    Args:
        root: the data set.
        train, tests, validations: names of tables; those that are not there are left out.

    Raises:
        InputError: a name or an image is in two of them.
    """
    there = [name for name in (train, *tests, *validations) if (Path(root) / "splits" / f"{name}.csv").is_file()]
    tables = {name: read_table(root, name) for name in there}
    for number, one in enumerate(there):
        for other in there[number + 1 :]:
            for column in ("img_name", "img_path") if {one, other} - set(validations) else ():
                parts = [[row[column].strip() for row in tables[name]] for name in (one, other)]
                refuse_overlap(*parts, f"{Path(root) / 'splits'}: {column} of {one}.csv and {other}.csv")


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
    """Bring to R, A, S axes, smooth, crop, scale to [0, 1] between the brain's 1st and 99th percentile, downsample.

    Raises:
        InputError: a mask that does not lie on the image's voxels or is empty, or a brain of one intensity.
    """
    masks = [None if other is None else resample.on_grid_of(other, image) for other in (mask, seg)]
    image, mask, seg = [None if other is None else resample.to_ras(other) for other in (image, *masks)]
    name = image.path or "the scan"
    brain = mask.data > 0
    with np.errstate(over="ignore"):
        data = finite(image.data.astype(np.float32), f"{name} in single precision")
    if not brain.any():
        raise InputError(f"{mask.path}: the brain mask is empty")
    if preparation.curvature_flow:
        import SimpleITK as sitk

        smoothed = sitk.CurvatureFlow(sitk.GetImageFromArray(data), 0.125, preparation.curvature_flow)
        data = finite(sitk.GetArrayFromImage(smoothed), f"{name} after smoothing")
    kept = crop_or_pad(brain, preparation.crop)
    if not kept.any():
        size = " x ".join(map(str, kept.shape))
        raise InputError(f"{name}: no brain is left in the middle {size} voxels; bring it there, or train with --crop")
    low, high = np.percentile(crop_or_pad(data, preparation.crop)[kept].astype(np.float64), (1, 99))
    if not high > low:
        raise InputError(f"{name}: the brain has one intensity only ({low:g}); is this the right file?")
    scaled = np.where(brain, np.clip((data - low) / (high - low), 0, 1), 0).astype(np.float32)
    grid = _regrid(image, scaled, preparation, label=False)
    small_mask = _regrid(image, brain.astype(np.uint8), preparation, label=True).data > 0
    small_seg = None
    if seg is not None:
        small_seg = _regrid(image, (seg.data > 0).astype(np.uint8), preparation, label=True).data > 0
    values = np.where(small_mask, np.clip(grid.data, 0, 1), 0).astype(np.float32)
    name = Path(image.path).name if image.path else ""
    return Volume(name, values, small_mask, small_seg, grid, (float(low), float(high)))


def read_volume(root: Path, row: dict[str, str], preparation: Preparation) -> Volume:
    """One subject of a table.

    Raises:
        InputError: a file that is missing or broken, or files that don't fit together.
    """

    def path(column: str) -> Path:
        return inside(root, row[column].strip().lstrip("/"))

    image = nifti.load(path("img_path"), ndim=3)
    mask = nifti.load_labels(path("mask_path"), 2, ndim=3)
    seg = nifti.load_labels(path("seg_path"), 256, ndim=3) if row["seg_path"].strip() else None
    volume = prepare(image, mask, seg, preparation)
    volume.name = row["img_name"].strip()
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
    """Random slices of healthy volumes with everything that a training step draws for each slice.

    An item is a dict: `clean` z₀ and `masked` z_M, float32 (1, H, W) in [0, 1]; `t`; `box` (1, H, W), 1 where noise is
    added. All randomness is torch's, and what all variants need is drawn first, so that they get the same slices and
    time steps.

    Args:
        volumes: of `read_volumes`.
        per_volume: items per volume in one pass (released code: 6).
        masking: the masking block.
        steps: T.
        grid: boxes per side; 1 noises the whole slice.
    """

    def __init__(self, volumes: list[Volume], per_volume: int, masking: MaskingBlock, steps: int, grid: int):
        self.slices = [(volume, healthy_slices(volume)) for volume in volumes]
        self.slices = [(volume, indices) for volume, indices in self.slices if len(indices)]
        if not self.slices:
            raise InputError("no training volume has a slice without lesion: nothing healthy to learn from")
        self.per_volume, self.masking, self.steps, self.grid = per_volume, masking, steps, grid

    def __len__(self) -> int:
        return len(self.slices) * self.per_volume

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        volume, indices = self.slices[index // self.per_volume]
        number = indices[int(torch.randint(len(indices), ()))]
        t, box = torch.randint(self.steps, ()), int(torch.randint(self.grid**2, ()))
        clean = torch.from_numpy(volume.image[:, :, number].copy())
        masked = self.masking(clean, torch.from_numpy(volume.mask[:, :, number].copy()))
        box = box_mask(*clean.shape, self.grid, box)
        return {"clean": clean[None], "masked": masked[None], "t": t, "box": box[None]}


def whole_scans(volumes: list[Volume]) -> tuple[list[Tensor], list[Tensor]]:
    """Scans (D, 1, H, W) in [0, 1], and the indices of their healthy slices."""
    scans = [torch.from_numpy(volume.image.transpose(2, 0, 1).copy())[:, None] for volume in volumes]
    return scans, [torch.from_numpy(healthy_slices(volume)) for volume in volumes]


def every_healthy_slice(volumes: list[Volume]) -> Tensor:
    """(N, 1, H, W) in [0, 1]."""
    return torch.cat([scan[indices] for scan, indices in zip(*whole_scans(volumes))])
