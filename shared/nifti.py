"""Read, write, reorient and resample NIfTI volumes, and turn a DICOM series into one.

Everything in memory is in millimetres and in NIfTI world coordinates (RAS+: x grows to the patient's right,
y to anterior, z to superior). A file whose header says metres or microns is converted on load, and converted
back on save. Arrays keep the voxel order of the file, (x, y), (x, y, z) or (x, y, z, t).

A 2D image is a slice in 3D space: `data` has two axes, `affine` is still 4x4 and its third column is the
slice normal times the slice thickness (1 mm if the file leaves it out). No function here turns a 2D image
into a volume with one slice, or back, except `to_sitk` and `resample_to`, which say so.

nibabel and SimpleITK are imported by the functions that need them, so importing this module is cheap.
"""

import gzip
import math
import os
import uuid
import zlib
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared.errors import InputError

# Lowest three bits of NIfTI xyzt_units: 1 metre, 2 millimetre, 3 micron, 0 unknown (read as millimetre).
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Cosine between two voxel axes above which an affine counts as sheared: 0.001 is 0.06 degrees.
SHEAR_TOLERANCE = 1e-3
# Slice positions of a DICOM series may be off an even grid by this fraction of the slice distance.
SLICE_GAP_TOLERANCE = 0.05
# deflate can't compress by more than this, so a .nii.gz that promises more is cut short
MAX_GZIP_RATIO = 1032


@dataclass(frozen=True, eq=False)
class Image:
    """A NIfTI image in memory. Use `dataclasses.replace` to change a field."""

    data: np.ndarray
    """voxels in file order, (x, y), (x, y, z) or (x, y, z, t)"""
    affine: np.ndarray
    """float64 (4, 4), voxel index to RAS+ world position in mm"""
    header: Any
    """nibabel header as in the file (units, codes, time step, extensions), for `save` to give back"""
    path: Path | None = None
    """where the image came from, for error messages"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `data`."""
        return self.data.shape

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between voxel centres in mm along each spatial axis: three values, two for a 2D image."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: min(self.data.ndim, 3)])

    @property
    def orientation(self) -> tuple[str, ...]:
        """Closest world direction of each spatial axis, e.g. ('R', 'A', 'S'); two codes for a 2D image."""
        import nibabel

        return nibabel.aff2axcodes(self.affine)[: min(self.data.ndim, 3)]


def make_image(data: np.ndarray, affine: np.ndarray, path: Path | None = None) -> Image:
    """An `Image` from an array and its affine, with a fresh header (mm, seconds, scanner coordinates).

    Args:
        data: 2D, 3D or 4D array in voxel order.
        affine: (4, 4), voxel index to RAS+ world position in mm.
        path: name for error messages.

    Raises:
        InputError: not 2D to 4D, an axis of size zero, or an affine that can't be used.
    """
    import nibabel

    name = _name(path)
    data = np.asarray(data)
    affine = np.array(affine, dtype=np.float64)
    _check_shape(data.shape, name)
    _check_affine(affine, name)
    header = nibabel.Nifti1Header()
    _set_shape(header, data.shape, name)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(affine, 1)
    header.set_qform(affine, 0 if _is_sheared(affine) else 1)
    return Image(data, affine, header, path)


