"""Stand-in data for Template: discs under Gaussian noise, in the published layout."""

from pathlib import Path
from typing import Literal

import numpy as np

from shared.files import complete_or_absent

CASES = {"smoke": (4, 2), "cpu": (64, 12), "study": (64, 24), "paper": (400, 100)}


def generate(out: Path, seed: int = 0, size: Literal["smoke", "cpu", "study", "paper"] = "cpu") -> Path:
    """Write train/ and test/ under `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke, cpu, study or paper.

    Raises:
        InputError: `out` is there already and holds something.
    """
    y, x = np.mgrid[:32, :32] / 31 * 2 - 1
    with complete_or_absent(out) as folder:
        for part, (split, cases) in enumerate(zip(("train", "test"), CASES[size])):
            (folder / split).mkdir()
            for number in range(cases):
                rng = np.random.default_rng([seed, part, number])
                clean = np.zeros_like(x)
                for _ in range(4):
                    radius, (a, b) = rng.uniform(0.1, 0.4), rng.uniform(-0.6, 0.6, 2)
                    clean = np.where((x - a) ** 2 + (y - b) ** 2 < radius**2, rng.uniform(0.3, 1), clean)
                noisy = clean + 0.2 * rng.normal(size=clean.shape)
                path = folder / split / f"case{number:03d}.npz"
                np.savez(path, noisy=noisy.astype(np.float32), clean=clean.astype(np.float32))
    return Path(out)
