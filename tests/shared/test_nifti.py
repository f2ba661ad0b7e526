"""`shared.nifti`: nothing is lost on the way through a file, world positions are right after every change of
grid, and every broken input gives one sentence that names it."""

import gzip
import itertools
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from shared import nifti
from shared.errors import InputError

AXIS_CODES = [
    codes for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]  # all 48
TILT = nibabel.eulerangles.euler2mat(0.1, -0.15, 0.2)


def affine_of(codes=("R", "A", "S"), spacing=(0.8, 1.5, 2.5), oblique=True, origin=(-37.0, 12.5, 90.25)):
    """Affine with the given axis codes and spacing (mm), turned by about 15 degrees if oblique."""
    affine = np.eye(4)
    signs = nibabel.orientations.axcodes2ornt(codes)
    axes = np.zeros((3, 3))
    for voxel_axis, (world_axis, sign) in enumerate(signs):
        axes[int(world_axis), voxel_axis] = sign
    affine[:3, :3] = (TILT if oblique else np.eye(3)) @ axes * spacing
    affine[:3, 3] = origin
    return affine


def world(affine, shape):
    """World positions in mm of all voxels, shape (*shape, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


GRADIENT = np.array([0.7, -1.3, 0.4])


def linear_image(affine, shape):
    """Float32 image whose value is the same linear function of the world position everywhere."""
    return nifti.make_image((world(affine, shape) @ GRADIENT + 5).astype(np.float32), affine)


def noise(shape, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def same_header(first, second):
    """Every field, except those that only say where and how the voxels are stored."""
    ignored = {"scl_slope", "scl_inter", "vox_offset", "sizeof_hdr", "magic"}
    for key in first.keys():
        if key not in ignored:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert [(e.get_code(), e.content) for e in first.extensions] == [
        (e.get_code(), e.content) for e in second.extensions
    ]


# Round trips through files ----


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

    finer = nifti.resample_to_spacing(image, 0.5)
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


@pytest.mark.parametrize(
    "data, stored",
    [
        (noise((3, 4, 5)) > 50, np.uint8),
        (noise((3, 4, 5), np.int64), np.uint8),
        (noise((3, 4, 5), np.int64) - 1, np.int16),
        (noise((3, 4, 5), np.int64) + 40000, np.int32),
        (noise((3, 4, 5), np.float16), np.float32),
    ],
    ids=["bool", "int64", "negative", "large", "float16"],
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


# Orientation ----


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_to_ras_and_back(codes, oblique):
    for shape in ((3, 4, 5), (3, 4, 5, 2)):
        image = nifti.make_image(noise(shape), affine_of(codes, oblique=oblique))
        ras = nifti.to_ras(image)
        assert ras.orientation == ("R", "A", "S")
        reference = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.data, image.affine))
        np.testing.assert_array_equal(ras.data, np.asarray(reference.dataobj))
        np.testing.assert_allclose(ras.affine, reference.affine, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ras.header.get_best_affine(), ras.affine, rtol=1e-6, atol=1e-5)

        back = nifti.restore_orientation(ras, image)
        assert back.data.dtype == image.data.dtype
        np.testing.assert_array_equal(back.data, image.data)
        np.testing.assert_array_equal(back.affine, image.affine)
        same_header(back.header, image.header)


def test_ras_image_through_a_file_and_back(tmp_path):
    """A prediction made in RAS order, written, read and put back has the header of the original file."""
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("S", "L", "P")))
    image.header.set_dim_info(freq=1, phase=2, slice=0)
    image.header["slice_end"], image.header["slice_code"] = 2, 1
    ras = nifti.to_ras(image)
    assert ras.header.get_dim_info() == (0, 1, 2)
    nifti.save(tmp_path / "ras.nii.gz", ras.data > 50, like=ras)
    back = nifti.restore_orientation(nifti.load(tmp_path / "ras.nii.gz"), image)
    np.testing.assert_array_equal(back.data, image.data > 50)
    np.testing.assert_array_equal(back.affine, image.affine)
    same_header(back.header, image.header)


def test_to_ras_reverses_the_slice_order_with_the_slice_axis():
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("R", "A", "I")))
    image.header.set_dim_info(slice=2)
    image.header["slice_code"], image.header["slice_start"], image.header["slice_end"] = 3, 1, 4
    header = nifti.to_ras(image).header
    assert [int(header[key]) for key in ("slice_code", "slice_start", "slice_end")] == [4, 0, 3]


def test_to_ras_moves_a_differing_qform_by_the_same_voxel_map():
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("L", "P", "S")))
    image.header.set_qform(affine_of(("L", "P", "S"), oblique=False), 3)
    header = nifti.to_ras(image).header
    expected = nibabel.Nifti1Image(image.data, affine_of(("L", "P", "S"), oblique=False))
    np.testing.assert_allclose(header.get_qform(), nibabel.as_closest_canonical(expected).affine, atol=1e-5)
    assert int(header["qform_code"]) == 3


@pytest.mark.parametrize("codes, expected", [("LPS", "RA"), ("PIR", "AS"), ("SPR", "AS"), ("RAS", "RA"), ("ILA", "RS")])
def test_to_ras_in_2d_keeps_the_slice(codes, expected):
    affine = affine_of(tuple(codes))
    image = linear_image(affine, (3, 4, 1))
    image = nifti.make_image(image.data[..., 0], affine)
    ras = nifti.to_ras(image)
    assert ras.data.ndim == 2 and ras.orientation == tuple(expected)
    np.testing.assert_allclose(ras.data, linear_image(ras.affine, (*ras.shape, 1)).data[..., 0], rtol=1e-5)
    back = nifti.restore_orientation(ras, image)
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_array_equal(back.affine, image.affine)


# Resampling ----


GRIDS = [("R", "A", "S"), ("L", "P", "S"), ("L", "A", "S"), ("S", "R", "P"), ("P", "I", "L"), ("A", "S", "L")]


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", GRIDS, ids="".join)
def test_resample_to_spacing_keeps_a_linear_function_of_world_position(codes, oblique, interpolation):
    image = linear_image(affine_of(codes, oblique=oblique), (24, 18, 14))
    spacing = (1.3, 0.9, 1.7)
    result = nifti.resample_to_spacing(image, spacing, interpolation=interpolation)
    assert result.data.dtype == np.float32
    np.testing.assert_allclose(result.spacing, spacing, rtol=1e-9)
    np.testing.assert_allclose(result.header.get_best_affine(), result.affine, rtol=1e-5, atol=1e-5)
    corner, voxel = np.array([-0.5, -0.5, -0.5, 1]), np.array(result.shape)
    np.testing.assert_allclose(result.affine @ corner, image.affine @ corner, atol=1e-9)
    extent, wanted = voxel * spacing, np.array(image.shape) * image.spacing
    assert (np.abs(extent - wanted) <= np.array(spacing) / 2 + 1e-9).all()

    inside = world(np.linalg.inv(image.affine) @ result.affine, result.shape)
    margin = 0 if interpolation == "linear" else 5  # the spline mirrors at the edge
    inside = ((inside >= margin) & (inside <= np.array(image.shape) - 1 - margin)).all(axis=-1)
    assert inside.mean() > (0.6 if margin == 0 else 0.05)
    expected = world(result.affine, result.shape) @ GRADIENT + 5
    tolerance = 1e-3 if interpolation == "linear" else 3e-2
    np.testing.assert_allclose(result.data[inside], expected[inside], atol=tolerance)


@pytest.mark.parametrize("source", GRIDS, ids="".join)
@pytest.mark.parametrize("target", [("R", "A", "S"), ("P", "L", "I")], ids="".join)
def test_resample_to_keeps_a_linear_function_of_world_position(source, target):
    image = linear_image(affine_of(source, (1.0, 1.2, 0.9), origin=np.zeros(3)), (20, 22, 24))
    center = image.affine @ [9.5, 10.5, 11.5, 1]
    reference = affine_of(target, (1.7, 0.8, 1.1), oblique=False)
    reference[:3, 3] += (center - reference @ [5, 8, 6, 1])[:3]
    result = nifti.resample_to(image, nifti.make_image(np.zeros((11, 17, 13)), reference), fill=-999)
    np.testing.assert_array_equal(result.affine, reference)
    np.testing.assert_allclose(result.header.get_best_affine(), reference, rtol=1e-5, atol=1e-5)
    index = world(np.linalg.inv(image.affine) @ reference, result.shape)
    inside = ((index >= 0) & (index <= np.array(image.shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(result.data[inside], (world(reference, result.shape) @ GRADIENT + 5)[inside], atol=1e-3)


@pytest.mark.parametrize("label", [False, True])
def test_resample_to_agrees_with_scipy(label):
    data = noise((16, 18, 20), np.uint8 if label else np.int16)
    image = nifti.make_image(data, affine_of(("L", "P", "S"), (1.0, 1.1, 1.3)))
    reference = affine_of(("A", "R", "S"), (0.9, 0.8, 1.0), oblique=False)
    reference[:3, 3] += (image.affine @ [8, 9, 10, 1] - reference @ [10, 10, 10, 1])[:3]
    result = nifti.resample_to(image, nifti.make_image(np.zeros((21, 20, 22)), reference), label=label, fill=7)
    index = world(np.linalg.inv(image.affine) @ reference, result.shape)
    expected = map_coordinates(data.astype(float), np.moveaxis(index, -1, 0), order=0 if label else 1)
    inside = ((index >= 0) & (index <= np.array(data.shape) - 1)).all(axis=-1)
    outside = ((index < -0.51) | (index > np.array(data.shape) - 0.49)).any(axis=-1)
    assert inside.sum() > 1000 and outside.sum() > 100
    np.testing.assert_allclose(result.data[inside], expected[inside], atol=0 if label else 1e-2)
    assert (result.data[outside] == 7).all()


def test_bspline_agrees_with_scipy_in_the_interior():
    image = nifti.make_image(noise((30, 30, 30)), np.eye(4))
    result = nifti.resample_to_spacing(image, 0.75, interpolation="bspline")
    index = world(result.affine, result.shape)
    expected = map_coordinates(image.data.astype(float), np.moveaxis(index, -1, 0), order=3, mode="mirror")
    inside = ((index >= 12) & (index <= 17)).all(axis=-1)
    assert inside.sum() > 100
    np.testing.assert_allclose(result.data[inside], expected[inside], atol=1e-2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, bool, np.float32])
def test_labels_keep_their_set_and_dtype(dtype):
    labels = (noise((9, 10, 8)) % 3 * (1 if dtype is bool else 40)).astype(dtype)
    image = nifti.make_image(labels, affine_of(("L", "A", "I")))
    for result in (
        nifti.resample_to_spacing(image, (0.5, 2.0, 1.1), label=True),
        nifti.resample_to(image, nifti.make_image(np.zeros((12, 9, 7)), affine_of(spacing=(1, 1, 1))), label=True),
    ):
        assert result.data.dtype == dtype
        assert set(np.unique(result.data)) <= set(np.unique(labels))


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6), (5, 1, 7, 2)], ids=["3D", "2D", "one slice"])
def test_resample_to_spacing_has_no_empty_rim(shape, label):
    """5 mm at 2 mm are three voxels, the last of them centred on the old edge."""
    image = nifti.make_image(np.full(shape, 3, np.int16), affine_of(("L", "P", "S"), (1, 1, 1)))
    for spacing in (2.0, 0.3):
        result = nifti.resample_to_spacing(image, spacing, label=label)
        assert result.shape[0] == {2.0: 3, 0.3: 17}[spacing]
        np.testing.assert_allclose(result.data, 3, atol=1e-5)


@pytest.mark.parametrize("label", [False, True])
def test_resampling_to_the_own_grid_changes_nothing(label):
    image = nifti.make_image(noise((6, 7, 8)), affine_of(("P", "S", "L")))
    for result in (
        nifti.resample_to(image, image, label=label),
        nifti.resample_to_spacing(image, image.spacing, label=label),
    ):
        np.testing.assert_allclose(result.data, image.data, atol=1e-3 if not label else 0)
        np.testing.assert_allclose(result.affine, image.affine, rtol=1e-9, atol=1e-9)


def test_4d_is_resampled_frame_by_frame_and_keeps_the_time_step(tmp_path):
    image = nifti.make_image(noise((8, 7, 6, 3)), affine_of(("L", "P", "S")))
    image.header["pixdim"][4] = 2.5
    result = nifti.resample_to_spacing(image, 1.1)
    for frame in range(3):
        single = nifti.resample_to_spacing(replace(image, data=image.data[..., frame]), 1.1)
        np.testing.assert_array_equal(result.data[..., frame], single.data)
    nifti.save(tmp_path / "a.nii", result.data, like=result)
    assert nibabel.load(tmp_path / "a.nii").header.get_zooms()[3] == 2.5


def test_2d_is_resampled_within_its_slice():
    affine = affine_of(("A", "S", "L"))
    image = nifti.make_image(linear_image(affine, (20, 15, 1)).data[..., 0], affine)
    result = nifti.resample_to_spacing(image, (0.7, 2.0))
    assert result.data.ndim == 2 and result.spacing == pytest.approx((0.7, 2.0))
    expected = linear_image(result.affine, (*result.shape, 1)).data[..., 0]
    np.testing.assert_allclose(result.data[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)
    np.testing.assert_allclose(nifti.resample_to(result, image).data[2:-2, 2:-2], image.data[2:-2, 2:-2], atol=1e-3)


# SimpleITK and DICOM ----


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


def write_dicom(folder, data, affine, uid="1.2.826.0.1.3680043.2.1125.1", keep=None, description="chest"):
    """One file per slice along the third axis, with file names that are not in slice order."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    names = np.random.default_rng(3).permutation(data.shape[2])
    for k in range(data.shape[2]) if keep is None else keep:
        piece = sitk.GetImageFromArray(data[:, :, k].T)
        piece.SetSpacing(spacing[:2].tolist())
        position = lps[:3] @ [0, 0, k, 1]
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|103e": description,
            "0020|000d": uid + ".0",
            "0020|000e": uid,
            "0020|0013": str(names[k]),
            "0018|0050": f"{spacing[2]:.6f}",
            "0020|0032": "\\".join(f"{value:.8f}" for value in position),
            "0020|0037": "\\".join(f"{value:.10f}" for value in direction[:, :2].T.ravel()),
        }
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"im{names[k]:03d}_{uid[-1]}.dcm"))
        writer.Execute(piece)
    return folder


