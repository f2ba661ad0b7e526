"""Turn a DICOM series, or one file, into an `Image`; pixels and geometry are read by highdicom and pydicom.

Voxels are stored values with the rescale slope and intercept of their own file or frame: Hounsfield units for CT,
activity for PET. What is only for display is not applied: no window, no real-world map, and no inversion, so that
MONOCHROME1 keeps its stored order. They are int16, or int32 if they don't fit, where the rescale keeps them whole;
otherwise float32; and float64 where more than 16 bits are stored.

The axes are those of `shared.nifti.Image`: along a row, down the columns, along the normal of the slices.

pydicom and highdicom are imported by the functions that need them, so importing this module is cheap.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared import nifti
from shared.dicom_file import AGAIN, DicomFile, decompress, flat, is_dicom, quiet, read_file, reason_of
from shared.errors import InputError
from shared.nifti_header import SHEAR_TOLERANCE, check_shape, check_size, listed

# Slice positions of a series may be off an even grid by this fraction of the slice distance.
SLICE_GAP_TOLERANCE = 0.05


def load(path: str | Path, series_uid: str | None = None, *, flag: str | None = None) -> nifti.Image:
    """Read a DICOM series from the files directly in a folder, or one DICOM file.

    File names do not matter; slices are put in order by their positions. Files in the folder that are no DICOM images
    (notes, structured reports, plans, doses, segmentations) are ignored. A single file is one slice or, if it is a
    multi-frame file, a volume; it does not bring the rest of its series along.

    Args:
        path: folder or file.
        series_uid: SeriesInstanceUID, needed if the folder has several series of images.
        flag: how the user can give `series_uid`, for the message, e.g. "--series-uid".

    Returns:
        3D Image in scanner coordinates, converted from the LPS of DICOM to RAS+; a single slice is as thick as its
        file says.

    Raises:
        InputError: nothing there; no DICOM image; several series and no choice, or a choice that is not there; a file
            that is empty, cut short or can't be decoded; slices that are missing, doubled, tilted against the stack,
            or of different sizes, spacings or directions; colour; no position, spacing or thickness.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a DICOM file or a folder with a series; check the path")
    try:
        with quiet():
            if path.is_dir():
                return _volume(_series(path, series_uid, flag), path)
            file = read_file(path)
            if file is None:
                raise InputError(f"{path} is no DICOM image: expected one, found other content; pass another file")
            return _volume([file], path)
    except InputError:
        raise
    except Exception as error:  # pydicom converts an element when it is asked for, and fails in ways of its own
        raise InputError(
            f"{path} is damaged: expected DICOM elements that can be read, found an error ({reason_of(error)}); {AGAIN}"
        ) from error


def load_volume(
    path: str | Path,
    series_uid: str | None = None,
    *,
    flag: str | None = "--series-uid",
    ndim: int | Collection[int] | None = 3,
    dtype: np.dtype | type | str | None = None,
) -> nifti.Image:
    """Read what a user calls a scan: a .nii or .nii.gz file, a folder with a DICOM series, or a DICOM file.

    Args:
        path: file or folder.
        series_uid: which series to read from a folder with several. Commands offer it as `--series-uid`.
        flag: as in `load`; None where the user can't choose.
        ndim, dtype: as in `shared.nifti.load`.

    Raises:
        InputError: as in `load` and `shared.nifti.load`.
    """
    path = Path(path)
    if not path.is_dir() and (path.name.lower().endswith((".nii", ".nii.gz")) or not is_dicom(path)):
        return nifti.load(path, ndim=ndim, dtype=dtype)
    image = load(path, series_uid, flag=flag)
    check_shape(image.shape, str(path), ndim)
    return image if dtype is None else replace(image, data=nifti.cast(image.data, np.dtype(dtype), str(path)))