def load(
    path: str | Path,
    *,
    ndim: int | Collection[int] | None = None,
    dtype: np.dtype | type | str | None = None,
    allow_nan: bool = False,
) -> Image:
    """Read a .nii or .nii.gz file (NIfTI-1 or NIfTI-2) completely, gzip checksum included.

    Voxels that are stored without scaling keep their dtype, in native byte order. Voxels stored with
    scl_slope or scl_inter are computed in float64 and come as float32, or as float64 if the stored type has
    more than 16 bits (float32 can't hold those).

    Args:
        path: the file.
        ndim: number of dimensions that the caller can use, 3 or {3, 4}; None for any of 2, 3 and 4.
        dtype: convert the voxels to this type; to an integer type only if nothing is lost.
        allow_nan: accept NaN and infinite voxels.

    Raises:
        InputError: no such file; not a NIfTI file; truncated or corrupt; wrong number of dimensions; a
            dimension of size zero; spacing or affine that can't be used; voxels that are not numbers, not
            finite, or don't fit `dtype`.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    path = Path(path)
    opener = _opener(path)
    damaged = (
        f"{path} can't be read: expected a complete NIfTI file, found one that is truncated or corrupt "
        "({reason}); copy or download it again"
    )
    try:
        with opener(path, "rb") as stream:
            image_class = _image_class(stream.read(540), path)
            stream.seek(0)
            header = image_class.header_class.from_fileobj(stream, check=False)
            _check_raw_header(header, path, ndim)
            _check_length(header, path)
            stream.seek(0)
            holder = nibabel.FileHolder(fileobj=stream)
            image = image_class.from_file_map({"header": holder, "image": holder}, mmap=False)
            data = _read_voxels(image, path)
            while stream.read(1 << 20):  # to the end, where gzip checks its sum
                pass
            affine = _header_affine(image.header, data.ndim)
    except InputError:
        raise
    except EOFError as error:
        raise InputError(damaged.format(reason="it ends too early")) from error
    except (OSError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(damaged.format(reason=reason)) from error
    _check_affine(affine, str(path))
    if not allow_nan:
        _check_finite(data, str(path))
    if dtype is not None:
        data = _cast(data, np.dtype(dtype), str(path))
    return Image(data, affine, image.header, path)


def load_labels(
    path: str | Path, allowed: int | Collection[int], *, ndim: int | Collection[int] | None = None
) -> Image:
    """Read a label map. Floating-point files are fine as long as every value is an integer.

    Args:
        path: the file.
        allowed: number of classes n, for labels 0 to n-1, or the labels that may occur.
        ndim: as in `load`.

    Returns:
        Image whose data have the smallest of uint8, int16, int32, int64 that holds all of `allowed`.

    Raises:
        InputError: as in `load`, or a value that is not an integer or not allowed.
    """
    image = load(path, ndim=ndim)
    values = sorted(range(allowed) if isinstance(allowed, int | np.integer) else {int(v) for v in allowed})
    found, counts = np.unique(image.data, return_counts=True)
    wanted = _list(values) if values != list(range(len(values))) else f"0 to {len(values) - 1}"
    for unfit, what in (
        (found != np.round(found), "are not integers"),
        (~np.isin(found, values), "are not among them"),
    ):
        if unfit.any():
            raise InputError(
                f"{path} is no valid label map: expected the labels {wanted}, found {counts[unfit].sum()} "
                "voxels "
                f"with values that {what} ({_list(found[unfit].tolist())}); remap the labels or check that "
                "this "
                "is the right file"
            )
    return replace(image, data=image.data.astype(_narrowest(min(values, default=0), max(values, default=0))))


def save(
    path: str | Path,
    data: np.ndarray,
    *,
    like: Image | None = None,
    affine: np.ndarray | None = None,
    dtype: np.dtype | type | str | None = None,
    allow_nan: bool = False,
) -> None:
    """Write a .nii or .nii.gz file; the old file stays as it was unless the new one is complete.

    With `like`, the header comes from there: sform, qform and their codes, units, time step, intent,
    extensions, byte order. Data may have one dimension more than `like` (4D from 3D, with time step 1) or
    less. Voxels are written as they are, without scaling. bool becomes uint8, float16 becomes float32, and
    64-bit integers (a label map from argmax) become the first of uint8, int16, int32 that holds them,
    unless `like` was stored with 64 bits too or `dtype` says otherwise. Folders are created as needed. The
    same input gives the same bytes.

    Args:
        path: file to write.
        data: 2D, 3D or 4D array in voxel order.
        like: image whose geometry and header the file gets; spatial shape must be that of `data`.
        affine: instead of `like`, (4, 4), voxel index to RAS+ world position in mm.
        dtype: type on disk; an integer type only if no value is lost.
        allow_nan: write NaN and infinite voxels instead of refusing.

    Raises:
        InputError: wrong suffix, a folder in place of the file, voxels that are not finite or don't fit
            `dtype`, a shape other than that of `like`, or an affine that can't be used.
        TypeError: neither or both of `like` and `affine` given.
    """
    import nibabel

    if (like is None) == (affine is None):
        raise TypeError("save needs either like= or affine=")
    path = Path(path)
    suffix = _suffix(path)
    if path.is_dir():
        raise InputError(f"{path} can't be written: expected a file name, found a folder; choose another name")
    data = np.asarray(data)
    _check_shape(data.shape, str(path))
    _check_numeric(data.dtype, path)
    if not allow_nan:
        _check_finite(data, str(path))

    if like is None:
        header = make_image(data, affine, path).header
    else:
        _check_like(data, like, path)
        header = like.header.copy()
        header_affine = _header_affine(header, like.data.ndim)
        if not np.allclose(header_affine, like.affine, rtol=1e-6, atol=1e-6):
            _check_affine(like.affine, _name(like.path))
            header = _moved_header(header, header_affine, like.affine, like.shape, str(path))
        _set_shape(header, data.shape, str(path))
    data = _cast(data, _disk_dtype(data, dtype, like), str(path))
    if not allow_nan:
        _check_finite(data, str(path))  # float64 to float32 may overflow

    try:
        header.set_data_dtype(data.dtype)
    except nibabel.spatialimages.HeaderDataError as error:
        raise InputError(
            f"{path} can't be written: expected a data type that NIfTI has, found {data.dtype}; pass dtype="
        ) from error
    image_class = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = image_class(data, header.get_best_affine(), header, dtype=data.dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{path} can't be written: expected {path.parent} to be a folder, found a file in its place; "
            "choose another folder"
        ) from error
    temporary = path.with_name(f".{path.name[: -len(suffix)]}.{uuid.uuid4().hex[:8]}{suffix}")
    try:
        image.to_filename(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_ras(image: Image) -> Image:
    """The same image with its axes permuted and flipped to the closest RAS+ order; no interpolation.

    A 2D image stays 2D: its two axes are put in the order R, A, S and flipped to point that way, so a
    sagittal slice becomes ('A', 'S'). World positions of all voxels stay the same.
    """
    order, flips = _ras_plan(image)
    spatial = len(order)
    if order == tuple(range(spatial)) and not any(flips):
        return image
    data = _reorder(image.data, order, flips)
    moved = _voxel_map(image, order, flips)
    affine = image.affine @ moved
    header = _moved_header(image.header, image.affine, affine, data.shape, _name(image.path))
    _move_slice_fields(header, order, flips, image.shape)
    return replace(image, data=data, affine=affine, header=header)


def restore_orientation(image_ras: Image, like: Image) -> Image:
    """Inverse of `to_ras`: put `image_ras` into the voxel order of `like`, without loss.

    Args:
        image_ras: what `to_ras(like)` gave, or a result on that grid of any dtype, with or without time axis.
        like: the image before `to_ras`.

    Returns:
        Image with the data of `image_ras`, and the affine and header of `like`.

    Raises:
        InputError: `image_ras` is not on the grid of `to_ras(like)`.
    """
    order, flips = _ras_plan(like)
    spatial = len(order)
    expected_shape = tuple(like.shape[axis] for axis in order)
    expected_affine = like.affine @ _voxel_map(like, order, flips)
    name, like_name = _name(image_ras.path), _name(like.path)
    if image_ras.data.ndim not in ((2,) if spatial == 2 else (3, 4)) or image_ras.shape[:3] != expected_shape:
        raise InputError(
            f"{name} can't be put into the orientation of {like_name}: expected the spatial shape "
            f"{expected_shape}, found the shape {image_ras.shape}; pass the image that to_ras was given"
        )
    tolerance = 1e-3 * min(like.spacing)
    if not np.allclose(image_ras.affine, expected_affine, rtol=1e-5, atol=tolerance):
        raise InputError(
            f"{name} can't be put into the orientation of {like_name}: expected the affine that to_ras "
            "gives, "
            f"found another one ({_list(image_ras.affine[:3].ravel().tolist(), 12)}); pass the image that "
            "to_ras was given"
        )
    undo = tuple(int(axis) for axis in np.argsort(order))
    data = _reorder(image_ras.data, undo, tuple(flips[axis] for axis in undo))
    header = like.header.copy()
    _set_shape(header, data.shape, name)
    return Image(data, like.affine.copy(), header, image_ras.path)


def resample_to_spacing(
    image: Image,
    spacing_mm: float | Sequence[float],
    *,
    label: bool = False,
    interpolation: Literal["linear", "bspline"] = "linear",
) -> Image:
    """The image on a grid of another spacing, in the same directions, over the same field of view.

    The outer corner of the first voxel stays where it is, not its centre: the new grid has size * spacing /
    new spacing voxels per axis, rounded half up (at least one), and ends within half a new voxel of the old edge.
    Values next to the edge are those of the nearest voxel. There is no smoothing before downsampling.

    Args:
        image: 2D, 3D or 4D; a 4D image is resampled frame by frame.
        spacing_mm: new spacing in mm, one value for all axes or one per spatial axis.
        label: nearest neighbour, and the dtype stays; otherwise the result is float32.
        interpolation: for images; "bspline" is cubic and needs four voxels along each axis.

    Raises:
        InputError: spacing not positive, sheared affine, too few voxels for "bspline".
    """
    name = _name(image.path)
    spatial = min(image.data.ndim, 3)
    wanted = np.array(spacing_mm, dtype=np.float64).ravel()
    if wanted.size == 1:
        wanted = np.repeat(wanted, spatial)
    if wanted.size != spatial or not np.isfinite(wanted).all() or (wanted <= 0).any():
        raise InputError(
            f"{name} can't be resampled: expected one positive spacing in mm or one for each of the "
            f"{spatial} "
            f"spatial axes, found {spacing_mm}; correct the spacing"
        )
    scale = np.ones(3)
    scale[:spatial] = wanted / image.spacing
    sizes = [max(1, math.floor(size / factor + 0.5 + 1e-6)) for size, factor in zip(image.shape[:3], scale)]
    moved = np.diag([*scale, 1.0])
    moved[:3, 3] = (scale - 1) / 2  # voxel index -0.5, the outer corner, maps to itself
    return _resample(image, tuple(sizes), image.affine @ moved, label, interpolation, fill=None)


def resample_to(
    image: Image,
    reference: Image,
    *,
    label: bool = False,
    fill: float = 0.0,
    interpolation: Literal["linear", "bspline"] = "linear",
) -> Image:
    """The image on the voxel grid of `reference`, matched by world position.

    Args:
        image: 2D, 3D or 4D; a 4D image is resampled frame by frame and keeps its frames.
        reference: image whose spatial shape and affine the result gets (its time axis does not matter). The
            result of a 2D image on a 3D reference is 3D, with `fill` away from the slice, and vice versa.
        label: nearest neighbour, and the dtype stays; otherwise the result is float32.
        fill: value of voxels outside the field of view of `image`, which ends half a voxel beyond the
            centres of its outer voxels.
        interpolation: for images; "bspline" is cubic and needs four voxels along each axis.

    Raises:
        InputError: sheared affine, a 4D image with a 2D reference, too few voxels for "bspline", or a label
            `fill` that the dtype does not have.
    """
    if image.data.ndim == 4 and reference.data.ndim == 2:
        raise InputError(
            f"{_name(image.path)} can't be resampled to {_name(reference.path)}: expected a 3D reference "
            "for a "
            "4D image, found a 2D one; resample frame by frame"
        )
    _check_no_shear(reference)
    if label:
        _cast(np.array(fill), image.data.dtype if image.data.dtype != bool else np.dtype(np.uint8), "fill")
    return _resample(image, reference.shape[:3], reference.affine.copy(), label, interpolation, fill)


def to_sitk(image: Image):
    """The image as a SimpleITK image: 3D, or 4D with the time step of the header as fourth spacing.

    Origin and direction are in LPS, as ITK has them. A 2D image becomes a volume with one slice, because a 2D
    ITK image has no place in 3D space. bool becomes uint8 and float16 becomes float32.

    Raises:
        InputError: sheared affine, or complex voxels.
    """
    import SimpleITK as sitk

    _check_no_shear(image)
    if image.data.dtype.kind == "c":
        raise InputError(
            f"{_name(image.path)} can't be passed to SimpleITK: expected real voxels, found "
            f"{image.data.dtype}; "
            "take the magnitude or the two parts one by one"
        )
    data = image.data[..., None] if image.data.ndim == 2 else image.data
    if data.dtype == bool or data.dtype == np.float16:
        data = data.astype(np.uint8 if data.dtype == bool else np.float32)
    lps = RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    result = sitk.GetImageFromArray(data.transpose(), isVector=False)
    if data.ndim == 3:
        result.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        result.SetSpacing(spacing.tolist())
        result.SetOrigin(lps[:3, 3].tolist())
    else:
        direction = np.eye(4)
        direction[:3, :3] = lps[:3, :3] / spacing
        time_step = float(image.header["pixdim"][4]) if int(image.header["dim"][0]) == 4 else 1.0
        result.SetDirection(direction.ravel().tolist())
        result.SetSpacing([*spacing.tolist(), time_step if time_step > 0 else 1.0])
        result.SetOrigin([*lps[:3, 3].tolist(), 0.0])
    return result


def from_sitk(sitk_image, path: Path | None = None) -> Image:
    """Inverse of `to_sitk`, with a fresh header; a 2D ITK image becomes a 2D slice at z = 0.

    Args:
        sitk_image: 2D, 3D or 4D SimpleITK image with one value per voxel.
        path: name for error messages.

    Raises:
        InputError: several values per voxel (RGB, displacement field).
    """
    import SimpleITK as sitk

    if sitk_image.GetNumberOfComponentsPerPixel() > 1 and "complex" not in sitk_image.GetPixelIDTypeAsString():
        raise InputError(
            f"{_name(path)} can't be used as an image: expected one value per voxel, found "
            f"{sitk_image.GetNumberOfComponentsPerPixel()} ({sitk_image.GetPixelIDTypeAsString()}); "
            "convert it to "
            "grey values or extract one component"
        )
    ndim = sitk_image.GetDimension()
    spatial = min(ndim, 3)
    direction = np.array(sitk_image.GetDirection()).reshape(ndim, ndim)[:spatial, :spatial]
    lps = np.eye(4)
    lps[:spatial, :spatial] = direction * np.array(sitk_image.GetSpacing())[:spatial]
    lps[:spatial, 3] = sitk_image.GetOrigin()[:spatial]
    image = make_image(sitk.GetArrayFromImage(sitk_image).transpose(), RAS_TO_LPS @ lps, path)
    if ndim == 4:
        image.header["pixdim"][4] = sitk_image.GetSpacing()[3]
    return image


def read_dicom_series(folder: str | Path, series_uid: str | None = None) -> Image:
    """Read one DICOM series from the files directly in `folder`, slices sorted by position along the normal.

    Voxels have the rescale slope and intercept applied (Hounsfield units for CT). File names do not matter.

    Args:
        folder: folder of the files; other files in it are ignored.
        series_uid: SeriesInstanceUID, needed if the folder has several series.

    Returns:
        3D Image in scanner coordinates, converted from the LPS of DICOM to RAS+.

    Raises:
        InputError: no such folder; no DICOM files; several series and no choice, or a choice that is not
            there; slices that are missing, doubled, tilted against the stack, or can't be read.
    """
    import SimpleITK as sitk

    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist: expected a folder with a DICOM series; check the path")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file: expected the folder that holds a DICOM series; pass {folder.parent} instead"
        )
    if not any(folder.iterdir()):
        raise InputError(
            f"{folder} is empty: expected a folder with a DICOM series; copy the files there or correct the path"
        )
    with _quiet_itk():
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if not found:
            raise InputError(
                f"{folder} holds no DICOM image: expected the files of a series directly in it, found "
                f"{sum(1 for _ in folder.iterdir())} other entries; pass the folder that holds the files"
            )
        files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found}
        if series_uid is None and len(found) == 1:
            series_uid = found[0]
        if series_uid not in files:
            listing = ", ".join(f"{uid} ({_describe(files[uid][0])}{len(files[uid])} files)" for uid in sorted(files))
            wanted = "one series" if series_uid is None else f"the series {series_uid}"
            raise InputError(f"{folder} can't be read: expected {wanted}, found {listing}; choose with series_uid")
        names = files[series_uid]
        if len(names) > 1:
            _check_slices(names, folder)
        try:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(names)
            image = reader.Execute()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"{folder} can't be read as one volume: expected complete slices of the same size, found "
                "an error "
                f"in series {series_uid} ({reason}); copy or export the series again"
            ) from error
    return from_sitk(image, folder)


def dicom_to_nifti(folder: str | Path, path: str | Path, series_uid: str | None = None) -> Image:
    """Read a DICOM series (`read_dicom_series`), write it to `path` (`save`) and return it.

    Raises:
        InputError: as in these two functions.
    """
    _suffix(Path(path))  # a wrong name is reported before the series is read
    image = read_dicom_series(folder, series_uid)
    save(path, image.data, like=image)
    return image


# Reading ----------------------------------------------------------------------------------------------------


def _name(path: Path | None) -> str:
    return "the image" if path is None else str(path)


def _list(values: Sequence, most: int = 8) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:most])
    return shown + (", ..." if len(values) > most else "")


def _suffix(path: Path) -> str:
    """'.nii' or '.nii.gz' as written in the name."""
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    raise InputError(
        f"{path} has the wrong suffix: expected .nii or .nii.gz, found '{path.suffix}'; rename or convert the file"
    )


def _opener(path: Path):
    """`open` or `gzip.open`, once the file is known to be there and to be what its suffix says."""
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a NIfTI file, found nothing there; check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a .nii or .nii.gz file; pass one of the files in it")
    zipped = _suffix(path).lower() == ".nii.gz"
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
            f"{path} is not gzip-compressed: expected gzip data because of its suffix, found other bytes; "
            "rename it "
            "to .nii if it is an uncompressed NIfTI file, or download it again"
        )
    if not zipped and start == b"\x1f\x8b":
        raise InputError(
            f"{path} is gzip-compressed: expected an uncompressed file because of its suffix; rename it to .nii.gz"
        )
    return gzip.open if zipped else open


def _image_class(start: bytes, path: Path):
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
        f"{path} is not a NIfTI file: expected a NIfTI-1 or NIfTI-2 header, found other bytes; convert it "
        "to NIfTI "
        "or check that this is the right file"
    )


def _check_shape(shape: Sequence[int], name: str, ndim: int | Collection[int] | None = None) -> None:
    allowed = {2, 3, 4} if ndim is None else {ndim} if isinstance(ndim, int) else set(ndim)
    if len(shape) not in allowed:
        wanted = " or ".join(f"{n}D" for n in sorted(allowed))
        raise InputError(
            f"{name} has the wrong number of dimensions: expected {wanted}, found {len(shape)}D with shape "
            f"{tuple(shape)}; extract the part you need or pass another file"
        )
    if min(shape) < 1:
        raise InputError(
            f"{name} has no voxels: expected at least one along each dimension, found the shape "
            f"{tuple(shape)}; "
            "create the file again"
        )


def _check_raw_header(header, path: Path, ndim: int | Collection[int] | None) -> None:
    """Dimensions and spacing as stored, before nibabel replaces a spacing of zero by one."""
    count = int(header["dim"][0])
    shape = tuple(int(size) for size in header["dim"][1 : count + 1])
    _check_shape(shape, str(path), ndim)
    if not header.single_vox_offset <= float(header["vox_offset"]) < math.inf:
        raise InputError(
            f"{path} has no valid vox_offset: expected voxels from byte {header.single_vox_offset} on, found "
            f"{float(header['vox_offset']):g} in the header; correct the header or convert the image again"
        )
    stored = [float(size) for size in header["pixdim"][1 : len(shape) + 1]]
    if not np.isfinite(stored).all() or 0.0 in stored[:3]:
        raise InputError(
            f"{path} has no valid voxel spacing: expected finite values other than zero, found "
            f"({_list(stored)}) in "
            "pixdim; correct the header or convert the image again"
        )


def _check_length(header, path: Path) -> None:
    """Refuse a file too short for its header before any memory is set aside for the voxels."""
    shape = tuple(int(size) for size in header["dim"][1 : int(header["dim"][0]) + 1])
    expected = math.prod(shape) * header.get_data_dtype().itemsize + int(header["vox_offset"])
    found = path.stat().st_size
    zipped = _suffix(path).lower() == ".nii.gz"
    if found * (MAX_GZIP_RATIO if zipped else 1) < expected:
        raise InputError(
            f"{path} is truncated: expected {expected} bytes{' before compression' if zipped else ''} for "
            "the shape "
            f"{shape}, found a file of {found} bytes; copy or download it again"
        )


def _check_numeric(dtype: np.dtype, path: Path) -> None:
    if dtype.kind not in "biufc":
        raise InputError(
            f"{path} has no grey values: expected numbers as voxels, found the type {dtype}; convert it to grey values"
        )


def _read_voxels(image, path: Path) -> np.ndarray:
    """Voxels with scl_slope and scl_inter applied, in native byte order."""
    proxy = image.dataobj
    data = proxy.get_unscaled()
    _check_numeric(data.dtype, path)
    scaled_type = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64
    if data.dtype.kind != "c" and (proxy.slope != 1 or proxy.inter != 0):
        data = (data * np.float64(proxy.slope) + np.float64(proxy.inter)).astype(scaled_type)
    elif proxy.slope != 1 or proxy.inter != 0:
        data = data * proxy.slope + proxy.inter
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _mm_per_unit(header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)


def _header_affine(header, ndim: int) -> np.ndarray:
    """Affine of the header (sform, else qform, else pixdim) in mm. A 2D image without normal gets 1 mm."""
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _mm_per_unit(header)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    if ndim == 2 and not affine[:3, 2].any() and normal.any():
        affine[:3, 2] = normal / np.linalg.norm(normal)
    return affine


def _check_affine(affine: np.ndarray, name: str) -> None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise InputError(
            f"{name} has no valid affine: expected a finite 4x4 matrix with last row 0, 0, 0, 1, found "
            f"({_list(affine.ravel().tolist(), 16)}); correct the sform or qform of the header"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise InputError(
            f"{name} has a singular affine: expected three independent voxel axes, found the columns "
            f"({_list(affine[:3, :3].T.ravel().tolist(), 9)}); correct the sform or qform of the header"
        )


def _check_finite(data: np.ndarray, name: str) -> None:
    if data.dtype.kind not in "fc":
        return
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise InputError(
            f"{name} has voxels without a value: expected finite numbers, found {bad} NaN or infinite "
            "voxels of "
            f"{data.size}; repair the data or pass allow_nan=True"
        )


# Writing ----------------------------------------------------------------------------------------------------


def _narrowest(lowest: int, highest: int) -> np.dtype:
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64 if highest <= np.iinfo(np.int64).max else np.uint64)


def _disk_dtype(data: np.ndarray, dtype: np.dtype | type | str | None, like: Image | None) -> np.dtype:
    if dtype is not None:
        return np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
    if data.dtype == bool:
        return np.dtype(np.uint8)
    if data.dtype == np.float16:
        return np.dtype(np.float32)
    if data.dtype.kind in "iu" and data.dtype.itemsize == 8:
        if like is not None and like.header.get_data_dtype().newbyteorder("=") == data.dtype:
            return data.dtype
        return _narrowest(int(data.min()), int(data.max()))
    return data.dtype


def _cast(data: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Convert, but to an integer type only if every value survives."""
    if data.dtype == dtype:
        return data
    if data.dtype.kind == "c" and dtype.kind != "c":
        raise InputError(
            f"{name} has complex voxels: expected values that {dtype} can hold, found {data.dtype}; take the magnitude"
        )
    if dtype.kind in "iu" and data.dtype.kind in "iuf":
        lowest, highest = data.min(), data.max()
        limits = np.iinfo(dtype)
        # The comparison of Python numbers is exact; NaN fails it.
        inside = limits.min <= lowest.item() and highest.item() <= limits.max
        if not inside or (data.dtype.kind == "f" and (data != np.round(data)).any()):
            raise InputError(
                f"{name} has voxels that {dtype} can't hold: expected integers from {limits.min} to "
                f"{limits.max}, "
                f"found values from {lowest:g} to {highest:g}, maybe with fractions; round them or choose "
                "another dtype"
            )
    with np.errstate(over="ignore"):
        return data.astype(dtype)


