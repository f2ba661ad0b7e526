"""Turn a DICOM series into an `Image`."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared.errors import InputError
from shared.nifti import Image, from_sitk, save
from shared.nifti_header import SHEAR_TOLERANCE, suffix_of

# Slice positions of a DICOM series may be off an even grid by this fraction of the slice distance.
SLICE_GAP_TOLERANCE = 0.05


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
                f"{folder} can't be read as one volume: expected complete slices of the same size, found an error in "
                f"series {series_uid} ({reason}); copy or export the series again"
            ) from error
    return from_sitk(image, folder)


def dicom_to_nifti(folder: str | Path, path: str | Path, series_uid: str | None = None) -> Image:
    """Read a DICOM series (`read_dicom_series`), write it to `path` (`save`) and return it.

    Raises:
        InputError: as in these two functions.
    """
    suffix_of(Path(path))  # a wrong name is reported before the series is read
    image = read_dicom_series(folder, series_uid)
    save(path, image.data, like=image)
    return image


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
                f"{name} can't be placed in its series: expected a DICOM slice with position and orientation (tags "
                "0020,0032 and 0020,0037), found none that can be read; copy or export the series again"
            ) from error
    positions, orientations = np.array(positions), np.array(orientations)
    if np.abs(orientations - orientations[0]).max() > SHEAR_TOLERANCE:
        raise InputError(
            f"{folder} is not one volume: expected slices that are all parallel, found several orientations; keep the "
            "slices of one stack"
        )
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    gaps = np.diff(positions @ normal)
    step = (positions[-1] - positions[0]) / (len(names) - 1)
    distance = abs(step @ normal)
    even = positions[0] + np.arange(len(names))[:, None] * step
    if distance == 0 or np.abs(positions - even).max() > SLICE_GAP_TOLERANCE * distance:
        raise InputError(
            f"{folder} is not one even stack of {len(names)} slices: expected the same distance between neighbours, "
            f"found {np.abs(gaps).min():.3g} to {np.abs(gaps).max():.3g} mm; add the missing slices, or split the "
            "series if it holds several volumes"
        )
    if np.linalg.norm(step - (step @ normal) * normal) > SHEAR_TOLERANCE * distance:
        raise InputError(
            f"{folder} is a tilted stack: expected slices stacked along their normal, found a shift of "
            f"{np.linalg.norm(step - (step @ normal) * normal):.3g} mm per slice (gantry tilt); correct the tilt first"
        )
