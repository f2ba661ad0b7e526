"""Stand-in for the lung CTs of SR4ZCT: thin-slice volumes in the layout of MSD Task06_Lung, and a routine scan.

imagesTr/lung_*.nii.gz hold chests (`chest_ct`) with thin slices. routine/chest.nii.gz is what a user has: 5 mm slices
every 2.5 mm, with the thickness in a .json beside it, as dcm2niix writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Size = Literal["smoke", "cpu", "paper"]
NAMES = ("lung_006", "lung_014", "lung_022", "lung_023")  # those of the paper


@dataclass(frozen=True)
class Setting:
    """Names of the volumes, and their grid: cubic voxels around a centre in the patient's coordinates, mm."""

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    voxel_mm: float
    centre_mm: tuple[float, float, float]


SETTINGS = {
    "smoke": Setting(("lung_006", "lung_023"), (42, 42, 42), 0.75, (-100.0, 0.0, 4.0)),
    "cpu": Setting(NAMES[:4], (150, 150, 108), 0.75, (-80.0, 0.0, 4.0)),  # a small field of view around one lung
    "paper": Setting(NAMES, (440, 340, 240), 0.8, (0.0, 0.0, 20.0)),
}
ROUTINE = {"pixel": 1.0, "thickness": 5.0, "overlap": 2.5}  # mm


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Write the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random; a volume depends only on seed, size and its number.
        size: smoke (two tiny volumes), cpu (four, a small field of view) or paper (four whole chests).

    Raises:
        InputError: unknown size.
    """
    import torch

    from benchmarks.standins.chest_ct import chest_ct
    from papers.sr4zct.scaling import SliceGeometry, box_matrix, multiply_along
    from shared import nifti
    from shared.errors import InputError
    from shared.files import complete_or_absent

    if size not in SETTINGS:
        raise InputError(f"unknown size '{size}': choose one of {', '.join(SETTINGS)}")
    setting = SETTINGS[size]
    origin = [c - (n - 1) / 2 * setting.voxel_mm for n, c in zip(setting.shape, setting.centre_mm)]

    def affine(voxel: tuple[float, float, float]) -> np.ndarray:
        """Of LPS data whose first voxel's outer corner is that of the thin-slice grid."""
        corner = np.array(origin) - setting.voxel_mm / 2 + np.array(voxel) / 2
        matrix = np.diag([-voxel[0], -voxel[1], voxel[2], 1.0])
        matrix[:3, 3] = corner * (-1, -1, 1)
        return matrix

    with complete_or_absent(out) as folder:
        for number, name in enumerate(setting.names):
            rng = np.random.default_rng([seed, number])
            hu = chest_ct(rng, setting.shape, setting.voxel_mm, setting.centre_mm)
            nifti.save(folder / "imagesTr" / f"{name}.nii.gz", hu, affine=affine((setting.voxel_mm,) * 3))
        rng = np.random.default_rng([seed, len(NAMES)])
        thick = torch.from_numpy(chest_ct(rng, setting.shape, setting.voxel_mm, setting.centre_mm).astype(np.float32))
        in_plane = SliceGeometry(setting.voxel_mm, ROUTINE["pixel"], 0.0)
        slices = SliceGeometry(setting.voxel_mm, ROUTINE["thickness"], ROUTINE["overlap"])
        for axis, geometry in enumerate((in_plane, in_plane, slices)):
            thick = multiply_along(box_matrix(thick.shape[axis], geometry), thick, axis)
        matrix = affine((ROUTINE["pixel"], ROUTINE["pixel"], ROUTINE["thickness"]))  # centre of the first slice
        matrix[2, 2] = slices.spacing
        path = folder / "routine" / "chest.nii.gz"
        nifti.save(path, thick.round().numpy().astype(np.int16), affine=matrix)
        sidecar = {"Modality": "CT", "SliceThickness": slices.thickness, "SpacingBetweenSlices": slices.spacing}
        path.with_name("chest.json").write_text(json.dumps(sidecar, indent=1) + "\n", "utf-8")
    return Path(out)
