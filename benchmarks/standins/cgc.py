"""Stand-in for BraTS 2018, in its published layout: simulated brains with gliomas (`brain_tumour`).

    OUT/{HGG,LGG}/<ID>/<ID>_{t1,t1ce,t2,flair,seg}.nii.gz

What may mislead a proposal from intensities is simulated: scars and white-matter spots that are as bright as oedema,
remnants of scalp, a receive field of up to 25 %, partial volume, oedema that fades out, Rician noise. It differs
between cases in place and strength. At 4 mm a mixture errs at the edge of the tumour above all: in 26 cases it missed
13 % of the lesion, 10 % at the edge, and of what it marked 13 % was wrong, 8 % at the edge and 6 % elsewhere (spots or
scars; next to nothing in the outermost voxels of the brain, where the scalp is).
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.files import complete_or_absent

Size = Literal["smoke", "cpu", "study", "paper"]


@dataclass(frozen=True)
class Setting:
    """Voxels of the image, voxels of the phantom per voxel of the image along an axis, number of cases."""

    voxel_mm: float
    factor: int
    cases: int


SMALL = Setting(4.0, 2, 60)  # a region of 16 x 24 x 24 voxels covers the 64 x 96 x 96 mm of the paper profile
SETTINGS = {"smoke": Setting(6.0, 2, 6), "cpu": SMALL, "study": SMALL, "paper": Setting(1.0, 1, 60)}
FIELD_OF_VIEW_MM = (240, 240, 156)
BRAIN_MM = (156, 192, 156)  # the phantom is simulated in this box only


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> dict:
    """Write the data set to `out`; nothing is left there if it fails.

    Args:
        out: folder to create.
        seed: of everything random. A case depends only on seed, size and its number.
        size: smoke (6 mm), cpu, study (the same as cpu, 4 mm) or paper (1 mm).

    Returns:
        note on what was made, also in `standin.json`.
    """
    setting = SETTINGS[size]
    note = {
        "name": "Simulated multi-modal MRI of brains with gliomas",
        "stands_in_for": "BraTS 2018",
        "seed": seed,
        "size": size,
        "cases": setting.cases,
        "cannot_show": ["the variety of real tumours and scanners", "CT", "an absolute Dice"],
    }
    with complete_or_absent(out) as folder:
        with ThreadPoolExecutor(2) as pool:  # a case draws from a generator of its own
            list(pool.map(lambda number: _write_case(folder, setting, number, seed), range(setting.cases)))
        (folder / "standin.json").write_text(json.dumps(note, indent=2) + "\n", "utf-8")
    return note


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
