"""Stand-in for OASIS, LPBA40 and DIR-Lab 4D-CT: brains of two scanners and populations, and breathing lungs.

The `oasis` domain is older: wide ventricles and sulci, MPRAGE, bias removed, little noise. The `lpba` domain is
younger: a spoiled gradient echo with less contrast, a strong receive field, more noise, leftovers of skull and scalp
after brain extraction, larger differences in pose, other labels. Every subject has gyri of its own, so there is no
perfect alignment, as in life. Every fourth test subject is an outlier with large ventricles and a large deformation;
the atlases, the first test scan of `oasis` and the first two of `lpba`, are none. Written in the layout that the
published sets have after the paper's preprocessing.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.standins import brain, lung_motion
from shared.files import complete_or_absent

Size = Literal["smoke", "cpu", "study", "paper"]
THREADS = 4  # NumPy and SciPy let go of the interpreter while they work
SPGR = brain.Sequence(tr_ms=600, te_ms=4)
PHASES = {"T00": 1.0, "T10": 0.85, "T20": 0.6, "T50": 0.0}
"""Time points and how far each is from expiration to inspiration."""


@dataclass(frozen=True)
class Setting:
    """Size of a data set."""

    shape: tuple[int, int, int]
    spacing_mm: float
    oasis: tuple[int, int, int]
    """training, validation, test"""
    lpba: tuple[int, int, int]
    lungs: int
    lung_size: tuple[int, int, int]
    lung_spacing_mm: tuple[float, float, float]
    landmarks: int
    phases: tuple[str, ...] = ("T00", "T10", "T20", "T50")


SMALL = Setting((48, 64, 48), 3.0, (60, 4, 21), (60, 4, 12), 6, (64, 46, 60), (5.0, 5.0, 5.0), 60)
SETTINGS = {
    "smoke": Setting((16, 24, 16), 9.0, (2, 1, 2), (2, 1, 2), 2, (28, 20, 26), (12.0, 12.0, 12.0), 8, ("T00", "T50")),
    "cpu": SMALL,
    "study": SMALL,
    "paper": Setting((144, 192, 160), 1.0, (24, 3, 13), (20, 3, 17), 10, (160, 120, 100), (2.0, 2.0, 2.5), 300),
}


def subject(rng: np.random.Generator, domain: str, outlier: bool) -> brain.Brain:
    """A person of one of the two populations, as affine registration leaves them."""
    older = domain == "oasis"
    age = rng.uniform(60, 85) if older else rng.uniform(20, 40)
    shape = {"warp_mm": 3.5, "scale": 0.02, "rotation_deg": 2.0} if older else {"scale": 0.03, "rotation_deg": 3.5}
    if outlier:
        age, shape = 90.0, {"warp_mm": 6.5, "scale": 0.05, "rotation_deg": 6.0}
    return brain.Brain.random(rng, age=float(age), **shape)


def structures(person: brain.Brain, domain: str, setting: Setting) -> np.ndarray:
    """uint8 labels. OASIS: tissues and deep structures by side. LPBA: lobes of the cortex and some deep structures."""
    centre = brain.CENTRE
    found = brain.labels(person, setting.shape, setting.spacing_mm, centre)
    found[np.isin(found, (14, 15))] -= 2  # pallidum with putamen: too small for these voxels
    if domain == "oasis":
        found[found == 1] = 0
        return found
    atlas = brain.to_atlas(person, brain.grid_points(setting.shape, setting.spacing_mm, centre))
    x, y, z = atlas
    lobe = np.select(
        [(z < 4 + 0.25 * (y + 20)) & (y > -55) & (y < 18) & (np.abs(x) > 28), y < -62, y < -22], [2, 3, 4], default=1
    )
    labels = np.zeros_like(found)
    cortex = np.isin(found, (4, 5))
    labels[cortex] = (20 + 2 * lobe + (found == 5))[cortex]
    for old, new in ((10, 161), (11, 162), (12, 163), (13, 164), (16, 165), (17, 166), (18, 182), (19, 181)):
        labels[found == old] = new
    return labels


def scan(rng: np.random.Generator, person: brain.Brain, domain: str, setting: Setting) -> np.ndarray:
    """T1-weighted brain without skull, float32 (X, Y, Z) in [0, 1]."""
    maps = brain.tissues(person, setting.shape, setting.spacing_mm)
    mask = brain.brain_mask(maps)
    head = {name: maps[name] for name in brain.BRAIN_TISSUES}
    if domain == "oasis":
        image = brain.contrast(head, brain.RELAXATION, brain.MPRAGE)
        image = brain.rician(rng, image * brain.bias_field(rng, image.shape, 0.04), snr=30)
    else:
        image = brain.contrast(maps, brain.RELAXATION, SPGR)
        image = brain.rician(rng, image * brain.bias_field(rng, image.shape, 0.22), snr=13)
        # Brain extraction leaves patches of skull and scalp on one side.
        points = brain.grid_points(setting.shape, setting.spacing_mm)
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        centred = points - np.reshape(brain.CENTRE, (3, 1, 1, 1))
        side = np.tensordot(direction, centred, 1) / np.sqrt((centred**2).sum(0) + 1)
        near = maps["csf"] + maps["skull"] + maps["scalp"] > 0.3
        mask = mask | (near & (side > rng.uniform(0.8, 0.95)))
    image = image * mask
    return (image / max(float(np.percentile(image, 99.9)), 1e-6)).clip(0, 1).astype(np.float32)


def write_brains(out: Path, domain: str, setting: Setting, seed: int) -> int:
    """All scans of a domain; the number of them."""
    from shared import nifti

    counts = setting.oasis if domain == "oasis" else setting.lpba
    affine = brain.grid_affine(setting.shape, setting.spacing_mm)
    first_test = sum(counts[:2])

    def write(k: int) -> None:
        rng = np.random.default_rng([seed, 1 if domain == "oasis" else 2, k])
        person = subject(rng, domain, outlier=k >= first_test and (k - first_test) % 4 == 3)
        if domain == "oasis":
            folder = out / "oasis" / f"OASIS_OAS1_{k + 1:04d}_MR1"
            names = ("aligned_norm", "aligned_seg35")
        else:
            folder = out / "lpba40" / f"S{k + 1:02d}"
            names = tuple(f"S{k + 1:02d}.delineation.{part}" for part in ("skullstripped", "structure.label"))
        nifti.save(folder / f"{names[0]}.nii.gz", scan(rng, person, domain, setting), affine=affine)
        nifti.save(folder / f"{names[1]}.nii.gz", structures(person, domain, setting), affine=affine)

    brain.anatomy()  # once, before the threads ask for it
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(sum(counts))))
    return sum(counts)


def write_lungs(out: Path, setting: Setting, seed: int) -> int:
    """All 4D-CT cases with landmarks and masks; the number of them."""
    from shared import nifti

    size, spacing = setting.lung_size, setting.lung_spacing_mm
    first = -np.array(spacing) * (np.array(size) - 1) / 2 + (0, 0, 10)  # position of the first voxel
    # Descents as different as those of the ten patients; the last one breathes deepest.
    strokes = np.linspace(14, 42, setting.lungs)

    def write(number: int) -> None:
        rng = np.random.default_rng([seed, 3, number])
        chest = lung_motion.make_chest(rng, generations=5, stroke_mm=float(strokes[number - 1]))
        pack = out / "dirlab" / f"Case{number}Pack"
        for folder in ("Images", "ExtremePhases", "Masks"):
            (pack / folder).mkdir(parents=True)
        for phase in setting.phases:
            image, mask = lung_motion.ct(chest, size, spacing, PHASES[phase], rng)
            (image + 1024).astype("<i2").ravel(order="F").tofile(pack / "Images" / f"case{number}_{phase}_s.img")
            affine = np.diag([*spacing, 1.0])
            nifti.save(pack / "Masks" / f"case{number}_{phase}.nii.gz", mask.astype(np.uint8), affine=affine)
        chosen = rng.permutation(len(chest.knots))[: setting.landmarks]
        expired = chest.knots[chosen].T
        inspired = lung_motion.to_phase(chest, expired, 1.0)
        for phase, points in (("T00", inspired), ("T50", expired)):
            index = (points.T - first) / spacing + 1
            np.savetxt(pack / "ExtremePhases" / f"Case{number}_300_{phase}_xyz.txt", index, fmt="%.3f", delimiter="\t")

    numbers = range(1, setting.lungs + 1)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, numbers))
    table = {number: {"size": size, "spacing_mm": spacing} for number in numbers}
    (out / "dirlab" / "geometry.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    return setting.lungs


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> dict:
    """Write the data set to `out`; nothing is left there if it fails.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke, cpu, study (the same as cpu) or paper.

    Returns:
        note on what was made, also in `standin.json`.
    """
    setting = SETTINGS[size]
    with complete_or_absent(out) as folder:
        note = {
            "name": "Simulated brains of two domains on MNI152 anatomy, and breathing lungs",
            "stands_in_for": "OASIS (neurite), LPBA40 and DIR-Lab 4D-CT",
            "seed": seed,
            "size": size,
            "oasis": write_brains(folder, "oasis", setting, seed),
            "lpba": write_brains(folder, "lpba", setting, seed),
            "lungs": write_lungs(folder, setting, seed),
            "cannot_show": [
                "the shift between the real scanners and populations",
                "absolute Dice of fine cortical structures, and times on a GPU",
                "lungs with disease, and the doubt of those who set landmarks",
            ],
        }
        (folder / "standin.json").write_text(json.dumps(note, indent=2) + "\n", "utf-8")
    return note
