"""DICOM series with known voxels and geometry, written by pydicom, and the ways in which they go wrong."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
PET = "1.2.840.10008.5.1.4.1.1.128"
RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
SERIES_UID = "1.2.826.0.1.3680043.2.1125.1"


def geometry(affine, k=0):
    """Position, orientation, pixel spacing and thickness of slice k of a volume with a RAS+ affine."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    x, y = (lps[:3, :2] / spacing[:2]).T
    position = (lps @ [0, 0, k, 1])[:3]
    return _text(position), _text([*x, *y]), _text([spacing[1], spacing[0]]), _text([spacing[2]])[0]


def _text(values):
    return [f"{value:.9g}"[:16] for value in values]


def image(pixels, sop_class, series_uid=SERIES_UID, syntax=ExplicitVRLittleEndian, **elements):
    """A data set with stored `pixels`, (rows, columns) or (frames, rows, columns)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[str(series_uid), pixels.tobytes().hex(), str(elements)]
    )
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = SERIES_UID + ".0", series_uid
    dataset.FrameOfReferenceUID = SERIES_UID + ".9"
    dataset.PatientName, dataset.PatientID = "Phantom", "1"
    dataset.Modality = {CT: "CT", ENHANCED_CT: "CT", MR: "MR", PET: "PT", RT_DOSE: "RTDOSE"}.get(sop_class, "OT")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    update(dataset, elements)
    return dataset


def update(dataset, elements):
    """Set elements; None takes one away."""
    for keyword, value in elements.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)


def slices(data, affine, sop_class=CT, change=lambda k: {}, **elements):
    """One data set per slice along the third axis of `data`, (x, y, z) of stored values.

    `change(k)` gives the elements of slice k, `elements` those of all.
    """
    found = []
    for k in range(data.shape[2]):
        position, orientation, spacing, thickness = geometry(affine, k)
        placed = dict(
            ImagePositionPatient=position,
            ImageOrientationPatient=orientation,
            PixelSpacing=spacing,
            SliceThickness=thickness,
            InstanceNumber=k + 1,
        )
        found.append(image(np.ascontiguousarray(data[:, :, k].T), sop_class, **{**placed, **elements, **change(k)}))
    return found


def enhanced(data, affine, order=None, slopes=None, intercepts=None, **elements):
    """One enhanced CT file; its frames are the slices `order`, with a rescale of their own."""
    order = list(range(data.shape[2])) if order is None else order
    _, orientation, spacing, thickness = geometry(affine)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = spacing, thickness
    plane.ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for number, k in enumerate(order):
        frame, position, content, scale = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = geometry(affine, k)[0]
        content.StackID, content.InStackPositionNumber = "1", number + 1
        content.DimensionIndexValues = [1, number + 1]
        scale.RescaleSlope = 1 if slopes is None else slopes[k]
        scale.RescaleIntercept = 0 if intercepts is None else intercepts[k]
        scale.RescaleType = "HU"
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    pixels = np.ascontiguousarray(data[:, :, order].transpose(2, 1, 0))
    return image(
        pixels,
        ENHANCED_CT,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        **elements,
    )


def write(folder, datasets, seed=3) -> list[Path]:
    """Write data sets under names that are not in their order."""
    folder.mkdir(exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(datasets))
    paths = [folder / f"im{number:03d}_{dataset.SeriesInstanceUID[-1]}.dcm" for number, dataset in zip(names, datasets)]
    for path, dataset in zip(paths, datasets):
        dataset.save_as(path, enforce_file_format=True)
    return paths
