"""One DICOM file: whether it is an image, whether it is whole, and its elements, or a sentence that names it."""

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import InputError

# Elements longer than this many bytes are left on the disk until their values are asked for.
DEFERRED = 4096
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
AGAIN = "copy or export the series again"


@dataclass(frozen=True)
class DicomFile:
    """A complete DICOM file with an image in it."""

    path: Path
    dataset: Any
    """pydicom dataset, its pixels still on the disk"""

    def get(self, keyword: str) -> Any:
        """Value of an element, None if it is empty or not there."""
        try:
            value = self.dataset.get(keyword)
        except Exception as error:  # pydicom reports values that it can't convert in many ways
            raise InputError(
                f"{self.path} is damaged: expected a number or a name as {keyword}, found what can't be read "
                f"({reason_of(error)}); {AGAIN}"
            ) from error
        return None if value == "" else value

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        """Value of an element with `count` finite numbers, which a slice can't do without."""
        value = self.get(keyword)
        if value is None:
            raise InputError(
                f"{self.path} has no {keyword}: expected this element in every slice of a volume, found none; export "
                "the series with its complete headers"
            )
        try:
            numbers = np.array(value, dtype=np.float64).ravel()
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.size != count or not np.isfinite(numbers).all():
            raise InputError(
                f"{self.path} is damaged: expected {count} finite numbers as {keyword}, found {flat(value)}; {AGAIN}"
            )
        return numbers


@contextmanager
def quiet():
    """Keep the libraries' remarks about elements that are not as the standard wants off the terminal."""
    import pydicom

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: str | Path) -> bool:
    """Whether a file starts as DICOM files do, with a preamble or, in old ones, with the first group."""
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or start[:2] in (b"\x08\x00", b"\x02\x00")


def read_file(path: Path) -> DicomFile | None:
    """A DICOM image file up to its pixels; None if it is something else.

    Raises:
        InputError: empty, or DICOM but not complete.
    """
    import pydicom

    try:
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty: expected a DICOM file, found 0 bytes; {AGAIN}, or remove the file")
        with open(path, "rb") as file:
            has_preamble = file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputError(
            f"{path} can't be opened: expected a readable file, found '{error.strerror}'; check its permissions"
        ) from error
    if not is_dicom(path):
        return None
    damaged = f"{path} is cut short or damaged: expected a complete DICOM file, found %s; {AGAIN}"
    try:
        dataset = pydicom.dcmread(path, defer_size=DEFERRED, force=not has_preamble)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is None:  # without a preamble, nothing in the file says it
            implicit = pydicom.uid.ImplicitVRLittleEndian if dataset.original_encoding[0] else None
            dataset.file_meta.TransferSyntaxUID = implicit or pydicom.uid.ExplicitVRLittleEndian
        elif syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
            dataset = pydicom.dcmread(path)  # its elements can't be found again in the compressed file
        kind = pydicom.uid.UID(str(dataset.get("SOPClassUID", "")))
        series_uid = dataset.get("SeriesInstanceUID")
    except Exception as error:  # pydicom reports broken files in many ways
        if has_preamble:
            raise InputError(damaged % f"an error ({reason_of(error)})") from error
        return None
    if not kind or not series_uid:
        if has_preamble and "DirectoryRecordSequence" not in dataset:
            raise InputError(damaged % "no SOPClassUID or SeriesInstanceUID")
        return None
    if "Image Storage" not in kind.name:  # a report, a plan, a dose, a segmentation
        return None
    pixels = next((dataset.get_item(keyword, keep_deferred=True) for keyword in PIXELS if keyword in dataset), None)
    if pixels is None:
        raise InputError(damaged % "no pixels")
    undefined = getattr(pixels, "length", 0) == 0xFFFFFFFF
    if pixels.value is None and not undefined and pixels.value_tell + pixels.length > size:
        raise InputError(damaged % f"{size} bytes of {pixels.value_tell + pixels.length}")
    return DicomFile(path, dataset)


def flat(value: Any) -> str:
    """Any value on one line, and a short one."""
    return " ".join(str(value).split())[:160]


def reason_of(error: Exception) -> str:
    return flat(error) or type(error).__name__


def decompress(file: DicomFile) -> None:
    """Put decoded pixels in the place of JPEG Extended ones: GDCM can decode 12 bits, but not when pydicom asks it."""
    import gdcm
    import pydicom

    reader = gdcm.ImageReader()
    reader.SetFileName(str(file.path))
    if not reader.Read():
        raise ValueError("GDCM can't read the file")
    pixels = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    file.dataset.add_new("PixelData", "OW", pixels)
    file.dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
