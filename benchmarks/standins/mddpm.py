"""Stand-in for IXI, BraTS21 and MSLUB: T2-weighted MRI of healthy brains, of brains with a glioma, with MS lesions.

Anatomy, contrast and scanner are those of `brain`. A glioma pushes the anatomy aside and has a soft oedema, a core of
mixed signal (part of it as bright as grey matter, so that brightness alone is not enough) and a necrosis as bright
as fluid. Multiple sclerosis is a handful of small ovoids around the ventricles. Written in the layout that the
preprocessing of the released code leaves: brains without skull, masks, lesion masks, and tables of the splits.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.standins import brain
from benchmarks.standins.brain import Brain
from shared.files import complete_or_absent, write_csv

Size = Literal["smoke", "cpu", "study", "paper"]
WARP_MM = 7.3
"""of `Brain.random`; inside the brain the displacements then have a standard deviation of 4 mm (3.5, 3.7 and 4.5 along
x, y and z), what it documents as its default. The default itself gives 2.0 to 2.4 mm there, and brains so much alike
that their mean is better than any network."""
THREADS = 4  # NumPy and SciPy let go of the interpreter while they work

RELAXATION = {
    **brain.RELAXATION,
    "oedema": (1500.0, 140.0, 0.86),
    "core": (1500.0, 150.0, 0.87),
    "isointense": (1250.0, 96.0, 0.82),
    "necrosis": (3500.0, 1200.0, 0.97),
    "plaque": (1100.0, 115.0, 0.82),
}
"""T1 [ms], T2 [ms], proton density, at about 1.5 T."""


@dataclass(frozen=True)
class Setting:
    """Size of a data set."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    train: int
    valid: int
    tumours: tuple[int, int]
    """validation, test"""
    sclerosis: tuple[int, int]
    """validation, test"""


SETTINGS = {
    "smoke": Setting((24, 28, 3), (7.0, 7.0, 12.0), 3, 1, (1, 1), (1, 1)),
    "cpu": Setting((40, 48, 20), (4.0, 4.0, 5.0), 64, 6, (4, 12), (3, 8)),
    "study": Setting((40, 48, 20), (4.0, 4.0, 5.0), 64, 6, (4, 12), (3, 8)),
    "paper": Setting((192, 192, 100), (1.0, 1.0, 1.0), 48, 8, (4, 12), (4, 8)),
}


def wavy_ball(rng: np.random.Generator, points: np.ndarray, centre: np.ndarray, radius: float, waves: float):
    """Signed distance [mm] (X, Y, Z), about, to an uneven ellipsoid; negative inside."""
    offset = points - centre[:, None, None, None].astype(np.float32)
    stretch = np.exp(0.18 * rng.standard_normal(3)).astype(np.float32)
    distance = np.sqrt(sum((offset[i] / stretch[i]) ** 2 for i in range(3))) + np.float32(1e-3)
    direction = offset / distance
    bumps = np.zeros_like(distance)
    for frequency in (1.5, 3.0, 5.0):
        axis, phase = rng.standard_normal(3), rng.uniform(0, 2 * np.pi)
        bumps += np.sin(np.float32(frequency) * np.tensordot(axis.astype(np.float32), direction, 1) + np.float32(phase))
    return distance - np.float32(radius) * (1 + np.float32(waves / 3) * bumps)


def soft(distance: np.ndarray, border_mm: float) -> np.ndarray:
    """1 inside, 0 outside, a smooth border of that width [mm]."""
    return (1 / (1 + np.exp(np.clip(4 * distance / border_mm, -30, 30)))).astype(np.float32)


