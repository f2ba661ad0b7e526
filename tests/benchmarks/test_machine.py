"""What differs between systems: cores, locks, the unit of the peak memory, how processes are started."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import ledger, machine
from benchmarks.lock import locked
from benchmarks.steps import Steps
from shared.errors import InputError


def test_cores_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    assert machine.cores() == 3


@pytest.mark.parametrize("platform, expected", [("linux", 300.0), ("darwin", 300.0 / 1024)])
def test_the_peak_of_memory_is_in_kib_or_bytes(monkeypatch, platform, expected):
    used = {
        resource.RUSAGE_SELF: SimpleNamespace(ru_utime=1.0, ru_stime=2.0, ru_maxrss=300 * 1024),
        resource.RUSAGE_CHILDREN: SimpleNamespace(ru_utime=10.0, ru_stime=20.0, ru_maxrss=7),
    }
    monkeypatch.setattr(resource, "getrusage", used.__getitem__)
    monkeypatch.setattr(sys, "platform", platform)
    found = machine.usage()
    assert found["memory_mb"] == expected and found["processor_seconds"] == 33.0


def test_processes_are_not_forked_on_macos(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PYTHONPATH", str(ledger.ROOT))
    steps = Steps(["torch"])
    assert steps.context.get_start_method() == "spawn"
    used = steps.run("os", "mkdir", {"path": str(tmp_path / "made")}, tmp_path)
    assert (tmp_path / "made").is_dir() and used["seconds"] >= 0 and used["memory_mb"] > 0


def test_processor_time_of_a_steps_own_children_counts(tmp_path):
    code = "import time\nwhile time.process_time() < 0.5: pass"
    used = Steps([]).run("subprocess", "run", {"args": [sys.executable, "-c", code]}, tmp_path)
    assert 0.5 <= used["processor_seconds"] < 30


HOLDER = """
import sys
from pathlib import Path
from benchmarks.lock import locked
with locked(Path(sys.argv[1]), "in use"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_runner_at_a_time_in_a_folder(tmp_path):
    path = tmp_path / "run" / ".lock"
    arguments = [sys.executable, "-c", HOLDER, str(path)]
    holder = subprocess.Popen(arguments, cwd=ledger.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(InputError, match="in use"):
            with locked(path, "in use"):
                raise AssertionError("two at a time")
    finally:
        holder.kill()  # its lock goes with it
        holder.wait()
    with locked(path, "in use"):
        pass
    path.unlink()
    path.mkdir()
    (path / "inside").touch()
    with locked(path, "in use"):
        assert path.is_file()


def test_the_runner_answers_where_things_are_missing():
    code = (
        "import os, sys; sys.modules['fcntl'] = None; vars(os).pop('sched_getaffinity', None)\n"
        "from benchmarks import reproduce; reproduce.main(sys.argv[1:])"
    )
    arguments = ["--paper", ledger.slugs()[0], "--profile", "smoke", "--device", "cpu", "--dry-run"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ledger.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "profile smoke" in done.stdout, done.stderr
