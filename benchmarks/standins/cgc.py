"""Stand-in for BraTS 2018, in its published layout: simulated brains with gliomas (`brain_tumour`).

    python -m benchmarks.standins.cgc --out data/cgc --size cpu --seed 0

    OUT/{HGG,LGG}/<ID>/<ID>_{t1,t1ce,t2,flair,seg}.nii.gz

What makes a proposal from intensities wrong in a structured way is simulated too: periventricular caps and
white-matter spots that are as bright as oedema, remnants of scalp at the edge, a receive field of up to 25 %,
partial volume, oedema that fades out, Rician noise.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Size = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True)
class Setting:
    """Voxels of the image, voxels of the phantom per voxel of the image along an axis, number of cases."""

    voxel_mm: float
    factor: int
    cases: int


SETTINGS = {"smoke": Setting(6.0, 2, 6), "cpu": Setting(3.0, 2, 24), "paper": Setting(1.0, 1, 60)}
FIELD_OF_VIEW_MM = (240, 240, 156)
BRAIN_MM = (156, 192, 156)  # the phantom is simulated in this box only


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Writes the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. A case depends only on seed, size and its number.
        size: "smoke" (6 mm), "cpu" (3 mm) or "paper" (1 mm).

    Returns:
        out.

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    from shared.errors import InputError

    out = Path(out)
    if size not in SETTINGS:
        raise InputError(f"unknown size {size!r}: choose one of {', '.join(SETTINGS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and isn't empty: choose another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with ThreadPoolExecutor(2) as pool:  # a case draws from a generator of its own
            cases = SETTINGS[size].cases
            list(pool.map(lambda number: _write_case(unfinished, SETTINGS[size], number, seed), range(cases)))
        unfinished.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def simulate(setting: Setting, number: int, seed: int):
    """Images (modality -> int16), labels (uint8) and grade of one case, in the box around the brain."""
    import numpy as np

    from benchmarks.standins import brain_tumour as simulator

    rng = np.random.default_rng([seed, number])
    fine = setting.voxel_mm / setting.factor
    shape = tuple(int(round(extent / setting.voxel_mm)) * setting.factor for extent in BRAIN_MM)
    grid = simulator.Grid(shape, fine)
    glioma = simulator.plan_glioma(rng)
    brain = simulator.healthy_brain(rng, grid, glioma)
    fractions = {simulator.GLIOSIS: simulator.add_gliosis(rng, brain)}
    tumour = simulator.add_glioma(rng, brain, glioma)
    images = simulator.acquire(rng, brain, fractions | tumour, setting.factor)
    return images, simulator.brats_labels(tumour, setting.factor), "HGG" if glioma.high_grade else "LGG"


def _write_case(root: Path, setting: Setting, number: int, seed: int) -> None:
    import numpy as np

    from shared import nifti

    images, labels, grade = simulate(setting, number, seed)
    name = f"Simulated_{number:03d}"
    shape = [round(extent / setting.voxel_mm) for extent in FIELD_OF_VIEW_MM]
    start = [(whole - part) // 2 for whole, part in zip(shape, labels.shape)]
    box = tuple(slice(first, first + n) for first, n in zip(start, labels.shape))
    affine = np.diag([-setting.voxel_mm, -setting.voxel_mm, setting.voxel_mm, 1.0])  # LPS, as BraTS files are
    affine[:3, 3] = [0, shape[1] * setting.voxel_mm - setting.voxel_mm, 0]
    folder = root / grade / name
    for kind, values in {**images, "seg": labels}.items():
        volume = np.zeros(shape, values.dtype)
        volume[box] = values
        nifti.save(folder / f"{name}_{kind}.nii.gz", volume[::-1, ::-1], affine=affine)


def main() -> None:
    import tyro

    from shared.cli import run_main

    def write(out: Path, seed: int = 0, size: Size = "cpu") -> None:
        """Writes a stand-in data set for CGC.

        Args:
            out: folder to create.
            seed: of everything random.
            size: smoke (6 mm), cpu (3 mm) or paper (1 mm).
        """
        print(generate(out, seed, size))

    run_main(lambda: tyro.cli(write))


if __name__ == "__main__":
    main()
