"""Reads the lungs of the paper: 4D-CT cases of DIR-Lab, as released.

DATA/dirlab/Case1Pack/Images/case1_T00_s.img                    raw int16
DATA/dirlab/Case1Pack/ExtremePhases/Case1_300_T{00,50}_xyz.txt  landmarks, 1-based voxel indices
DATA/dirlab/Case1Pack/Masks/case1_T00.nii.gz                    lung masks, not part of the release
DATA/dirlab/geometry.json                                       only if sizes differ from the release's
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from papers.nio.data import FOLDERS, Breath, Pair
from shared import nifti
from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.readers import reading
from shared.text_files import read_json

HU_WINDOW = (-1000.0, 0.0)
"""CT numbers that become 0 and 1: lung parenchyma and vessels"""
DIRLAB = {
    1: ((256, 256, 94), (0.97, 0.97, 2.5)), 2: ((256, 256, 112), (1.16, 1.16, 2.5)),
    3: ((256, 256, 104), (1.15, 1.15, 2.5)), 4: ((256, 256, 99), (1.13, 1.13, 2.5)),
    5: ((256, 256, 106), (1.10, 1.10, 2.5)), 6: ((512, 512, 128), (0.97, 0.97, 2.5)),
    7: ((512, 512, 136), (0.97, 0.97, 2.5)), 8: ((512, 512, 128), (0.97, 0.97, 2.5)),
    9: ((512, 512, 128), (0.97, 0.97, 2.5)), 10: ((512, 512, 120), (0.97, 0.97, 2.5)),
}  # fmt: skip
"""Voxels and voxel size [mm] of the released 4D-CT cases; the raw files have no header."""


def _one(folder: Path, pattern: str, what: str) -> Path:
    """The one file that matches, upper or lower case.

    Raises:
        InputError: none.
    """
    wanted = re.compile(pattern, re.IGNORECASE)
    found = sorted(path for path in folder.rglob("*") if wanted.fullmatch(path.name))
    if not found:
        raise InputError(f"{folder}: there is no {what} (a file named like '{pattern}')")
    return found[0]


def patients(root: Path) -> list[tuple[int, Path]]:
    """(number, folder) of the 4D-CT cases; empty if there are none."""
    found = []
    for path in (Path(root) / FOLDERS["lung"]).glob("Case*"):
        number = re.match(r"Case(\d+)", path.name)
        if number and path.is_dir():
            found.append((int(number[1]), path))
    return sorted(found)


def geometry(root: Path) -> dict[int, tuple[tuple, tuple]]:
    """Voxels and voxel size of each case: that of the release, or of geometry.json where there is one.

    Raises:
        InputError: geometry.json is broken.
    """
    path = Path(root) / FOLDERS["lung"] / "geometry.json"
    if not path.exists():
        return DIRLAB
    expected = '{"1": {"size": [x, y, z], "spacing_mm": [x, y, z]}, ...}'
    table = read_json(path, expected)
    with reading(path, f"JSON with {expected}"):
        return {int(n): (tuple(map(int, v["size"])), tuple(map(float, v["spacing_mm"]))) for n, v in table.items()}


def read_landmarks(path: Path) -> np.ndarray:
    """Landmarks (N, 3) as 0-based voxel indices.

    Raises:
        InputError: missing, or not three numbers a line.
    """
    try:
        points = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file with three numbers a line") from error
    if points.size == 0 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError(f"{path}: expected three numbers a line, found an array of shape {points.shape}")
    return points - 1


class Lungs:
    """The 4D-CT cases.

    Args:
        root: the data set.
        shape: grid of the network. The box around both lungs in all phases is resampled to it, so the voxel size
            differs between patients and axes.

    Raises:
        InputError: fewer than two cases, or a case whose size is not known.
    """

    def __init__(self, root: Path, shape):
        self.root, self.shape = Path(root), tuple(shape)
        self.patients = patients(root)
        refuse_duplicates((number for number, _ in self.patients), f"{self.root / FOLDERS['lung']}: case")
        self.geometry = geometry(root)
        if len(self.patients) < 2:
            raise InputError(f"{self.root / FOLDERS['lung']}: expected at least 2 cases, found {len(self.patients)}")
        unknown = [number for number, _ in self.patients if number not in self.geometry]
        if unknown:
            raise InputError(
                f"{self.root / FOLDERS['lung']}: no size is known for case {unknown[0]}; add geometry.json"
            )
        self.kept: dict = {}

    def folder(self, number: int) -> Path:
        return dict(self.patients)[number]

    def phases(self, number: int) -> list[str]:
        """Time points of a case that have an image, T00 to T90."""
        names = [path.name for path in self.folder(number).rglob("*.img")]
        found = {match[1] for name in names if (match := re.match(rf"case{number}_(T\d\d)", name, re.IGNORECASE))}
        missing = {"T00", "T50"} - found
        if missing:
            raise InputError(f"{self.folder(number)}: there is no image of phase {missing.pop()}")
        return sorted(found)

    def _mask(self, number: int, phase: str) -> np.ndarray:
        path = _one(self.folder(number), rf"case{number}_{phase}\.nii(\.gz)?", f"lung mask of phase {phase}")
        mask, size = nifti.load_labels(path, 256, ndim=3).data, self.geometry[number][0]
        if mask.shape != size:
            raise InputError(f"{path}: has shape {mask.shape}, case {number} has {size}")
        if not mask.any():
            raise InputError(f"{path}: the mask is empty")
        return mask > 0

    def _image(self, number: int, phase: str) -> np.ndarray:
        """CT numbers [HU]; the release stores them plus 1024."""
        path = _one(self.folder(number), rf"case{number}_{phase}.*\.img", f"image of phase {phase}")
        size = self.geometry[number][0]
        values = np.fromfile(path, dtype="<i2")
        if values.size != np.prod(size):
            raise InputError(
                f"{path}: holds {values.size} voxels, expected {size[0]} x {size[1]} x {size[2]}; truncated?"
            )
        return values.reshape(size, order="F").astype(np.float32) - 1024

    def box(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last voxel of the lungs in all phases, with a margin of 2 %."""
        if ("box", number) not in self.kept:
            masks = [self._mask(number, phase) for phase in self.phases(number)]
            where = np.argwhere(np.logical_or.reduce(masks))
            low, high = where.min(0), where.max(0)
            self.kept["box", number] = (low - 0.02 * (high - low), high + 0.02 * (high - low))
        return self.kept["box", number]

    def __getitem__(self, key: tuple[int, str]) -> Breath:
        """A phase of a case, e.g. `lungs[1, "T00"]`."""
        if key in self.kept:
            return self.kept[key]
        from scipy.ndimage import gaussian_filter, map_coordinates

        number, phase = key
        image, mask = self._image(number, phase), self._mask(number, phase)
        low, high = self.box(number)
        step = (high - low) / (np.array(self.shape) - 1)
        axes = [lo + st * np.arange(n, dtype=np.float32) for lo, st, n in zip(low, step, self.shape)]
        index = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        image = np.where(mask, image, HU_WINDOW[0])
        image = gaussian_filter(image, 0.4 * np.sqrt(np.maximum(step**2 - 1, 0)), mode="nearest", truncate=2.5)
        values = map_coordinates(image, index, order=1, mode="nearest")
        values = (values - HU_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0])
        inside = map_coordinates(mask.astype(np.float32), index, order=1, mode="nearest") > 0.5
        spacing = np.array(self.geometry[number][1])
        breath = Breath(
            f"case{number}_{phase}",
            values.clip(0, 1).astype(np.float32),
            inside,
            tuple((step * spacing).tolist()),
            tuple((low * spacing).tolist()),
        )
        if len(self.patients) * 10 * np.prod(self.shape) < 4e8:
            self.kept[key] = breath
        return breath

    def landmarks(self, number: int, phase: str) -> np.ndarray:
        """Positions (N, 3) [mm] of the landmarks in a phase."""
        path = _one(self.folder(number), rf"case{number}.*300_{phase}_xyz\.txt", f"landmarks of phase {phase}")
        return read_landmarks(path) * np.array(self.geometry[number][1])

    def pair(self, number: int) -> Pair:
        """Maximum expiration (T50, moving) onto maximum inspiration (T00, fixed).

        Raises:
            InputError: the two landmark files have different lengths.
        """
        points = self.landmarks(number, "T00"), self.landmarks(number, "T50")
        if len(points[0]) != len(points[1]):
            raise InputError(f"{self.folder(number)}: {len(points[0])} landmarks in T00, but {len(points[1])} in T50")
        return Pair(f"lung/case{number:02d}", self[number, "T50"], self[number, "T00"], points)

    def fold(self, number: int, folds: int) -> int:
        """Which of the folds a case is tested in; `folds` = number of cases is leave-one-out."""
        order = [n for n, _ in self.patients]
        return order.index(number) % folds


class BreathPairs(Dataset):
    """Training pairs: two random phases of one patient outside of the fold. Items: "moving", "fixed", "mask"."""

    def __init__(self, lungs: Lungs, fold: int, folds: int):
        self.lungs = lungs
        self.numbers = [number for number, _ in lungs.patients if lungs.fold(number, folds) != fold]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        number = self.numbers[index]
        phases = self.lungs.phases(number)
        first, second = torch.randperm(len(phases))[:2].tolist()
        moving, fixed = self.lungs[number, phases[first]], self.lungs[number, phases[second]]
        mask = torch.from_numpy(fixed.mask.astype(np.float32))[None]
        images = {"moving": torch.from_numpy(moving.image)[None], "fixed": torch.from_numpy(fixed.image)[None]}
        return {**images, "mask": mask}
