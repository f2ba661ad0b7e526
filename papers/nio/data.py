"""Reads the brains of the paper, and the hippocampus of the Medical Segmentation Decathlon, in published layout.

DATA/oasis/OASIS_OAS1_0001_MR1/{aligned_norm,aligned_seg35}.nii.gz      neurite-oasis
DATA/lpba40/S01/S01.delineation.{skullstripped,structure.label}.nii.gz  LPBA40, affine to one space
DATA/Task04_Hippocampus/{imagesTr,labelsTr}/hippocampus_001.nii.gz      Decathlon
DATA/dirlab/...                                                         see lungs.py

A domain whose folder is missing is left out. Volumes are reoriented to R, A, S axes, resampled, and centre-cropped.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from shared import nifti, resample
from shared.errors import InputError

FOLDERS = {"oasis": "oasis", "lpba": "lpba40", "hippocampus": "Task04_Hippocampus", "lung": "dirlab"}
LPBA_LEFT_OUT = (181, 182)
"""cerebellum and brainstem: without them LPBA40 has the 54 structures that the paper counts"""


@dataclass(frozen=True)
class Scan:
    """A brain, or a hippocampus, on the grid of the network."""

    name: str
    image: np.ndarray
    """float32 (X, Y, Z) in [0, 1]"""
    labels: np.ndarray
    """int32 (z X, z Y, z Z), on a grid `label_zoom` z times finer over the same field of view"""
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Breath:
    """A phase of a 4D-CT, cropped to the lungs and resampled to the grid of the network."""

    name: str
    image: np.ndarray
    """float32 (X, Y, Z) in [0, 1], 0 outside of the lungs"""
    mask: np.ndarray
    """bool (X, Y, Z)"""
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    """position of the first voxel in the coordinates of `landmarks`"""


@dataclass(frozen=True)
class Pair:
    """What is registered: `moving` onto `fixed`."""

    name: str
    moving: Scan | Breath
    fixed: Scan | Breath
    landmarks_mm: tuple[np.ndarray, np.ndarray] | None = None
    """positions (N, 3) in the fixed and in the moving scan"""

    @property
    def mask(self) -> np.ndarray | None:
        """Lungs of the fixed scan."""
        return getattr(self.fixed, "mask", None)


def scan_paths(root: Path, domain: str) -> list[tuple[str, Path, Path]]:
    """(name, image, labels) of all scans of a domain, sorted by name; empty if the domain isn't there."""
    folder = Path(root) / FOLDERS[domain]
    if domain == "oasis":
        cases = sorted(path for path in folder.glob("OASIS_OAS1_*_MR1") if path.is_dir())
        names = [path.name.split("_")[2] for path in cases]
        return [(n, p / "aligned_norm.nii.gz", p / "aligned_seg35.nii.gz") for n, p in zip(names, cases)]
    if domain == "lpba":
        cases = sorted(path for path in folder.glob("S[0-9][0-9]") if path.is_dir())
        parts = ("skullstripped", "structure.label")
        return [(p.name, *(p / f"{p.name}.delineation.{part}.nii.gz" for part in parts)) for p in cases]
    images = sorted((folder / "imagesTr").glob("hippocampus_*.nii.gz"))
    return [(p.name.split(".")[0][-3:], p, folder / "labelsTr" / p.name) for p in images]


