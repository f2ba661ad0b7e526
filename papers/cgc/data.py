"""Reads BraTS and CT in their layouts.

    DATA/{HGG,LGG}/<ID>/<ID>_{t1,t1ce,t2,flair,seg}.nii.gz     BraTS 2018, skull-stripped, background 0
    DATA/<ID>/{ct,seg}.nii.gz                                  head CT in HU after brain extraction, background <= 0

Of the modalities only FLAIR is required; all cases must have the same ones. `seg` is needed for the test cases and
for the supervised upper bound; no other training opens it. Tensors are (channels, z, y, x) in RAS directions, cut to
the box around the brain.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared import nifti, resample
from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.finite import finite

MODALITIES = ("t1", "t1ce", "t2", "flair")
GRADES = ("HGG", "LGG")
CT_WINDOW = (0.0, 100.0)  # HU
LABELS = (0, 1, 2, 3, 4)
CACHE_BYTES = 4 * 2**30  # volumes smaller than this together stay in memory


@dataclass(frozen=True)
class Case:
    """One volume, cut to the box around the brain."""

    name: str
    image: Tensor
    """float32 (C, D, H, W), each channel with mean 0 and standard deviation 1 inside the brain, 0 outside"""
    brain: Tensor
    """bool (D, H, W)"""
    spacing: tuple[float, float, float]
    """mm along z, y, x"""
    modalities: tuple[str, ...]
    """names of the channels"""
    box: tuple[slice, slice, slice]
    """where the volume lies in the whole image, (z, y, x) in RAS directions"""
    whole: nifti.Image
    """the whole image in RAS directions, for its grid"""
    original: nifti.Image
    """the first modality as it is in the file"""

    def uncrop(self, values: Tensor) -> np.ndarray:
        """(D, H, W) -> the voxel order of the file, 0 outside the box."""
        whole = np.zeros(self.whole.shape[::-1], values.numpy().dtype)
        whole[self.box] = values.numpy()[tuple(slice(0, part.stop - part.start) for part in self.box)]
        ras = nifti.Image(whole.transpose(2, 1, 0), self.whole.affine, self.whole.header)
        return resample.restore_orientation(ras, self.original).data


def find_cases(root: Path) -> list[Path]:
    """Folders of all cases, sorted by name.

    Raises:
        InputError: no folder, or neither of the two layouts in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; it should hold HGG/ and LGG/ of BraTS, or <ID>/ct.nii.gz")
    found = [path for grade in GRADES for path in sorted((root / grade).glob("*")) if path.is_dir()]
    if not found:
        found = sorted({path.parent for kind in ("ct", "seg") for path in root.glob(f"*/{kind}.nii.gz")})
    if len(found) < 2:
        raise InputError(
            f"{root}: expected at least two cases as {{HGG,LGG}}/<ID>/<ID>_flair.nii.gz or <ID>/ct.nii.gz, "
            f"found {len(found)}"
        )
    refuse_duplicates([path.name for path in found], f"cases in {root}")
    return sorted(found, key=lambda path: path.name)


