"""`shared.nifti`: nothing is lost on the way through a file, and a broken input gives one sentence that names it."""

import gzip
import os
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import nifti, nifti_header, resample
from shared.errors import InputError
from tests.shared.phantoms import (
    AXIS_CODES,
    GRIDS,
    affine_of,
    check_sentence,
    noise,
    same_header,
)

DTYPES = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.int64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_round_trip_keeps_dtype_and_values(tmp_path, dtype, suffix):
    stored = nibabel.Nifti1Image(noise((4, 5, 6), dtype), affine_of(), dtype=dtype)
    nibabel.save(stored, tmp_path / f"a{suffix}")
    image = nifti.load(tmp_path / f"a{suffix}")
    assert image.data.dtype == dtype
    nifti.save(tmp_path / f"b{suffix}", image.data, like=image)
    again = nibabel.load(tmp_path / f"b{suffix}")
    assert again.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(again.dataobj), noise((4, 5, 6), dtype))
    np.testing.assert_array_equal(again.affine, nibabel.load(tmp_path / f"a{suffix}").affine)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 3), (0, 0)], ids=lambda c: f"s{c[0]}q{c[1]}")
@pytest.mark.parametrize("units", ["mm", "meter", "micron", "unknown"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_round_trip_keeps_the_header(tmp_path, codes, units, image_class, endianness):
    scale = {"meter": 1000.0, "micron": 0.001}.get(units, 1.0)
    header = image_class.header_class(endianness=endianness)
    header.set_data_shape((4, 5, 6, 3))
    header.set_data_dtype(np.int16)
    sform = affine_of(("L", "S", "P"))
    sform[:3] /= scale
    qform = sform.copy()
    qform[:3, 3] += 1  # the two differ, and both must survive
    header.set_qform(qform, codes[1])
    header.set_sform(sform, codes[0])
    header["pixdim"][4] = 2.2
    header.set_xyzt_units(units, "msec")
    header["descrip"] = b"phantom"
    header["cal_max"] = 77
    header.set_intent("t test", (3,), name="effect")
    header.set_dim_info(freq=0, phase=1, slice=2)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a comment of the scanner"))
    stored = image_class(noise((4, 5, 6, 3)), header.get_best_affine(), header)
    nibabel.save(stored, tmp_path / "a.nii")

    image = nifti.load(tmp_path / "a.nii")
    assert image.data.dtype.isnative
    nifti.save(tmp_path / "b.nii", image.data, like=image)
    before, after = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "b.nii")
    assert type(after) is image_class
    same_header(before.header, after.header)
    np.testing.assert_array_equal(before.affine, after.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), noise((4, 5, 6, 3)))
    np.testing.assert_allclose(image.affine[:3], before.affine[:3] * scale, rtol=1e-12)
    np.testing.assert_allclose(image.spacing, np.array(before.header.get_zooms()[:3]) * scale, rtol=1e-4)


