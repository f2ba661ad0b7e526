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

from papers.unoranic.corruptions import Draws, area_matrix, draw, draw_detection
from shared.errors import InputError

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


def resized(images: Tensor, side: int) -> Tensor:
    """Average (N, C, H, H) down to (N, C, side, side)."""
    if images.shape[-1] == side:
        return images
    matrix = area_matrix(images.shape[-1], side).to(images)
    return matrix @ images @ matrix.T


def read_images(path: Path, array: np.ndarray, key: str, side: int) -> Tensor:
    """uint8 (N, H, W) or (N, H, W, 3) to (N, C, side, side) in [0, 1].

    Raises:
        InputError: another type or shape, no images, or fewer pixels than `side`.
    """
    right = array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)
    if array.dtype != np.uint8 or not right or array.size == 0:
        raise InputError(
            f"{path}: expected '{key}' as uint8 of shape (N, H, W) or (N, H, W, 3), found {array.dtype} {array.shape}"
        )
    if array.shape[1] != array.shape[2] or array.shape[1] < side:
        raise InputError(
            f"{path}: '{key}' has images of {array.shape[1:3]} pixels; needed are squares of {side} or more"
        )
    images = torch.from_numpy(array).float() / 255
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return resized(images, side)


def read_table(path: Path, side: int = 28) -> ImageTable:
    """One .npz file.

    Args:
        path: file in the layout of MedMNIST.
        side: pixels that larger images are averaged down to.

    Raises:
        InputError: missing, truncated, an array is lacking or of a wrong type or shape, or labels that are no classes.
    """
    path = Path(path)
    keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in keys}
    except Exception as error:
        raise InputError(f"{path}: can't be read; expected a MedMNIST .npz file with {', '.join(keys)}") from error
    splits = {}
    for split in SPLITS:
        images = read_images(path, arrays[f"{split}_images"], f"{split}_images", side)
        labels = arrays[f"{split}_labels"]
        if labels.dtype.kind not in "iu" or labels.size != len(images) or labels.min() < 0:
            raise InputError(
                f"{path}: expected '{split}_labels' as {len(images)} whole numbers from 0, one an image, "
                f"found {labels.dtype} {labels.shape}"
            )
        splits[split] = Split(images, torch.from_numpy(labels.reshape(-1).astype(np.int64)))
    if len({split.images.shape[1] for split in splits.values()}) > 1:
        raise InputError(f"{path}: some splits have colour images and others grey ones")
    classes = 1 + max(int(split.labels.max()) for split in splits.values())
    for split in ("train", "test"):
        if len(splits[split].labels.unique()) < 2:
            raise InputError(f"{path}: '{split}_labels' holds one class only; two or more are needed")
    return ImageTable(name_of(path), classes, **splits)


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
    paths = {name_of(path): path for path in sorted(root.glob("*.npz"))}
    if not paths:
        raise InputError(f"{root}: expected MedMNIST files such as bloodmnist.npz; is this the folder of the data set?")
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise InputError(f"{root}: has no data set {', '.join(missing)}; it has {', '.join(paths)}")
    return {name: read_table(path, side) for name, path in paths.items() if not wanted or name in wanted}


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
        draws = draw(self.copies, tuple(image.shape), self.probability)
        if self.detection:
            draws.applied[0] = draw_detection(1, tuple(image.shape)).applied[0]
        return {"image": image, "label": self.split.labels[index], **draws._asdict()}


def draws_of(batch: dict) -> Draws:
    """The random numbers of a batch of `CorruptedImages`, all first copies first: fields (copies * B, ...)."""
    return Draws(*(batch[name].transpose(0, 1).flatten(0, 1) for name in Draws._fields))
