"""Reads the published layout of the cardiac SPECT data (section 2.2 and the released code).

    DATA/{train,valid,test}/*.h5   one study a file:
        Amap, Recon_LD_LA_EM                          image: attenuation map in cm^-1, ML-EM image
        Proj_FD_FA_EM, Proj_LD_LA_EM, Mask_Proj       projections: counts, counts, 1 where measured
    DATA/*.mat or *.npz            the system matrix (`system_matrix.load_system_matrix`)
    DATA/geometry.json             positions of the pinholes (`PinholeGeometry.save`)

The files come from MATLAB, so that h5py sees the axes reversed: (Z, Y, X) and (A, V, U). They are turned to
(X, Y, Z) and (U, V, A) on reading. Without a system matrix or geometry, an analytic one stands in.
"""

import math
import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.mlem import ml_em
from papers.cdinet.projector import Projector
from papers.cdinet.system_matrix import load_system_matrix
from shared.errors import InputError
from shared.readers import Array, read_hdf5, read_hdf5_shapes

SPLITS = ("train", "valid", "test")
IMAGES = {"mu": "Amap", "image_low": "Recon_LD_LA_EM"}
PROJECTIONS = {"projections_full": "Proj_FD_FA_EM", "projections_low": "Proj_LD_LA_EM", "mask": "Mask_Proj"}
CACHE_BYTES = 2 * 2**30  # a split smaller than this stays in memory


def find_studies(root: str | os.PathLike, split: str) -> list[Path]:
    """The studies of one split, sorted by name.

    Raises:
        InputError: the data set or the split is missing or empty.
    """
    root, folder = Path(root), Path(root) / split
    if not root.is_dir():
        raise InputError(f"{root} doesn't exist; it should be a folder with train/, valid/ and test/ of .h5 studies.")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; it should be a folder with train/, valid/ and test/ of .h5 studies.")
    if not folder.is_dir():
        raise InputError(f"{root} has no folder {split}/; the studies must be split into train/, valid/ and test/.")
    studies = sorted(folder.glob("*.h5"))
    if not studies:
        raise InputError(f"{folder} holds no .h5 study.")
    return studies


def load_projector(root: str | os.PathLike) -> Projector:
    """The scanner of a data set: its geometry and system matrix, or with a warning an analytic stand-in.

    Raises:
        InputError: no data set at `root`, a broken geometry or matrix, or more than one matrix.
    """
    root = Path(root)
    split = next((name for name in SPLITS if (root / name).is_dir()), SPLITS[0])
    return _scanner(root, find_studies(root, split)[0])


def load_scanner(path: str | os.PathLike) -> Projector:
    """The scanner of a user's own file: geometry.json in its folder or the one above (or in the folder
    `path` itself), and the system matrix beside it.

    Raises:
        InputError: no geometry.json there, a broken geometry or matrix, or more than one matrix.
    """
    path = Path(path)
    folders = [path, path.parent] if path.is_dir() else [path.parent, path.parent.parent]
    for folder in folders:
        if (folder / "geometry.json").is_file():
            return _scanner(folder, None)
    raise InputError(
        f"{folders[0]} and the folder above hold no geometry.json; say with --scanner where the geometry and the "
        "system matrix of your scanner are (PinholeGeometry.save writes one)."
    )


def _scanner(root: Path, study: Path | None) -> Projector:
    if (root / "geometry.json").is_file():
        geometry = PinholeGeometry.load(root / "geometry.json")
    else:
        shapes = read_hdf5_shapes(study, {IMAGES["mu"]: Array(ndim=3), PROJECTIONS["projections_low"]: Array(ndim=3)})
        image_shape = shapes[IMAGES["mu"]][::-1]
        u, v, angles = shapes[PROJECTIONS["projections_low"]][::-1]
        if angles < 19:
            raise InputError(f"{study} has {angles} angles; without a geometry.json they must be the 19 of the 570c.")
        geometry = PinholeGeometry.ge570c(image_shape, 4.0, (u, v), padding_angles=angles - 19)
        warnings.warn(
            f"{root} has no geometry.json: an analytic 570c with 4 mm voxels gives the directions of attenuation.",
            stacklevel=3,
        )
    matrices = sorted([*root.glob("*.mat"), *root.glob("*.npz")])
    if len(matrices) > 1:
        names = ", ".join(path.name for path in matrices)
        raise InputError(f"{root} holds several possible system matrices ({names}); leave one.")
    if matrices:
        return Projector(load_system_matrix(matrices[0], geometry), geometry)
    warnings.warn(
        f"{root} has no system matrix (.mat with sm, or .npz): an analytic pinhole matrix takes its place.",
        stacklevel=3,
    )
    return Projector.from_geometry(geometry)


