"""Reads the three data sets of the paper in the layout of its authors; which of them are there is found out.

DATA/retina/image_with_GA/image<ID>.png, DATA/retina/label_with_GA/label<ID>.npy
DATA/brain_ventricles/prepared_data.npz     `data`, `label`: (N, H, W) or (N, H, W, 1)
DATA/brain_tumor/*.npz                      `image`, `label`: (H, W)
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from papers.cuts.sampler import draw_anchors, draw_positives, patches_at
from shared.errors import InputError
from shared.photo import read_photo
from shared.readers import Array, read_npy, read_npz

SIZE = 128  # pixels of every image in the paper
SMALLEST = 24  # pixels: below this, the 17 x 17 patches and the metrics' windows don't fit
FOLDERS = {"retina": "retina", "ventricles": "brain_ventricles", "tumour": "brain_tumor"}


@dataclass(frozen=True)
class Case:
    """One image with its mask."""

    name: str
    """data set and file, as in "retina/image12" """
    image: np.ndarray
    """(C, H, W) float32 in [-1, 1]"""
    truth: np.ndarray
    """(H, W) bool; never used for training CUTS"""
    white_matter: np.ndarray | None = None
    """(H, W) bool, where the data set has it: only the stand-in, for claim C4"""


def as_mask(label: np.ndarray, path: Path) -> np.ndarray:
    """A label of 0 and 1 (or 0 and 255) as bool.

    Raises:
        InputError: other labels, or nothing but 0: such an image can't be scored.
    """
    values = np.unique(label).tolist()
    if not (set(values) <= {0, 1} or set(values) <= {0, 255}):
        raise InputError(f"{path}: expected labels 0 and 1, found {values[:6]}")
    if values == [0]:
        raise InputError(f"{path}: the label is empty; leave this image out, there is nothing in it to be found")
    return label > 0


def normalise_mri(image: np.ndarray, zeros_to_one: bool) -> np.ndarray:
    """Magnitude image (H, W) to float32 [-1, 1]: 99th percentile to 1, clipped, then 2 x - 1.

    Args:
        zeros_to_one: make exact zeros (a masked background) bright, as the authors do for the ventricles.
    """
    image = image.astype(np.float32)
    image = (image / max(float(np.percentile(image, 99)), 1e-6)).clip(0, 1)
    if zeros_to_one:
        image = np.where(image == 0, 1.0, image)
    return (image * 2 - 1).astype(np.float32)


def to_square(image: np.ndarray, size: int, label: bool) -> np.ndarray:
    """Centred padding (with the smallest value) to a square, then resizing: cubic, or nearest for labels."""
    from scipy.ndimage import zoom

    longest = max(image.shape)
    before = [(longest - side) // 2 for side in image.shape]
    margins = [(b, longest - side - b) for b, side in zip(before, image.shape)]
    image = np.pad(image, margins, constant_values=image.min())
    if longest == size:
        return image
    if label:
        index = ((np.arange(size) + 0.5) * longest / size).astype(int)
        return image[np.ix_(index, index)]
    lowest, highest = image.min(), image.max()
    return zoom(image.astype(np.float32), size / longest, order=3, grid_mode=True, mode="nearest").clip(lowest, highest)


def read_retina(root: Path) -> list[Case]:
    """Fundus photographs with geographic atrophy."""
    cases = []
    for path in sorted((root / "retina" / "image_with_GA").glob("*.png")):
        image = np.ascontiguousarray(read_photo(path).transpose(2, 0, 1)) * 2 - 1
        label_path = root / "retina" / "label_with_GA" / f"{path.stem.replace('image', 'label', 1)}.npy"
        label = read_npy(label_path, Array(shape=image.shape[1:], whole=True))
        cases.append(Case(f"retina/{path.stem}", image, as_mask(label, label_path)))
    return cases


def read_ventricles(root: Path) -> list[Case]:
    """T1-weighted slices with ventricles, all in one file."""
    path = root / "brain_ventricles" / "prepared_data.npz"
    if not path.exists():
        return []
    label = Array(like="data", whole=True)
    wanted = {"data": Array(ndim={3, 4}), "label": label, "white_matter": replace(label, optional=True)}
    arrays = read_npz(path, wanted)
    shape = arrays["data"].shape
    if len(shape) == 4 and shape[-1] != 1:
        raise InputError(f"{path}: expected 'data' of shape (N, H, W) or (N, H, W, 1), found {shape}")
    arrays = {name: array.reshape(shape[:3]) for name, array in arrays.items()}
    cases = []
    for number, image in enumerate(arrays["data"]):
        white = arrays["white_matter"][number] > 0 if "white_matter" in arrays else None
        truth = as_mask(arrays["label"][number], path)
        image = normalise_mri(image, zeros_to_one=True)[None]
        cases.append(Case(f"ventricles/{number:03d}", image, truth, white))
    return cases


def read_tumours(root: Path) -> list[Case]:
    """FLAIR slices with glioma, a file each."""
    cases = []
    for path in sorted((root / "brain_tumor").glob("*.npz")):
        arrays = read_npz(path, {"image": Array(ndim=2), "label": Array(like="image", whole=True)})
        truth = as_mask(arrays["label"], path)
        image = normalise_mri(to_square(arrays["image"], SIZE, label=False), zeros_to_one=False)[None]
        cases.append(Case(f"tumour/{path.stem}", image, to_square(truth, SIZE, label=True)))
    return cases


READERS = {"retina": read_retina, "ventricles": read_ventricles, "tumour": read_tumours}


def read_datasets(root: Path, wanted: tuple[str, ...] = tuple(FOLDERS)) -> dict[str, list[Case]]:
    """The cases of every data set that lies in the folder.

    Raises:
        InputError: none is there, a file is broken, or an image is too small.
    """
    root = Path(root)
    found = {name: cases for name in FOLDERS if name in wanted and (cases := READERS[name](root))}
    if not found:
        layout = " or ".join(
            f"{FOLDERS[name]}/{rest}"
            for name, rest in (
                ("retina", "image_with_GA/*.png"),
                ("ventricles", "prepared_data.npz"),
                ("tumour", "*.npz"),
            )
            if name in wanted
        )
        raise InputError(f"{root}: expected {layout}; is this the folder of the data set?")
    for cases in found.values():
        for case in cases:
            if min(case.image.shape[1:]) < SMALLEST:
                raise InputError(f"{root}: {case.name} has {case.image.shape[1:]} pixels, fewer than {SMALLEST}")
    return found


def split(cases: list[Case], shares: tuple[float, ...]) -> list[list[Case]]:
    """Parts of a data set, always the same ones; the last part takes the rest, each has at least one case.

    The first `n` of a larger first part are the same cases: a test set is part of what all methods see.
    """
    order = np.random.default_rng(0).permutation(len(cases))
    shuffled, parts = [cases[k] for k in order], []
    for share in shares:
        count = max(1, round(share * len(cases)))
        parts.append(shuffled[:count])
        shuffled = shuffled[count:]
    return [*parts, shuffled or parts[-1]]


def cases_to_score(cases: list[Case], supervised: bool, most: int = 0) -> list[Case]:
    """All cases of a data set, sorted by name, for methods that never saw a label; else the 20 % test cases.

    Args:
        most: at most so many, test cases first; 0 is no limit.
    """
    test, rest = split(cases, (0.2,))
    chosen = test if supervised else [*test, *(case for case in rest if case not in test)]
    return sorted(chosen[: most or None], key=lambda case: case.name)


def read_own_image(path: Path, slice: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A user's image (C, H, W) float32 in [-1, 1], rows downwards, and the affine of its (x, y) pixels.

    A NIfTI slice is normalised as in training (99th percentile to 1); rows run along its second axis. A grey picture
    gets one channel, as the networks for MRI have it.

    Raises:
        InputError: missing, broken, of another format, or no such slice.
    """
    from shared import nifti

    if not path.name.endswith((".nii", ".nii.gz")):
        picture = read_photo(path, colour=None)
        channels = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture[None]
        # viewers then show the picture upright
        return np.ascontiguousarray(channels) * 2 - 1, np.diag([-1.0, -1.0, 1.0, 1.0])
    volume = nifti.load(path, ndim={2, 3})
    voxels, affine = volume.data, volume.affine
    if voxels.ndim == 3:
        number = voxels.shape[2] // 2 if slice is None else slice
        if not 0 <= number < voxels.shape[2]:
            raise InputError(f"{path}: has no slice {number}, it has {voxels.shape[2]} of them")
        voxels, affine = voxels[..., number], affine.copy()
        affine[:3, 3] += number * affine[:3, 2]
    return np.ascontiguousarray(normalise_mri(voxels.T, zeros_to_one=False)[None]), affine