def fit(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Crop or pad with zeros about the centre."""
    fitted = np.zeros(shape, volume.dtype)
    inside, outside = [], []
    for size, wanted in zip(volume.shape, shape):
        taken = min(size, wanted)
        inside.append(slice((wanted - taken) // 2, (wanted - taken) // 2 + taken))
        outside.append(slice((size - taken) // 2, (size - taken) // 2 + taken))
    fitted[tuple(inside)] = volume[tuple(outside)]
    return fitted


def normalise(image: np.ndarray) -> np.ndarray:
    """Minimum to 0, maximum to 1, float32."""
    image = image.astype(np.float32)
    return (image - image.min()) / max(float(image.max() - image.min()), 1e-6)


def on_grid(volume: nifti.Image, spacing_mm: float, label: bool) -> nifti.Image:
    """R, A, S axes and isotropic voxels; a volume whose spacing is right within 2 % is not resampled.

    Images whose voxels are less than half as large are smoothed first.
    """
    from scipy.ndimage import gaussian_filter

    volume = resample.to_ras(volume)
    if np.allclose(volume.spacing, spacing_mm, rtol=0.02):
        return volume
    ratio = spacing_mm / np.array(volume.spacing)
    if not label and (ratio > 2.05).any():
        smooth = gaussian_filter(volume.data.astype(np.float32), np.where(ratio > 2.05, 0.4 * ratio, 0), truncate=2.5)
        volume = replace(volume, data=smooth)
    return resample.resample_to_spacing(volume, (spacing_mm,) * 3, label=label)


def read_scan(name: str, image_path: Path, label_path: Path, shape, spacing_mm: float, label_zoom: int = 1) -> Scan:
    """One scan on the grid of the network, with its labels.

    Raises:
        InputError: a file is missing or broken, or the labels are not on the image's grid.
    """
    image = nifti.load(image_path, ndim=3)
    labels = resample.on_grid_of(nifti.load_labels(label_path, 1000, ndim=3), image)
    labels = on_grid(labels, spacing_mm / label_zoom, label=True)
    return Scan(
        name,
        fit(normalise(on_grid(image, spacing_mm, label=False).data), shape),
        fit(np.asarray(labels.data).astype(np.int32), tuple(label_zoom * n for n in shape)),
        (float(spacing_mm),) * 3,
    )


class Scans:
    """The scans of a domain, read when asked for; small sets are kept in memory.

    Args:
        root: the data set.
        domain: oasis, lpba or hippocampus.
        counts: scans for training and validation; the rest is the test set. The order is that of the names.
        shape: grid of the network.
        spacing_mm: its voxel size.
        label_zoom: labels have voxels so many times smaller.

    Raises:
        InputError: too few scans.
    """

    def __init__(self, root: Path, domain: str, counts, shape, spacing_mm: float, label_zoom: int = 1):
        self.domain, self.shape, self.spacing_mm, self.label_zoom = domain, tuple(shape), spacing_mm, label_zoom
        self.paths = scan_paths(root, domain)
        self.train = list(range(counts[0]))
        self.valid = list(range(counts[0], sum(counts)))
        self.test = list(range(sum(counts), len(self.paths)))
        if len(self.train) < 2 or len(self.test) < 2 or min(counts) < 0:
            raise InputError(
                f"{Path(root) / FOLDERS[domain]}: expected {counts[0]} scans for training, {counts[1]} for validation "
                f"and at least 2 more, found {len(self.paths)}"
            )
        self.kept = {} if len(self.paths) * np.prod(self.shape) < 4e8 else None

    def __getitem__(self, index: int) -> Scan:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        scan = read_scan(*self.paths[index], self.shape, self.spacing_mm, self.label_zoom)
        if self.kept is not None:
            self.kept[index] = scan
        return scan

    def atlases(self) -> list[int]:
        """Scans that test scans are registered to: case 285 (OASIS), S24 and S25 (LPBA). Where these are not in the
        test set, as many of its first scans; one of hippocampi."""
        names = [path[0] for path in self.paths]
        wanted = {"oasis": [284], "lpba": [names.index(name) for name in ("S24", "S25") if name in names]}
        found = [index for index in wanted.get(self.domain, []) if index in self.test]
        return found or self.test[: 2 if self.domain == "lpba" and len(self.test) > 2 else 1]

    def pairs(self, setting: str, most: int = 0) -> list[tuple[str, int, int]]:
        """(name, moving, fixed) of all test scans against each atlas, the atlases themselves left out."""
        atlases = self.atlases()
        pairs = [(moving, fixed) for moving in self.test if moving not in atlases for fixed in atlases]
        names = [path[0] for path in self.paths]
        return [(f"{setting}/{names[m]}-{names[f]}", m, f) for m, f in pairs[: most or None]]

    def labels(self) -> list[int]:
        """Structures of the atlases, without the background and without those that the paper leaves out."""
        found = set()
        for index in self.atlases():
            found |= set(np.unique(self[index].labels).tolist())
        return sorted(found - {0} - (set(LPBA_LEFT_OUT) if self.domain == "lpba" else set()))


class ScanPairs(Dataset):
    """Training pairs of a domain: each scan in turn as moving image, a random other one as fixed image.

    Items: "moving", "fixed" (1, X, Y, Z) float32.
    """

    def __init__(self, scans: Scans):
        self.scans = scans

    def __len__(self) -> int:
        return len(self.scans.train)

    def __getitem__(self, index: int) -> dict:
        other = int(torch.randint(len(self.scans.train) - 1, ()))
        fixed = self.scans.train[other + (other >= index)]
        images = {"moving": self.scans[self.scans.train[index]].image, "fixed": self.scans[fixed].image}
        return {name: torch.from_numpy(image)[None] for name, image in images.items()}
