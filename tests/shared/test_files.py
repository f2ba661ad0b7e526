"""Files are whole or not there."""

import csv
import doctest

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
