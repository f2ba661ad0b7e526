"""Reads ACDC, CHD, MMWHS and HVSMR as they are published, and folders of the user's own stacks.

    acdc     patientXXX/patientXXX_4d.nii.gz, patientXXX_frameYY.nii.gz, patientXXX_frameYY_gt.nii.gz, Info.cfg
    chd      ct_<id>_image.nii.gz, ct_<id>_label.nii.gz
    mmwhs    ct_train_10xx_image.nii.gz, ct_train_10xx_label.nii.gz
    hvsmr    training_sa_crop_patN.nii.gz, training_sa_crop_patN-label.nii.gz
    stacks   any .nii or .nii.gz in the folder or below, one volume (or cine) a file; nothing is labelled

The files lie in DATA itself or, where DATA holds several sets, in DATA/acdc, DATA/chd, ...

What decides the position of a slice is its place in the patient, not its number in the file: the slice axis is
the thickest one (see `slice_axis`), and its direction follows from the affine, so that every stack begins at
the end that lies to the right, behind and above (base of the heart, head) and ends at the other (apex, feet).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.pcl.augmentation import augment, crop_or_pad
from papers.pcl.model import slice_partitions, slice_positions
from shared import nifti, resample
from shared.errors import InputError


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
TO_APEX = np.array([-1.0, 1.0, -1.0])  # left, front, feet in RAS: from the base of the heart to its apex
THICKER = 1.5  # slices this many times thicker than the pixels are wide settle the slice axis


# --- finding files ---------------------------------------------------------------------------------------


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


def _info(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: expected ACDC's Info.cfg with the lines ED and ES") from error
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _acdc_patient(folder: Path) -> Patient:
    info = _info(folder / "Info.cfg")
    volumes = []
    for moment in ("ED", "ES"):
        if not info.get(moment, "").isdigit():
            raise InputError(f"{folder / 'Info.cfg'} has no frame number {moment}: expected a line '{moment}: 1'")
        stem = f"{folder.name}_frame{int(info[moment]):02d}"
        image, label = folder / f"{stem}.nii.gz", folder / f"{stem}_gt.nii.gz"
        for path in (image, label):
            if not path.is_file():
                raise InputError(f"{path} is missing: Info.cfg of {folder.name} names this frame as {moment}")
        volumes.append(Volume(folder.name, stem, image, label))
    cine = folder / f"{folder.name}_4d.nii.gz"
    return Patient(folder.name, tuple(volumes), cine if cine.is_file() else None)


PATTERNS = {"chd": "ct_*_image.nii.gz", "mmwhs": "ct_train_*_image.nii.gz", "hvsmr": "training_sa_crop_pat*.nii.gz"}


def _files(folder: Path, layout: str) -> list[Path]:
    """Images of a layout in one folder; ACDC's are its patients' folders."""
    if layout == "acdc":
        return [path for path in folder.glob("patient*") if (path / "Info.cfg").is_file()]
    if layout == "stacks":
        return [*folder.rglob("*.nii.gz"), *folder.rglob("*.nii")]
    found = [path for path in folder.glob(PATTERNS[layout]) if not path.name.endswith("-label.nii.gz")]
    if layout == "chd":
        found = [path for path in found if not path.name.startswith("ct_train_")]
    return found


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
    for name in [layout] if layout != "auto" else LAYOUTS:
        for folder in (root, root / name):
            found = _files(folder, name) if folder.is_dir() else []
            if found:
                return LAYOUTS[name], _patients(sorted(found, key=natural_order), name)
    if layout == "auto":
        raise InputError(f"{root} holds no data set: found neither patientXXX/Info.cfg (ACDC) nor any NIfTI file")
    what = "patientXXX/Info.cfg" if layout == "acdc" else PATTERNS.get(layout, "*.nii.gz")
    raise InputError(f"{root} holds nothing in the layout {layout}: expected {what} there or in {root / layout}")


def natural_order(path: Path) -> list:
    """Sorts pat2 before pat10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _patients(paths: list[Path], layout: str) -> list[Patient]:
    if layout == "acdc":
        return [_acdc_patient(path) for path in paths]
    patients = []
    for path in paths:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        label = None
        if layout == "hvsmr":
            label = path.with_name(f"{stem}-label.nii.gz")
        elif layout != "stacks":
            label = path.with_name(path.name.replace("_image", "_label"))
        if label is not None and not label.is_file():
            raise InputError(f"{label} is missing: every image of the layout {layout} needs its labels")
        name = stem.removesuffix("_image")
        patients.append(Patient(name, (Volume(name, name, path, label),)))
    return patients