def _set_shape(header, shape: Sequence[int], name: str) -> None:
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


def _check_like(data: np.ndarray, like: Image, path: Path) -> None:
    if data.shape[:3] != like.shape[:3]:
        raise InputError(
            f"{path} can't be written like {_name(like.path)}: expected the spatial shape "
            f"{like.shape[:3]}, found "
            f"{data.shape[:3]}; resample the data to that image first"
        )


# Geometry ---------------------------------------------------------------------------------------------------


def _is_sheared(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0:
        return True
    axes = affine[:3, :3] / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE)


def _check_no_shear(image: Image) -> None:
    if _is_sheared(image.affine):
        raise InputError(
            f"{_name(image.path)} has a sheared affine: expected voxel axes at right angles for "
            "resampling, found the "
            f"columns ({_list(image.affine[:3, :3].T.ravel().tolist(), 9)}); remove the shear (gantry "
            "tilt) first"
        )


def _moved_header(header, old_affine: np.ndarray, new_affine: np.ndarray, shape: Sequence[int], name: str) -> Any:
    """Copy of the header for a new grid. Affines are in mm.

    The sform becomes `new_affine`. A qform in use goes along by the same voxel map, so a qform that
    differs from the sform still does; it is dropped if that would shear it.
    """
    header = header.copy()
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    qform = header.get_qform() if qform_code else None
    _set_shape(header, shape, name)
    sform = new_affine.copy()
    sform[:3] /= _mm_per_unit(header)
    header.set_sform(sform, sform_code or qform_code or 1)
    if qform is not None:
        qform = qform @ np.linalg.inv(old_affine) @ new_affine
    if qform is None or _is_sheared(qform):
        header.set_qform(sform, 0)  # for the spacing in pixdim
    else:
        header.set_qform(qform, qform_code)
    return header


