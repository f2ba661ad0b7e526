"""log.csv: one form, whatever happened to the run; a broken one is a sentence."""

import math

import pytest

from shared.errors import InputError
from shared.training_log import TrainingLog, read_log


def written(path, steps=5):
    log = TrainingLog(path)
    for step in range(1, steps + 1):
        log.append([{"step": step, "loss": 1 / step}])
    return log


def test_one_kind_of_line_ending_after_a_resume(tmp_path):
    path = tmp_path / "log.csv"
    written(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # by an editor, or an earlier version
    log = TrainingLog(path)
    log.keep(3)
    log.append([{"step": 4, "loss": 0.5}])
    assert path.read_bytes() == b"step,loss\n1,1.0\n2,0.5\n3,0.3333333333333333\n4,0.5\n"
    assert read_log(path)["step"] == [1, 2, 3, 4]


def test_columns_that_come_later_have_their_own_place(tmp_path):
    """A second phase of a training may log other losses."""
    path = tmp_path / "log.csv"
    log = written(path, 2)
    log.append([{"step": 3, "contrast": 7.0}, {"step": 4, "contrast": 8.0, "loss": 1.0}])
    found = read_log(path)
    assert found["contrast"][2:] == [7.0, 8.0] and math.isnan(found["contrast"][0])
    assert found["loss"][:2] == [1.0, 0.5] and math.isnan(found["loss"][2]) and found["loss"][3] == 1.0
    again = TrainingLog(path)
    again.keep(3)
    again.append([{"step": 4, "loss": 3.0}])
    assert read_log(path)["loss"][3] == 3.0 and read_log(path)["contrast"][2] == 7.0


@pytest.mark.parametrize("tail", ["6,0.", "6,0.123\n7,0.4", "6", "6,", '6,"0.1', "garb", "\0\0\0\0"])
def test_what_a_kill_cut_short_is_dropped(tmp_path, tail):
    path = tmp_path / "log.csv"
    written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail.encode())
    TrainingLog(path).keep(5)
    assert path.read_bytes() == whole
    TrainingLog(tmp_path / "absent.csv").keep(5)


@pytest.mark.parametrize("content", [
    b"", b"\n", b"epoch,loss\n1,2\n", b"step,loss\n1,0.5\n2,x\n3,1\n4,1\n5,1\n",
    b"step,loss\n1,0.5,7\n2,1\n3,1\n4,1\n5,1\n",
    b"step,loss\n2,1\n1,1\n5,1\n", b"step,loss\n1,1\n1,1\n5,1\n", b"step,loss\n\n2,1\n5,1\n", b"step,step\n1,1\n",
    b"\xff\xfe\x00step", b"step;loss\n1;2\n", b"step,loss\n-1,1\n5,1\n", b"step,loss\n1.5,1\n5,1\n",
])  # fmt: skip
def test_a_broken_log_is_a_sentence(tmp_path, content):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="log.csv: damaged.*remove it"):
        TrainingLog(path).keep(5)
    with pytest.raises(InputError, match="log.csv: damaged.*remove it"):
        read_log(path)


def test_no_log(tmp_path):
    with pytest.raises(InputError, match="there is no log here"):
        read_log(tmp_path / "log.csv")
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(InputError, match="there is no log here"):
        TrainingLog(tmp_path / "log.csv").keep(3)