# A rotation has a quaternion of length 1, so the other three parts can't be longer than that.
BAD_QFORMS = {
    "too long by rounding": {"quatern_b": 1.000001, "quatern_c": 0, "quatern_d": 0},
    "too long": {"quatern_b": 2.0},
    "nan": {"quatern_c": np.nan},
    "infinite": {"quatern_d": -np.inf},
    "nan offset": {"qoffset_y": np.nan},
}


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("fields", BAD_QFORMS.values(), ids=BAD_QFORMS)
def test_a_bad_qform_is_dropped_where_the_sform_is_valid(tmp_path, fields, code):
    (tmp_path / "a.nii").write_bytes(stored_bytes(qform_code=code, **fields))
    image = nifti.load(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, affine_of(), rtol=1e-6, atol=1e-5)
    flipped = resample.to_ras(replace(image, affine=affine_of(("L", "P", "S"))))
    for name, moved in (("b.nii", image), ("c.nii", flipped)):
        nifti.save(tmp_path / name, moved.data, like=moved)
        stored = nibabel.load(tmp_path / name)
        assert int(stored.header["qform_code"]) == 0 and np.isfinite(stored.get_qform()).all()
        np.testing.assert_allclose(stored.affine, moved.affine, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(sitk.ReadImage(tmp_path / name).GetSpacing(), moved.spacing, rtol=1e-5)


def test_a_quaternion_that_is_too_long_by_rounding_is_used_where_there_is_no_other():
    """Turned by 180 degrees about the x axis, 1e-6 too long, as some converters write it in float32."""
    for excess in (1e-6, 1e-5, 1e-4):
        header = nibabel.Nifti1Header(stored_bytes(sform_code=0, pixdim=pixdim(2, 3, 4), quatern_b=1 + excess)[:348])
        header["quatern_c"] = header["quatern_d"] = 0
        nifti_header.mend_qform(header)
        np.testing.assert_allclose(header.get_qform()[:3, :3], np.diag([2, -3, -4]), atol=1e-3)


UNITS_ERRORS = {
    "CT in metres": ("meter", (0.7, 0.7, 5.0), True),
    "fine slices in metres": ("meter", (0.001, 0.001, 0.1), True),
    "truly in metres": ("meter", (0.0007, 0.0007, 0.005), False),
    "thick slices in metres": ("meter", (0.002, 0.002, 0.03), False),
    "CT in microns": ("micron", (0.7, 0.7, 5.0), True),
    "truly in microns": ("micron", (700, 700, 5000), False),
    "micro-CT": ("micron", (20, 20, 20), False),
    "no unit": ("unknown", (0.7, 0.7, 5.0), False),
}


@pytest.mark.parametrize("unit, spacing, refused", UNITS_ERRORS.values(), ids=UNITS_ERRORS)
def test_units_that_the_numbers_belie(tmp_path, unit, spacing, refused):
    stored = nibabel.Nifti1Image(noise((4, 5, 6)), affine_of(spacing=spacing))
    stored.header.set_xyzt_units(unit)
    nibabel.save(stored, tmp_path / "a.nii")
    if refused:
        with pytest.raises(InputError, match="looks like mm; set xyzt_units") as error:
            nifti.load(tmp_path / "a.nii")
        check_sentence(error, tmp_path / "a.nii")
    else:
        scale = {"meter": 1000, "micron": 0.001}.get(unit, 1)
        assert nifti.load(tmp_path / "a.nii").spacing == pytest.approx(np.multiply(spacing, scale))


def test_a_grid_above_the_limit_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(stored_bytes(dim=[3, 2048, 2048, 513, 1, 1, 1, 1], datatype=2, bitpix=8)[:352])
    os.truncate(path, 352 + 2048 * 2048 * 513)  # a hole, which takes no room on the disk
    tracemalloc.start()
    with pytest.raises(
        InputError, match="too large: expected at most 2,147,483,648 voxels, found 2048 x 2048"
    ) as error:
        nifti.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check_sentence(error, path)
    assert peak < 50e6


# One grid or two ----


def shifted(image, *voxels):
    """The same data, lying elsewhere."""
    moved = np.eye(4)
    moved[: len(voxels), 3] = voxels
    return replace(image, affine=image.affine @ moved)


OBLIQUE = nifti.make_image(noise((9, 8, 7)), affine_of(("L", "P", "S")))
# What is done to the labels of OBLIQUE, and whether they still belong to it.
GRID_CASES = {
    "same": (lambda labels: labels, True),
    "rounded": (lambda labels: replace(labels, affine=labels.affine.astype(np.float32).astype(np.float64)), True),
    "a twentieth of a voxel": (lambda labels: shifted(labels, 0, 0.05, 0), True),
    "with a time axis": (lambda labels: replace(labels, data=labels.data[..., None]), True),
    "a fifth of a voxel": (lambda labels: shifted(labels, 0, 0, 0.2), False),
    "one voxel": (lambda labels: shifted(labels, 1), False),
    "turned": (lambda labels: replace(labels, affine=affine_of(("L", "P", "S"), oblique=False)), False),
    "flipped in x": (lambda labels: replace(labels, affine=labels.affine @ np.diag([-1, 1, 1, 1])), False),
    "other spacing": (lambda labels: replace(labels, affine=labels.affine @ np.diag([1, 1, 1.05, 1])), False),
    "cropped": (lambda labels: replace(labels, data=labels.data[:-1]), False),
    "transposed": (lambda labels: replace(labels, data=labels.data.transpose(1, 0, 2)), False),
    "one slice": (lambda labels: replace(labels, data=labels.data[..., 0]), False),
}


@pytest.mark.parametrize("change, same", GRID_CASES.values(), ids=GRID_CASES)
@pytest.mark.parametrize("check", [nifti.same_grid, resample.on_grid_of])
def test_labels_belong_to_their_image_or_not(tmp_path, change, same, check):
    labels = change(nifti.make_image(noise((9, 8, 7), np.uint8), OBLIQUE.affine, tmp_path / "labels.nii"))
    image = replace(OBLIQUE, path=tmp_path / "scan.nii")
    if same:
        assert check(labels, image) in (None, labels)
    else:
        with pytest.raises(InputError, match="does not lie on the voxels of .*scan.nii: expected the same") as error:
            check(labels, image)
        check_sentence(error, tmp_path / "labels.nii")


def test_same_grid_takes_names_for_its_message():
    with pytest.raises(InputError, match="^a.nii does not lie on the voxels of b.nii: .*found.* apart"):
        nifti.same_grid(shifted(OBLIQUE, 2), OBLIQUE, "a.nii", "b.nii")
    with pytest.raises(InputError, match=r"axes to L, P, S, not R, A, S"):
        nifti.same_grid(OBLIQUE, replace(OBLIQUE, affine=affine_of()))


@pytest.mark.parametrize("units, per_mm", [("mm", 1.0), ("meter", 0.001), ("micron", 1000.0), ("unknown", 1.0)])
def test_spacing_and_affine_are_in_mm_whatever_the_unit(tmp_path, units, per_mm):
    affine = affine_of()
    affine[:3] *= per_mm
    stored = nibabel.Nifti1Image(noise((4, 5, 6)), affine)
    stored.header.set_xyzt_units(units)
    nibabel.save(stored, tmp_path / "a.nii")
    image = nifti.load(tmp_path / "a.nii")
    np.testing.assert_allclose(image.spacing, (0.8, 1.5, 2.5), rtol=1e-6)
    np.testing.assert_allclose(image.affine, affine_of(), rtol=1e-5, atol=1e-5)

    finer = resample.resample_to_spacing(image, 0.5)
    nifti.save(tmp_path / "b.nii", finer.data, like=finer)
    again = nibabel.load(tmp_path / "b.nii")
    assert again.header.get_xyzt_units()[0] == units
    np.testing.assert_allclose(again.header.get_zooms(), np.full(3, 0.5) * per_mm, rtol=1e-5)
    np.testing.assert_allclose(nifti.load(tmp_path / "b.nii").affine, finer.affine, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    codes=st.sampled_from(AXIS_CODES),
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    dtype=st.sampled_from(DTYPES),
)
def test_any_geometry_survives_a_file(tmp_path_factory, shape, codes, spacing, dtype):
    path = tmp_path_factory.mktemp("any") / "a.nii.gz"
    affine = affine_of(codes, spacing)
    nifti.save(path, noise(shape, dtype), affine=affine, dtype=dtype)
    image = nifti.load(path)
    assert image.shape == shape and image.data.dtype == dtype
    assert image.orientation == codes[: min(len(shape), 3)]
    np.testing.assert_array_equal(image.data, noise(shape, dtype))
    np.testing.assert_allclose(image.affine, affine, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(image.spacing, spacing[: len(shape)], rtol=1e-5)
    stored = nibabel.load(path)
    np.testing.assert_allclose(stored.get_qform(), affine, rtol=1e-3, atol=2e-2)  # quaternions are coarse
    assert (int(stored.header["sform_code"]), int(stored.header["qform_code"])) == (1, 1)


@pytest.mark.parametrize("dtype, result", [(np.int16, np.float32), (np.int32, np.float64)])
def test_scaled_integers_become_floats(tmp_path, dtype, result):
    stored = nibabel.Nifti1Image(noise((4, 5, 6), dtype), affine_of(), dtype=dtype)
    stored.header.set_slope_inter(0.25, -1024)
    stored.header["vox_offset"] = 352
    with open(tmp_path / "a.nii", "wb") as file:
        file.write(stored.header.binaryblock + bytes(4) + noise((4, 5, 6), dtype).tobytes(order="F"))
    image = nifti.load(tmp_path / "a.nii")
    assert image.data.dtype == result
    np.testing.assert_array_equal(image.data, noise((4, 5, 6)) * 0.25 - 1024)
    nifti.save(tmp_path / "b.nii", image.data, like=image)
    again = nifti.load(tmp_path / "b.nii")
    assert again.data.dtype == result
    np.testing.assert_array_equal(again.data, image.data)


def test_load_converts_to_the_wanted_dtype(tmp_path):
    nifti.save(tmp_path / "a.nii", noise((4, 5, 6)), affine=affine_of())
    assert nifti.load(tmp_path / "a.nii", dtype=np.float32).data.dtype == np.float32
    assert nifti.load(tmp_path / "a.nii", ndim={3, 4}).shape == (4, 5, 6)


def test_complex_voxels_are_read_only_when_asked_for(tmp_path):
    data = noise((4, 5, 6)).astype(np.complex64) * (1 + 1j)
    nifti.save(tmp_path / "a.nii", data, affine=affine_of())
    for read in (nifti.load, lambda path: nifti.load_labels(path, 1000)):
        with pytest.raises(InputError, match="complex voxels.*magnitude"):
            read(tmp_path / "a.nii")
    np.testing.assert_array_equal(nifti.load(tmp_path / "a.nii", dtype=np.complex64).data, data)


@pytest.mark.parametrize(
    "data, stored",
    [
        (noise((3, 4, 5)) > 50, np.uint8),
        (noise((3, 4, 5), np.int64), np.uint8),
        (noise((3, 4, 5), np.int64) - 1, np.int16),
        (noise((3, 4, 5), np.int64) + 40000, np.int32),
        (noise((3, 4, 5), np.float16), np.float32),
        (noise((3, 4, 5), np.uint64), np.uint8),
        (noise((3, 4, 5), np.int64) - 2**40, np.int64),
        (noise((3, 4, 5), np.uint64) + 2**63, np.uint64),
    ],
    ids=["bool", "int64", "negative", "large", "float16", "uint64", "wide", "widest"],
)
def test_types_that_nifti_readers_lack_are_narrowed(tmp_path, data, stored):
    like = nifti.make_image(noise((3, 4, 5)), affine_of())
    nifti.save(tmp_path / "a.nii.gz", data, like=like)
    image = nifti.load(tmp_path / "a.nii.gz")
    assert image.data.dtype == stored
    np.testing.assert_array_equal(image.data, data)


def test_time_axis_can_be_added_and_dropped(tmp_path):
    volume = nifti.make_image(noise((3, 4, 5)), affine_of())
    volume.header["pixdim"][4] = 0  # as many 3D files have it
    nifti.save(tmp_path / "4d.nii", noise((3, 4, 5, 2)), like=volume)
    series = nifti.load(tmp_path / "4d.nii")
    np.testing.assert_allclose(nibabel.load(tmp_path / "4d.nii").header.get_zooms(), (0.8, 1.5, 2.5, 1), rtol=1e-6)
    nifti.save(tmp_path / "3d.nii", noise((3, 4, 5)), like=series)
    again = nibabel.load(tmp_path / "3d.nii")
    assert again.shape == (3, 4, 5)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6)


def test_a_replaced_affine_reaches_the_file(tmp_path):
    image = nifti.make_image(noise((3, 4, 5)), affine_of())
    nifti.save(tmp_path / "a.nii", image.data, like=replace(image, affine=affine_of(("L", "I", "P"))))
    np.testing.assert_allclose(nifti.load(tmp_path / "a.nii").affine, affine_of(("L", "I", "P")), rtol=1e-6)


def test_2d_without_normal_gets_one(tmp_path):
    stored = nibabel.Nifti1Image(noise((4, 5)), affine_of(spacing=(0.8, 1.5, 1.0)))
    sform = affine_of(spacing=(0.8, 1.5, 1.0))
    sform[:3, 2] = 0
    stored.header.set_sform(sform, 1)
    stored.header.set_qform(None, 0)
    stored.header["vox_offset"] = 352
    with open(tmp_path / "a.nii", "wb") as file:
        file.write(stored.header.binaryblock + bytes(4) + noise((4, 5)).tobytes(order="F"))
    image = nifti.load(tmp_path / "a.nii", ndim=2)
    np.testing.assert_array_equal(image.data, noise((4, 5)))
    np.testing.assert_allclose(image.affine, affine_of(spacing=(0.8, 1.5, 1.0)), rtol=1e-5, atol=1e-6)
    nifti.save(tmp_path / "b.nii", image.data, like=image)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "b.nii").header["srow_x"], stored.header["srow_x"])