def somewhere(rng: np.random.Generator, allowed: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A random position [mm] among the allowed voxels."""
    where = np.argwhere(allowed)
    return points[:, *where[rng.integers(len(where))]].astype(float)


def tumour_case(rng: np.random.Generator, subject: Brain, shape, spacing_mm) -> tuple[dict, np.ndarray]:
    """Tissue maps of a brain with a glioma, and the tumour with its oedema as bool (X, Y, Z)."""
    points = brain.grid_points(shape, spacing_mm)
    healthy = brain.tissues(subject, shape, spacing_mm)
    white = healthy["white_matter"]
    centre = somewhere(rng, (white > 0.6) & (np.abs(points[0]) > 12), points)
    core_mm = rng.uniform(10, 24)
    oedema_mm = core_mm + rng.uniform(5, 16)
    offset = points - centre[:, None, None, None].astype(np.float32)
    distance = np.sqrt((offset**2).sum(0)) + np.float32(1e-3)
    push = (
        rng.uniform(0.15, 0.35) * core_mm * np.exp(-((distance / (1.4 * oedema_mm)) ** 2)) * distance / (distance + 6)
    )
    maps = brain.tissues(subject, shape, spacing_mm, points=points - (offset / distance * push).astype(np.float32))

    solid = 1 - np.clip(maps["csf"] + maps["ventricles"] + maps["skull"] + maps["scalp"], 0, 1)
    core = soft(wavy_ball(rng, points, centre, core_mm, 0.35), 3.0)
    spread = soft(wavy_ball(rng, points, centre, oedema_mm, 0.5), 7.0)
    # Oedema follows white matter and spares cortex and nuclei in part.
    spread = spread * solid * np.clip(0.35 + 0.75 * maps["white_matter"], 0, 1)
    maps = brain.paint(maps, "oedema", np.maximum(spread - core, 0))
    part = wavy_ball(rng, points, centre + rng.normal(0, 0.45 * core_mm, 3), 0.65 * core_mm, 0.3)
    necrosis = soft(wavy_ball(rng, points, centre, rng.uniform(0.2, 0.6) * core_mm, 0.4), 3.0)
    inside = core * np.clip(solid + necrosis, 0, 1)
    maps = brain.paint(maps, "core", inside)
    maps = brain.paint(maps, "isointense", inside * soft(part, 3.0))
    maps = brain.paint(maps, "necrosis", inside * necrosis * (rng.random() < 0.75))
    return maps, (np.maximum(inside, spread) > 0.5) & (brain.brain_mask(healthy) | (core > 0.5))


def sclerosis_case(rng: np.random.Generator, subject: Brain, shape, spacing_mm) -> tuple[dict, np.ndarray]:
    """Tissue maps of a brain with 5 to 30 plaques around the ventricles, and the plaques as bool (X, Y, Z)."""
    from scipy import ndimage

    points = brain.grid_points(shape, spacing_mm)
    maps = brain.tissues(subject, shape, spacing_mm)
    to_ventricle = ndimage.distance_transform_edt(maps["ventricles"] < 0.5, sampling=spacing_mm)
    near = (maps["white_matter"] > 0.7) & (to_ventricle < 20)
    load = np.zeros(shape, np.float32)
    for _ in range(rng.integers(5, 31)):
        centre = somewhere(rng, near, points)
        load = np.maximum(load, soft(wavy_ball(rng, points, centre, rng.uniform(3.0, 7.5), 0.3), 2.5))
    load = load * maps["white_matter"]
    return brain.paint(maps, "plaque", load), load > 0.5


def scan(rng: np.random.Generator, maps: dict) -> tuple[np.ndarray, np.ndarray]:
    """T2-weighted magnitude image without skull, uint16 (X, Y, Z), and its brain mask."""
    head = {"skull", "scalp"}
    mask = sum(volume for name, volume in maps.items() if name not in head) > 0.5
    image = brain.contrast({name: volume for name, volume in maps.items() if name not in head}, RELAXATION, brain.T2W)
    image = brain.rician(rng, image * brain.bias_field(rng, image.shape, 0.08), snr=25)
    gain = rng.uniform(700, 1500)  # scanners have no common unit
    return np.clip(image * mask * gain, 0, 65535).astype(np.uint16), mask


def make_case(rng: np.random.Generator, kind: str, setting: Setting) -> dict:
    """Image, mask, lesion mask and age of one subject. Volumes are never empty of lesions when sick."""
    # Sizes and tilts are those that are left after affine registration to an atlas.
    subject = Brain.random(rng, age=float(rng.uniform(20, 80)), scale=0.015, rotation_deg=1.5, warp_mm=WARP_MM)
    if kind == "healthy":
        maps = brain.tissues(subject, setting.shape, setting.spacing_mm)
        lesion = np.zeros(setting.shape, bool)
    else:
        make = {"tumour": tumour_case, "sclerosis": sclerosis_case}[kind]
        for _ in range(20):
            maps, lesion = make(rng, subject, setting.shape, setting.spacing_mm)
            if lesion.sum() >= 3:
                break
    image, mask = scan(rng, maps)
    return {"t2": image, "mask": mask.astype(np.uint8), "seg": (lesion & mask).astype(np.uint8), "age": subject.age}


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> dict:
    """Write the data set to `out`; nothing is left there if it fails.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke, cpu and study (the same data), or paper.

    Returns:
        note on what was made, also in `standin.json`.
    """
    from shared import nifti

    setting = SETTINGS[size]
    affine = brain.grid_affine(setting.shape, setting.spacing_mm)
    groups = [
        ("IXI_train_fold0", "Train/ixi", "IXI", "healthy", setting.train),
        ("IXI_val_fold0", "Train/ixi", "IXI", "healthy", setting.valid),
        ("Brats21_val", "Test/Brats21", "BraTS", "tumour", setting.tumours[0]),
        ("Brats21_test", "Test/Brats21", "BraTS", "tumour", setting.tumours[1]),
        ("MSLUB_val", "Test/MSLUB", "MSLUB", "sclerosis", setting.sclerosis[0]),
        ("MSLUB_test", "Test/MSLUB", "MSLUB", "sclerosis", setting.sclerosis[1]),
    ]
    brain.anatomy()  # once, before the threads ask for it
    numbers: dict[str, int] = {}
    with complete_or_absent(out) as root, ThreadPoolExecutor(THREADS) as pool:
        for group, (table, folder, prefix, kind, count) in enumerate(groups):

            def write(k: int, group=group, folder=folder, prefix=prefix, kind=kind) -> dict:
                name = f"{prefix}{numbers.get(prefix, 0) + k + 1:03d}"
                case = make_case(np.random.default_rng([seed, group, k]), kind, setting)
                row = {"img_name": name, "age": f"{case['age']:.0f}", "label": int(kind != "healthy")}
                for part, column in (("t2", "img_path"), ("mask", "mask_path"), ("seg", "seg_path")):
                    row[column] = f"{folder}/{part}/{name}_{part}.nii.gz"
                    if part == "seg" and kind == "healthy":
                        row[column] = ""
                    else:
                        nifti.save(root / row[column], case[part], affine=affine)
                return row

            write_csv(root / "splits" / f"{table}.csv", list(pool.map(write, range(count))))
            numbers[prefix] = numbers.get(prefix, 0) + count
        note = {
            "name": "Simulated T2-weighted brains on MNI152 anatomy",
            "stands_in_for": "IXI (healthy), BraTS21 (glioma) and MSLUB (multiple sclerosis), preprocessed",
            "seed": seed,
            "size": size,
            "volumes": {table: count for table, _, _, _, count in groups},
            "grid": f"{setting.shape} voxels of {setting.spacing_mm} mm",
            "cannot_show": [
                "the shift between the scanners of IXI and of the patients",
                "real pathology and readers' doubt about its border",
                "faults of brain extraction and registration",
            ],
        }
        (root / "standin.json").write_text(json.dumps(note, indent=2) + "\n", "utf-8")
    return note
