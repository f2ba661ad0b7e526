"""`shared.dicom`: a series becomes the right volume, or is refused with a sentence.

Every series is made here, with known stored values, rescale and geometry.
"""

import shutil

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from shared import dicom, dicom_file, nifti
from shared.errors import InputError
from tests.shared import series
from tests.shared.phantoms import affine_of, check_sentence, noise

AFFINE = affine_of(("L", "P", "S"))
# stored values; a slice has more bytes than what pydicom leaves on the disk until it is asked for
DATA = noise((64, 48, 5))


def scaled(slopes, intercepts):
    """`change` for `series.slices`: a rescale of its own for each slice."""
    return lambda k: dict(RescaleSlope=slopes[k], RescaleIntercept=intercepts[k])


def refused(path, says, names, **options):
    """The message of `dicom.load`, one sentence that matches `says` and names `names`."""
    with pytest.raises(InputError, match=says) as error:
        dicom.load(path, **options)
    check_sentence(error, names)
    return str(error.value)


# Order, affine, values ----


# Slices are stacked along the cross product of row and column direction, so only a right-handed grid can come back; the
# test flips the third axis of the others.
@pytest.mark.parametrize("codes", ["LPS", "PIR", "RAS", "LIP"])
def test_a_series_has_the_right_affine_and_order(tmp_path, codes, capfd):
    affine = affine_of(tuple(codes))
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 2] *= -1
    data = DATA - 50
    folder = tmp_path / "dicom"
    series.write(folder, series.slices(data, affine))
    (folder / "notes.txt").write_text("not a DICOM file")
    (folder / "sub").mkdir()
    image = dicom.load(folder)
    assert image.shape == data.shape and image.data.dtype == np.int16 and image.path == folder
    np.testing.assert_array_equal(image.data, data)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    theirs = nifti.from_sitk(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))
    np.testing.assert_array_equal(image.data, theirs.data)
    np.testing.assert_allclose(image.affine, theirs.affine, atol=1e-4)
    nifti.save(tmp_path / "ct.nii.gz", image.data, like=image)
    again = nifti.load(tmp_path / "ct.nii.gz", ndim=3)
    np.testing.assert_array_equal(again.data, data)
    np.testing.assert_allclose(again.affine, affine, atol=1e-4)
    assert capfd.readouterr() == ("", "")


def test_a_stack_against_its_normal_is_turned_round(tmp_path):
    against = AFFINE @ np.diag([1, 1, -1, 1])
    series.write(tmp_path / "a", series.slices(DATA, against))
    image = dicom.load(tmp_path / "a")
    np.testing.assert_array_equal(image.data, DATA[:, :, ::-1])
    np.testing.assert_allclose(image.affine @ [0, 0, 4, 1], against @ [0, 0, 0, 1], atol=1e-4)
    assert np.linalg.det(image.affine[:3, :3]) > 0


RESCALES = {
    "CT": (series.CT, [1, 1, 1, 1, 1], [-1024] * 5, np.int16),
    "CT with mixed intercepts": (series.CT, [1, 1, 1, 1, 1], [0, -1024, -1024, 0, -1000], np.int16),
    "CT with mixed slopes": (series.CT, [1, 2, 1, 2, 0.5], [-1024] * 5, np.float32),
    "PET": (series.PET, [0.37, 2.5, 11.0625, 0.001, 5], [0] * 5, np.float32),
    "PET in whole numbers": (series.PET, [1, 20, 300, 4000, 5], [0] * 5, np.int32),
    "PET beyond 32 bits": (series.PET, [1, 1e7, 1, 1e6, 1], [0] * 5, np.float32),
    "MR": (series.MR, [3.25] * 5, [17] * 5, np.float32),
}


@pytest.mark.parametrize("sop_class, slopes, intercepts, dtype", RESCALES.values(), ids=RESCALES)
def test_rescale_is_that_of_each_file(tmp_path, sop_class, slopes, intercepts, dtype):
    series.write(tmp_path / "a", series.slices(DATA, AFFINE, sop_class, scaled(slopes, intercepts)))
    expected = DATA * np.array(slopes) + np.array(intercepts)
    image = dicom.load(tmp_path / "a")
    assert image.data.dtype == dtype
    np.testing.assert_allclose(image.data, expected, rtol=1e-6)