def split_patients(patients: Sequence[Patient], folds: int, fold: int) -> tuple[list[Patient], list[Patient]]:
    """Training and test patients of one fold of the cross-validation, shuffled with the paper's seed 12345.

    Raises:
        InputError: fewer patients than folds, or no such fold.
    """
    from sklearn.model_selection import KFold

    if not 0 <= fold < folds:
        raise InputError(f"there is no fold {fold}: with {folds} folds choose 0 to {folds - 1}")
    if len(patients) < folds:
        raise InputError(f"{len(patients)} patients can't be divided into {folds} folds: lower --folds")
    splits = list(KFold(folds, shuffle=True, random_state=12345).split(np.arange(len(patients))))
    return tuple([patients[index] for index in part] for part in splits[fold])


def draw_labelled(patients: Sequence[Patient], labelled: int, draw: int) -> list[Patient]:
    """The M patients whose labels are used, out of the training fold; draw 0 has the paper's seed 1234.

    The draws for different M are nested: the patients for M = 2 are among those for M = 6.

    Raises:
        InputError: fewer patients than M.
    """
    if not 1 <= labelled <= len(patients):
        raise InputError(f"can't draw {labelled} labelled patients: the training fold has {len(patients)}")
    order = np.random.RandomState(1234 + draw).permutation(len(patients))
    return [patients[index] for index in order[:labelled]]


# --- reading ---------------------------------------------------------------------------------------------


def slice_axis(image: nifti.Image, slices_along: Literal["third", "superior"] = "third") -> int:
    """Axis of `image.data` along which the slices are stacked.

    The thickest one, if its spacing is 1.5 times that of the two others or more. Else, for short-axis stacks
    ("third"), the third axis of the file, and for axial CT ("superior") the one that points to the head or feet.
    """
    spacing = np.array(image.spacing)
    thickest = int(spacing.argmax())
    if spacing[thickest] >= THICKER * np.delete(spacing, thickest).max():
        return thickest
    if slices_along == "third":
        return 2
    directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    return int(np.abs(directions[2]).argmax())


@dataclass(frozen=True)
class Orientation:
    """How file axes become (slice, row, column): the order of the axes, then which of them are reversed."""

    order: tuple[int, int, int]
    reverse: tuple[bool, bool, bool]

    def stack(self, voxels: np.ndarray) -> np.ndarray:
        """(x, y, z) in file order to (slice, row, column)."""
        steps = tuple(slice(None, None, -1 if flip else None) for flip in self.reverse)
        return np.ascontiguousarray(voxels.transpose(self.order)[steps])

    def restore(self, stack: np.ndarray) -> np.ndarray:
        """Inverse of `stack`."""
        steps = tuple(slice(None, None, -1 if flip else None) for flip in self.reverse)
        return np.ascontiguousarray(stack[steps].transpose(np.argsort(self.order)))


def orientation_of(image: nifti.Image, axis: int) -> Orientation:
    """How to turn an image whose slice axis is `axis`: slices from the base of the heart to the apex (head to feet).

    Rows run towards the feet (in axial slices: the back), columns to the patient's left (if they run
    front to back: to the back).
    """
    from nibabel.orientations import io_orientation

    directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    world = io_orientation(image.affine)[:, 0]  # closest world axis of each voxel axis: 0 R, 1 A, 2 S
    column, row = sorted((index for index in range(3) if index != axis), key=lambda index: world[index])
    flips = [directions[:, axis] @ TO_APEX < 0]
    for index in (row, column):
        flips.append(directions[int(world[index]), index] > 0)
    return Orientation((axis, row, column), tuple(bool(flip) for flip in flips))


