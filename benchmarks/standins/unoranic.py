"""Stand-in data for unORANIC: chest films and blood cells in the layout of MedMNIST, 28 x 28 pixels."""

from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.standins.blood_smear import CLASSES, make_blood_cell
from benchmarks.standins.pneumonia_film import make_chest_film
from shared.files import complete_or_absent

# Images in train, val and test of each data set.
SIZES = {
    "smoke": {"blood": (24, 16, 16), "pneumonia": (24, 16, 16)},
    "cpu": {"pneumonia": (960, 160, 320)},
    "study": {"pneumonia": (960, 160, 320)},
    "blood": {"blood": (960, 160, 320)},
    "paper": {"blood": (11959, 1712, 3421), "pneumonia": (4708, 524, 624)},
}
RENDERED = 112  # pixels; four by four of them make one


def averaged(picture: np.ndarray) -> np.ndarray:
    """(112, 112, ...) uint8 to (28, 28, ...)."""
    blocks = picture.reshape(28, 4, 28, 4, *picture.shape[2:])
    return blocks.mean((1, 3)).round().astype(np.uint8)


def make_split(name: str, split: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28, 3) or (count, 28, 28) and labels (count, 1) uint8, in random order."""
    classes = len(CLASSES) if name == "blood" else 2
    labels = np.random.default_rng([seed, split]).permutation(np.arange(count) % classes)
    make = make_blood_cell if name == "blood" else make_chest_film
    number = ("blood", "pneumonia").index(name)
    images = [
        averaged(make(np.random.default_rng([seed, number, split, k]), int(label), RENDERED))
        for k, label in enumerate(labels)
    ]
    return np.stack(images), labels[:, None].astype(np.uint8)


def generate(out: Path, seed: int = 0, size: Literal["smoke", "cpu", "study", "blood", "paper"] = "cpu") -> Path:
    """Write pneumoniamnist.npz, bloodmnist.npz or both to `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke (24 training images of each), cpu, study (960 films), blood (960 cells), paper (as MedMNIST).
    """
    with complete_or_absent(out) as folder:
        for name, counts in SIZES[size].items():
            arrays = {}
            for number, (split, count) in enumerate(zip(("train", "val", "test"), counts)):
                arrays[f"{split}_images"], arrays[f"{split}_labels"] = make_split(name, number, count, seed)
            np.savez_compressed(folder / f"{name}mnist.npz", **arrays)
    return Path(out)