@pytest.mark.parametrize("slopes, intercepts, dtype", [case[1:] for case in RESCALES.values()], ids=RESCALES)
def test_rescale_is_that_of_each_frame(tmp_path, slopes, intercepts, dtype):
    path, *_ = series.write(tmp_path / "a", [series.enhanced(DATA, AFFINE, [3, 1, 4, 0, 2], slopes, intercepts)])
    expected = DATA * np.array(slopes) + np.array(intercepts)
    for given_path in (path, tmp_path / "a"):
        image = dicom.load(given_path)
        assert image.data.dtype == dtype
        np.testing.assert_allclose(image.data, expected, rtol=1e-6)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


def real_world_map():
    """A map to units of display, which is not the rescale."""
    code, found = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "UCUM", "no units"
    found.RealWorldValueFirstValueMapped, found.RealWorldValueLastValueMapped = -1000, 1000
    found.RealWorldValueIntercept, found.RealWorldValueSlope, found.LUTLabel = 7, 3, "display"
    found.MeasurementUnitsCodeSequence = [code]
    return found


@pytest.mark.parametrize(
    "elements",
    [
        dict(PhotometricInterpretation="MONOCHROME1"),
        dict(PresentationLUTShape="INVERSE"),
        dict(WindowCenter=3, WindowWidth=2),
        dict(RealWorldValueMappingSequence=[real_world_map()]),
    ],
    ids=["MONOCHROME1", "inverse", "window", "real-world map"],
)
def test_what_is_for_display_is_not_applied(tmp_path, elements):
    rescale = dict(RescaleSlope=2, RescaleIntercept=1)
    series.write(tmp_path / "slices", series.slices(DATA, AFFINE, **rescale, **elements))
    series.write(tmp_path / "frames", [series.enhanced(DATA, AFFINE, None, [2] * 5, [1] * 5, **elements)])
    for folder in ("slices", "frames"):
        np.testing.assert_array_equal(dicom.load(tmp_path / folder).data, DATA * 2 + 1)


def signed_12_bits(data):
    return data & 0xFFF, dict(BitsStored=12, HighBit=11, PixelRepresentation=1)


STORED = {
    "uint8": (noise((64, 48, 5), np.uint8), None, np.int16),
    "uint16": (noise((64, 48, 5), np.uint16) + 60000, None, np.int32),
    "int16": (DATA - 2000, None, np.int16),
    "12 bits with sign": (DATA - 50, signed_12_bits, np.int16),
    "int32": (noise((64, 48, 5), np.int32) + 70_000_001, None, np.float64),
    "uint32": (noise((64, 48, 5), np.uint32) + 3_000_000_001, None, np.float64),
}


@pytest.mark.parametrize("data, packing, dtype", STORED.values(), ids=STORED)
def test_stored_types(tmp_path, data, packing, dtype):
    stored, elements = (data, {}) if packing is None else packing(data)
    series.write(tmp_path / "a", series.slices(stored, AFFINE, **elements))
    image = dicom.load(tmp_path / "a")
    assert image.data.dtype == dtype
    np.testing.assert_array_equal(image.data, data)


# Compression ----


SYNTAXES = {
    "implicit": "ImplicitVRLittleEndian",
    "explicit": "ExplicitVRLittleEndian",
    "deflated": "DeflatedExplicitVRLittleEndian",
    "big endian": "ExplicitVRBigEndian",
    "JPEG baseline": "JPEGBaselineProcess1",
    "JPEG extended": "JPEGExtendedProcess2_4",
    "JPEG lossless": "JPEGLosslessProcess14",
    "JPEG lossless, first order": "JPEGLosslessProcess14_1",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG-LS near lossless": "JPEGLSNearLossless",
    "JPEG 2000": "JPEG2000Lossless",
    "JPEG 2000 lossy": "JPEG2000",
    "RLE": "RLELossless",
}


