"""Finds the files of ACDC, CHD, MMWHS and HVSMR as they are published, and of folders of the user's own stacks.

    acdc     patientXXX/patientXXX_4d.nii.gz, patientXXX_frameYY.nii.gz, patientXXX_frameYY_gt.nii.gz, Info.cfg
    chd      ct_<id>_image.nii.gz, ct_<id>_label.nii.gz
    mmwhs    ct_train_10xx_image.nii.gz, ct_train_10xx_label.nii.gz
    hvsmr    training_sa_crop_patN.nii.gz, training_sa_crop_patN-label.nii.gz
    stacks   any .nii or .nii.gz in the folder or below, one volume (or cine) a file; nothing is labelled

The files lie in DATA itself or, where DATA holds several sets, in DATA/acdc, DATA/chd, ...
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.text_files import read_text


@dataclass(frozen=True)
class Layout:
    """What is particular to a data set."""

    name: str
    labels: dict[int, int] = field(default_factory=dict)
    """label in the file -> class of the network, without background"""
    class_names: tuple[str, ...] = ()
    spacing_mm: float | None = None
    """in-plane spacing that slices are resampled to; None keeps theirs"""
    patch: int = 352
    """side of the training patch in pixels"""
    clip: bool = False
    """clip to the 1st and 99th percentile before z-scoring"""
    slices_along: Literal["third", "superior"] = "third"
    """slice axis of a volume whose voxels are not clearly thicker along one"""
    augment: bool = True
    """whether fine-tuning is augmented"""
    ignore_other_labels: bool = False
    """other labels are background instead of an error"""


LAYOUTS = {
    "acdc": Layout("acdc", {1: 1, 2: 2, 3: 3}, ("rv", "myo", "lv"), 1.25),
    "chd": Layout(
        "chd", {n: n for n in range(1, 8)}, ("lv", "rv", "la", "ra", "myo", "aorta", "pa"), None, 512,
        clip=True, slices_along="superior", augment=False, ignore_other_labels=True,
    ),
    "mmwhs": Layout(
        "mmwhs", {205: 1, 420: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7},
        ("myo", "la", "lv", "ra", "rv", "aorta", "pa"), 1.0, 256,
        clip=True, slices_along="superior", augment=False, ignore_other_labels=True,
    ),
    "hvsmr": Layout("hvsmr", {1: 1, 2: 2}, ("myo", "blood"), 0.7, clip=True),
    "stacks": Layout("stacks", spacing_mm=1.25),
}  # fmt: skip
PATTERNS = {
    "chd": ("ct_*_image.nii.gz", "_image.nii.gz", "_label.nii.gz"),
    "mmwhs": ("ct_train_*_image.nii.gz", "_image.nii.gz", "_label.nii.gz"),
    "hvsmr": ("training_sa_crop_pat*.nii.gz", ".nii.gz", "-label.nii.gz"),
}
"""names of the images, and what at their end becomes what in the name of the labels"""


@dataclass(frozen=True)
class Volume:
    """One 3D volume (a frame of a cine is one) and its labels."""

    patient: str
    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Patient:
    """All files of one patient."""

    name: str
    volumes: tuple[Volume, ...]
    """labelled volumes; for ACDC end-diastole and end-systole"""
    cine: Path | None = None
    """4D file with all frames, unlabelled"""


def find_patients(root: str | Path, layout: str = "auto") -> tuple[Layout, list[Patient]]:
    """The layout and the patients of a data set, in natural order of their names.

    Args:
        root: the folder.
        layout: a key of LAYOUTS, or auto: the first of them that is there.

    Raises:
        InputError: no such folder, an unknown layout, no files of it, a file that should be there is not.
    """
    root = Path(root)
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"there is no layout '{layout}': choose auto or one of {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise InputError(f"{root} does not exist; it should be the folder of ACDC, CHD, MMWHS or HVSMR")
    find = {"acdc": _acdc, "stacks": _stacks}
    for name in [layout] if layout != "auto" else LAYOUTS:
        for folder in (root, root / name):
            found = find.get(name, _pairs)(folder, name) if folder.is_dir() else []
            if found:
                refuse_duplicates([patient.name for patient in found], f"patients in {folder}")
                return LAYOUTS[name], sorted(found, key=lambda patient: natural_order(patient.name))
    if layout == "auto":
        raise InputError(f"{root} holds no data set: found neither patientXXX/Info.cfg (ACDC) nor any NIfTI file")
    what = {"acdc": "patientXXX/Info.cfg", "stacks": "*.nii.gz"}.get(layout) or PATTERNS[layout][0]
    raise InputError(f"{root} holds nothing in the layout {layout}: expected {what} there or in {root / layout}")


def natural_order(name: str) -> list:
    """Sorts pat2 before pat10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _acdc(folder: Path, layout: str) -> list[Patient]:
    return [_acdc_patient(path) for path in folder.glob("patient*") if path.is_dir()]


def _acdc_patient(folder: Path) -> Patient:
    """A patient's folder; one without Info.cfg is refused, for it would be missing in the test set."""
    path = folder / "Info.cfg"
    lines = read_text(path, "ACDC's Info.cfg with the lines ED and ES (for stacks of another kind give --layout)")
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines.splitlines())}
    volumes = []
    for moment in ("ED", "ES"):
        if not re.fullmatch("[0-9]{1,6}", info.get(moment, "")):
            raise InputError(f"{path} has no frame number {moment}: expected a line '{moment}: 1'")
        stem = f"{folder.name}_frame{int(info[moment]):02d}"
        image, label = folder / f"{stem}.nii.gz", folder / f"{stem}_gt.nii.gz"
        for file in (image, label):
            if not file.is_file():
                raise InputError(f"{file} is missing: {path} names this frame as {moment}")
        volumes.append(Volume(folder.name, stem, image, label))
    refuse_duplicates([volume.name for volume in volumes], f"{path}: frames of ED and ES")
    cine = folder / f"{folder.name}_4d.nii.gz"
    return Patient(folder.name, tuple(volumes), cine if cine.is_file() else None)


def _pairs(folder: Path, layout: str) -> list[Patient]:
    """Images and labels side by side; an image without labels, or labels without an image, are refused."""
    pattern, of_image, of_label = PATTERNS[layout]
    found = []
    for path in folder.glob(pattern):
        if path.name.endswith(of_label) or (layout == "chd" and path.name.startswith("ct_train_")):
            continue
        label = path.with_name(path.name.removesuffix(of_image) + of_label)
        if not label.is_file():
            raise InputError(f"{label} is missing: every image of the layout {layout} needs its labels")
        name = path.name.removesuffix(of_image)
        found.append(Patient(name, (Volume(name, name, path, label),)))
    named = {patient.volumes[0].label for patient in found}
    for label in folder.glob(pattern.replace(of_image, of_label)):
        if label not in named and not (layout == "chd" and label.name.startswith("ct_train_")):
            raise InputError(f"{label} has no image: expected {label.name.removesuffix(of_label)}{of_image} beside it")
    return found


def _stacks(folder: Path, layout: str) -> list[Patient]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."):
            name = path.relative_to(folder).as_posix().removesuffix(".gz").removesuffix(".nii")
            found.append(Patient(name, (Volume(name, name, path, None),)))
    return found
