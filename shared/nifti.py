"""Read and write NIfTI volumes.

Everything in memory is in millimetres and in NIfTI world coordinates (RAS+: x grows to the patient's right,
y to anterior, z to superior). A file whose header says metres or microns is converted on load, and converted
back on save. Arrays keep the voxel order of the file, (x, y), (x, y, z) or (x, y, z, t).

A 2D image is a slice in 3D space: `data` has two axes, `affine` is still 4x4 and its third column is the
slice normal times the slice thickness (1 mm if the file leaves it out). No function here turns a 2D image
into a volume with one slice, or back, except `to_sitk` and `shared.resample.resample_to`, which say so.

nibabel and SimpleITK are imported by the functions that need them, so importing this module is cheap.
"""

import os
import uuid
import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import InputError
from shared.nifti_header import (
    affine_of_header,
    check_affine,
    check_length,
    check_no_shear,
    check_numeric,
    check_raw_header,
    check_shape,
    check_size,
    check_units,
    data_shape,
    image_class_of,
    is_sheared,
    listed,
    mend_qform,
    moved_header,
    name_of,
    opener_of,
    set_shape,
    suffix_of,
)

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# A label belongs to an image if no voxel centre is further away than this, in voxels of the image along each axis.
GRID_TOLERANCE = 0.1


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

    name = name_of(path)
    data = np.asarray(data)
    affine = np.array(affine, dtype=np.float64)
    check_shape(data.shape, name)
    check_affine(affine, name)
    header = nibabel.Nifti1Header()
    set_shape(header, data.shape, name)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(affine, 1)
    header.set_qform(affine, 0 if is_sheared(affine) else 1)
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
        dtype: convert the voxels to this type; to an integer type only if nothing is lost. Complex voxels are
            refused unless a complex type is asked for.
        allow_nan: accept NaN and infinite voxels.

    Raises:
        InputError: no such file; not a NIfTI file; truncated or corrupt; wrong number of dimensions; a
            dimension of size zero; more voxels than `shared.nifti_header.MAX_VOXELS`; spacing, unit or affine that
            can't be used; voxels that are not numbers, not finite, or don't fit `dtype`.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    path = Path(path)
    opener = opener_of(path)
    damaged = (
        f"{path} can't be read: expected a complete NIfTI file, found one that is truncated or corrupt "
        "({reason}); copy or download it again"
    )
    try:
        with opener(path, "rb") as stream:
            image_class = image_class_of(stream.read(540), path)
            stream.seek(0)
            header = image_class.header_class.from_fileobj(stream, check=False)
            check_raw_header(header, path, ndim)
            check_length(header, path)
            check_size(data_shape(header), str(path), "crop or resample the volume")
            header.check_fix()
            mend_qform(header)
            affine = affine_of_header(header, int(header["dim"][0]))
            check_affine(affine, str(path))
            check_units(header, affine, int(header["dim"][0]), str(path))
            image = image_class(image_class.ImageArrayProxy(stream, header.copy(), mmap=False), None, header)
            data = _read_voxels(image, path)
            while stream.read(1 << 20):  # to the end, where gzip checks its sum
                pass
    except InputError:
        raise
    except EOFError as error:
        raise InputError(damaged.format(reason="it ends too early")) from error
    except (OSError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(damaged.format(reason=reason)) from error
    if not allow_nan:
        _check_finite(data, str(path))
    if dtype is not None or data.dtype.kind == "c":
        data = cast(data, np.dtype(dtype or np.float64), str(path))
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
    wanted = listed(values) if values != list(range(len(values))) else f"0 to {len(values) - 1}"
    for unfit, what in (
        (found != np.round(found), "are not integers"),
        (~np.isin(found, values), "are not among them"),
    ):
        if unfit.any():
            raise InputError(
                f"{path} is no valid label map: expected the labels {wanted}, found {counts[unfit].sum()} voxels with "
                f"values that {what} ({listed(found[unfit].tolist())}); remap the labels or check that this is the "
                "right file"
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
    suffix = suffix_of(path)
    if path.is_dir():
        raise InputError(f"{path} can't be written: expected a file name, found a folder; choose another name")
    data = np.asarray(data)
    check_shape(data.shape, str(path))
    check_numeric(data.dtype, path)
    if not allow_nan:
        _check_finite(data, str(path))

    if like is None:
        header = make_image(data, affine, path).header
    else:
        _check_like(data, like, path)
        header = like.header.copy()
        header_affine = affine_of_header(header, like.data.ndim)
        if not np.allclose(header_affine, like.affine, rtol=1e-6, atol=1e-6):
            check_affine(like.affine, name_of(like.path))
            header = moved_header(header, header_affine, like.affine, like.shape, str(path))
        set_shape(header, data.shape, str(path))
    data = cast(data, _disk_dtype(data, dtype, like), str(path))
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
            f"{path} can't be written: expected {path.parent} to be a folder, found a file in its place; choose "
            "another folder"
        ) from error
    temporary = path.with_name(f".{path.name[: -len(suffix)]}.{uuid.uuid4().hex[:8]}{suffix}")
    try:
        image.to_filename(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def grid_difference(label: Image, image: Image) -> str | None:
    """How the voxel grid of `label` differs from that of `image`, in words; None if it is the same.

    The same grid has the same spatial shape, and no voxel centre more than `GRID_TOLERANCE` voxels away from that of
    the image. A time axis does not count.
    """
    if label.shape[:3] != image.shape[:3]:
        return f"expected the same spatial shape {image.shape[:3]}, found {label.shape[:3]}"
    sizes = [*image.shape[:3], 1][:3]
    corners = np.array([[*np.multiply(corner, np.subtract(sizes, 1)), 1] for corner in np.ndindex(2, 2, 2)]).T
    apart = label.affine @ corners - image.affine @ corners
    voxels = np.abs(np.linalg.inv(image.affine) @ apart).max()
    if voxels <= GRID_TOLERANCE:
        return None
    found = f"expected the same affine, found voxels up to {np.linalg.norm(apart, axis=0).max():.3g} mm apart"
    if label.orientation != image.orientation:
        found += f" (axes to {', '.join(label.orientation)}, not {', '.join(image.orientation)})"
    return found


def same_grid(
    label: Image, image: Image, label_path: str | Path | None = None, image_path: str | Path | None = None
) -> None:
    """Check that a label map, mask or second modality lies on the voxels of its image.

    Args:
        label_path, image_path: names for the message, where the images don't have their own.

    Raises:
        InputError: another shape, or an affine that moves a voxel by more than a tenth of its size. Where the axes are
            merely flipped or permuted, `shared.resample.on_grid_of` puts them in order instead.
    """
    difference = grid_difference(label, image)
    if difference:
        name, image_name = label_path or name_of(label.path), image_path or image.path or "its image"
        raise InputError(
            f"{name} does not lie on the voxels of {image_name}: {difference}; resample it to that image (nearest "
            "neighbour for labels), or correct its header"
        )


def to_sitk(image: Image):
    """The image as a SimpleITK image: 3D, or 4D with the time step of the header as fourth spacing.

    Origin and direction are in LPS, as ITK has them. A 2D image becomes a volume with one slice, because a 2D
    ITK image has no place in 3D space. bool becomes uint8 and float16 becomes float32.

    Raises:
        InputError: sheared affine, or complex voxels.
    """
    import SimpleITK as sitk

    check_no_shear(image.affine, name_of(image.path))
    if image.data.dtype.kind == "c":
        raise InputError(
            f"{name_of(image.path)} can't be passed to SimpleITK: expected real voxels, found {image.data.dtype}; take "
            "the magnitude or the two parts one by one"
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
            f"{name_of(path)} can't be used as an image: expected one value per voxel, found "
            f"{sitk_image.GetNumberOfComponentsPerPixel()} ({sitk_image.GetPixelIDTypeAsString()}); convert it to grey "
            "values or extract one component"
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


def _read_voxels(image, path: Path) -> np.ndarray:
    """Voxels with scl_slope and scl_inter applied, in native byte order."""
    proxy = image.dataobj
    data = proxy.get_unscaled()
    check_numeric(data.dtype, path)
    scaled_type = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64
    if data.dtype.kind != "c" and (proxy.slope != 1 or proxy.inter != 0):
        data = (data * np.float64(proxy.slope) + np.float64(proxy.inter)).astype(scaled_type)
    elif proxy.slope != 1 or proxy.inter != 0:
        data = data * proxy.slope + proxy.inter
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _check_finite(data: np.ndarray, name: str) -> None:
    if data.dtype.kind not in "fc":
        return
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise InputError(
            f"{name} has voxels without a value: expected finite numbers, found {bad} NaN or infinite voxels of "
            f"{data.size}; repair the data or pass allow_nan=True"
        )


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


def cast(data: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
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
                f"{name} has voxels that {dtype} can't hold: expected integers from {limits.min} to {limits.max}, "
                f"found values from {lowest:g} to {highest:g}, maybe with fractions; round them or choose another dtype"
            )
    with np.errstate(over="ignore"):
        return data.astype(dtype)


def _check_like(data: np.ndarray, like: Image, path: Path) -> None:
    if data.shape[:3] != like.shape[:3]:
        raise InputError(
            f"{path} can't be written like {name_of(like.path)}: expected the spatial shape {like.shape[:3]}, found "
            f"{data.shape[:3]}; resample the data to that image first"
        )
