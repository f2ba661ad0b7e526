"""What a NIfTI header must hold, checked before any voxel is read, and how it follows its image to another grid."""

import gzip
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import InputError

# Lowest three bits of NIfTI xyzt_units: 1 metre, 2 millimetre, 3 micron, 0 unknown (read as millimetre).
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
# Cosine between two voxel axes above which an affine counts as sheared: 0.001 is 0.06 degrees.
SHEAR_TOLERANCE = 1e-3
# deflate can't compress by more than this, so a .nii.gz that promises more is cut short
MAX_GZIP_RATIO = 1032
# Voxels of the largest grid that is read or made: 8 GiB as float32, four times a whole-body CT of 512 x 512 x 2000.
MAX_VOXELS = 2**31
# In files with units of metres or microns: spacing in mm that can only come from numbers that are in mm.
COARSEST_MM, FINEST_MM = 50.0, 0.01
# A quaternion may be longer than 1 by this, squared, before it says nothing; numbers are stored as float32.
QUATERNION_TOLERANCE = 1e-3


def name_of(path: Path | None) -> str:
    return "the image" if path is None else str(path)


def listed(values: Sequence, most: int = 8) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:most])
    return shown + (", ..." if len(values) > most else "")


def suffix_of(path: Path) -> str:
    """'.nii' or '.nii.gz' as written in the name."""
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    raise InputError(
        f"{path} has the wrong suffix: expected .nii or .nii.gz, found '{path.suffix}'; rename or convert the file"
    )


def opener_of(path: Path):
    """`open` or `gzip.open`, once the file is known to be there and to be what its suffix says."""
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a NIfTI file, found nothing there; check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a .nii or .nii.gz file; pass one of the files in it")
    zipped = suffix_of(path).lower() == ".nii.gz"
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(
            f"{path} can't be opened: expected a readable file, found '{error.strerror}'; check its permissions"
        ) from error
    if not start:
        raise InputError(f"{path} is empty: expected a NIfTI file, found 0 bytes; copy or download it again")
    if zipped and start != b"\x1f\x8b":
        raise InputError(
            f"{path} is not gzip-compressed: expected gzip data because of its suffix, found other bytes; rename it to "
            ".nii if it is an uncompressed NIfTI file, or download it again"
        )
    if not zipped and start == b"\x1f\x8b":
        raise InputError(
            f"{path} is gzip-compressed: expected an uncompressed file because of its suffix; rename it to .nii.gz"
        )
    return gzip.open if zipped else open


def image_class_of(start: bytes, path: Path):
    """nibabel's class for NIfTI-1 or NIfTI-2, from the first bytes of the file."""
    import nibabel

    for size, image_class, magic in (
        (348, nibabel.Nifti1Image, start[344:348]),
        (540, nibabel.Nifti2Image, start[4:8]),
    ):
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            if len(start) < size:
                raise EOFError
            if magic in (b"n+1\0", b"n+2\0"):
                return image_class
    raise InputError(
        f"{path} is not a NIfTI file: expected a NIfTI-1 or NIfTI-2 header, found other bytes; convert it to NIfTI or "
        "check that this is the right file"
    )


def check_shape(shape: Sequence[int], name: str, ndim: int | Collection[int] | None = None) -> None:
    allowed = {2, 3, 4} if ndim is None else {ndim} if isinstance(ndim, int) else set(ndim)
    if len(shape) not in allowed:
        wanted = " or ".join(f"{n}D" for n in sorted(allowed))
        raise InputError(
            f"{name} has the wrong number of dimensions: expected {wanted}, found {len(shape)}D with shape "
            f"{tuple(shape)}; extract the part you need or pass another file"
        )
    if min(shape) < 1:
        raise InputError(
            f"{name} has no voxels: expected at least one along each dimension, found the shape {tuple(shape)}; create "
            "the file again"
        )


def data_shape(header) -> tuple[int, ...]:
    """Shape of the voxels as stored in `dim`."""
    return tuple(int(size) for size in header["dim"][1 : int(header["dim"][0]) + 1])


def check_raw_header(header, path: Path, ndim: int | Collection[int] | None) -> None:
    """Dimensions and spacing as stored, before nibabel replaces a spacing of zero by one."""
    shape = data_shape(header)
    check_shape(shape, str(path), ndim)
    if not header.single_vox_offset <= float(header["vox_offset"]) < math.inf:
        raise InputError(
            f"{path} has no valid vox_offset: expected voxels from byte {header.single_vox_offset} on, found "
            f"{float(header['vox_offset']):g} in the header; correct the header or convert the image again"
        )
    stored = [float(size) for size in header["pixdim"][1 : len(shape) + 1]]
    if not np.isfinite(stored).all() or 0.0 in stored[:3]:
        raise InputError(
            f"{path} has no valid voxel spacing: expected finite values other than zero, found ({listed(stored)}) in "
            "pixdim; correct the header or convert the image again"
        )


def check_length(header, path: Path) -> None:
    """Refuse a file too short for its header before any memory is set aside for the voxels."""
    shape = data_shape(header)
    expected = math.prod(shape) * header.get_data_dtype().itemsize + int(header["vox_offset"])
    found = path.stat().st_size
    zipped = suffix_of(path).lower() == ".nii.gz"
    if found * (MAX_GZIP_RATIO if zipped else 1) < expected:
        raise InputError(
            f"{path} is truncated: expected {expected} bytes{' before compression' if zipped else ''} for the shape "
            f"{shape}, found a file of {found} bytes; copy or download it again"
        )