def normalise(stack: np.ndarray, clip: bool, path: Path) -> np.ndarray:
    """z-score of a volume, after clipping to the 1st and 99th percentile if `clip`.

    Raises:
        InputError: an image of one value.
    """
    stack = stack.astype(np.float32)
    if clip:
        stack = stack.clip(*np.percentile(stack, (1, 99)).astype(np.float32))  # float64 bounds would promote it
    deviation = stack.std()
    if not deviation > 0:
        raise InputError(f"{path} holds one value only: expected an image with contrast")
    return (stack - stack.mean()) / deviation


def _in_plane(image: nifti.Image, spacing_mm: float | None, axis: int, label: bool = False) -> nifti.Image:
    """Resampled to `spacing_mm` along both axes but the slice axis."""
    if spacing_mm is None:
        return image
    spacing = [image.spacing[index] if index == axis else spacing_mm for index in range(3)]
    if np.allclose(spacing, image.spacing, rtol=1e-3):
        return image
    return resample.resample_to_spacing(image, spacing, label=label)


@dataclass(frozen=True)
class Stack:
    """One volume as the network sees it."""

    patient: str
    name: str
    image: np.ndarray
    """(Z, Y, X) float32, z-scored; base (head) first"""
    label: np.ndarray | None
    """(Z, Y, X) uint8 classes"""
    gap_mm: float
    """distance of neighbouring slices"""
    spacing_mm: tuple[float, float]
    """of rows and columns"""


def read_image(path: Path, layout: Layout, spacing_mm: float | None) -> tuple[nifti.Image, int, list[np.ndarray]]:
    """Every frame of a 3D or 4D file as a normalised stack (Z, Y, X).

    Returns:
        the resampled image, its slice axis, and the stacks.

    Raises:
        InputError: a broken file, or one of a constant value.
    """
    image = nifti.load(path, ndim={3, 4})
    axis = slice_axis(image, layout.slices_along)
    image = _in_plane(image, spacing_mm, axis)
    orientation = orientation_of(image, axis)
    frames = image.data[..., None] if image.data.ndim == 3 else image.data
    stacks = [orientation.stack(frames[..., number]) for number in range(frames.shape[3])]
    return image, axis, [normalise(stack, layout.clip, path) for stack in stacks]


def read_label(path: Path, image: Path, layout: Layout, spacing_mm: float | None) -> np.ndarray:
    """Classes (Z, Y, X) of a volume, uint8, turned and resampled like its image.

    Raises:
        InputError: a broken file, another grid than the image's, labels that the layout does not have.
    """
    if layout.ignore_other_labels:
        volume = nifti.load(path, ndim=3)
    else:
        volume = nifti.load_labels(path, {0, *layout.labels}, ndim=3)
    like = nifti.load(image, ndim=3)
    if volume.shape != like.shape or not np.allclose(volume.affine, like.affine, atol=1e-2):
        raise InputError(
            f"{path} does not lie on the grid of {image.name}: expected the shape {like.shape} and the same affine, "
            f"found {volume.shape}"
        )
    axis = slice_axis(volume, layout.slices_along)
    classes = np.zeros(volume.shape, np.uint8)
    for value, number in layout.labels.items():
        classes[volume.data == value] = number
    volume = _in_plane(nifti.make_image(classes, volume.affine, path), spacing_mm, axis, label=True)
    return orientation_of(volume, axis).stack(volume.data)


def spacing_of(layout: Layout, spacing_mm: float | None) -> float | None:
    """In-plane spacing to work at: `spacing_mm`, or the layout's where that is None."""
    return layout.spacing_mm if spacing_mm is None else spacing_mm


def read_labelled(patients: Sequence[Patient], layout: Layout, spacing_mm: float | None) -> list[Stack]:
    """The labelled volumes of some patients.

    Raises:
        InputError: a layout without labels, or as `read_image` and `read_label`.
    """
    if not layout.labels:
        raise InputError(f"the layout {layout.name} has no labels: fine-tune on acdc, chd, mmwhs or hvsmr")
    wanted, stacks = spacing_of(layout, spacing_mm), []
    for volume in (volume for patient in patients for volume in patient.volumes):
        image, axis, (stack, *_) = read_image(volume.image, layout, wanted)
        label = read_label(volume.label, volume.image, layout, wanted)
        stacks.append(Stack(volume.patient, volume.name, stack, label, *_spacings(image, axis)))
    return stacks


