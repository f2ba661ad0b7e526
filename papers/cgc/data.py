"""Reads BraTS and CT in their layouts, and samples a lesion and a normal region per volume (M3).

    DATA/{HGG,LGG}/<ID>/<ID>_{t1,t1ce,t2,flair,seg}.nii.gz     BraTS 2018, skull-stripped, background 0
    DATA/<ID>/{ct,seg}.nii.gz                                  head CT in HU after brain extraction, background <= 0

Of the modalities only FLAIR is required; all cases must have the same ones. `seg` is needed for the test cases and
for the supervised upper bound; no other training opens it. Tensors are (channels, z, y, x) in RAS directions, cut to
the box around the brain.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared import nifti, resample
from shared.errors import InputError

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
    found = found or [path.parent for path in sorted(root.glob("*/ct.nii.gz"))]
    if len(found) < 2:
        raise InputError(
            f"{root}: expected at least two cases as {{HGG,LGG}}/<ID>/<ID>_flair.nii.gz or <ID>/ct.nii.gz, "
            f"found {len(found)}"
        )
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
        InputError: a file is missing, truncated or not 3-D, has NaN or another grid than the others, is empty, or
            the brain has not been extracted.
    """
    first = max(files, key=lambda modality: modality in ("flair", "ct"))
    original = nifti.load(files[first], ndim=3, dtype=np.float32)
    whole = resample.to_ras(original)
    volumes = {}
    for modality, path in files.items():
        image = whole if modality == first else resample.to_ras(nifti.load(path, ndim=3, dtype=np.float32))
        if image.shape != whole.shape or not np.allclose(image.affine, whole.affine, atol=1e-2):
            raise InputError(
                f"{path}: the grid differs from that of {files[first]} ({image.shape} and {whole.shape} voxels); "
                "register and resample the modalities to one grid"
            )
        volumes[modality] = np.ascontiguousarray(image.data.transpose(2, 1, 0))
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
    for volume in volumes.values():
        inside = volume[box][brain]
        values = (volume[box] - inside.mean()) / max(float(inside.std()), 1e-6)
        channels.append(np.where(brain, values, 0).astype(np.float32))
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


def read_lesion(folder: Path, case: Case) -> Tensor:
    """The true lesion (whole tumour, label > 0) of a case as bool (D, H, W), cut like its image. For scores only.

    Raises:
        InputError: the label is missing, broken, of another grid, or has unknown values.
    """
    folder = Path(folder)
    path = folder / ("seg.nii.gz" if case.modalities == ("ct",) else f"{folder.name}_seg.nii.gz")
    label = resample.to_ras(nifti.load_labels(path, LABELS, ndim=3))
    if label.shape != case.whole.shape:
        raise InputError(f"{path}: expected the grid of the image, {case.whole.shape}, found {label.shape}")
    cut = torch.from_numpy(np.ascontiguousarray(label.data.transpose(2, 1, 0)[case.box] > 0))
    padding = [part for have, n in zip(reversed(cut.shape), reversed(case.brain.shape)) for part in (0, n - have)]
    return F.pad(cut, padding)


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

    def lesion(self, index: int) -> Tensor:
        """The true lesion of a case, (D, H, W) bool. For scores and for the supervised upper bound only."""
        return read_lesion(self.folders[index], self[index])


# --- regions (M3) ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionRule:
    """Size of a region and what makes it a lesion or a normal one."""

    size: tuple[int, int, int]
    """voxels (z, y, x)"""
    lesion_coverage: float = 0.02
    """P covers at least this fraction of a lesion region"""
    normal_coverage: float = 0.001
    """P covers at most this fraction of a normal region"""
    brain_coverage: float = 0.6
    """the brain covers at least this fraction of a normal region"""
    tries: int = 20
    """positions that are looked at"""


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))


