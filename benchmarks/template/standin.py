"""Stand-in data for Template: discs under Gaussian noise, in the published layout."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np

CASES = {"smoke": (4, 2), "cpu": (64, 12), "paper": (400, 100)}


def generate(out: Path, seed: int = 0, size: Literal["smoke", "cpu", "paper"] = "cpu") -> Path:
    """Write train/ and test/ under `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke, cpu or paper.
    """
    out = Path(out)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    y, x = np.mgrid[:32, :32] / 31 * 2 - 1
    for part, (split, cases) in enumerate(zip(("train", "test"), CASES[size])):
        (unfinished / split).mkdir(parents=True)
        for number in range(cases):
            rng = np.random.default_rng([seed, part, number])
            clean = np.zeros_like(x)
            for _ in range(4):
                radius, (a, b) = rng.uniform(0.1, 0.4), rng.uniform(-0.6, 0.6, 2)
                clean = np.where((x - a) ** 2 + (y - b) ** 2 < radius**2, rng.uniform(0.3, 1), clean)
            noisy = clean + 0.2 * rng.normal(size=clean.shape)
            path = unfinished / split / f"case{number:03d}.npz"
            np.savez(path, noisy=noisy.astype(np.float32), clean=clean.astype(np.float32))
    unfinished.rename(out)
    return out