def read_unlabelled(
    patients: Sequence[Patient], layout: Layout, spacing_mm: float | None, cine: bool = True
) -> list[Stack]:
    """All volumes of some patients for pre-training: with `cine` every frame of it, where there is one."""
    wanted, stacks = spacing_of(layout, spacing_mm), []
    for patient in patients:
        paths = [patient.cine] if cine and patient.cine else [volume.image for volume in patient.volumes]
        for path in paths:
            image, axis, frames = read_image(path, layout, wanted)
            for number, frame in enumerate(frames):
                stacks.append(Stack(patient.name, f"{path.name}#{number}", frame, None, *_spacings(image, axis)))
    return stacks


def _spacings(image: nifti.Image, axis: int) -> tuple[float, tuple[float, float]]:
    _, row, column = orientation_of(image, axis).order
    return image.spacing[axis], (image.spacing[row], image.spacing[column])


# --- data sets of slices ---------------------------------------------------------------------------------


class SliceViews(Dataset):
    """Slices for pre-training: two random views, position and partition (M5, M6).

    An item is a dict: "views" (2, 1, size, size), "position" in (0, 1], "partition" 0 to partitions - 1.

    Args:
        stacks: every volume or frame of the training patients.
        size: side of the patch.
        partitions: of GCL.
        **augmentation: further arguments of `augmentation.augment`.
    """

    def __init__(self, stacks: Sequence[Stack], size: int, partitions: int = 4, **augmentation):
        self.stacks, self.size, self.augmentation = list(stacks), size, augmentation
        lengths = [len(stack.image) for stack in self.stacks]
        self.slices = [(s, z) for s, length in enumerate(lengths) for z in range(length)]
        self.positions = [slice_positions(length) for length in lengths]
        self.partitions = [slice_partitions(length, partitions) for length in lengths]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        stack, z = self.slices[index]
        image = torch.from_numpy(self.stacks[stack].image[z])[None]
        views = [augment(image, self.size, **self.augmentation)[0] for _ in range(2)]
        return {
            "views": torch.stack(views),
            "position": self.positions[stack][z],
            "partition": self.partitions[stack][z],
        }


class LabelledSlices(Dataset):
    """Slices for fine-tuning: "image" (1, size, size) and "label" (size, size) of whole numbers.

    Args:
        stacks: labelled volumes.
        size: side of the patch.
        augmented: random views; else random crops (which are the whole slice where that is not larger).
        **augmentation: further arguments of `augmentation.augment`.
    """

    def __init__(self, stacks: Sequence[Stack], size: int, augmented: bool = True, **augmentation):
        self.stacks, self.size = list(stacks), size
        self.augmentation, self.augmented = augmentation, augmented
        self.slices = [(s, z) for s, stack in enumerate(self.stacks) for z in range(len(stack.image))]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        stack, z = self.slices[index]
        image = torch.from_numpy(self.stacks[stack].image[z])[None]
        label = torch.from_numpy(self.stacks[stack].label[z].astype(np.int64))
        if self.augmented:
            image, label = augment(image, self.size, label, **self.augmentation)
        else:
            both = crop_or_pad(torch.cat([image, label[None].to(image.dtype)]), self.size, random=True)
            image, label = both[:1], both[1].long()
        return {"image": image, "label": label}


def pad_to_multiple(stack: Tensor, multiple: int = 16) -> tuple[Tensor, tuple[slice, slice]]:
    """(..., H, W) padded with zeros on both sides, and where the image lies in that."""
    padding, inside = [], []
    for length in stack.shape[-2:]:
        missing = -length % multiple
        padding.append((missing // 2, missing - missing // 2))
        inside.append(slice(missing // 2, missing // 2 + length))
    return torch.nn.functional.pad(stack, (*padding[1], *padding[0])), tuple(inside)
