"""Reads image tables in the layout of MedMNIST: DATA/<name>.npz with train, val and test images and labels.

bloodmnist.npz    train_images (N, 28, 28, 3) uint8, train_labels (N, 1), val_..., test_...
pneumoniamnist.npz, breastmnist.npz   (N, 28, 28)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.unoranic.corruptions import Draws, averaged, draw, draw_detection
from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.photo import read_photo
from shared.readers import Array, read_npz

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]"""
    labels: Tensor
    """(N,) int64, from 0"""


@dataclass(frozen=True)
class ImageTable:
    """One data set with its three splits."""

    name: str
    """of the file, without "mnist": "blood", "pneumonia", "retina_64" """
    classes: int
    train: Split
    val: Split
    test: Split

    @property
    def channels(self) -> int:
        return self.test.images.shape[1]


def name_of(path: Path) -> str:
    """Name of a data set from its file: "bloodmnist.npz" is "blood", "retinamnist_64.npz" is "retina_64"."""
    return path.stem.replace("mnist", "", 1) or path.stem


def to_images(path: Path, array: np.ndarray, key: str, side: int) -> Tensor:
    """uint8 (N, H, W) or (N, H, W, 3) to (N, C, side, side) in [0, 1].

    Raises:
        InputError: no squares, fewer pixels than `side`, or another number of channels.
    """
    if array.ndim == 4 and array.shape[3] != 3:
        raise InputError(f"{path}: '{key}' has the shape {array.shape}, expected (N, H, W) or (N, H, W, 3)")
    if array.shape[1] != array.shape[2] or array.shape[1] < side:
        raise InputError(
            f"{path}: '{key}' has images of {array.shape[1:3]} pixels; needed are squares of {side} or more"
        )
    images = torch.from_numpy(array).float() / 255
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return averaged(images, side)


def read_table(path: Path, side: int = 28) -> ImageTable:
    """One .npz file.

    Args:
        path: file in the layout of MedMNIST.
        side: pixels that larger images are averaged down to.

    Raises:
        InputError: missing, truncated, an array is lacking, comes twice or is of a wrong type or shape, or labels that
            are no classes.
    """
    path = Path(path)
    wanted = {f"{split}_images": Array(ndim={3, 4}, dtype="uint8") for split in SPLITS}
    wanted |= {f"{split}_labels": Array(ndim={1, 2}, dtype="int64", least=0) for split in SPLITS}
    arrays, splits = read_npz(path, wanted), {}
    for split in SPLITS:
        images = to_images(path, arrays[f"{split}_images"], f"{split}_images", side)
        labels = arrays[f"{split}_labels"]
        if labels.size != len(images):
            raise InputError(
                f"{path}: '{split}_labels' has the shape {labels.shape}, expected one number for each of "
                f"{len(images)} images"
            )
        splits[split] = Split(images, torch.from_numpy(labels.reshape(-1)))
    if len({split.images.shape[1] for split in splits.values()}) > 1:
        raise InputError(f"{path}: some splits have colour images and others grey ones")
    known = splits["train"].labels.unique()
    for split in ("train", "test"):
        if len(splits[split].labels.unique()) < 2:
            raise InputError(f"{path}: '{split}_labels' holds one class only; two or more are needed")
    for split in ("val", "test"):
        new = splits[split].labels[~torch.isin(splits[split].labels, known)]
        if len(new):
            raise InputError(f"{path}: '{split}_labels' holds class {new[0]}, which no training image has")
    return ImageTable(name_of(path), 1 + int(known.max()), **splits)