def read_projections(path: str | os.PathLike, geometry: PinholeGeometry) -> np.ndarray:
    """A user's own counts as float32 (U, V, A): `Proj_LD_LA_EM` of an .h5 file in MATLAB's axis order, or a
    NIfTI volume (U, V, A). An acquisition without the padding angles gets them, empty.

    Raises:
        InputError: the file is missing, broken or of another shape, or holds NaN or negative counts.
    """
    path = Path(path)
    if path.name.endswith((".nii", ".nii.gz")):
        from shared import nifti

        counts = nifti.load(path, ndim=3, dtype=np.float32).data
    else:
        key = PROJECTIONS["projections_low"]
        counts = _turned(read_hdf5(path, {key: Array(ndim=3, dtype="float32", least=0.0)})[key])
    u, v, angles = geometry.projection_shape
    if counts.shape == (u, v, geometry.pinholes):
        counts = np.pad(counts, ((0, 0), (0, 0), (0, geometry.padding_angles)))
    if counts.shape != (u, v, angles):
        raise InputError(
            f"{path}: the counts are {counts.shape}, but the scanner's are {(u, v, angles)} (u, v, angle)."
        )
    if not np.isfinite(counts).all() or (counts < 0).any():  # a NIfTI may hold anything
        raise InputError(f"{path}: counts must be finite and not negative.")
    return counts


def read_study(
    path: str | os.PathLike, geometry: PinholeGeometry, low_dose_scale: float = 1.0
) -> dict[str, np.ndarray]:
    """One study as float32 arrays (X, Y, Z) and (U, V, A) under the names of IMAGES and PROJECTIONS.

    "image_low" is left out where the file has no Recon_LD_LA_EM.

    Args:
        low_dose_scale: factor for low-dose counts and their image, to match the full dose; 10 for a file
            that holds the 10 % counts as they were, 1 for one that holds them already scaled.

    Raises:
        InputError: the file is missing or truncated, a dataset is missing, of the wrong shape or kind, has
            NaN or negative values, the mask isn't 0 and 1, or the two doses don't match after scaling.
    """
    wanted = {
        key: Array(shape=shape[::-1], dtype="float32", least=0.0, optional=name == "image_low")
        for names, shape in ((IMAGES, geometry.image_shape), (PROJECTIONS, geometry.projection_shape))
        for name, key in names.items()
    }
    found = read_hdf5(path, wanted)
    study = {name: _turned(found[key]) for name, key in (IMAGES | PROJECTIONS).items() if key in found}
    if not np.isin(study["mask"], (0.0, 1.0)).all():
        raise InputError(f"{path}: {PROJECTIONS['mask']} must hold 1 where measured and 0 elsewhere.")
    for name in ("projections_low", "image_low"):
        if name in study:
            study[name] *= low_dose_scale
    full, low = (study["projections_full"] * study["mask"]).sum(), study["projections_low"].sum()
    if not 0.3 < low / max(full, 1e-12) < 3.0:
        raise InputError(
            f"{path}: the low-dose counts are {low / max(full, 1e-12):.3g} of the full-dose ones at the measured "
            "angles instead of about 1; set the low-dose scale (10 for unscaled 10 % counts)."
        )
    return study


def _turned(array: np.ndarray) -> np.ndarray:
    """From MATLAB's order of the axes to ours."""
    return np.ascontiguousarray(array.T)


def write_study(path: str | os.PathLike, study: dict[str, np.ndarray]) -> None:
    """The inverse of `read_study`: writes arrays under their names of IMAGES and PROJECTIONS, axes reversed."""
    with h5py.File(path, "w") as file:
        for name, key in (IMAGES | PROJECTIONS).items():
            if name in study:
                array = np.asarray(study[name], dtype=np.float32).T
                file.create_dataset(key, data=array, compression="gzip", compression_opts=1)


class CardiacSpectDataset(Dataset):
    """Studies of one split.

    An item is a dict of float32 tensors: "projections_low" P_L, "projections_full" P_F and "mask"
    (1, U, V, A); "image_low" I_L and "mu" (1, X, Y, Z); and "case", the file's name without suffix. An I_L
    that the file lacks is computed by ML-EM (M1) from the measured angles.

    Args:
        root: the data set's folder.
        split: "train", "valid" or "test".
        projector: the scanner, of `load_projector`; on the CPU.
        low_dose_scale: see `read_study`.

    Raises:
        InputError: see `find_studies`; (on access) see `read_study`.

    Example:
        >>> import tempfile
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train").mkdir()
        >>> counts, mu = np.ones((8, 8, 20)), np.full((12, 12, 8), 0.15)
        >>> study = {"mu": mu, "projections_full": counts, "projections_low": counts, "mask": counts}
        >>> write_study(root / "train" / "study.h5", study)
        >>> item = CardiacSpectDataset(root, "train", Projector.from_geometry(geometry))[0]
        >>> item["image_low"].shape, item["projections_low"].shape
        (torch.Size([1, 12, 12, 8]), torch.Size([1, 8, 8, 20]))
    """

    def __init__(self, root: str | os.PathLike, split: str, projector: Projector, low_dose_scale: float = 1.0):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        self.studies = find_studies(root, split)
        self.projector, self.low_dose_scale = projector, low_dose_scale
        geometry = projector.geometry
        floats = 2 * geometry.voxels + 3 * math.prod(geometry.projection_shape)
        self._cache: dict[int, dict] | None = {} if 4 * floats * len(self.studies) <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict:
        if self._cache is not None and index in self._cache:
            return dict(self._cache[index])
        path = self.studies[index]
        study = read_study(path, self.projector.geometry, self.low_dose_scale)
        item = {name: torch.from_numpy(array)[None] for name, array in study.items()}
        if "image_low" not in item:
            counts, mask = item["projections_low"][None], item["mask"][None]
            item["image_low"] = ml_em(self.projector, counts, angles_mask=mask)[0]
        item["case"] = path.stem
        if self._cache is not None:
            self._cache[index] = item
        return dict(item)