# Slices are stacked along the cross product of row and column direction, so only a right-handed grid can come
# back; the test flips the third axis of the others.
DICOM_GRIDS = [("L", "P", "S"), ("P", "I", "R"), ("R", "A", "S"), ("L", "I", "P")]


@pytest.mark.parametrize("codes", DICOM_GRIDS, ids="".join)
def test_dicom_series_has_the_right_affine_and_order(tmp_path, codes):
    affine = affine_of(codes)
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 2] *= -1
    data = noise((6, 5, 7)) - 50
    folder = write_dicom(tmp_path / "dicom", data, affine)
    (folder / "notes.txt").write_text("not a DICOM file")
    image = nifti.dicom_to_nifti(folder, tmp_path / "out" / "ct.nii.gz")
    assert image.shape == (6, 5, 7)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(image.data, data)
    again = nifti.load(tmp_path / "out" / "ct.nii.gz", ndim=3)
    np.testing.assert_array_equal(again.data, data)
    np.testing.assert_allclose(again.affine, affine, atol=1e-4)


def test_one_of_several_dicom_series_can_be_chosen(tmp_path):
    affine = affine_of(("L", "P", "S"))
    uids = ["1.2.826.0.1.3680043.2.1125.1", "1.2.826.0.1.3680043.2.1125.2"]
    for seed, (uid, description) in enumerate(zip(uids, ("chest", "abdomen"))):
        write_dicom(tmp_path / "dicom", noise((4, 4, 3), seed=seed), affine, uid, description=description)
    for wrong in (None, "1.2.3"):
        with pytest.raises(InputError) as error:
            nifti.read_dicom_series(tmp_path / "dicom", wrong)
        for part in (str(tmp_path / "dicom"), *uids, "chest", "abdomen", "3 files"):
            assert part in str(error.value)
    chosen = nifti.read_dicom_series(tmp_path / "dicom", uids[1])
    np.testing.assert_array_equal(chosen.data, noise((4, 4, 3), seed=1))