def check_size(shape: Sequence[int], name: str, advice: str) -> None:
    """Refuse a grid above `MAX_VOXELS` before any memory is set aside for it."""
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"{name} is too large: expected at most {MAX_VOXELS:,} voxels, found {' x '.join(map(str, shape))} = "
            f"{math.prod(shape):,}; {advice}"
        )


def check_units(header, affine: np.ndarray, ndim: int, name: str) -> None:
    """Refuse a header that says metres or microns over numbers that are plainly in mm.

    Args:
        affine: (4, 4) in mm, as `affine_of_header` gives it.
        ndim: number of dimensions of the voxels.
    """
    factor = mm_per_unit(header)
    coarsest = np.linalg.norm(affine[:3, : min(ndim, 3)], axis=0).max()
    if (factor > 1 and coarsest >= COARSEST_MM) or (factor < 1 and coarsest <= FINEST_MM):
        unit = "metres" if factor > 1 else "microns"
        raise InputError(
            f"{name} has a voxel size that can't be: expected a spacing in {unit}, as xyzt_units says, found up to "
            f"{coarsest / factor:g} {unit}, which looks like mm; set xyzt_units to 2 (mm) in the header, or correct "
            "the spacing"
        )


def mend_qform(header) -> None:
    """Drop a qform that is no rotation where the sform is valid, since nothing needs it then.

    Where the qform alone places the image, a quaternion that is too long by rounding is scaled to length 1, and any
    other bad one is left for the caller to fail at.
    """
    from nibabel.spatialimages import HeaderDataError

    try:
        if np.isfinite(header.get_qform()).all():
            return
    except (ValueError, HeaderDataError):
        pass
    sform = header.get_sform()
    parts = ("quatern_b", "quatern_c", "quatern_d")
    length = sum(float(header[part]) ** 2 for part in parts)
    if int(header["sform_code"]) and np.isfinite(sform).all() and np.linalg.det(sform[:3, :3]):
        header.set_qform(sform, 0)  # for the spacing in pixdim
    elif 1 < length <= 1 + QUATERNION_TOLERANCE:
        for part in parts:
            header[part] = float(header[part]) / math.sqrt(length)


def check_numeric(dtype: np.dtype, path: Path) -> None:
    if dtype.kind not in "biufc":
        raise InputError(
            f"{path} has no grey values: expected numbers as voxels, found the type {dtype}; convert it to grey values"
        )


def mm_per_unit(header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)


def affine_of_header(header, ndim: int) -> np.ndarray:
    """Affine of the header (sform, else qform, else pixdim) in mm. A 2D image without normal gets 1 mm."""
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= mm_per_unit(header)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    if ndim == 2 and not affine[:3, 2].any() and normal.any():
        affine[:3, 2] = normal / np.linalg.norm(normal)
    return affine


def check_affine(affine: np.ndarray, name: str) -> None:
    """Refuse what is no affine, what has dependent axes, and what overflows or vanishes in the header's float32."""
    with np.errstate(over="ignore"):
        stored = affine.astype(np.float32)
    if affine.shape != (4, 4) or not np.isfinite(stored).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise InputError(
            f"{name} has no valid affine: expected a finite 4x4 matrix with last row 0, 0, 0, 1, found "
            f"({listed(affine.ravel().tolist(), 16)}); correct the sform or qform of the header"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not stored[:3, :3].any(axis=0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise InputError(
            f"{name} has a singular affine: expected three independent voxel axes, found the columns "
            f"({listed(affine[:3, :3].T.ravel().tolist(), 9)}); correct the sform or qform of the header"
        )


def is_sheared(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0:
        return True
    axes = affine[:3, :3] / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE)


def check_no_shear(affine: np.ndarray, name: str) -> None:
    """Refuse an affine that SimpleITK, which has directions and spacings only, can't represent."""
    if is_sheared(affine):
        raise InputError(
            f"{name} has a sheared affine: expected voxel axes at right angles for resampling, found the columns "
            f"({listed(affine[:3, :3].T.ravel().tolist(), 9)}); remove the shear (gantry tilt) first"
        )


def set_shape(header, shape: Sequence[int], name: str) -> None:
    """Set `dim`; a time axis that was not there gets step 1, and one that goes takes its step along."""
    from nibabel.spatialimages import HeaderDataError

    before = int(header["dim"][0])
    try:
        header.set_data_shape(shape)
    except HeaderDataError as error:
        raise InputError(
            f"{name} can't be a NIfTI-1 file: expected at most 32767 voxels along each axis, found the shape "
            f"{tuple(shape)}; crop or resample it"
        ) from error
    if len(shape) == 4 and before != 4:
        header["pixdim"][4] = 1.0


def moved_header(header, old_affine: np.ndarray, new_affine: np.ndarray, shape: Sequence[int], name: str) -> Any:
    """Copy of the header for a new grid. Affines are in mm.

    The sform becomes `new_affine`. A qform in use goes along by the same voxel map, so a qform that
    differs from the sform still does; it is dropped if that would shear it.
    """
    header = header.copy()
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    qform = header.get_qform() if qform_code else None
    set_shape(header, shape, name)
    sform = new_affine.copy()
    sform[:3] /= mm_per_unit(header)
    header.set_sform(sform, sform_code or qform_code or 1)
    if qform is not None:
        qform = qform @ np.linalg.inv(old_affine) @ new_affine
    if qform is None or is_sheared(qform):
        header.set_qform(sform, 0)  # for the spacing in pixdim
    else:
        header.set_qform(qform, qform_code)
    return header
