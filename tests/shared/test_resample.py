"""`shared.resample`: world positions are right after every change of grid."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from shared import nifti, resample
from shared.errors import InputError
from tests.shared.phantoms import (
    AXIS_CODES,
    GRADIENT,
    GRIDS,
    SHEARED,
    affine_of,
    check_sentence,
    linear_image,
    noise,
    same_header,
    world,
)

LIKE = nifti.make_image(noise((3, 4, 5)), affine_of())


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_to_ras_and_back(codes, oblique):
    for shape in ((3, 4, 5), (3, 4, 5, 2)):
        image = nifti.make_image(noise(shape), affine_of(codes, oblique=oblique))
        ras = resample.to_ras(image)
        assert ras.orientation == ("R", "A", "S")
        reference = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.data, image.affine))
        np.testing.assert_array_equal(ras.data, np.asarray(reference.dataobj))
        np.testing.assert_allclose(ras.affine, reference.affine, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ras.header.get_best_affine(), ras.affine, rtol=1e-6, atol=1e-5)

        back = resample.restore_orientation(ras, image)
        assert back.data.dtype == image.data.dtype
        np.testing.assert_array_equal(back.data, image.data)
        np.testing.assert_array_equal(back.affine, image.affine)
        same_header(back.header, image.header)


def test_ras_image_through_a_file_and_back(tmp_path):
    """A prediction made in RAS order, written, read and put back has the header of the original file."""
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("S", "L", "P")))
    image.header.set_dim_info(freq=1, phase=2, slice=0)
    image.header["slice_end"], image.header["slice_code"] = 2, 1
    ras = resample.to_ras(image)
    assert ras.header.get_dim_info() == (0, 1, 2)
    nifti.save(tmp_path / "ras.nii.gz", ras.data > 50, like=ras)
    back = resample.restore_orientation(nifti.load(tmp_path / "ras.nii.gz"), image)
    np.testing.assert_array_equal(back.data, image.data > 50)
    np.testing.assert_array_equal(back.affine, image.affine)
    same_header(back.header, image.header)


def test_to_ras_reverses_the_slice_order_with_the_slice_axis():
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("R", "A", "I")))
    image.header.set_dim_info(slice=2)
    image.header["slice_code"], image.header["slice_start"], image.header["slice_end"] = 3, 1, 4
    header = resample.to_ras(image).header
    assert [int(header[key]) for key in ("slice_code", "slice_start", "slice_end")] == [4, 0, 3]


def test_to_ras_moves_a_differing_qform_by_the_same_voxel_map():
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("L", "P", "S")))
    image.header.set_qform(affine_of(("L", "P", "S"), oblique=False), 3)
    header = resample.to_ras(image).header
    expected = nibabel.Nifti1Image(image.data, affine_of(("L", "P", "S"), oblique=False))
    np.testing.assert_allclose(header.get_qform(), nibabel.as_closest_canonical(expected).affine, atol=1e-5)
    assert int(header["qform_code"]) == 3


@pytest.mark.parametrize("codes, expected", [("LPS", "RA"), ("PIR", "AS"), ("SPR", "AS"), ("RAS", "RA"), ("ILA", "RS")])
def test_to_ras_in_2d_keeps_the_slice(codes, expected):
    affine = affine_of(tuple(codes))
    image = linear_image(affine, (3, 4, 1))
    image = nifti.make_image(image.data[..., 0], affine)
    ras = resample.to_ras(image)
    assert ras.data.ndim == 2 and ras.orientation == tuple(expected)
    np.testing.assert_allclose(ras.data, linear_image(ras.affine, (*ras.shape, 1)).data[..., 0], rtol=1e-5)
    back = resample.restore_orientation(ras, image)
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_array_equal(back.affine, image.affine)


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_labels_with_flipped_or_permuted_axes_go_back_to_their_image(codes):
    image = nifti.make_image(noise((3, 4, 5)), affine_of(("L", "A", "S")))
    truth = noise((3, 4, 5), np.uint8, seed=1)
    order = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(("L", "A", "S")), nibabel.orientations.axcodes2ornt(codes)
    )
    saved = nibabel.Nifti1Image(truth, image.affine).as_reoriented(order)  # as another program may have saved it
    labels = nifti.make_image(np.asarray(saved.dataobj), saved.affine)
    back = resample.on_grid_of(labels, image)
    np.testing.assert_array_equal(back.data, truth)
    assert back.data.dtype == np.uint8
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-9)
    np.testing.assert_allclose(back.header.get_best_affine(), image.affine, rtol=1e-6, atol=1e-5)
    if codes == ("L", "A", "S"):
        assert back is labels
    else:
        assert nifti.grid_difference(labels, image)
    moved = labels.affine.copy()
    moved[:3, 3] += 0.3
    with pytest.raises(InputError, match="does not lie on the voxels"):
        resample.on_grid_of(replace(labels, affine=moved), image)


def test_on_grid_of_in_2d_and_4d():
    flat = nifti.make_image(noise((4, 5)), affine_of())
    mirror = np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    mirrored = replace(flat, data=flat.data[::-1], affine=flat.affine @ mirror)
    np.testing.assert_array_equal(resample.on_grid_of(mirrored, flat).data, flat.data)
    series = nifti.make_image(noise((4, 5, 3, 2)), affine_of(("L", "P", "S")))
    np.testing.assert_array_equal(resample.on_grid_of(resample.to_ras(series), series).data, series.data)
    with pytest.raises(InputError, match="spatial shape"):
        resample.on_grid_of(flat, series)


def test_a_spacing_that_asks_for_too_many_voxels_is_refused():
    """A file that says metres and means mm has a spacing of 1000 mm: at 1 mm that would be a thousand million times."""
    coarse = nifti.make_image(noise((10, 10, 10)), np.diag([1000.0, 1000, 1000, 1]))
    for spacing in (1.0, 1e-320, (1e-3, 1, 1)):
        with pytest.raises(InputError, match="at most 2,147,483,648 voxels, found .* at 1000, 1000, 1000 mm; choose"):
            resample.resample_to_spacing(coarse, spacing)
    flat = nifti.make_image(noise((10, 10)), np.eye(4))
    with pytest.raises(InputError, match="at most 2,147,483,648 voxels"):
        resample.resample_to_spacing(flat, 1e-4)
    assert resample.resample_to_spacing(coarse, (1e9, 1e9, 10)).shape == (1, 1, 1000)


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", GRIDS, ids="".join)
def test_resample_to_spacing_keeps_a_linear_function_of_world_position(codes, oblique, interpolation):
    image = linear_image(affine_of(codes, oblique=oblique), (24, 18, 14))
    spacing = (1.3, 0.9, 1.7)
    result = resample.resample_to_spacing(image, spacing, interpolation=interpolation)
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
    result = resample.resample_to(image, nifti.make_image(np.zeros((11, 17, 13)), reference), fill=-999)
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
    result = resample.resample_to(image, nifti.make_image(np.zeros((21, 20, 22)), reference), label=label, fill=7)
    index = world(np.linalg.inv(image.affine) @ reference, result.shape)
    expected = map_coordinates(data.astype(float), np.moveaxis(index, -1, 0), order=0 if label else 1)
    inside = ((index >= 0) & (index <= np.array(data.shape) - 1)).all(axis=-1)
    outside = ((index < -0.51) | (index > np.array(data.shape) - 0.49)).any(axis=-1)
    assert inside.sum() > 1000 and outside.sum() > 100
    np.testing.assert_allclose(result.data[inside], expected[inside], atol=0 if label else 1e-2)
    assert (result.data[outside] == 7).all()


def test_bspline_agrees_with_scipy_in_the_interior():
    image = nifti.make_image(noise((30, 30, 30)), np.eye(4))
    result = resample.resample_to_spacing(image, 0.75, interpolation="bspline")
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
        resample.resample_to_spacing(image, (0.5, 2.0, 1.1), label=True),
        resample.resample_to(image, nifti.make_image(np.zeros((12, 9, 7)), affine_of(spacing=(1, 1, 1))), label=True),
    ):
        assert result.data.dtype == dtype
        assert set(np.unique(result.data)) <= set(np.unique(labels))


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6), (5, 1, 7, 2)], ids=["3D", "2D", "one slice"])
def test_resample_to_spacing_has_no_empty_rim(shape, label):
    """5 mm at 2 mm are three voxels, the last of them centred on the old edge."""
    image = nifti.make_image(np.full(shape, 3, np.int16), affine_of(("L", "P", "S"), (1, 1, 1)))
    for spacing in (2.0, 0.3):
        result = resample.resample_to_spacing(image, spacing, label=label)
        assert result.shape[0] == {2.0: 3, 0.3: 17}[spacing]
        np.testing.assert_allclose(result.data, 3, atol=1e-5)


@pytest.mark.parametrize("label", [False, True])
def test_resampling_to_the_own_grid_changes_nothing(label):
    image = nifti.make_image(noise((6, 7, 8)), affine_of(("P", "S", "L")))
    for result in (
        resample.resample_to(image, image, label=label),
        resample.resample_to_spacing(image, image.spacing, label=label),
    ):
        np.testing.assert_allclose(result.data, image.data, atol=1e-3 if not label else 0)
        np.testing.assert_allclose(result.affine, image.affine, rtol=1e-9, atol=1e-9)


def test_4d_is_resampled_frame_by_frame_and_keeps_the_time_step(tmp_path):
    image = nifti.make_image(noise((8, 7, 6, 3)), affine_of(("L", "P", "S")))
    image.header["pixdim"][4] = 2.5
    result = resample.resample_to_spacing(image, 1.1)
    for frame in range(3):
        single = resample.resample_to_spacing(replace(image, data=image.data[..., frame]), 1.1)
        np.testing.assert_array_equal(result.data[..., frame], single.data)
    nifti.save(tmp_path / "a.nii", result.data, like=result)
    assert nibabel.load(tmp_path / "a.nii").header.get_zooms()[3] == 2.5


def test_2d_is_resampled_within_its_slice():
    affine = affine_of(("A", "S", "L"))
    image = nifti.make_image(linear_image(affine, (20, 15, 1)).data[..., 0], affine)
    result = resample.resample_to_spacing(image, (0.7, 2.0))
    assert result.data.ndim == 2 and result.spacing == pytest.approx((0.7, 2.0))
    expected = linear_image(result.affine, (*result.shape, 1)).data[..., 0]
    np.testing.assert_allclose(result.data[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)
    np.testing.assert_allclose(resample.resample_to(result, image).data[2:-2, 2:-2], image.data[2:-2, 2:-2], atol=1e-3)


FLAT = nifti.make_image(noise((3, 4)), affine_of())


SHEARED_IMAGE = nifti.make_image(noise((3, 4, 5)), SHEARED)


GRID_ERRORS = {
    "shear": (lambda image: resample.resample_to_spacing(image, 1.0), SHEARED_IMAGE, "sheared"),
    "shear to sitk": (nifti.to_sitk, SHEARED_IMAGE, "sheared"),
    "shear of image": (lambda image: resample.resample_to(image, LIKE), SHEARED_IMAGE, "sheared"),
    "shear of reference": (lambda image: resample.resample_to(LIKE, image), SHEARED_IMAGE, "sheared"),
    "zero spacing": (lambda image: resample.resample_to_spacing(image, (1, 0, 1)), LIKE, "positive spacing"),
    "nan spacing": (lambda image: resample.resample_to_spacing(image, np.nan), LIKE, "positive spacing"),
    "two spacings": (lambda image: resample.resample_to_spacing(image, (1, 2)), LIKE, "positive spacing"),
    "method": (lambda image: resample.resample_to_spacing(image, 1, interpolation="cubic"), LIKE, "'cubic'"),
    "bspline": (lambda image: resample.resample_to_spacing(image, 1, interpolation="bspline"), LIKE, "four voxels"),
    "4D to 2D": (
        lambda image: resample.resample_to(image, FLAT),
        nifti.make_image(noise((3, 4, 5, 2)), affine_of()),
        "3D reference",
    ),
    "complex": (nifti.to_sitk, nifti.make_image(np.full((3, 4, 5), 1j), affine_of()), "real voxels"),
    "other grid": (lambda image: resample.restore_orientation(image, LIKE), FLAT, "spatial shape"),
    "other affine": (
        lambda image: resample.restore_orientation(image, LIKE),
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
        resample.resample_to(image, LIKE, label=True, fill=-1)