def transcode(source, target, syntax):
    """Write a file again with another transfer syntax."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def compressed(folder, syntax):
    """A series of five slices in a transfer syntax, and its voxels."""
    # a slope, so that lossy codecs have little to lose; baseline has 8 bits, extended 12
    x, y, z = np.ogrid[0:1:64j, 0:1:48j, 0:1:5j]
    bits = {"JPEGBaselineProcess1": 8, "JPEGExtendedProcess2_4": 12}.get(syntax, 16)
    data = ((x + y + z) / 3 * (2**bits - 1) * 0.9).astype(np.uint8 if bits == 8 else np.uint16)
    plain = folder.with_name(folder.name + "-plain")
    folder.mkdir()
    paths = series.write(plain, series.slices(data, AFFINE, BitsStored=bits, HighBit=bits - 1))
    for path in paths:
        transcode(path, folder / path.name, syntax)
    found = pydicom.dcmread(folder / paths[0].name, stop_before_pixels=True).file_meta.TransferSyntaxUID
    assert found == str(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)).GetString())
    return data, [folder / path.name for path in paths]


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_transfer_syntaxes(tmp_path, syntax):
    data, _ = compressed(tmp_path / "a", syntax)
    image = dicom.load(tmp_path / "a")
    np.testing.assert_allclose(image.data, data, atol=1 if "ess1" in syntax or "2_4" in syntax else 0)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_a_file_cut_short_is_refused_by_name(tmp_path, syntax):
    """Anywhere, up to the last bytes, in which compressed files have no pixels but an end mark."""
    data, paths = compressed(tmp_path / "a", syntax)
    last = paths[-1]
    content = last.read_bytes()
    rng = np.random.default_rng(0)
    for length in {0, 1, 100, 131, 132, 140, 200, len(content) - 20, *rng.integers(0, len(content) - 20, 12).tolist()}:
        last.write_bytes(content[:length])
        refused(tmp_path / "a", "copy or export the series again", last)
    last.write_bytes(content)
    assert dicom.load(tmp_path / "a").shape == data.shape


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_headers_never_show_a_traceback(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    multiframe = data.draw(st.booleans())
    files = [series.enhanced(DATA, AFFINE)] if multiframe else series.slices(DATA, AFFINE, RescaleSlope=1)
    paths = series.write(folder, files)
    content = bytearray(paths[-1].read_bytes())
    header = len(content) - DATA.size * 2 if multiframe else len(content) - 64 * 48 * 2
    for _ in range(data.draw(st.integers(1, 8))):
        content[int(data.draw(st.floats(0, 1)) * (header - 1))] = data.draw(st.integers(0, 255))
    paths[-1].write_bytes(content)
    try:
        dicom.load(folder)
    except InputError as error:
        assert "\n" not in str(error) and str(folder) in str(error)


def test_files_without_preamble(tmp_path):
    """As very old programs write them: nothing before the first element, no transfer syntax, no suffix."""
    (tmp_path / "a").mkdir()
    for k, dataset in enumerate(series.slices(DATA, AFFINE)):
        dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), None
        implicit = bool(k % 2)
        pydicom.dcmwrite(tmp_path / "a" / str(k), dataset, implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(dicom.load(tmp_path / "a").data, DATA)


# One slice, several frames ----


def test_a_single_slice_keeps_its_thickness(tmp_path):
    one, *_ = series.slices(DATA[:, :, :1], AFFINE, SliceThickness=3.5)
    between, *_ = series.slices(DATA[:, :, :1], AFFINE, SliceThickness=None, SpacingBetweenSlices=7)
    frame = series.enhanced(DATA, AFFINE, order=[0])
    for dataset, thickness in ((one, 3.5), (between, 7), (frame, 2.5)):
        path, *_ = series.write(tmp_path / f"{thickness}", [dataset])
        for given_path in (path, path.parent):
            image = dicom.load(given_path)
            assert image.shape == (64, 48, 1)
            np.testing.assert_allclose(image.spacing, (0.8, 1.5, thickness), rtol=1e-6)
            np.testing.assert_allclose(image.affine[:, 3], AFFINE[:, 3], rtol=1e-6)
            np.testing.assert_array_equal(image.data, DATA[:, :, :1])
    paths = series.write(tmp_path / "none", series.slices(DATA[:, :, :1], AFFINE, SliceThickness=None))
    refused(tmp_path / "none", "single slice without thickness", paths[0])


def edited(edit):
    """An enhanced CT after `edit(dataset, shared group, groups of the frames)`."""
    dataset = series.enhanced(DATA, AFFINE)
    edit(dataset, dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence)
    return dataset


def tilt(dataset, shared, frames):
    for number, frame in enumerate(frames):
        plane = frame.PlanePositionSequence[0]
        x, y, z = plane.ImagePositionPatient
        plane.ImagePositionPatient = [x, f"{float(y) + 0.06 * number:.6f}", z]


def turn_one(dataset, shared, frames):
    for number, frame in enumerate(frames):
        plane = Dataset()
        values = list(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
        plane.ImageOrientationPatient = values if number else [*values[3:], *values[:3]]
        frame.PlaneOrientationSequence = [plane]
    del shared.PlaneOrientationSequence


FRAMES = {
    "missing frame": (lambda: series.enhanced(DATA, AFFINE, [0, 1, 3, 4]), "2.5 to 5 mm .*missing slices"),
    "frame twice": (lambda: series.enhanced(DATA, AFFINE, [0, 1, 1, 2]), "frame 2 and frame 3 0 mm apart"),
    "tilt": (lambda: edited(tilt), "tilted stack"),
    "two orientations": (lambda: edited(turn_one), "one even stack"),
    "no position": (lambda: edited(lambda d, s, f: delattr(f[2], "PlanePositionSequence")), "ImagePositionPatient"),
    "no direction": (lambda: edited(lambda d, s, f: delattr(s, "PlaneOrientationSequence")), "ImageOrientation"),
    "no spacing": (lambda: edited(lambda d, s, f: delattr(s.PixelMeasuresSequence[0], "PixelSpacing")), "PixelSpacing"),
    "no groups": (lambda: edited(lambda d, s, f: delattr(d, "PerFrameFunctionalGroupsSequence")), "5 frames.*found 0"),
    "fewer frames than groups": (lambda: edited(lambda d, s, f: setattr(d, "NumberOfFrames", 4)), "4 frames.*found 5"),
    "more frames than pixels": (lambda: edited(lambda d, s, f: setattr(d, "Rows", 49)), "can't be decoded"),
    "rescale in some": (
        lambda: edited(lambda d, s, f: delattr(f[2], "PixelValueTransformationSequence")),
        "for all slices or for none, found otherwise",
    ),
    "slope of zero": (lambda: series.enhanced(DATA, AFFINE, None, [1, 0, 1, 1, 1]), "frame 2 can't be scaled.*found 0"),
}


@pytest.mark.parametrize("make, says", FRAMES.values(), ids=FRAMES)
def test_what_is_refused_of_several_frames(tmp_path, make, says):
    path, *_ = series.write(tmp_path / "a", [make()])
    refused(path, says, path)


def test_multi_frame_files_come_one_by_one(tmp_path):
    series.write(tmp_path / "a", [series.enhanced(DATA, AFFINE), series.enhanced(DATA + 1, AFFINE)])
    refused(tmp_path / "a", "found 2 files in its series; pass one of the files", tmp_path / "a")


# What else lies in the folder ----


def test_what_is_no_image_does_not_disturb(tmp_path):
    """A dose (with pixels, and planes of its own), a report, a table of contents, and what computers leave behind."""
    folder = tmp_path / "a"
    series.write(folder, series.slices(DATA, AFFINE))
    dose = series.image(np.ones((3, 4, 5), np.uint32), series.RT_DOSE, series.SERIES_UID + ".7", PixelSpacing=[3, 3])
    dose.save_as(folder / "dose.dcm", enforce_file_format=True)
    report = series.image(np.ones((2, 2), np.uint8), "1.2.840.10008.5.1.4.1.1.88.11", series.SERIES_UID, PixelData=None)
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    contents = series.image(np.ones((2, 2), np.uint8), "1.2.840.10008.1.3.10", None, SOPClassUID=None, PixelData=None)
    contents.DirectoryRecordSequence = []
    contents.save_as(folder / "DICOMDIR", enforce_file_format=True)
    (folder / "._im001.dcm").write_bytes(b"Mac OS X")
    (folder / "scan.nii").write_bytes(bytes(348))
    np.testing.assert_array_equal(dicom.load(folder).data, DATA)
    dose.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
    refused(tmp_path / "dose.dcm", "no DICOM image", tmp_path / "dose.dcm")
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "dose.dcm", tmp_path / "b")
    refused(tmp_path / "b", "no DICOM image", tmp_path / "b")


@pytest.mark.parametrize("name, content", [("im999.dcm", b""), ("im999", b""), ("im999.dcm", b"<html>404</html>" * 20)])
def test_what_should_be_a_slice_is_refused_by_name(tmp_path, name, content):
    series.write(tmp_path / "a", series.slices(DATA, AFFINE))
    (tmp_path / "a" / name).write_bytes(content)
    refused(tmp_path / "a", "copy or export the series again, or remove the file", tmp_path / "a" / name)


@pytest.mark.parametrize("flag", [None, "--series-uid"])
def test_one_of_several_series_can_be_chosen(tmp_path, flag):
    uids = [series.SERIES_UID, "1.2.826.0.1.3680043.2.1125.2"]
    for seed, (uid, description) in enumerate(zip(uids, ("chest", "abdomen"))):
        data = noise((64, 48, 3), seed=seed)
        series.write(tmp_path / "a", series.slices(data, AFFINE, series_uid=uid, SeriesDescription=description))
    for wrong in (None, "1.2.3"):
        message = refused(tmp_path / "a", "can't be read", tmp_path / "a", series_uid=wrong, flag=flag)
        for part in (*uids, "CT, chest", "CT, abdomen", "3 files"):
            assert part in message
        assert message.endswith(flag if flag else "keep the files of one series in the folder")
    chosen = dicom.load(tmp_path / "a", uids[1])
    np.testing.assert_array_equal(chosen.data, noise((64, 48, 3), seed=1))


# What is refused ----


def missing_slice():
    return [dataset for k, dataset in enumerate(series.slices(DATA, AFFINE)) if k != 2]


def gantry_tilt():
    for_each = []
    for k in range(5):
        moved = affine_of(("L", "P", "S"), oblique=False)
        moved[1, 3] += 0.5 * k
        for_each.append(series.slices(DATA, moved)[k])
    return for_each


def two_orientations():
    return [*series.slices(DATA, AFFINE)[:2], *series.slices(DATA, affine_of(("P", "I", "R")))[2:]]


def of(**elements):
    return lambda: series.slices(DATA, AFFINE, **elements)


def of_one(**elements):
    return lambda: series.slices(DATA, AFFINE, change=lambda k: elements if k == 3 else {})


PLACE = series.geometry(AFFINE, 1)[0]
SLICES = {
    "missing slice": (missing_slice, "2.5 to 5 mm .*missing slices"),
    "gantry tilt": (gantry_tilt, "tilted"),
    "two orientations": (two_orientations, "several orientations"),
    "same position": (of(ImagePositionPatient=PLACE), "each position once.*0 mm apart"),
    "one position twice": (of_one(ImagePositionPatient=PLACE), "each position once"),
    "size": (lambda: [*series.slices(DATA, AFFINE)[:4], *series.slices(DATA[:, :-2], AFFINE)[4:]], "same size"),
    "spacing": (of_one(PixelSpacing=[1, 1]), "does not fit its series: expected the PixelSpacing"),
    "rescale in some": (of_one(RescaleSlope=1, RescaleIntercept=-1024), "for all slices or for none"),
    "intercept in some": (of_one(RescaleIntercept=-1024), "for all slices or for none"),
    "slope of zero": (of_one(RescaleSlope=0, RescaleIntercept=0), "for all slices or for none"),
    "slopes of zero": (of(RescaleSlope=0, RescaleIntercept=0), "can't be scaled.*found 0"),
    "inverted against the rest": (of_one(PhotometricInterpretation="MONOCHROME1"), "inverted against the rest"),
    "frames of reference": (of_one(FrameOfReferenceUID="1.2.3"), "frame of reference"),
    "no spacing": (of(PixelSpacing=None), "has no PixelSpacing"),
    "spacing missing in one": (of_one(PixelSpacing=None), "has no PixelSpacing"),
    "no position": (of(ImagePositionPatient=None), "has no ImagePositionPatient"),
    "no orientation": (of(ImageOrientationPatient=None), "has no ImageOrientationPatient"),
    "empty position": (of_one(ImagePositionPatient=""), "has no ImagePositionPatient"),
    "half a position": (of_one(ImagePositionPatient=[1, 2]), "expected 3 finite numbers as ImagePositionPatient"),
    "zero spacing": (of(PixelSpacing=[0, 1]), "positive PixelSpacing"),
    "negative spacing": (of(PixelSpacing=[1, -1]), "positive PixelSpacing"),
    "skew directions": (of(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]), "right angles"),
    "one direction twice": (of(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "right angles"),
    "colour": (of(PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0), "no grey values"),
    "palette": (of(PhotometricInterpretation="PALETTE COLOR"), "no grey values"),
    "no size": (of(Rows=None), "has no Rows"),
    "no pixels": (of_one(PixelData=None), "no pixels"),
    "too large": (of(Rows=65535, Columns=65535), "too large: expected at most 2,147,483,648 voxels"),
    "fewer pixels than rows": (of(Rows=60), "can't be decoded"),
    "no bits": (of_one(BitsAllocated=None), "can't be decoded"),
}


@pytest.mark.parametrize("make, says", SLICES.values(), ids=SLICES)
def test_what_is_refused_of_a_series(tmp_path, make, says, capfd):
    series.write(tmp_path / "a", make())
    refused(tmp_path / "a", says, tmp_path / "a")
    assert capfd.readouterr() == ("", "")


def test_what_differs_by_rounding_or_is_often_lost_is_no_reason_to_refuse(tmp_path):
    rng = np.random.default_rng(0)

    def jitter(k):
        position, orientation, spacing, _ = series.geometry(AFFINE, k)
        return dict(
            ImagePositionPatient=[f"{float(v) + rng.uniform(-0.01, 0.01):.3f}" for v in position],
            ImageOrientationPatient=[f"{float(v) + rng.uniform(-1e-5, 1e-5):.6f}" for v in orientation],
            PixelSpacing=[f"{float(v) + rng.uniform(-1e-6, 1e-6):.8f}" for v in spacing],
            FrameOfReferenceUID=None,
        )

    series.write(tmp_path / "a", series.slices(DATA, AFFINE, change=jitter, StudyInstanceUID=None))
    image = dicom.load(tmp_path / "a")
    np.testing.assert_array_equal(image.data, DATA)
    np.testing.assert_allclose(image.affine, AFFINE, atol=0.03)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x" * 500), "no DICOM image"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is empty"),
        (lambda path: [path.mkdir(), (path / "notes.txt").write_text("no DICOM file")], "no DICOM image"),
        (lambda path: [path.mkdir(), (path / "sub").mkdir()], "pass the folder that holds the files"),
    ],
    ids=["absent", "text", "empty file", "empty folder", "other files", "other folders"],
)
def test_what_is_no_series(tmp_path, make, says):
    make(tmp_path / "dicom")
    refused(tmp_path / "dicom", says, tmp_path / "dicom")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    paths = series.write(tmp_path / "a", series.slices(DATA, AFFINE))

    def closed(path, *args, **options):
        if str(path) == str(paths[2]):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(dicom_file, "open", closed, raising=False)
    refused(tmp_path / "a", "found 'Permission denied'; check its permissions", paths[2])


# Scans of either kind ----


def test_load_volume_reads_what_a_user_calls_a_scan(tmp_path):
    paths = series.write(tmp_path / "a", series.slices(DATA, AFFINE))
    shutil.copy(paths[0], tmp_path / "slice")
    nifti.save(tmp_path / "scan.nii.gz", DATA, affine=AFFINE)
    for path in (tmp_path / "a", tmp_path / "scan.nii.gz"):
        image = dicom.load_volume(path, dtype=np.int16)
        assert image.data.dtype == np.int16 and image.shape == DATA.shape
        np.testing.assert_array_equal(image.data, DATA)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        with pytest.raises(InputError, match="found 3D"):
            dicom.load_volume(path, ndim=4)
    assert dicom.load_volume(tmp_path / "slice", ndim={2, 3}).shape == (64, 48, 1)
    (tmp_path / "notes.txt").write_text("notes")
    for name, says in (("notes.txt", "suffix"), ("none.nii", "does not exist"), ("none", "does not exist|suffix")):
        with pytest.raises(InputError, match=says) as error:
            dicom.load_volume(tmp_path / name)
        check_sentence(error, tmp_path / name)


def test_load_volume_names_the_flag_of_commands(tmp_path):
    for uid in (series.SERIES_UID, series.SERIES_UID + "2"):
        series.write(tmp_path / "a", series.slices(DATA, AFFINE, series_uid=uid))
    with pytest.raises(InputError, match="choose one with --series-uid$"):
        dicom.load_volume(tmp_path / "a")
    with pytest.raises(InputError, match="keep the files of one series"):
        dicom.load_volume(tmp_path / "a", flag=None)
    assert dicom.load_volume(tmp_path / "a", series.SERIES_UID).shape == DATA.shape
