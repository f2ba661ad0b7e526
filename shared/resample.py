"""Put an image on another voxel grid: reorient it without loss, or resample it with SimpleITK."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from shared.errors import InputError
from shared.nifti import RAS_TO_LPS, Image, cast, grid_difference, same_grid, to_sitk
from shared.nifti_header import MAX_VOXELS, check_no_shear, listed, moved_header, name_of, set_shape


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
    header = moved_header(image.header, image.affine, affine, data.shape, name_of(image.path))
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
    name, like_name = name_of(image_ras.path), name_of(like.path)
    if image_ras.data.ndim not in ((2,) if spatial == 2 else (3, 4)) or image_ras.shape[:3] != expected_shape:
        raise InputError(
            f"{name} can't be put into the orientation of {like_name}: expected the spatial shape {expected_shape}, "
            f"found the shape {image_ras.shape}; pass the image that to_ras was given"
        )
    tolerance = 1e-3 * min(like.spacing)
    if not np.allclose(image_ras.affine, expected_affine, rtol=1e-5, atol=tolerance):
        raise InputError(
            f"{name} can't be put into the orientation of {like_name}: expected the affine that to_ras gives, found "
            f"another one ({listed(image_ras.affine[:3].ravel().tolist(), 12)}); pass the image that to_ras was given"
        )
    undo = tuple(int(axis) for axis in np.argsort(order))
    data = _reorder(image_ras.data, undo, tuple(flips[axis] for axis in undo))
    header = like.header.copy()
    set_shape(header, data.shape, name)
    return Image(data, like.affine.copy(), header, image_ras.path)


def on_grid_of(label: Image, image: Image) -> Image:
    """A label map in the voxel order of its image; no interpolation.

    Labels that were saved with axes flipped or permuted, and with the affine that says so, are put in order. Labels on
    the grid of `image` come back as they are.

    Raises:
        InputError: the voxels of the two don't coincide, as in `shared.nifti.same_grid`.
    """
    spatial = min(image.data.ndim, 3)
    between = np.linalg.inv(label.affine) @ image.affine  # from voxels of the image to voxels of the label
    steps = np.round(between[:spatial, :spatial]).astype(int)
    one_to_one = (np.abs(steps).sum(axis=0) == 1).all() and (np.abs(steps).sum(axis=1) == 1).all()
    if not one_to_one or min(label.data.ndim, 3) != spatial or np.array_equal(steps, np.eye(spatial)):
        same_grid(label, image)
        return label
    order = tuple(int(axis) for axis in np.abs(steps).argmax(axis=0))
    flips = tuple(bool(steps[axis, new] < 0) for new, axis in enumerate(order))
    data, affine = _reorder(label.data, order, flips), label.affine @ _voxel_map(label, order, flips)
    header = moved_header(label.header, label.affine, affine, data.shape, name_of(label.path))
    moved = replace(label, data=data, affine=affine, header=header)
    if grid_difference(moved, image):
        same_grid(label, image)  # says what is wrong with the labels as they were given
    return moved


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
        InputError: spacing not positive, or so fine that the result has more than `MAX_VOXELS` voxels; sheared
            affine; too few voxels for "bspline".
    """
    name = name_of(image.path)
    spatial = min(image.data.ndim, 3)
    wanted = np.array(spacing_mm, dtype=np.float64).ravel()
    if wanted.size == 1:
        wanted = np.repeat(wanted, spatial)
    if wanted.size != spatial or not np.isfinite(wanted).all() or (wanted <= 0).any():
        raise InputError(
            f"{name} can't be resampled: expected one positive spacing in mm or one for each of the {spatial} spatial "
            f"axes, found {spacing_mm}; correct the spacing"
        )
    scale = np.ones(3)
    scale[:spatial] = wanted / image.spacing
    with np.errstate(over="ignore", divide="ignore"):
        extent = np.array(image.shape[:spatial]) / scale[:spatial]
    if not np.maximum(extent, 1).prod() * math.prod(image.shape[spatial:]) <= MAX_VOXELS:
        found = " x ".join(f"{size:.4g}" for size in extent)
        raise InputError(
            f"{name} can't be resampled to {listed(wanted.tolist())} mm: expected at most {MAX_VOXELS:,} voxels, found "
            f"{found} from the shape {image.shape} at {listed(image.spacing)} mm; choose a coarser spacing, or correct "
            "the spacing in the header"
        )
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
            f"{name_of(image.path)} can't be resampled to {name_of(reference.path)}: expected a 3D reference for a 4D "
            "image, found a 2D one; resample frame by frame"
        )
    check_no_shear(reference.affine, name_of(reference.path))
    if label:
        cast(np.array(fill), image.data.dtype if image.data.dtype != bool else np.dtype(np.uint8), "fill")
    return _resample(image, reference.shape[:3], reference.affine.copy(), label, interpolation, fill)


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

    name = name_of(image.path)
    methods = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}
    if interpolation not in methods:
        raise InputError(
            f"{name} can't be resampled: expected the interpolation linear or bspline, found '{interpolation}'; choose "
            "one of them (labels are always resampled with nearest neighbour)"
        )
    if interpolation == "bspline" and not label and (image.data.ndim == 2 or min(image.shape[:3]) < 4):
        raise InputError(
            f"{name} can't be resampled with bspline: expected a volume with four voxels or more along each axis, "
            f"found the shape {image.shape}; use linear"
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
        image, data=data, affine=affine, header=moved_header(image.header, image.affine, affine, data.shape, name)
    )


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