def test_same_input_same_bytes_and_new_folders(tmp_path):
    for name in ("x/y/a.nii.gz", "z/a.nii.gz"):
        nifti.save(tmp_path / name, noise((3, 4, 5)), affine=affine_of())
    assert (tmp_path / "x/y/a.nii.gz").read_bytes() == (tmp_path / "z/a.nii.gz").read_bytes()


@pytest.mark.parametrize("broken", ["to_filename", "replace"])
def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.nii.gz"
    nifti.save(path, noise((3, 4, 5)), affine=affine_of())
    before = path.read_bytes()
    seen = []

    def half_written(self, name):
        seen.append(name)
        name.write_bytes(b"half a file")
        raise OSError("disk full")

    def no_replace(source, target):
        seen.append(source)
        raise OSError("disk full")

    if broken == "to_filename":
        monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", half_written)
    else:
        monkeypatch.setattr(nifti.os, "replace", no_replace)
    with pytest.raises(OSError, match="disk full"):
        nifti.save(path, noise((3, 4, 5), seed=1), affine=affine_of())
    assert seen[0].parent == tmp_path and seen[0].name.endswith(".nii.gz") and seen[0] != path
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("codes", GRIDS, ids="".join)
def test_simpleitk_reads_our_file_to_the_same_image_as_to_sitk(tmp_path, codes):
    image = nifti.make_image(noise((4, 5, 6)), affine_of(codes))
    nifti.save(tmp_path / "a.nii.gz", image.data, like=image)
    read, ours = sitk.ReadImage(tmp_path / "a.nii.gz"), nifti.to_sitk(image)
    for index in ((0, 0, 0), (3, 4, 5), (1, 0, 4)):
        assert read[index] == ours[index] == image.data[index]
        there = ours.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(there, (image.affine @ [*index, 1])[:3] * [-1, -1, 1], atol=1e-9)
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(index), there, atol=5e-3)
    back = nifti.from_sitk(ours)
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-9)


