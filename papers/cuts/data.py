"""Reads the three data sets of the paper in the layout of its authors; which of them are there is found out.

DATA/retina/image_with_GA/image<ID>.png, DATA/retina/label_with_GA/label<ID>.npy
DATA/brain_ventricles/prepared_data.npz     `data`, `label`: (N, H, W) or (N, H, W, 1)
DATA/brain_tumor/*.npz                      `image`, `label`: (H, W)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from papers.cuts.sampler import draw_anchors, draw_positives, patches_at
from shared.errors import InputError

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


def read_photograph(path: Path) -> np.ndarray:
    """An 8-bit RGB image as (3, H, W) float32 in [-1, 1].

    Raises:
        InputError: missing, truncated, or no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    except Exception as error:
        raise InputError(f"{path}: not a readable picture (missing, truncated, or another format)") from error
    return pixels.transpose(2, 0, 1) / 255 * 2 - 1


def read_arrays(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Arrays of an .npz or the one array of an .npy (under names[0]).

    Raises:
        InputError: missing, truncated, an array is lacking, or values that are not finite numbers.
    """
    try:
        with np.load(path) if path.suffix == ".npz" else open(path, "rb") as file:
            if path.suffix == ".npz":
                found = {name: file[name] for name in names + tuple(n for n in optional if n in file)}
            else:
                found = {names[0]: np.load(file)}
    except Exception as error:
        wanted = ", ".join(f"'{name}'" for name in names)
        raise InputError(f"{path}: can't be read; expected an {path.suffix} file with {wanted}") from error
    for name, array in found.items():
        if array.dtype.kind not in "bfiu" or not np.isfinite(array).all():
            raise InputError(f"{path}: '{name}' holds values that are not finite numbers")
    return found


def as_mask(label: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """A label of 0 and 1 (or 0 and 255) as bool.

    Raises:
        InputError: another shape than the image's, or other labels.
    """
    if label.shape != shape:
        raise InputError(f"{path}: the label has shape {label.shape} and its image {shape}; they must agree")
    values = np.unique(label)
    if not (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {0, 255}):
        raise InputError(f"{path}: expected labels 0 and 1, found {values[:6].tolist()}")
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
        image = read_photograph(path)
        label_path = root / "retina" / "label_with_GA" / f"{path.stem.replace('image', 'label', 1)}.npy"
        truth = as_mask(read_arrays(label_path, ("label",))["label"], image.shape[1:], label_path)
        cases.append(Case(f"retina/{path.stem}", image, truth))
    return cases


def read_ventricles(root: Path) -> list[Case]:
    """T1-weighted slices with ventricles, all in one file."""
    path = root / "brain_ventricles" / "prepared_data.npz"
    if not path.exists():
        return []
    arrays = read_arrays(path, ("data", "label"), optional=("white_matter",))
    arrays = {name: a[..., 0] if a.ndim == 4 and a.shape[-1] == 1 else a for name, a in arrays.items()}
    data = arrays["data"]
    if data.ndim != 3 or any(array.shape != data.shape for array in arrays.values()):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise InputError(f"{path}: expected (N, H, W) or (N, H, W, 1) throughout, found {shapes}")
    cases = []
    for number, image in enumerate(data):
        white = as_mask(arrays["white_matter"][number], image.shape, path) if "white_matter" in arrays else None
        truth = as_mask(arrays["label"][number], image.shape, path)
        image = normalise_mri(image, zeros_to_one=True)[None]
        cases.append(Case(f"ventricles/{number:03d}", image, truth, white))
    return cases


def read_tumours(root: Path) -> list[Case]:
    """FLAIR slices with glioma, a file each."""
    cases = []
    for path in sorted((root / "brain_tumor").glob("*.npz")):
        arrays = read_arrays(path, ("image", "label"))
        if arrays["image"].ndim != 2:
            raise InputError(f"{path}: expected 'image' of shape (H, W), found {arrays['image'].shape}")
        truth = as_mask(arrays["label"], arrays["image"].shape, path)
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