class PatchPairs(Dataset):
    """Images with freshly drawn anchors and positives: what stage 1 is trained with.

    An item has "image" (C, H, W), "anchors" and "positives" (S, 2) in rows and columns, and "patches"
    (S, C p p), the patches around the anchors.

    Args:
        cases: images of one data set; all of one size, unless `crop` is set.
        crop: side of a random part of the image in pixels; 0 is the whole image.
        anchors, candidates, radius, patch, threshold: see `sampler`.
    """

    def __init__(self, cases: list[Case], crop=0, anchors=16, candidates=10, radius=5, patch=5, threshold=0.5):
        self.images = [torch.from_numpy(case.image) for case in cases]
        self.crop, self.anchors = crop, anchors
        self.settings = {"candidates": candidates, "radius": radius, "patch": patch, "threshold": threshold}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image = self.images[index]
        if self.crop:
            top, left = (int(torch.randint(max(1, side - self.crop + 1), ())) for side in image.shape[1:])
            image = image[:, top : top + self.crop, left : left + self.crop].contiguous()
        patch = self.settings["patch"]
        anchors = draw_anchors(image.shape[1:], self.anchors, patch)
        positives = draw_positives(image, anchors, **self.settings)
        patches = patches_at(image, anchors, patch).flatten(1)
        return {"image": image, "anchors": anchors, "positives": positives, "patches": patches}


class LabelledImages(Dataset):
    """Images with masks, for the supervised reference, flipped left to right and rotated by quarter turns
    at random. Items: "image" (C, H, W), "mask" (1, H, W) float."""

    def __init__(self, cases: list[Case], augment: bool = True):
        self.cases, self.augment = cases, augment

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict:
        case = self.cases[index]
        image, mask = torch.from_numpy(case.image), torch.from_numpy(case.truth[None].astype(np.float32))
        if self.augment:
            turns, mirror = int(torch.randint(4, ())), bool(torch.randint(2, ()))
            image, mask = (torch.rot90(x, turns, (1, 2)) for x in (image, mask))
            image, mask = (x.flip(2) if mirror else x for x in (image, mask))
        return {"image": image.contiguous(), "mask": mask.contiguous()}