def _series(folder: Path, series_uid: str | None, flag: str | None) -> list[DicomFile]:
    """The files of the only series of images in a folder, or of the one that was chosen."""
    series: dict[str, list[DicomFile]] = {}
    others = []
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_file():
            file = read_file(entry)
            if file is None:
                others.append(entry)
            else:
                series.setdefault(str(file.dataset.SeriesInstanceUID), []).append(file)
    if not entries:
        raise InputError(
            f"{folder} is empty: expected a folder with a DICOM series; copy the files there or correct the path"
        )
    if not series:
        raise InputError(
            f"{folder} holds no DICOM image: expected the files of a series directly in it, found {len(entries)} other "
            "entries; pass the folder that holds the files"
        )
    if series_uid is None and len(series) == 1:
        series_uid = next(iter(series))
    if series_uid not in series:
        found = ", ".join(f"{flat(uid)} ({_describe(series[uid])})" for uid in sorted(series)[:8])
        wanted = "one series" if series_uid is None else f"the series {series_uid}"
        advice = f"choose one with {flag}" if flag else "keep the files of one series in the folder"
        raise InputError(
            f"{folder} can't be read: expected {wanted}, found {found}{', ...' if len(series) > 8 else ''}; {advice}"
        )
    files = series[series_uid]
    suffixes = {file.path.suffix.lower() for file in files} | {".dcm", ".ima"}
    for other in others:
        if other.suffix.lower() in suffixes and not is_dicom(other):
            raise InputError(
                f"{other} is no DICOM file: expected one because it is named like the slices beside it, found other "
                f"content; {AGAIN}, or remove the file"
            )
    return files


def _describe(files: Sequence[DicomFile]) -> str:
    words = [flat(files[0].get(keyword) or "") for keyword in ("Modality", "SeriesDescription")]
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    return ", ".join([*filter(None, words), count])


def _volume(files: Sequence[DicomFile], path: Path) -> nifti.Image:
    """One image from the slices of a series, or from a file with several frames."""
    import highdicom
    import pydicom

    first = files[0]
    _check_grey(files)
    frames = [int(file.numbers("NumberOfFrames", 1)[0]) if file.get("NumberOfFrames") else 1 for file in files]
    shape = (int(first.numbers("Columns", 1)[0]), int(first.numbers("Rows", 1)[0]), sum(frames))
    check_size(shape, str(path), "pass a smaller series")
    bits = int(first.numbers("BitsAllocated", 1)[0])
    several = max(frames) > 1 or first.get("PerFrameFunctionalGroupsSequence") is not None
    whole = _check_frames(files, frames[0], path) if several else _check_slices(files, path)
    whole = whole and "PixelData" in first.dataset and all("ModalityLUTSequence" not in file.dataset for file in files)
    # Stored values with slope and intercept only; see the head of this file.
    options = {
        "dtype": np.float64 if bits > 16 else np.int32 if whole else np.float32,
        "apply_real_world_transform": False,
        "apply_presentation_lut": False,
        "apply_palette_color_lut": False,
        "apply_icc_profile": False,
    }
    for file in files:
        try:
            if file.dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGExtended12Bit:
                decompress(file)
            file.dataset.pixel_array  # noqa: B018  decodes and keeps the pixels
        except Exception as error:  # each decoder has errors of its own
            raise InputError(
                f"{file.path} can't be decoded: expected complete pixels that pydicom can read, found an error "
                f"({reason_of(error)}); {AGAIN}, without compression if this one is whole"
            ) from error
    try:
        if several:
            image = highdicom.Image.from_dataset(first.dataset, copy=False)
            volume = image.get_volume(rtol=2 * SLICE_GAP_TOLERANCE, **options)
        else:
            volume = highdicom.get_volume_from_series(
                [file.dataset for file in files], rtol=2 * SLICE_GAP_TOLERANCE, **options
            )
    except Exception as error:
        raise InputError(
            f"{path} can't be read as one volume: expected slices of one even stack, found an error "
            f"({reason_of(error)}); {AGAIN}, or keep the slices of one stack"
        ) from error
    data, affine = volume.array.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]
    if data.dtype == np.int32 and -(2**15) <= data.min() and data.max() < 2**15:
        data = data.astype(np.int16)
    if data.shape[2] == 1:
        affine[:3, 2] *= _thickness(first) / np.linalg.norm(affine[:3, 2])
    if np.linalg.det(affine[:3, :3]) < 0:
        data = data[:, :, ::-1]
        affine[:3, 3] += affine[:3, 2] * (data.shape[2] - 1)
        affine[:3, 2] *= -1
    return nifti.make_image(data, nifti.RAS_TO_LPS @ affine, path)


def _check_grey(files: Sequence[DicomFile]) -> None:
    """One grey value per pixel, stored the same way in all files."""
    kinds = {}
    for file in files:
        kinds.setdefault(flat(file.get("PhotometricInterpretation")), file.path)
    for kind, path in kinds.items():
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputError(
                f"{path} has no grey values: expected MONOCHROME1 or MONOCHROME2, found {kind}; convert it to grey"
            )
    if len(kinds) > 1:
        raise InputError(
            f"{kinds['MONOCHROME1']} is inverted against the rest of its series: expected MONOCHROME2 as in "
            f"{kinds['MONOCHROME2']}, found MONOCHROME1; {AGAIN}"
        )