def read_tables(root: Path, wanted: tuple[str, ...] = (), side: int = 28) -> dict[str, ImageTable]:
    """The data sets of a folder by name, in alphabetic order.

    Args:
        root: folder with .npz files.
        wanted: names, as `name_of` gives them; empty is all.
        side: as for `read_table`.

    Raises:
        InputError: no such file, or one of them is broken.
    """
    root = Path(root)
    found = sorted(root.glob("*.npz"))
    refuse_duplicates([name_of(path) for path in found], f"{root}: data sets")
    paths = {name_of(path): path for path in found}
    if not paths:
        raise InputError(f"{root}: expected MedMNIST files such as bloodmnist.npz; is this the folder of the data set?")
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise InputError(f"{root}: has no data set {', '.join(missing)}; it has {', '.join(paths)}")
    return {name: read_table(path, side) for name, path in paths.items() if not wanted or name in wanted}


def read_own_image(path: Path, side: int, slice: int | None) -> Tensor:
    """A user's image as (1, C, side, side) in [0, 1]: C is 1 if it has no colour. Its central square, averaged down.

    A NIfTI slice is scaled from its 1st to its 99th percentile. It is shown as radiologists look at it, however it is
    stored: columns from the patient's right to left, rows from anterior to posterior.

    Raises:
        InputError: missing, broken, of another format, too small, constant, or no such slice.
    """
    if path.name.endswith((".nii", ".nii.gz")):
        pixels = read_slice(path, slice)[None]
    elif slice is not None:
        raise InputError(f"{path}: --slice {slice} is for NIfTI volumes alone; leave it out for a picture")
    else:
        picture = read_photo(path, colour=None)
        pixels = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    _, height, width = pixels.shape
    square = min(height, width)
    if square < side:
        raise InputError(f"{path}: has {width} x {height} pixels, fewer than the {side} that the network needs")
    top, left = (height - square) // 2, (width - square) // 2
    pixels = np.ascontiguousarray(pixels[:, top : top + square, left : left + square])
    return averaged(torch.from_numpy(pixels)[None], side)


def read_slice(path: Path, slice: int | None) -> np.ndarray:
    """An axial slice of a NIfTI volume as float32 (rows, columns) in [0, 1]; None is the middle one."""
    from shared import nifti, resample

    voxels = resample.to_ras(nifti.load(path, ndim={2, 3})).data
    if voxels.ndim == 3:
        count = voxels.shape[2]
        number = count // 2 if slice is None else slice
        if not 0 <= number < count:
            raise InputError(f"{path}: has no slice {number}, it has {count} of them from the feet to the head")
        voxels = voxels[..., number]
    voxels = voxels[::-1, ::-1].T
    low, high = np.percentile(voxels, (1, 99))
    if not high > low:
        raise InputError(f"{path}: the slice has one value nearly everywhere; choose another with --slice")
    return ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)


class CorruptedImages(Dataset):
    """Training images with the random numbers of their corruptions (M4).

    An item has "image" (C, H, W), "label", and the fields of `Draws`, each with a first axis of `copies`. The
    corruption itself happens in the training loop, on the whole batch and on its device.

    Args:
        split: clean images.
        copies: corruptions per image, independent of each other: S and its variants.
        probability: of each of the twelve corruptions.
        detection: the first copy has one corruption at most, and in half of the images none (section 3.4).
    """

    def __init__(self, split: Split, copies: int = 1, probability: float = 0.25, detection: bool = False):
        self.split, self.copies, self.probability, self.detection = split, copies, probability, detection

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> dict:
        image = self.split.images[index]
        # One after the other, so that S has the same corruption in all variants, whatever number of copies they need.
        each = [draw(1, tuple(image.shape), self.probability) for _ in range(self.copies)]
        draws = Draws(*(torch.cat(parts) for parts in zip(*each)))
        if self.detection:
            draws.applied[0] = draw_detection(1, tuple(image.shape)).applied[0]
        return {"image": image, "label": self.split.labels[index], **draws._asdict()}


def draws_of(batch: dict) -> Draws:
    """The random numbers of a batch of `CorruptedImages`, all first copies first: fields (copies * B, ...)."""
    return Draws(*(batch[name].transpose(0, 1).flatten(0, 1) for name in Draws._fields))