def test_sitk_round_trip_in_4d_and_from_2d():
    image = nifti.make_image(noise((4, 5, 6, 3)), affine_of(("L", "P", "S")))
    image.header["pixdim"][4] = 2.5
    back = nifti.from_sitk(nifti.to_sitk(image))
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-9)
    assert float(back.header["pixdim"][4]) == 2.5
    flat = sitk.GetImageFromArray(noise((5, 4)))
    flat.SetSpacing((0.5, 2.0))
    flat.SetOrigin((3.0, 4.0))
    flat = nifti.from_sitk(flat)
    assert flat.shape == (4, 5) and flat.spacing == (0.5, 2.0)
    np.testing.assert_array_equal(flat.affine[:, 3], [-3, -4, 0, 1])


def stored_bytes(shape=(4, 5, 6), dtype=np.float32, data=None, **fields):
    """A .nii file as bytes, with header fields overwritten; nibabel would refuse to write most of these."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(dtype)
    header.set_sform(affine_of(), 1)
    header.set_qform(affine_of(), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    for key, value in fields.items():
        header[key] = value
    data = np.random.default_rng(0).normal(size=shape).astype(dtype) if data is None else data
    return header.structarr.tobytes() + bytes(4) + data.tobytes(order="F")


def with_bad_voxels():
    data = np.zeros((4, 5, 6), np.float32)
    data[0, 0, :2], data[1, 1, 1] = np.nan, np.inf
    return stored_bytes(data=data)


def pixdim(*values):
    return [1, *values, *[1] * (7 - len(values))]


RANDOM = np.random.default_rng(1).bytes(2000)


ZIPPED = gzip.compress(stored_bytes(), mtime=0)


FLIPPED = ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:]  # wrong checksum


RGB = stored_bytes(data=np.zeros((4, 5, 6, 3), np.uint8), datatype=128, bitpix=24)


BROKEN_FILES = {
    "missing": ("a.nii", None, "does not exist"),
    "empty": ("a.nii", b"", "is empty"),
    "empty gz": ("a.nii.gz", b"", "is empty"),
    "suffix": ("a.mha", stored_bytes(), "suffix"),
    "truncated": ("a.nii", stored_bytes()[:-20], "truncated"),
    "truncated header": ("a.nii", stored_bytes()[:100], "truncated"),
    "header only": ("a.nii", stored_bytes()[:352], "truncated"),
    "truncated gz": ("a.nii.gz", ZIPPED[:-200], "truncated"),
    "truncated gz header": ("a.nii.gz", ZIPPED[:30], "truncated"),
    "truncated gz trailer": ("a.nii.gz", ZIPPED[:-3], "truncated"),
    "gz with short content": ("a.nii.gz", gzip.compress(stored_bytes()[:-20]), "truncated"),
    "gz of a tiny part": ("a.nii.gz", gzip.compress(stored_bytes(dim=[3, 3000, 3000, 3000, 1, 1, 1, 1])), "truncated"),
    "gz checksum": ("a.nii.gz", FLIPPED, "corrupt"),
    "random": ("a.nii", RANDOM, "not a NIfTI"),
    "random in gz": ("a.nii.gz", gzip.compress(RANDOM), "not a NIfTI"),
    "random as gz": ("a.nii.gz", RANDOM, "not gzip"),
    "nii named gz": ("a.nii.gz", stored_bytes(), "rename it to .nii"),
    "gz named nii": ("a.nii", ZIPPED, "rename it to .nii.gz"),
    "magic": ("a.nii", stored_bytes(magic=b"xxx"), "not a NIfTI"),
    "datatype": ("a.nii", stored_bytes(datatype=999), "can't be read"),
    "voxels within the header": ("a.nii", stored_bytes(vox_offset=0), "vox_offset"),
    "nan offset": ("a.nii", stored_bytes(vox_offset=np.nan), "vox_offset"),
    "rgb": ("a.nii", RGB, "grey values"),
    "zero spacing": ("a.nii", stored_bytes(pixdim=pixdim(1, 0, 1)), "spacing"),
    "nan spacing": ("a.nii", stored_bytes(pixdim=pixdim(1, 1, np.nan)), "spacing"),
    "inf spacing": ("a.nii", stored_bytes(pixdim=pixdim(np.inf, 1, 1)), "spacing"),
    "singular": ("a.nii", stored_bytes(srow_x=0), "singular"),
    "parallel axes": ("a.nii", stored_bytes(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0]), "singular"),
    "nan affine": ("a.nii", stored_bytes(srow_y=np.nan), "no valid affine"),
    "quaternion": ("a.nii", stored_bytes(sform_code=0, quatern_b=2.0), "can't be read"),
    "nan voxels": ("a.nii", with_bad_voxels(), "found 3 NaN or infinite voxels of 120.*allow_nan"),
    "5D": ("a.nii", stored_bytes((4, 5, 6, 1, 3)), "found 5D"),
    "1D": ("a.nii", stored_bytes((4,)), "found 1D"),
    "zero size": ("a.nii", stored_bytes((4, 0, 6)), "no voxels"),
    "negative size": ("a.nii", stored_bytes(dim=[3, 4, -5, 6, 1, 1, 1, 1]), "no voxels"),
}


@pytest.mark.parametrize("name, content, says", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_files(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        nifti.load(tmp_path / name)
    check_sentence(error, tmp_path / name)


def test_the_files_above_are_fine_without_the_damage(tmp_path):
    (tmp_path / "a.nii").write_bytes(stored_bytes())
    (tmp_path / "a.nii.gz").write_bytes(ZIPPED)
    np.testing.assert_array_equal(nifti.load(tmp_path / "a.nii").data, nifti.load(tmp_path / "a.nii.gz").data)
    (tmp_path / "nan.nii").write_bytes(with_bad_voxels())
    image = nifti.load(tmp_path / "nan.nii", allow_nan=True)
    assert np.isnan(image.data).sum() == 2
    nifti.save(tmp_path / "again.nii", image.data, like=image, allow_nan=True)
    np.testing.assert_array_equal(nifti.load(tmp_path / "again.nii", allow_nan=True).data, image.data)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_a_cut_file_never_loads_and_never_shows_a_traceback(tmp_path_factory, data, zipped):
    content = ZIPPED if zipped else stored_bytes()
    path = tmp_path_factory.mktemp("cut") / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError) as error:
        nifti.load(path)
    check_sentence(error, path)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(InputError, match="is a folder") as error:
        nifti.load(tmp_path / "a.nii")
    check_sentence(error, tmp_path / "a.nii")


@pytest.mark.parametrize("ndim", [2, 4, {2, 4}])
def test_wrong_ndim(tmp_path, ndim):
    (tmp_path / "a.nii").write_bytes(stored_bytes())
    with pytest.raises(InputError, match=r"found 3D with shape \(4, 5, 6\)") as error:
        nifti.load(tmp_path / "a.nii", ndim=ndim)
    check_sentence(error, tmp_path / "a.nii")


def test_load_refuses_a_lossy_dtype(tmp_path):
    (tmp_path / "a.nii").write_bytes(stored_bytes())
    with pytest.raises(InputError, match="can't hold") as error:
        nifti.load(tmp_path / "a.nii", dtype=np.int16)
    check_sentence(error, tmp_path / "a.nii")


@pytest.mark.parametrize(
    "values, allowed, says",
    [
        ([0, 1, 2.5], 3, "not integers"),
        ([0, 1, 3], 3, r"expected the labels 0 to 2, found 1 voxels .*\(3\)"),
        ([-1, 1, 0], 3, r"\(-1\)"),
        ([0, 1, 4], {0, 2, 4}, r"expected the labels 0, 2, 4, found 1 voxels .*\(1\)"),
        ([0, 1, np.nan], 3, "NaN"),
    ],
)
def test_bad_labels(tmp_path, values, allowed, says):
    nifti.save(tmp_path / "a.nii", np.array(values).reshape(3, 1, 1), affine=affine_of(), allow_nan=True)
    with pytest.raises(InputError, match=says) as error:
        nifti.load_labels(tmp_path / "a.nii", allowed)
    check_sentence(error, tmp_path / "a.nii")


@pytest.mark.parametrize("allowed, dtype", [(3, np.uint8), ({0, 2, 300}, np.int16), ([-1, 0, 2], np.int16)])
def test_good_labels(tmp_path, allowed, dtype):
    nifti.save(tmp_path / "a.nii", np.array([0, 2, 0.0]).reshape(3, 1, 1), affine=affine_of())
    labels = nifti.load_labels(tmp_path / "a.nii", allowed, ndim=3)
    assert labels.data.dtype == dtype and labels.data.ravel().tolist() == [0, 2, 0]


LIKE = nifti.make_image(noise((3, 4, 5)), affine_of())


SAVE_ERRORS = {
    "suffix": ("a.mha", noise((3, 4, 5)), {"like": LIKE}, "suffix"),
    "nan": ("a.nii", np.full((3, 4, 5), np.nan), {"like": LIKE}, "found 60 NaN"),
    "overflow": ("a.nii", np.full((3, 4, 5), 1e300), {"like": LIKE, "dtype": np.float32}, "found 60 NaN"),
    "shape": ("a.nii", noise((3, 4, 6)), {"like": LIKE}, "spatial shape"),
    "2D like 3D": ("a.nii", noise((3, 4)), {"like": LIKE}, "spatial shape"),
    "5D": ("a.nii", noise((3, 4, 5, 1, 2)), {"affine": affine_of()}, "found 5D"),
    "no voxels": ("a.nii", noise((3, 0, 5)), {"affine": affine_of()}, "no voxels"),
    "too long": ("a.nii", np.zeros((40000, 2, 2)), {"affine": affine_of()}, "32767"),
    "singular": ("a.nii", noise((3, 4, 5)), {"affine": np.diag([1, 1, 0, 1])}, "singular"),
    "spacing beyond float32": ("a.nii", noise((3, 4, 5)), {"affine": np.diag([1e39, 1, 1, 1])}, "no valid affine"),
    "spacing below float32": ("a.nii", noise((3, 4, 5)), {"affine": np.diag([1e-50, 1, 1, 1])}, "singular"),
    "origin beyond float32": (
        "a.nii",
        noise((3, 4, 5)),
        {"affine": np.eye(4) + np.eye(4)[[3]].T * [0, 0, 0, 1e39]},
        "no valid affine",
    ),
    "affine shape": ("a.nii", noise((3, 4, 5)), {"affine": np.eye(3)}, "no valid affine"),
    "text": ("a.nii", np.full((3, 4, 5), "x"), {"affine": affine_of()}, "grey values"),
    "fractions": ("a.nii", np.full((3, 4, 5), 0.5), {"like": LIKE, "dtype": np.uint8}, "can't hold"),
    "range": ("a.nii", np.full((3, 4, 5), 256), {"like": LIKE, "dtype": np.uint8}, "can't hold"),
    "complex": ("a.nii", np.full((3, 4, 5), 1j), {"like": LIKE, "dtype": np.float32}, "magnitude"),
    "folder": ("folder.nii", noise((3, 4, 5)), {"like": LIKE}, "found a folder"),
    "file as parent": ("file/a.nii", noise((3, 4, 5)), {"like": LIKE}, "to be a folder"),
}


@pytest.mark.parametrize("name, data, options, says", SAVE_ERRORS.values(), ids=SAVE_ERRORS)
def test_save_errors(tmp_path, name, data, options, says):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=says) as error:
        nifti.save(tmp_path / name, data, **options)
    check_sentence(error, tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.nii"]


@pytest.mark.parametrize("options", [{}, {"like": LIKE, "affine": np.eye(4)}])
def test_save_needs_one_geometry(tmp_path, options):
    with pytest.raises(TypeError):
        nifti.save(tmp_path / "a.nii", noise((3, 4, 5)), **options)


def test_vector_image_is_refused(tmp_path):
    rgb = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    with pytest.raises(InputError, match="one value per voxel") as error:
        nifti.from_sitk(rgb, tmp_path / "scan.dcm")
    check_sentence(error, tmp_path / "scan.dcm")
