"""Stand-in for the lung CTs of SR4ZCT: thin-slice volumes in the layout of MSD Task06_Lung, and a routine scan.

imagesTr/lung_*.nii.gz hold chests (`chest_ct`) with thin slices. The volumes that the supervised baseline learns from
come from other scans than the one that is tested: larger voxels, a softer kernel, a lower dose. The paper holds a gap
between training and test data against supervised learning, and doesn't say how large it is: this one is a guess.
routine/chest.nii.gz is what a user has: 5 mm slices every 2.5 mm, with the thickness in a .json beside it, as dcm2niix
writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Size = Literal["smoke", "cpu", "study", "paper"]
NAMES = ("lung_006", "lung_014", "lung_022", "lung_023")  # those of the paper


@dataclass(frozen=True)
class Protocol:
    """How a chest was scanned, beside what `chest_ct` has in all of them."""

    zoom: float = 1.0
    """voxels are this many times as large as the test volume's, over the same field of view"""
    kernel_mm: float = 0.0
    """standard deviation of the in-plane blur by a softer reconstruction kernel"""
    noise_hu: float = 0.0
    """noise that a lower dose adds to that of `chest_ct`, in quadrature"""


PROTOCOLS = {
    "lung_006": Protocol(1.3, 0.5, 20.0), "lung_014": Protocol(1.15, 0.35, 12.0), "lung_022": Protocol(1.2, 0.6, 25.0),
    "lung_023": Protocol(),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Names of the volumes, and the test volume's grid: cubic voxels around a centre in patient coordinates, mm."""

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    voxel_mm: float
    centre_mm: tuple[float, float, float]


SMALL = Setting(NAMES[:4], (150, 150, 108), 0.75, (-80.0, 0.0, 4.0))  # a small field of view around one lung
SETTINGS = {
    "smoke": Setting(("lung_006", "lung_023"), (42, 42, 42), 0.75, (-100.0, 0.0, 4.0)),
    "cpu": SMALL,
    "study": SMALL,
    "paper": Setting(NAMES, (460, 356, 252), 0.76, (0.0, 0.0, 20.0)),
}
ROUTINE = {"pixel": 1.0, "thickness": 5.0, "overlap": 2.5}  # mm


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Write the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random; a volume depends only on seed, size and its number.
        size: smoke (two tiny volumes), cpu and study (four, a small field of view) or paper (four whole chests).

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
    extent = np.array(setting.shape) * setting.voxel_mm

    def affine(voxel: tuple[float, float, float]) -> np.ndarray:
        """Of LPS data whose first voxel's outer corner is that of the field of view."""
        corner = np.array(setting.centre_mm) - extent / 2 + np.array(voxel) / 2
        matrix = np.diag([-voxel[0], -voxel[1], voxel[2], 1.0])
        matrix[:3, 3] = corner * (-1, -1, 1)
        return matrix

    with complete_or_absent(out) as folder:
        for number, name in enumerate(setting.names):
            rng, protocol = np.random.default_rng([seed, number]), PROTOCOLS[name]
            voxel_mm = setting.voxel_mm * protocol.zoom
            shape = tuple(int(length) for length in np.floor(extent / voxel_mm))
            hu = scanned(chest_ct(rng, shape, voxel_mm, setting.centre_mm), voxel_mm, protocol, rng)
            nifti.save(folder / "imagesTr" / f"{name}.nii.gz", hu, affine=affine((voxel_mm,) * 3))
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


def scanned(hu: np.ndarray, voxel_mm: float, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """A chest (X, Y, Z) int16 as the protocol shows it: blurred in-plane, with more noise of the same texture."""
    from scipy import ndimage

    kernel = (protocol.kernel_mm / voxel_mm, protocol.kernel_mm / voxel_mm, 0)
    blurred = ndimage.gaussian_filter(hu.astype(np.float32), kernel)
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.6, 0.6, 0))
    noise *= np.float32(protocol.noise_hu / noise.std())
    return np.clip(np.round(blurred + noise), -1024, 3071).astype(np.int16)