def _check_frames(files: Sequence[DicomFile], count: int, path: Path) -> bool:
    """One file, and all its `count` frames placed and scaled in the same way."""
    dataset = files[0].dataset
    if len(files) > 1:
        raise InputError(
            f"{path} can't be read: expected one file with several frames, found {len(files)} files in its series; "
            "pass one of the files"
        )
    frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    if len(frames) != count:
        raise InputError(
            f"{path} can't be placed in space: expected a position for each of its {count} frames, as in enhanced CT "
            f"or MR, found {len(frames)} ({dataset.SOPClassUID.name}); export it as a series of slices"
        )
    try:
        positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
        positions = np.array(positions, dtype=np.float64).reshape(count, 3)
        plane = (shared.get("PlaneOrientationSequence") or frames[0].PlaneOrientationSequence)[0]
        directions = np.array(plane.ImageOrientationPatient, dtype=np.float64).reshape(6)
        measures = [(shared.get("PixelMeasuresSequence") or frame.PixelMeasuresSequence)[0] for frame in frames]
        spacings = np.array([measure.PixelSpacing for measure in measures], dtype=np.float64).reshape(count, 2)
        if not all(np.isfinite(numbers).all() for numbers in (positions, directions, spacings)) or spacings.min() <= 0:
            raise ValueError("numbers that are not finite, or a spacing that is not positive")
        keyword = "PixelValueTransformationSequence"
        scales = [_scale((frame.get(keyword) or shared.get(keyword) or [{}])[0]) for frame in frames]
    except Exception as error:  # pydicom reports values that it can't convert in many ways
        raise InputError(
            f"{path} can't be placed in space: expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing "
            f"for every frame, found otherwise ({reason_of(error)}); {AGAIN}"
        ) from error
    names = [f"frame {number + 1}" for number in range(count)]
    _ensure_reference(files)
    normal = _normal(directions, path)
    order = np.argsort(positions @ normal, kind="stable")
    _check_stack(positions[order], normal, [names[number] for number in order], path)
    return _check_scales(scales, [f"{path}, {name}" for name in names])


def _check_slices(files: Sequence[DicomFile], path: Path) -> bool:
    """The slices must lie on one even, straight stack; what differs only by rounding is made equal for highdicom."""
    first = files[0]
    size = [int(first.numbers(keyword, 1)[0]) for keyword in ("Columns", "Rows")]
    spacing = first.numbers("PixelSpacing", 2)
    directions = first.numbers("ImageOrientationPatient", 6)
    positions = np.array([file.numbers("ImagePositionPatient", 3) for file in files])
    if spacing.min() <= 0:
        raise InputError(
            f"{first.path} can't be placed in space: expected a positive PixelSpacing, found {listed(spacing)}; {AGAIN}"
        )
    for file in files:
        found = [int(file.numbers(keyword, 1)[0]) for keyword in ("Columns", "Rows")]
        if found != size:
            raise InputError(
                f"{file.path} does not fit its series: expected slices of the same size, {size[0]} x {size[1]} as in "
                f"{first.path}, found {found[0]} x {found[1]}; keep the slices of one stack"
            )
        if not np.allclose(file.numbers("PixelSpacing", 2), spacing, rtol=1e-4, atol=0):
            raise InputError(
                f"{file.path} does not fit its series: expected the PixelSpacing {listed(spacing)} of {first.path}, "
                f"found {listed(file.numbers('PixelSpacing', 2))}; keep the slices of one stack"
            )
        if np.abs(file.numbers("ImageOrientationPatient", 6) - directions).max() > SHEAR_TOLERANCE:
            raise InputError(
                f"{path} is not one volume: expected slices that are all parallel, found several orientations "
                f"({first.path.name} and {file.path.name}); keep the slices of one stack"
            )
        file.dataset.PixelSpacing = first.dataset.PixelSpacing
        file.dataset.ImageOrientationPatient = first.dataset.ImageOrientationPatient
    _ensure_reference(files)
    normal = _normal(directions, first.path)
    order = np.argsort(positions @ normal, kind="stable")
    _check_stack(positions[order], normal, [files[number].path.name for number in order], path)
    return _check_scales([_scale(file) for file in files], [file.path for file in files])


def _scale(holder: Any) -> tuple | None:
    """Rescale slope and intercept of a file or frame; None where there is no rescale."""
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    if slope is None and intercept is None:
        return None
    return (1 if slope is None else slope, 0 if intercept is None else intercept)