def missing_slice(folder):
    write_dicom(folder, noise((4, 4, 5)), affine_of(("L", "P", "S")), keep=[0, 1, 3, 4])


def gantry_tilt(folder):
    affine = affine_of(("L", "P", "S"), oblique=False)
    folder.mkdir()
    for k in range(4):
        moved = affine.copy()
        moved[1, 3] += 0.5 * k
        write_dicom(folder, noise((4, 4, 4)), moved, keep=[k])


def two_orientations(folder):
    write_dicom(folder, noise((4, 4, 4)), affine_of(("L", "P", "S")), keep=[0, 1])
    write_dicom(folder, noise((4, 4, 4)), affine_of(("P", "I", "R")), keep=[2, 3])


def same_position(folder):
    for k in range(3):
        moved = affine_of(("L", "P", "S"))
        moved[:3, 3] -= k * moved[:3, 2]
        write_dicom(folder, noise((4, 4, 3)), moved, keep=[k])


def unequal_size(folder):
    write_dicom(folder, noise((4, 4, 4)), affine_of(("L", "P", "S")), keep=[0, 1])
    write_dicom(folder, noise((4, 6, 4)), affine_of(("L", "P", "S")), keep=[2, 3])


def text_only(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("not a DICOM file")


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.write_text("x"), "is a file"),
        (lambda folder: folder.mkdir(), "is empty"),
        (text_only, "no DICOM"),
        (missing_slice, "missing slices"),
        (gantry_tilt, "tilted"),
        (two_orientations, "several orientations"),
        (same_position, "even stack"),
        (unequal_size, "same size"),
    ],
    ids=["absent", "file", "empty", "text", "gap", "tilt", "orientations", "positions", "sizes"],
)
def test_dicom_errors_name_the_folder(tmp_path, make, says, capfd):
    make(tmp_path / "dicom")
    with pytest.raises(InputError, match=says) as error:
        nifti.read_dicom_series(tmp_path / "dicom")
    assert str(tmp_path / "dicom") in str(error.value)
    assert "\n" not in str(error.value)
    assert "WARNING" not in capfd.readouterr().err


