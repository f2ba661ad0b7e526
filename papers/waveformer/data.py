"""Reads Synapse (BTCV) as TransUNet prepared it, and ISIC 2018 task 1 as it is published.

DATA/Synapse/train_npz/case0005_slice000.npz         image (H, W) in 0..1, label (H, W)
DATA/Synapse/test_vol_h5/case0008.npy.h5             image (D, H, W), label; attribute spacing (z, x, y), if there
DATA/lists/lists_Synapse/{train,test_vol}.txt        one name a line; without lists, all files
DATA/ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
DATA/ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.waveformer.augmentation import augment
from shared.errors import InputError
from shared.files import inside, refuse_duplicates, refuse_overlap
from shared.photo import read_mask, read_photo
from shared.readers import Array, read_hdf5, read_npz
from shared.text_files import read_names

ORGANS = ("aorta", "gallbladder", "kidney_l", "kidney_r", "liver", "pancreas", "spleen", "stomach")  # labels 1 to 8
CLASSES = {"synapse": 9, "isic": 2}
WINDOW = (-125.0, 275.0)  # HU that become 0 and 1
SYNAPSE = {
    "train": ("train_npz", ".npz", "train.txt"),
    "test": ("test_vol_h5", ".npy.h5", "test_vol.txt"),
}
"""part -> its folder, how its files end, its list"""
PHOTOS, MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
CACHE_BYTES = 3 * 2**30  # resized images up to this much stay in memory


@dataclass(frozen=True)
class Case:
    """A test case: slices of a volume, or one photograph."""

    name: str
    images: np.ndarray
    """float32 in 0..1, (D, H, W) or (1, H, W, 3)"""
    label: np.ndarray
    """uint8, (D, H, W)"""
    spacing: tuple[float, float, float] | None
    """mm along the axes of `label`, None if the file doesn't say"""


# --- Synapse -----------------------------------------------------------------------------------------------


def find_synapse(root: Path, split: str) -> list[Path]:
    """Files of the slices (split train) or volumes (test), in the order of the list.

    Raises:
        InputError: no such folder, nothing in it, a listed file that is not there, or a case in both parts.
    """
    found = {part: list_synapse(Path(root), part) for part in ("train", "test")}
    cases = [{path.name.split(".")[0].split("_slice")[0] for path in found[part]} for part in found]
    refuse_overlap(sorted(cases[0]), sorted(cases[1]), f"{root}: cases for training and for tests")
    if not found[split]:
        folder, suffix, _ = SYNAPSE[split]
        raise InputError(f"{root}: found no {folder}/*{suffix}; expected the prepared data of TransUNet in Synapse/")
    return found[split]


def list_synapse(root: Path, split: str) -> list[Path]:
    """The files of a part, by its list or, without one, all in its folder."""
    if not root.is_dir():
        raise InputError(f"{root} doesn't exist; it should be a folder with Synapse/ and lists/")
    base = root / "Synapse" if (root / "Synapse").is_dir() else root
    folder, suffix, listing = SYNAPSE[split]
    lists = [place / listing for place in (root / "lists" / "lists_Synapse", base / "lists_Synapse", base)]
    lists = [path for path in lists if path.exists()]
    if not lists:
        return sorted((base / folder).glob(f"*{suffix}"))
    paths = [inside(base / folder, f"{name}{suffix}") for name in read_names(lists[0], "slices or volumes")]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise InputError(f"{absent[0]} is missing, though {lists[0]} names it")
    return paths


def check_intensities(path: Path, image: np.ndarray) -> None:
    """Refuse what was not scaled to 0..1, with a little room for resampling."""
    if image.min() < -0.5 or image.max() > 1.5:
        raise InputError(
            f"{path}: 'image' has values from {image.min():g} to {image.max():g}; expected 0 to 1, "
            f"that is HU from {WINDOW[0]:g} to {WINDOW[1]:g} (see the command prepare)"
        )


def arrays(ndim: int) -> dict[str, Array]:
    """What a file of Synapse holds."""
    label = Array(like="image", dtype="uint8", least=0, most=CLASSES["synapse"] - 1)
    return {"image": Array(ndim=ndim, dtype="float32"), "label": label}