def _ras_plan(image: Image) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which old axis each new one is, and whether that is flipped: ((2, 0, 1), (False, True, False))."""
    from nibabel.orientations import io_orientation

    spatial = min(image.data.ndim, 3)
    target = io_orientation(image.affine)[:spatial]
    order = tuple(int(axis) for axis in np.argsort(target[:, 0]))
    return order, tuple(bool(target[axis, 1] < 0) for axis in order)


def _reorder(data: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    """Permute the spatial axes, then flip the new ones; a copy in memory order, as torch needs it."""
    spatial = len(order)
    moved = data.transpose(*order, *range(spatial, data.ndim))
    return np.array(moved[tuple(slice(None, None, -1 if flip else None) for flip in flips)], order="C")


def _voxel_map(image: Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    """(4, 4) from new voxel index to old voxel index of `_reorder`."""
    moved = np.eye(4)
    spatial = len(order)
    moved[:spatial, :spatial] = 0
    for new, (old, flip) in enumerate(zip(order, flips)):
        moved[old, new] = -1 if flip else 1
        moved[old, 3] = image.shape[old] - 1 if flip else 0
    return moved


def _move_slice_fields(header, order: tuple[int, ...], flips: tuple[bool, ...], shape: Sequence[int]) -> None:
    """Let freq, phase and slice axis and the slice order of the header follow the axes."""
    axes = header.get_dim_info()
    if any(axis is not None and axis >= len(order) for axis in axes):
        return
    header.set_dim_info(*(None if axis is None else order.index(axis) for axis in axes))
    slice_axis = axes[2]
    code = int(header["slice_code"])
    if slice_axis is not None and flips[order.index(slice_axis)] and 1 <= code <= 6:
        first, last = int(header["slice_start"]), int(header["slice_end"])
        header["slice_code"] = code + 1 if code % 2 else code - 1  # increasing and decreasing are neighbours
        header["slice_start"] = shape[slice_axis] - 1 - last
        header["slice_end"] = shape[slice_axis] - 1 - first


def _resample(
    image: Image,
    shape: tuple[int, ...],
    affine: np.ndarray,
    label: bool,
    interpolation: str,
    fill: float | None,
) -> Image:
    """Resample to a grid of spatial `shape` (two or three sizes). fill None repeats the outer voxels."""
    import SimpleITK as sitk

    name = _name(image.path)
    methods = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}
    if interpolation not in methods:
        raise InputError(
            f"{name} can't be resampled: expected the interpolation linear or bspline, found "
            f"'{interpolation}'; "
            "choose one of them (labels are always resampled with nearest neighbour)"
        )
    if interpolation == "bspline" and not label and (image.data.ndim == 2 or min(image.shape[:3]) < 4):
        raise InputError(
            f"{name} can't be resampled with bspline: expected a volume with four voxels or more along "
            "each axis, found "
            f"the shape {image.shape}; use linear"
        )
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([*shape, 1][:3])
    resampler.SetOutputDirection((lps[:3, :3] / spacing).ravel().tolist())
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputOrigin(lps[:3, 3].tolist())
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if label else methods[interpolation])
    if not label:
        resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(float(fill or 0))
    resampler.SetUseNearestNeighborExtrapolator(fill is None)

    frames = image.shape[3:]
    dtype = image.data.dtype if label else np.dtype(np.float32)
    data = np.empty((*shape, *frames), dtype=dtype, order="F")
    for frame in np.ndindex(frames):
        voxels = image.data[(..., *frame)] if frames else image.data
        result = sitk.GetArrayFromImage(resampler.Execute(to_sitk(replace(image, data=voxels)))).T
        data[(..., *frame)] = result.reshape(shape)
    return replace(
        image, data=data, affine=affine, header=_moved_header(image.header, image.affine, affine, data.shape, name)
    )


# DICOM ------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet_itk():
    """Keep GDCM's remarks about files that are not DICOM off the terminal."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _dicom_tags(name: str) -> dict[str, str]:
    """Tags of one file, as 'gggg|eeee': value."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def _describe(name: str) -> str:
    try:
        description = _dicom_tags(name).get("0008|103e", "")
    except RuntimeError:
        return ""
    return f"{description}, " if description else ""


def _check_slices(names: Sequence[str], folder: Path) -> None:
    """The slices must lie on one even, straight stack; ITK only warns when they do not."""
    positions, orientations = [], []
    for name in names:
        try:
            tags = _dicom_tags(name)
            positions.append([float(value) for value in tags["0020|0032"].split("\\")])
            orientations.append([float(value) for value in tags["0020|0037"].split("\\")])
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name} can't be placed in its series: expected a DICOM slice with position and "
                "orientation (tags "
                "0020,0032 and 0020,0037), found none that can be read; copy or export the series again"
            ) from error
    positions, orientations = np.array(positions), np.array(orientations)
    if np.abs(orientations - orientations[0]).max() > SHEAR_TOLERANCE:
        raise InputError(
            f"{folder} is not one volume: expected slices that are all parallel, found several "
            "orientations; keep the "
            "slices of one stack"
        )
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    gaps = np.diff(positions @ normal)
    step = (positions[-1] - positions[0]) / (len(names) - 1)
    distance = abs(step @ normal)
    even = positions[0] + np.arange(len(names))[:, None] * step
    if distance == 0 or np.abs(positions - even).max() > SLICE_GAP_TOLERANCE * distance:
        raise InputError(
            f"{folder} is not one even stack of {len(names)} slices: expected the same distance between "
            "neighbours, "
            f"found {np.abs(gaps).min():.3g} to {np.abs(gaps).max():.3g} mm; add the missing slices, or "
            "split the "
            "series if it holds several volumes"
        )
    if np.linalg.norm(step - (step @ normal) * normal) > SHEAR_TOLERANCE * distance:
        raise InputError(
            f"{folder} is a tilted stack: expected slices stacked along their normal, found a shift of "
            f"{np.linalg.norm(step - (step @ normal) * normal):.3g} mm per slice (gantry tilt); correct "
            "the tilt first"
        )
