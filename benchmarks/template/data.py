"""Reads the data set's published layout: DATA/{train,test}/*.npz with `noisy` and `clean`, (H, W) in 0..1."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from shared.errors import InputError


def read_case(path: Path) -> dict[str, np.ndarray]:
    """One case as float32 arrays (H, W).

    Raises:
        InputError: the file is missing, truncated, lacks an array, or holds NaN.
    """
    try:
        with np.load(path) as file:
            case = {name: file[name].astype(np.float32) for name in ("noisy", "clean")}
    except Exception as error:
        raise InputError(f"{path} can't be read as .npz with 'noisy' and 'clean': missing or truncated") from error
    for name, image in case.items():
        if image.ndim != 2 or not np.isfinite(image).all():
            raise InputError(f"{path}: '{name}' must be a finite 2-D image, found shape {image.shape} or NaN")
    return case


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
