"""Reads the data set's published layout: DATA/{train,test}/*.npz with `noisy` and `clean`, (H, W) in 0..1."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from shared.errors import InputError
from shared.readers import Array, read_npz


def read_case(path: Path) -> dict[str, np.ndarray]:
    """One case as float32 arrays (H, W).

    Raises:
        InputError: the file is missing, truncated, lacks an array, or holds NaN or intensities far from 0..1.
    """
    image = Array(ndim=2, dtype="float32", least=-1, most=2)  # 0..1 with noise
    return read_npz(path, {"noisy": image, "clean": replace(image, like="noisy")})


class TemplateDataset(Dataset):
    """Cases of one split: dictionaries of "noisy" and "clean" (1, H, W) and "case", the file's name.

    Raises:
        InputError: the folder is missing or holds no case.
    """

    def __init__(self, root: Path, split: str):
        self.paths = sorted((Path(root) / split).glob("*.npz"))
        if not self.paths:
            raise InputError(f"{root}: expected {split}/*.npz; is this the folder of the data set?")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        case = read_case(self.paths[index])
        tensors = {name: torch.from_numpy(image)[None] for name, image in case.items()}
        return {**tensors, "case": self.paths[index].stem}
