"""One process at a time, with and without the system's locks."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared import locks
from shared.errors import InputError
from shared.locks import Lock

ROOT = Path(__file__).parents[2]
HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from shared.locks import Lock
lock = Lock(Path(sys.argv[1]), "")
if len(sys.argv) > 2:  # a worker that outlives it
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)).start()
print("held", flush=True)
time.sleep(60)
"""


def holder(path, *extra):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *extra], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("extra", [(), ("with a worker",)])
def test_a_lock_dies_with_its_process(tmp_path, extra):
    path = tmp_path / "new" / ".lock"
    process = holder(path, *extra)
    try:
        with pytest.raises(InputError, match="somebody is here"):
            Lock(path, "somebody is here")
    finally:
        process.kill()
        process.wait()
    Lock(path, "somebody is here").release()


def test_a_lock_that_is_released_can_be_taken_by_another_process(tmp_path):
    lock = Lock(tmp_path / ".lock", "")
    lock.release()
    process = holder(tmp_path / ".lock")
    process.kill()
    process.wait()


class Drive:
    """`msvcrt` as it behaves: one byte of a file, for one handle at a time."""

    LK_NBLCK = 2

    def __init__(self):
        self.locked = set()

    def locking(self, number, mode, length):
        import os

        status = os.fstat(number)
        if (status.st_dev, status.st_ino) in self.locked:
            raise PermissionError(13, "Permission denied")
        self.locked.add((status.st_dev, status.st_ino))


def test_where_the_system_has_other_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", Drive())
    Lock(tmp_path / "a", "")
    Lock(tmp_path / "b", "")
    with pytest.raises(InputError, match="in use"):
        Lock(tmp_path / "a", "in use")


def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    class Network:
        LOCK_EX = LOCK_NB = 0

        def lockf(self, *arguments):
            raise OSError(38, "Function not implemented")

    for module in (None, Network()):
        monkeypatch.setattr(locks, "fcntl", module)
        monkeypatch.setattr(locks, "msvcrt", None)
        Lock(tmp_path / "a", "in use")
        Lock(tmp_path / "a", "in use")