def split_cases(folders: list[Path], test_fraction: float) -> dict[str, list[Path]]:
    """ "train" and "test": the cases whose names have the smallest hashes are for the test.

    Nothing but the name counts, so that the split can't follow the size of the lesions.
    """
    count = min(max(round(test_fraction * len(folders)), 1), len(folders) - 1)
    ranked = sorted(folders, key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    test = set(ranked[:count])
    return {"train": [f for f in folders if f not in test], "test": [f for f in folders if f in test]}


def image_files(folder: Path) -> dict[str, Path]:
    """Modality -> file of one case.

    Raises:
        InputError: neither FLAIR nor CT.
    """
    folder = Path(folder)
    if (folder / "ct.nii.gz").exists():
        return {"ct": folder / "ct.nii.gz"}
    files = {m: folder / f"{folder.name}_{m}.nii.gz" for m in MODALITIES}
    files = {modality: path for modality, path in files.items() if path.exists()}
    if "flair" not in files:
        raise InputError(f"{folder}: expected {folder.name}_flair.nii.gz or ct.nii.gz, found neither")
    return files


def beside(path: Path) -> dict[str, Path]:
    """Modality -> file for the scan of a user: a CT, or a FLAIR image with its sisters beside it.

    Raises:
        InputError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected <ID>_flair.nii.gz or a CT")
    if not path.name.endswith("_flair.nii.gz"):
        return {"ct": path}
    stem = path.name.removesuffix("_flair.nii.gz")
    files = {modality: path.with_name(f"{stem}_{modality}.nii.gz") for modality in MODALITIES}
    return {modality: file for modality, file in files.items() if file.exists()}


def read_case(files: dict[str, Path], name: str, least: tuple[int, int, int] = (1, 1, 1)) -> Case:
    """Read, crop and normalise one volume; its label is not looked at.

    Args:
        files: modality -> file.
        name: of the case.
        least: the box is enlarged (or the volume padded with 0) to at least this size (z, y, x).

    Raises:
        InputError: a file is missing, truncated or not 3-D, has NaN or another grid than the others, is empty or
            constant, or the brain has not been extracted.
    """
    first = max(files, key=lambda modality: modality in ("flair", "ct"))
    original = nifti.load(files[first], ndim=3, dtype=np.float32)
    whole = resample.to_ras(original)
    volumes = {}
    for modality, path in files.items():
        image = original if modality == first else nifti.load(path, ndim=3, dtype=np.float32)
        on_grid = resample.to_ras(resample.on_grid_of(image, original))
        volumes[modality] = np.ascontiguousarray(on_grid.data.transpose(2, 1, 0))
    if first == "ct":
        brain = _brain_of_ct(volumes["ct"], files["ct"])
        volumes["ct"] = np.clip(volumes["ct"], *CT_WINDOW)
    else:
        brain = np.logical_or.reduce([volume != 0 for volume in volumes.values()])
    share = brain.mean()
    if not 0 < share < 0.95:
        raise InputError(
            f"{files[first]}: expected a skull-stripped volume with background 0, but {share:.0%} of its voxels are "
            "not background; extract the brain first"
        )
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain))
    brain = brain[box]
    channels = []
    for modality, volume in volumes.items():
        inside = volume[box][brain].astype(np.float64)
        if not inside.std() > 0:
            raise InputError(f"{files[modality]}: expected an image, but all voxels of the brain are {inside[0]:g}")
        values = np.where(brain, (volume[box] - inside.mean()) / inside.std(), 0)
        channels.append(finite(values.astype(np.float32), f"{files[modality]}: the normalised image"))
    image, brain = torch.from_numpy(np.stack(channels)), torch.from_numpy(brain)
    missing = [max(0, n - have) for n, have in zip(least, brain.shape)]
    if any(missing):  # at the end of each axis; `uncrop` takes it off again
        padding = [part for n in reversed(missing) for part in (0, n)]
        image, brain = F.pad(image, padding), F.pad(brain, padding)
    spacing = whole.spacing[::-1]
    return Case(name, image, brain, spacing, tuple(volumes), box, whole, original)


def _brain_of_ct(volume: np.ndarray, path: Path) -> np.ndarray:
    """Bool (D, H, W): the largest piece within the window, holes filled."""
    from scipy import ndimage

    bone = float((volume > 300).mean())
    if bone > 0.01:
        raise InputError(
            f"{path}: {bone:.0%} of the voxels are bone (above 300 HU); expected a CT after brain extraction"
        )
    pieces, count = ndimage.label((volume > CT_WINDOW[0]) & (volume < CT_WINDOW[1]))
    if count == 0:
        raise InputError(f"{path}: no voxel between 0 and 100 HU; expected a CT in Hounsfield units")
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(pieces == largest)


def on_box(image: nifti.Image, case: Case) -> Tensor:
    """Where a mask of a case is above 0, cut like its image: bool (D, H, W).

    Raises:
        InputError: its voxels are not those of the image.
    """
    voxels = resample.to_ras(resample.on_grid_of(image, case.original)).data.transpose(2, 1, 0)
    cut = torch.from_numpy(np.ascontiguousarray(voxels[case.box] > 0))
    padding = [part for have, n in zip(reversed(cut.shape), reversed(case.brain.shape)) for part in (0, n - have)]
    return F.pad(cut, padding)


def read_lesion(folder: Path, case: Case) -> Tensor:
    """The true lesion (whole tumour, label > 0) of a case as bool (D, H, W), cut like its image. For scores only.

    Raises:
        InputError: the label is missing, broken, of another grid, has unknown values, or no lesion.
    """
    folder = Path(folder)
    path = folder / ("seg.nii.gz" if case.modalities == ("ct",) else f"{folder.name}_seg.nii.gz")
    lesion = on_box(nifti.load_labels(path, LABELS, ndim=3), case)
    if not lesion.any():
        raise InputError(f"{path}: expected a lesion, but no voxel of the brain is one; leave this case out")
    return lesion


class Volumes(Dataset):
    """Cases of one split, read once and kept in memory if all of them fit.

    Args:
        root: the data set.
        split: "train" or "test".
        test_fraction: share of the cases for the test.
        least: smallest size (z, y, x) of a volume.
    """

    def __init__(self, root: Path, split: str, test_fraction: float, least: tuple[int, int, int] = (1, 1, 1)):
        self.folders = split_cases(find_cases(root), test_fraction)[split]
        self.files = [image_files(folder) for folder in self.folders]
        self.modalities = tuple(self.files[0])
        for folder, files in zip(self.folders, self.files):
            if tuple(files) != self.modalities:
                raise InputError(
                    f"{folder}: has the modalities {', '.join(files)}, but {self.folders[0].name} has "
                    f"{', '.join(self.modalities)}; all cases need the same"
                )
        self.names = [folder.name for folder in self.folders]
        self.least = least
        self._cache: dict[int, Case] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Case:
        if index in self._cache:
            return self._cache[index]
        case = read_case(self.files[index], self.names[index], self.least)
        size = case.image.numel() * 4 + 2 * case.whole.data.nbytes
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index], self._cached_bytes = case, self._cached_bytes + size
        return case

    def cases(self) -> Iterator[Case]:
        """All of them, one after the other."""
        return (self[index] for index in range(len(self)))

    def lesion(self, index: int) -> Tensor:
        """The true lesion of a case, (D, H, W) bool. For scores and for the supervised upper bound only."""
        return read_lesion(self.folders[index], self[index])