# Errors ----


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


def check_sentence(error, path):
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 400 + len(str(path)) * 2
    assert type(error.value) is InputError


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
SHEARED = affine_of() + np.array([[0, 0.5, 0, 0], *[[0] * 4] * 3])
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


FLAT = nifti.make_image(noise((3, 4)), affine_of())
SHEARED_IMAGE = nifti.make_image(noise((3, 4, 5)), SHEARED)
GRID_ERRORS = {
    "shear": (lambda image: nifti.resample_to_spacing(image, 1.0), SHEARED_IMAGE, "sheared"),
    "shear to sitk": (nifti.to_sitk, SHEARED_IMAGE, "sheared"),
    "shear of image": (lambda image: nifti.resample_to(image, LIKE), SHEARED_IMAGE, "sheared"),
    "shear of reference": (lambda image: nifti.resample_to(LIKE, image), SHEARED_IMAGE, "sheared"),
    "zero spacing": (lambda image: nifti.resample_to_spacing(image, (1, 0, 1)), LIKE, "positive spacing"),
    "nan spacing": (lambda image: nifti.resample_to_spacing(image, np.nan), LIKE, "positive spacing"),
    "two spacings": (lambda image: nifti.resample_to_spacing(image, (1, 2)), LIKE, "positive spacing"),
    "method": (lambda image: nifti.resample_to_spacing(image, 1, interpolation="cubic"), LIKE, "'cubic'"),
    "bspline": (lambda image: nifti.resample_to_spacing(image, 1, interpolation="bspline"), LIKE, "four voxels"),
    "4D to 2D": (
        lambda image: nifti.resample_to(image, FLAT),
        nifti.make_image(noise((3, 4, 5, 2)), affine_of()),
        "3D reference",
    ),
    "complex": (nifti.to_sitk, nifti.make_image(np.full((3, 4, 5), 1j), affine_of()), "real voxels"),
    "other grid": (lambda image: nifti.restore_orientation(image, LIKE), FLAT, "spatial shape"),
    "other affine": (
        lambda image: nifti.restore_orientation(image, LIKE),
        nifti.make_image(noise((3, 4, 5)), affine_of(oblique=False)),
        "affine that to_ras gives",
    ),
}


@pytest.mark.parametrize("call, image, says", GRID_ERRORS.values(), ids=GRID_ERRORS)
def test_grid_errors(tmp_path, call, image, says):
    path = tmp_path / "scan.nii"
    with pytest.raises(InputError, match=says) as error:
        call(replace(image, path=path))
    check_sentence(error, path)


def test_label_fill_must_fit_the_dtype():
    image = nifti.make_image(noise((3, 4, 5), np.uint8), affine_of())
    with pytest.raises(InputError, match="can't hold"):
        nifti.resample_to(image, LIKE, label=True, fill=-1)


def test_vector_image_is_refused(tmp_path):
    rgb = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    with pytest.raises(InputError, match="one value per voxel") as error:
        nifti.from_sitk(rgb, tmp_path / "scan.dcm")
    check_sentence(error, tmp_path / "scan.dcm")
