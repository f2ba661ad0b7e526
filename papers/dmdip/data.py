"""Pairs of T1w and T2w sections of infants, in the layout of BIDS, and the samples of a fit.

    DATA/sub-01/ses-03mo/anat/sub-01_ses-03mo_T1w.nii.gz, ..._T2w.nii.gz      (ses-* may be left out)

T2w lies on the voxels of T1w. Sections are coronal, found from the affine, with R to the right and S upwards; images
are (2, H, W), T1w and T2w, H along S.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.dmdip.kspace import downsample
from shared import nifti, resample
from shared.errors import InputError
from shared.files import refuse_duplicates

CONTRASTS = ("T1w", "T2w")
HEADROOM = 1.2
"""Networks end in a sigmoid: 1 stands for so many times the low image's maximum, which a finer image may exceed."""

LARGEST = 1e18
"""intensity that a square still fits into float32 of"""


@dataclass(frozen=True)
class Pair:
    """One section in both contrasts, at high resolution."""

    name: str
    """sub-01_ses-03mo_y17, the number of the section in the volume"""
    paths: tuple[Path, Path]
    """T1w and T2w"""
    high: Tensor
    """(2, size, size) float32, in the units of the files"""


def volumes_of(root: Path) -> list[tuple[Path, Path]]:
    """T1w and T2w files of each session, in the order of their names.

    Raises:
        InputError: no such folder, none there, one without the other, or a name that comes twice.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; expected sub-*/ses-*/anat/*_T1w.nii.gz and *_T2w.nii.gz")
    found = {one: sorted(root.glob(f"sub-*/**/anat/*_{one}.nii.gz")) for one in CONTRASTS}
    if not any(found.values()):
        raise InputError(f"{root}: expected sub-*/ses-*/anat/*_T1w.nii.gz and *_T2w.nii.gz, found none")
    for one, other in (CONTRASTS, CONTRASTS[::-1]):
        for path in found[one]:
            partner = path.with_name(path.name.replace(f"_{one}.nii.gz", f"_{other}.nii.gz"))
            if partner not in found[other]:
                raise InputError(f"{path}: there is no {partner.name} beside it; each session needs both contrasts")
    refuse_duplicates([path.name for path in found["T1w"]], f"files in {root}")
    return [(path, path.with_name(path.name.replace("_T1w.nii.gz", "_T2w.nii.gz"))) for path in found["T1w"]]


def fit_to(section: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size) of a section, with zeros around it where it is smaller."""
    for axis in (0, 1):
        length = section.shape[axis]
        first = max(0, (length - size) // 2)
        section = section.take(range(first, min(first + size, length)), axis)
        before = (size - section.shape[axis]) // 2
        widths = [(0, 0), (0, 0)]
        widths[axis] = (before, size - section.shape[axis] - before)
        section = np.pad(section, widths)
    return section


def chosen_sections(volume: np.ndarray, count: int, name: str) -> list[int]:
    """Random coronal sections through the head (section 3.1), always the same of a volume (R, A, S) of that name.

    "Through the head" are those of which at least half as much is brighter than a tenth of the maximum as of the
    section with most of it.
    """
    area = (volume > 0.1 * volume.max()).sum(axis=(0, 2))
    inside = np.flatnonzero(area >= 0.5 * area.max())
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return sorted(int(index) for index in rng.permutation(inside)[:count])


def read_pairs(root: Path, sections: int, size: int, factor: int) -> list[Pair]:
    """All pairs of a data set.

    Args:
        root: the data set.
        sections: of each volume.
        size: of the high-resolution images; larger sections are cropped, smaller ones get zeros around them.
        factor: r, which must divide `size`.

    Raises:
        InputError: missing or broken files, contrasts on different voxels, a volume or a section without signal, or
            fewer sections in a volume than asked for.
    """
    if factor < 2 or size % factor or size // factor < 4:
        raise InputError(f"--factor {factor} must be 2 or more, divide --size {size} and leave 4 pixels or more")
    if sections < 1:
        raise InputError("--sections 0: at least one section of each volume is needed")
    pairs = []
    for paths in volumes_of(root):
        images = [nifti.load(path, ndim=3, dtype=np.float32) for path in paths]
        images[1] = resample.on_grid_of(images[1], images[0])
        volumes = [resample.to_ras(image).data for image in images]
        for path, volume in zip(paths, volumes):
            if volume.max() <= 0:
                raise InputError(f"{path}: no value above zero, so there is no image in it")
        name = paths[0].name.removesuffix("_T1w.nii.gz")
        indices = chosen_sections(volumes[0], sections, name)
        if len(indices) < sections:
            raise InputError(f"{paths[0]}: only {len(indices)} coronal sections show the head; set --sections to that")
        for index in indices:
            both = [fit_to(volume[:, index].T[::-1], size) for volume in volumes]
            high = torch.from_numpy(np.ascontiguousarray(np.stack(both)))
            for path, one in zip(paths, high):
                if not 0 < float(downsample(one, factor).max()) < LARGEST:
                    raise InputError(f"{path}: expected values from 0 to {LARGEST:g} in its coronal section {index}")
            pairs.append(Pair(f"{name}_y{index:03d}", paths, high))
    return pairs


def low_resolution(pairs: list[Pair], factor: int) -> Tensor:
    """x0 of all pairs: (N, 2, h, w), in the units of the files."""
    return downsample(torch.stack([pair.high for pair in pairs]), factor)


def scale_of(low: Tensor) -> Tensor:
    """(..., h, w) -> (..., 1, 1): the value that 1 of a network's output stands for."""
    return HEADROOM * low.amax(dim=(-2, -1), keepdim=True)


class JitteredNoise(Dataset):
    """The one sample of a fit: z with fresh noise on it, and the low images that the result is compared with.

    Args:
        z: (P·C, H, W), fixed.
        jitter: standard deviation of what is added, anew at each access.
        low: (P, contrasts, h, w), divided by `scale_of`.
    """

    def __init__(self, z: Tensor, jitter: float, low: Tensor):
        self.z, self.jitter, self.low = z, jitter, low

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"z": self.z + self.jitter * torch.randn(self.z.shape), "low": self.low}