def read_slice(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image, float32 (H, W) in 0..1, and label, uint8 (H, W), of a training slice.

    Raises:
        InputError: the file is missing, damaged or holds something else.
    """
    found = read_npz(path, arrays(2))
    check_intensities(path, found["image"])
    return found["image"], found["label"]


def read_volume(path: Path) -> Case:
    """A test volume.

    Raises:
        InputError: the file is missing, damaged or holds something else.
    """
    path = Path(path)
    found = read_hdf5(path, {**arrays(3), "@spacing": Array(shape=(3,), dtype="float64", optional=True)})
    check_intensities(path, found["image"])
    spacing = found.get("@spacing")
    if spacing is not None:
        spacing = tuple(spacing.tolist())
        if min(spacing) < 1e-3 or max(spacing) > 1e3:
            raise InputError(f"{path}: the attribute 'spacing' must be three lengths in mm, found {spacing}")
    return Case(path.name.removesuffix(".npy.h5"), found["image"], found["label"], spacing)


# --- ISIC --------------------------------------------------------------------------------------------------


def mask_of(photo: Path) -> Path:
    return photo.parent.parent / MASKS / f"{photo.stem}_segmentation.png"


def find_isic(root: Path, split: str) -> list[Path]:
    """Photographs of a split, by name: the first 70 % are for training, 10 % for validation, the last 20 % for tests.

    Of the 2594 images these are 1815, 259 and 520, the split of the protocol that the paper cites.

    Raises:
        InputError: no such folder, nothing in it, a photograph twice, or one without its mask and vice versa.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} doesn't exist; it should be a folder with {PHOTOS}/ and {MASKS}/")
    paths = sorted(path for path in (root / PHOTOS).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise InputError(f"{root}: found no photographs in {PHOTOS}/; expected the training data of ISIC 2018 task 1")
    refuse_duplicates([path.stem for path in paths], f"{root / PHOTOS}: photographs")
    masks, expected = {path.name for path in (root / MASKS).glob("*.png")}, {mask_of(path).name for path in paths}
    for name in sorted(masks ^ expected):  # a patient must not drop out because a file is missing
        lacking = f"{MASKS}/{name}" if name in expected else f"the photograph of {MASKS}/{name}"
        raise InputError(f"{root}: {lacking} is missing")
    train, valid = int(len(paths) * 1815 / 2594), round(len(paths) * 259 / 2594)
    parts = {"train": paths[:train], "valid": paths[train : train + valid], "test": paths[train + valid :]}
    return parts[split]


def read_photo_and_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) in 0..1 and its mask, uint8 0 or 1 (H, W).

    Raises:
        InputError: one is missing or damaged; the mask is of another size, or empty.
    """
    photo = read_photo(path)
    return photo, read_mask(mask_of(Path(path)), photo.shape[:2]).astype(np.uint8)


def test_cases(root: Path, dataset: str, split: str = "test") -> list:
    """Functions that read one test case each, in order; nothing is read before they are called."""
    if dataset == "synapse":
        return [lambda path=path: read_volume(path) for path in find_synapse(root, split)]

    def read(path: Path) -> Case:
        photo, mask = read_photo_and_mask(path)
        return Case(path.stem, photo[None], mask[None], None)

    paths = find_isic(root, split)
    if not paths:
        raise InputError(f"{root}: too few photographs in {PHOTOS}/ for a {split} part")
    return [lambda path=path: read(path) for path in paths]


# --- what the network sees ---------------------------------------------------------------------------------


def resize(image: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    """(H, W) or (H, W, 3) to `size`; order 3 is cubic (images), 0 nearest (labels), as in TransUNet's code."""
    from scipy.ndimage import zoom

    if image.shape[:2] == tuple(size):
        return image
    factors = [new / old for new, old in zip(size, image.shape[:2])] + [1] * (image.ndim - 2)
    return zoom(image, factors, order=order, mode="nearest")  # rounding may put the last pixel outside by a hair


def to_input(image: np.ndarray, side: int) -> Tensor:
    """(H, W) or (H, W, 3) in 0..1 -> (3, side, side) in -1..1, grey images repeated."""
    small = torch.from_numpy(np.ascontiguousarray(resize(image, (side, side), 3), dtype=np.float32))
    small = small.expand(3, -1, -1) if small.ndim == 2 else small.permute(2, 0, 1)
    return 2 * small - 1


class Slices(Dataset):
    """Training slices or photographs: {"image": (3, S, S) in -1..1, "label": (S, S) int64}, resized and augmented.

    Args:
        root: the data set.
        dataset: synapse or isic.
        side: S.
        augmentations: see `augmentation.augment`.
        most: of them for each image.

    Raises:
        InputError: see `find_synapse` and `find_isic`; (on access) a broken file.
    """

    def __init__(self, root: Path, dataset: str, side: int, augmentations: Sequence[str] = (), most: int = 4):
        self.paths = find_synapse(root, "train") if dataset == "synapse" else find_isic(root, "train")
        if not self.paths:
            raise InputError(f"{root}: too few images for a training part")
        self.read = read_slice if dataset == "synapse" else read_photo_and_mask
        self.side, self.augmentations, self.most = side, tuple(augmentations), most
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def _load(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self._cache:
            image, label = self.read(self.paths[index])
            pair = to_input(image, self.side), torch.from_numpy(resize(label, (self.side, self.side), 0))
            used = pair[0].untyped_storage().nbytes() + label.nbytes
            if self._cached_bytes + used > CACHE_BYTES:
                return pair
            self._cache[index] = pair
            self._cached_bytes += used
        return self._cache[index]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self._load(index)
        image, label = augment(image, label, self.augmentations, self.most)
        return {"image": image.contiguous(), "label": label.long()}
