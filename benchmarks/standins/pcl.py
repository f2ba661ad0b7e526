"""Stand-in for ACDC and HVSMR, for positional contrastive learning: simulated short-axis MR of the heart.

OUT/acdc/patientXXX/   Info.cfg, patientXXX_4d.nii.gz (cine), patientXXX_frameYY.nii.gz and _gt (ED and ES)
OUT/hvsmr/             training_sa_crop_patN.nii.gz and training_sa_crop_patN-label.nii.gz

Patients of ACDC's five groups, 9 to 13 thick slices that begin below the apex and end in the atria, each from a
breath-hold of its own. Half of the files hold the base first and half the apex; their affines say which.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.standins.heart import GROUPS, Grid, Heart, acquire, bssfp_values, contraction_curve, label, paint

Size = Literal["smoke", "cpu", "study", "paper"]


@dataclass(frozen=True)
class Setting:
    """Numbers of patients, in-plane grid, phases of the cine."""

    patients: int
    transfer_patients: int
    pixels: int
    pixel_mm: float
    phases: int
    slices: tuple[int, int]
    """fewest and most slices of a stack"""
    transfer_slices: int = 28


SETTINGS = {
    "smoke": Setting(15, 6, 44, 6.0, 3, (5, 7), 8),
    "cpu": Setting(42, 12, 70, 2.3, 5, (9, 13)),
    "study": Setting(42, 12, 70, 2.3, 5, (9, 13)),
    "paper": Setting(100, 12, 160, 1.4, 20, (9, 13), 60),
}
CONTRAST_AGENT = 4.0  # 1/s, in the second set, whose blood is brighter
HVSMR = {"lv": 2, "rv": 2, "myocardium": 1, "rv_wall": 1, "la": 2, "ra": 2, "great_vessels": 2, "aorta": 0}


def short_axis_affine(
    rng: np.random.Generator, shape: tuple[int, int, int], pixel_mm: float, gap_mm: float, base_first: bool
) -> np.ndarray:
    """(4, 4) RAS affine of voxels (x right, y down, slice) of a short-axis stack of `shape`.

    From base to apex the long axis of the left ventricle points to the left, the front and the feet.
    """
    to_apex = np.array([-0.62, 0.58, -0.53]) + rng.normal(0, 0.06, 3)
    to_apex /= np.linalg.norm(to_apex)
    right = np.array([-0.68, -0.66, 0.1])  # to the patient's left and back
    right -= right @ to_apex * to_apex
    right /= np.linalg.norm(right)
    down = np.cross(right, to_apex)
    down *= -np.sign(down[2])
    affine = np.eye(4)
    slices = to_apex if base_first else -to_apex
    affine[:3, :3] = np.stack([right * pixel_mm, down * pixel_mm, slices * gap_mm], 1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _examination(rng: np.random.Generator, group: str, setting: Setting, slices: int, thick: bool):
    """A heart, where its slices lie from apex to base, and the gap between them in mm."""
    heart = Heart.random(rng, group)
    below, above = rng.uniform(6, 12), rng.uniform(4, 20)  # of the long axis that the stack covers beyond its ends
    start, end = -below, heart.length + above
    gap = (end - start) / (slices - 1)
    shifts = rng.normal(0, 1.2, (slices, 2)) if thick else None
    grid = Grid((setting.pixels, setting.pixels), setting.pixel_mm, np.linspace(start, end, slices), 0.8 * gap, shifts)
    return heart, grid, gap


def _voxels(stack: np.ndarray, base_first: bool) -> np.ndarray:
    """(..., Z, Y, X) apex first to file order (X, Y, Z, ...)."""
    stack = stack[..., ::-1, :, :] if base_first else stack
    return np.moveaxis(np.ascontiguousarray(stack), (-1, -2, -3), (0, 1, 2))


def _write_acdc(folder: Path, number: int, seed: int, setting: Setting) -> None:
    from shared import nifti

    rng = np.random.default_rng([seed, 0, number])
    group, base_first = GROUPS[number % len(GROUPS)], bool(rng.random() < 0.5)
    slices = int(rng.integers(setting.slices[0], setting.slices[1] + 1))
    heart, grid, gap = _examination(rng, group, setting, slices, thick=True)
    curve = contraction_curve(setting.phases)
    systole = int(curve.argmax())
    values = bssfp_values(rng)
    cine = paint(heart, grid, curve, values, sublevels=2)
    cine = acquire(cine, rng, noise=float(rng.uniform(0.02, 0.04)))
    cine = np.round(cine * (600 / np.percentile(cine, 99))).astype(np.int16)
    shape = (setting.pixels, setting.pixels, slices)
    affine = short_axis_affine(rng, shape, setting.pixel_mm, gap, base_first)
    name = f"patient{number + 1:03d}"
    (folder / name).mkdir(parents=True)
    nifti.save(folder / name / f"{name}_4d.nii.gz", _voxels(cine, base_first), affine=affine)
    for frame in (0, systole):
        stem = f"{name}_frame{frame + 1:02d}"
        truth = label(heart, grid, curve[frame])
        truth[truth > 3] = 0  # ACDC: 1 right ventricle, 2 myocardium, 3 left ventricle
        nifti.save(folder / name / f"{stem}.nii.gz", _voxels(cine[frame], base_first), affine=affine)
        nifti.save(folder / name / f"{stem}_gt.nii.gz", _voxels(truth, base_first), affine=affine)
    info = {"ED": 1, "ES": systole + 1, "Group": group, "NbFrame": setting.phases}
    (folder / name / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))


def _write_hvsmr(folder: Path, number: int, seed: int, setting: Setting) -> None:
    from benchmarks.standins.heart import STRUCTURES
    from shared import nifti

    rng = np.random.default_rng([seed, 1, number])
    group, base_first = ("NOR", "RV", "HCM")[number % 3], bool(rng.random() < 0.5)
    heart, grid, gap = _examination(rng, group, setting, setting.transfer_slices, thick=False)
    values = bssfp_values(rng, flip_degrees=90, contrast_agent=CONTRAST_AGENT)
    image = acquire(paint(heart, grid, [0.2], values, sublevels=1)[0], rng, noise=0.04)
    image = np.round(image * (900 / np.percentile(image, 99))).astype(np.int16)
    lookup = np.zeros(len(STRUCTURES) + 1, np.uint8)
    for structure, value in HVSMR.items():
        lookup[STRUCTURES[structure]] = value
    truth = lookup[label(heart, grid, 0.2)]
    shape = (setting.pixels, setting.pixels, setting.transfer_slices)
    affine = short_axis_affine(rng, shape, setting.pixel_mm, gap, base_first)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"training_sa_crop_pat{number}"
    nifti.save(folder / f"{stem}.nii.gz", _voxels(image, base_first), affine=affine)
    nifti.save(folder / f"{stem}-label.nii.gz", _voxels(truth, base_first), affine=affine)


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Writes both data sets under `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. A patient depends only on seed, size and its number.
        size: smoke (seconds), cpu and study (the same data) or paper (100 patients at 1.4 mm with 20 phases).

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    from shared.errors import InputError
    from shared.files import complete_or_absent

    if size not in SETTINGS:
        raise InputError(f"unknown size {size!r}: choose one of {', '.join(SETTINGS)}")
    setting = SETTINGS[size]
    with complete_or_absent(out) as unfinished:
        for number in range(setting.patients):
            _write_acdc(unfinished / "acdc", number, seed, setting)
        for number in range(setting.transfer_patients):
            _write_hvsmr(unfinished / "hvsmr", number, seed, setting)
        note = "Simulated short-axis MR of the heart in the layouts of ACDC and HVSMR; no patient is in it.\n"
        (unfinished / "STANDIN.txt").write_text(f"{note}seed {seed}, size {size}\n")
    return Path(out)
