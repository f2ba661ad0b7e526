"""`shared.dicom`: a series becomes the right volume, or is refused with a sentence."""

import numpy as np
import pytest
import SimpleITK as sitk

from shared import dicom, nifti
from shared.errors import InputError
from tests.shared.phantoms import affine_of, noise


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
    image = dicom.dicom_to_nifti(folder, tmp_path / "out" / "ct.nii.gz")
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
            dicom.read_dicom_series(tmp_path / "dicom", wrong)
        for part in (str(tmp_path / "dicom"), *uids, "chest", "abdomen", "3 files"):
            assert part in str(error.value)
    chosen = dicom.read_dicom_series(tmp_path / "dicom", uids[1])
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
        dicom.read_dicom_series(tmp_path / "dicom")
    assert str(tmp_path / "dicom") in str(error.value)
    assert "\n" not in str(error.value)
    assert "WARNING" not in capfd.readouterr().err
