"""Files are whole or not there."""

import csv
import doctest
import errno
import os

import pytest

from shared import files
from shared.errors import InputError


def test_examples_in_docstrings():
    assert doctest.testmod(files).failed == 0


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    files.write_csv(path, [{"case": "x", "psnr": 1.5}])

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        files.write_atomically(path, broken)
    assert list(tmp_path.iterdir()) == [path]
    assert list(csv.DictReader(path.open(newline=""))) == [{"case": "x", "psnr": "1.5"}]


def test_tables_with_missing_and_unknown_cells(tmp_path):
    path = tmp_path / "new" / "a.csv"
    files.write_csv(path, [{"case": "é"}, {"psnr": 2.0, "case": "y"}], ["case", "psnr"])
    assert path.read_text("utf-8").split() == ["case,psnr", "é,", "y,2.0"]
    with pytest.raises(ValueError):
        files.write_csv(path, [{"case": "z", "other": 1}], ["case", "psnr"])
    assert "z" not in path.read_text("utf-8")
    with pytest.raises(ValueError, match="names of columns"):
        files.write_csv(path, [])
    files.write_csv(path, [], ["case"])
    assert path.read_text("utf-8").split() == ["case"]


def test_a_folder_is_complete_or_absent(tmp_path):
    with pytest.raises(RuntimeError), files.complete_or_absent(tmp_path / "data") as folder:
        (folder / "one").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data").mkdir()  # empty: taken
    with files.complete_or_absent(tmp_path / "data") as folder:
        (folder / "one").touch()
        assert not (tmp_path / "data" / "one").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "one"]
    with pytest.raises(InputError, match="there already"), files.complete_or_absent(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "one").exists()


def test_outputs_must_not_be_inputs(tmp_path):
    scan, folder = tmp_path / "scan.nii", tmp_path / "dicom"
    folder.mkdir()
    for path in (scan, folder / "1.dcm"):
        path.write_text("mine")
    (tmp_path / "link.nii").symlink_to(scan)
    os.link(scan, tmp_path / "hard.nii")
    for output in (scan, tmp_path / "dicom" / ".." / "scan.nii", tmp_path / "link.nii", tmp_path / "hard.nii"):
        with pytest.raises(InputError, match="input itself"):
            files.refuse_overwriting_inputs(output, None, folder, scan)
    with pytest.raises(InputError, match="file of the input"):
        files.refuse_overwriting_inputs(folder / "1.dcm", folder)
    with pytest.raises(InputError, match="input itself"):
        files.refuse_overwriting_inputs(folder, folder)
    for output in (tmp_path / "new.nii", folder / "new.nii", folder / "sub", tmp_path):
        files.refuse_overwriting_inputs(output, None, folder, scan, tmp_path / "absent")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as failed:
        files.write_atomically(tmp_path / "a", lambda temporary: pytest.fail("before the work"))
    assert failed.value.filename == str(tmp_path / "a")


def test_errors_of_the_system_name_the_file_that_the_user_knows(tmp_path):
    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_by_name(temporary):
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    def other(temporary):
        (tmp_path / "other").read_text()

    for write, name in ((full, "a.csv"), (full_by_name, "a.csv"), (other, "other")):
        with pytest.raises(OSError) as failed:
            files.write_atomically(tmp_path / "a.csv", write)
        assert failed.value.filename == str(tmp_path / name)
    with pytest.raises(OSError) as failed, files.complete_or_absent(tmp_path / "data"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failed.value.filename == str(tmp_path / "data") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "a/../b.png", "./a.png", "..a/b", "a b/ü.png"])
def test_names_inside_of_a_folder(tmp_path, name):
    assert files.inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", [
    "../a", "a/../../b", "..", ".", "", "  ", "/etc/passwd", "a/..", "a\0b", None, 3, float("nan"),
    "..\\a", "a\\..\\..\\b",
])  # fmt: skip
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(InputError, match="a list names .* not .*inside this folder"):
        files.inside(tmp_path, name)


def test_lists_of_names():
    files.refuse_duplicates(iter(["a", "b", 1, "1"]), "cases")
    with pytest.raises(InputError, match=r"^cases in a.csv: 'b' comes 3 times \(and 1 others more than once\)"):
        files.refuse_duplicates(["a", "b", "b", "c", "c", "b"], "cases in a.csv")
    files.refuse_overlap(["a", "b"], iter(["c"]), "patients")
    with pytest.raises(InputError, match=r"^patients: 'b' \(and 1 others\) is in both"):
        files.refuse_overlap(iter(["a", "b", "c", "b"]), iter(["c", "b"]), "patients")