def _check_scales(scales: Sequence[tuple | None], names: Sequence) -> bool:
    """A rescale for all slices or for none, and no slope of 0, which highdicom takes for none.

    Returns:
        Whether values of 16 bits stay whole numbers, of 32 bits, in all slices.
    """
    whole = True
    for scale, name in zip(scales, names):
        if (scale is None) != (scales[0] is None):
            raise InputError(
                f"{name} does not fit its series: expected a rescale slope and intercept for all slices or for none, "
                f"found otherwise in {names[0]}; {AGAIN}"
            )
        try:
            slope, intercept = (1.0, 0.0) if scale is None else map(float, scale)
            valid = math.isfinite(slope) and math.isfinite(intercept) and slope != 0
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise InputError(
                f"{name} can't be scaled: expected a RescaleSlope other than zero and a RescaleIntercept, found "
                f"{flat(scale[0])} and {flat(scale[1])}; {AGAIN}"
            )
        whole &= slope.is_integer() and intercept.is_integer() and abs(slope) + abs(intercept) < 2**15
    return whole


def _ensure_reference(files: Sequence[DicomFile]) -> None:
    """highdicom wants a FrameOfReferenceUID, which is often lost when patients' names are removed."""
    known = [file.dataset.FrameOfReferenceUID for file in files if file.dataset.get("FrameOfReferenceUID")]
    for file in files:
        if not file.dataset.get("FrameOfReferenceUID"):
            file.dataset.FrameOfReferenceUID = known[0] if known else "1"


def _normal(directions: np.ndarray, path: Path) -> np.ndarray:
    """Normal of the slices, (3,), from the six numbers of ImageOrientationPatient."""
    axes = directions.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 10 * SHEAR_TOLERANCE:  # some files have three digits
        raise InputError(
            f"{path} can't be placed in space: expected two directions of length 1 at right angles as "
            f"ImageOrientationPatient, found {listed(directions)}; {AGAIN}"
        )
    normal = np.cross(*axes)
    return normal / np.linalg.norm(normal)


def _check_stack(positions: np.ndarray, normal: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Even distances along the normal, and no shift across it.

    Args:
        positions: (n, 3) in mm, in the order of the slices.
        normal: (3,) of length 1.
        names: n file names.
    """
    if len(names) == 1:
        return
    gaps = np.diff(positions @ normal)
    step = (positions[-1] - positions[0]) / (len(names) - 1)
    distance = step @ normal
    if gaps.min() <= SLICE_GAP_TOLERANCE * max(distance, 0):
        where = int(gaps.argmin())
        raise InputError(
            f"{path} is not one even stack of {len(names)} slices: expected each position once, found {names[where]} "
            f"and {names[where + 1]} {gaps[where]:.3g} mm apart; keep one image per position (several times, echoes or "
            "copies are several volumes)"
        )
    even = positions[0] + np.arange(len(names))[:, None] * step
    if np.abs((positions - even) @ normal).max() > SLICE_GAP_TOLERANCE * distance:
        where = int(gaps.argmax())
        raise InputError(
            f"{path} is not one even stack of {len(names)} slices: expected the same distance between neighbours, "
            f"found {gaps.min():.3g} to {gaps.max():.3g} mm (most between {names[where]} and {names[where + 1]}); add "
            "the missing slices, or split the series if it holds several volumes"
        )
    across = (positions - positions[0]) @ (np.eye(3) - np.outer(normal, normal))
    shift = np.linalg.norm(across, axis=1).max()
    if shift > max(SLICE_GAP_TOLERANCE, SHEAR_TOLERANCE * (len(names) - 1)) * distance:
        raise InputError(
            f"{path} is a tilted stack: expected slices stacked along their normal, found a shift of {shift:.3g} mm "
            "across it (gantry tilt); correct the tilt first"
        )


def _thickness(file: DicomFile) -> float:
    """Thickness in mm of a single slice."""
    holder = file.dataset
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in holder.get(groups) or []:
            if "PixelMeasuresSequence" in group:
                holder = group.PixelMeasuresSequence[0]
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        try:
            thickness = abs(float(holder.get(keyword)))
        except Exception:  # not there, or nothing that pydicom can convert
            continue
        if 0 < thickness < np.inf:
            return thickness
    raise InputError(
        f"{file.path} is a single slice without thickness: expected the element SliceThickness, found none; pass the "
        "whole series"
    )