def _start_around(centre: Tensor, size, shape) -> tuple[int, ...]:
    return tuple(min(max(int(c) - n // 2, 0), whole - n) for c, n, whole in zip(centre, size, shape))


def _cut(start, size) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size))


def lesion_region(mask: Tensor, brain: Tensor, rule: RegionRule, size: tuple[int, ...]) -> tuple[int, ...]:
    """Start (z, y, x) of a region around a random voxel of the mask, moved by up to a quarter of its size.

    The first of `rule.tries` positions that the mask covers enough; else the one that it covers most. Without any
    lesion, a position in the brain.
    """
    inside = mask if mask.any() else brain
    flat = inside.flatten().nonzero()[:, 0]
    best, best_coverage = None, -1.0
    for _ in range(rule.tries):
        centre = torch.tensor(np.unravel_index(int(flat[_draw(len(flat))]), mask.shape))
        shift = torch.tensor([_draw(2 * (n // 4) + 1) - n // 4 for n in size])
        start = _start_around(centre + shift, size, mask.shape)
        coverage = float(mask[_cut(start, size)].float().mean())
        if coverage > best_coverage:
            best, best_coverage = start, coverage
        if coverage >= rule.lesion_coverage:
            break
    return best


def normal_region(
    mask: Tensor, brain: Tensor, rule: RegionRule, size: tuple[int, ...], lesion_start: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Start (z, y, x) of a region without lesion: if possible the mirror image of the lesion region.

    Else a random position; if none of `rule.tries` is free of the mask and enough inside the brain, the one that is
    least off. (x runs from left to right, so the mirror plane is the middle of the box around the brain.)
    """
    flat = brain.flatten().nonzero()[:, 0]
    candidates = []
    if lesion_start is not None:
        candidates.append((*lesion_start[:2], mask.shape[2] - lesion_start[2] - size[2]))
    best, least_off = None, float("inf")
    for attempt in range(rule.tries):
        if attempt < len(candidates):
            start = candidates[attempt]
        else:
            centre = np.unravel_index(int(flat[_draw(len(flat))]), mask.shape)
            start = _start_around(centre, size, mask.shape)
        place = _cut(start, size)
        too_much = max(0.0, float(mask[place].float().mean()) - rule.normal_coverage)
        too_little = max(0.0, rule.brain_coverage - float(brain[place].float().mean()))
        off = 10 * too_much + too_little
        if off < least_off:
            best, least_off = start, off
        if off == 0:
            break
    return best


class RegionPairs(Dataset):
    """A lesion region and a normal region of a volume, augmented (M3).

    An item is a dict of float32 "image" (2, C, *size), "mask" and "brain" (2, *size), lesion region first.

    Args:
        volumes: the training cases.
        masks: bool (D, H, W) for each: the proposal P. (For the supervised upper bound: the truth.)
        rule: size and coverage of the regions.
        kinds: what the two regions are: "pair", "normal" (both) or "any" (both anywhere in the brain, for networks
            that don't use P).
        scale, gamma, brightness: strength of the augmentation; 0 turns it off.
        flip: mirror along each axis with probability 1/2.
    """

    def __init__(
        self,
        volumes: Volumes,
        masks: list[Tensor] | None,
        rule: RegionRule,
        kinds: str = "pair",
        scale: float = 0.0,
        gamma: float = 0.0,
        brightness: float = 0.0,
        flip: bool = False,
    ):
        if kinds not in ("pair", "normal", "any"):
            raise ValueError(f"kinds must be pair, normal or any, got {kinds!r}")
        self.volumes, self.masks, self.rule, self.kinds = volumes, masks, rule, kinds
        self.scale, self.gamma, self.brightness, self.flip = scale, gamma, brightness, flip

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict:
        case = self.volumes[index]
        mask = torch.zeros_like(case.brain) if self.masks is None else self.masks[index]
        factor = 1 + self.scale * (2 * float(torch.rand(())) - 1)
        size = tuple(min(round(n * factor), whole) for n, whole in zip(self.rule.size, mask.shape))
        if self.kinds == "pair":
            first = lesion_region(mask, case.brain, self.rule, size)
            starts = [first, normal_region(mask, case.brain, self.rule, size, first)]
        elif self.kinds == "normal":
            starts = [normal_region(mask, case.brain, self.rule, size, None) for _ in range(2)]
        else:
            nothing = torch.zeros_like(mask)
            starts = [lesion_region(nothing, case.brain, self.rule, size) for _ in range(2)]
        masks = torch.stack([mask, case.brain]).float()
        regions = [self._augment(case.image, masks, _cut(start, size)) for start in starts]
        return {name: torch.stack([region[name] for region in regions]) for name in ("image", "mask", "brain")}

    def _augment(self, image: Tensor, masks: Tensor, place: tuple[slice, ...]) -> dict[str, Tensor]:
        image, masks = image[(slice(None), *place)], masks[(slice(None), *place)]
        if tuple(masks.shape[1:]) != tuple(self.rule.size):
            image = F.interpolate(image[None], self.rule.size, mode="trilinear", align_corners=False)[0]
            masks = F.interpolate(masks[None], self.rule.size, mode="nearest-exact")[0]
        if self.flip:
            axes = [axis for axis in (-3, -2, -1) if torch.rand(()) < 0.5]
            image, masks = image.flip(axes), masks.flip(axes)
        mask, brain = masks
        if self.gamma:
            exponent = float(torch.exp(self.gamma * (2 * torch.rand(()) - 1)))
            low = image.amin((1, 2, 3), keepdim=True)
            span = (image.amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-6)
            image = ((image - low) / span) ** exponent * span + low
        if self.brightness:
            gain, shift = (self.brightness * (2 * torch.rand(2) - 1)).tolist()
            image = image * (1 + gain) + shift
        return {"image": image * brain, "mask": mask.contiguous(), "brain": brain.contiguous()}
