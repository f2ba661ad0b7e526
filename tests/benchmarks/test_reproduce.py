"""The runner, on the scaffold paper: killed and started again, one variant failing, the ledger guarded."""

import doctest
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import data, fingerprint, ledger, outcome, plan, settings, steps
from benchmarks.reproduce import differences

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scaffold")]


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "benchmarks.reproduce", "--paper", "scaffold", "--device", "cpu", *arguments]


def environment(root) -> dict:
    return {**os.environ, "PYTHONPATH": str(root)}


def run(root, *arguments):
    return subprocess.run(
        command(*arguments),
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=1200,
    )


def result_of(root, name="standin-smoke") -> dict:
    return ledger.read_result(root / "runs" / "scaffold" / name / "result.json")


@pytest.fixture(scope="module")
def undisturbed(scaffold):
    """Result of a run that nothing disturbed."""
    done = run(scaffold, "--profile", "smoke", "--set", "steps=300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "C1" in done.stdout and "PSNR" in done.stdout and "the paper: Table 1: 30 > 25 dB" in done.stdout
    assert not done.stderr
    return result_of(scaffold)


def test_up_to_date_steps_are_skipped(scaffold, undisturbed):
    done = run(scaffold, "--profile", "smoke", "--set", "steps=300")
    assert done.returncode == 0 and done.stdout.count("up to date") == 4  # the data and three variants
    assert result_of(scaffold)["results"] == undisturbed["results"]


def test_killed_and_started_again_gives_the_same_numbers(scaffold, undisturbed):
    shutil.rmtree(scaffold / "runs")
    process = subprocess.Popen(
        command("--profile", "smoke", "--set", "steps=300", "checkpoint_every=0", "--parallel", "1"),
        cwd=scaffold, env=environment(scaffold), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = scaffold / "runs" / "scaffold" / "standin-smoke" / "full" / "seed0" / "log.csv"
    checkpoint = log.with_name("checkpoint.pt")
    deadline = time.monotonic() + 900  # a machine may have much else to do
    while not (checkpoint.exists() and log.exists() and log.read_text("utf-8").count("\n") > 20):
        assert time.monotonic() < deadline and process.poll() is None, "training did not start"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached, since = -1, time.monotonic()  # the training notices, writes its checkpoint and ends
    while time.monotonic() < since + 3:
        if log.read_text("utf-8").count("\n") - 1 != reached:
            reached, since = log.read_text("utf-8").count("\n") - 1, time.monotonic()
        assert reached < 300, "the training outlived its runner"
        time.sleep(0.1)
    done = run(scaffold, "--profile", "smoke", "--set", "steps=300", "checkpoint_every=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result_of(scaffold)["results"] == undisturbed["results"]


def test_one_variant_fails_and_the_others_go_on(scaffold, undisturbed):
    model = scaffold / "papers" / "scaffold" / "model.py"
    text = model.read_text("utf-8")
    broken = text.replace("if depth else 1, 1, 3", "if depth else 7, 1, 3")
    assert broken != text
    try:
        model.write_text(broken, "utf-8")
        done = run(scaffold, "--profile", "smoke")
    finally:
        model.write_text(text, "utf-8")
    assert done.returncode == 1
    assert "shallow, seed 0: FAILED" in done.stdout and "failed: shallow" in done.stdout
    assert set(result_of(scaffold)["results"]) == {"input", "full"}
    assert result_of(scaffold)["verdicts"]["C1"]["reason"] == "failed: shallow"
    assert "picture    " in done.stdout, "the panel shows the variants that are there"


def test_what_a_killed_simulation_left_is_removed(scaffold, undisturbed):
    data = scaffold / "data" / "scaffold"
    shutil.rmtree(data / "standin-smoke")
    for name in (".standin-smoke.123.unfinished", ".standin-smoke-abc", ".standin-cpu.123.unfinished"):
        (data / name / "train").mkdir(parents=True)
    assert run(scaffold, "--profile", "smoke").returncode == 0
    folders = sorted(path.name for path in data.iterdir() if path.is_dir())
    assert folders == [".standin-cpu.123.unfinished", "standin-smoke"]


def test_a_smoke_result_can_not_enter_the_ledger(scaffold):
    done = run(scaffold, "--profile", "smoke", "--record")
    assert done.returncode == 2 and "smoke" in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--paper", "nothing"], "there is no paper 'nothing'"),
    (["--profile", "huge"], "there is no profile 'huge'"),
    (["--variants", "full,wrong"], "no variant wrong"),
    (["--set", "speed=3"], "--set speed=3: expected name=value"),
    (["--data", "absent"], "absent: there is no such folder"),
])  # fmt: skip
def test_a_users_mistakes(scaffold, arguments, message):
    done = run(scaffold, "--profile", "smoke", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_differences_from_the_ledger():
    def result(value):
        return {"results": {"full": {"0": {"a": {"psnr": value}, "b": {"psnr": value}}}}}

    assert differences(result(20.0), result(21.0), 0.15) == []
    assert "full psnr: 10 against 21" in differences(result(10.0), result(21.0), 0.15)[0]
    assert "not in this run" in differences({"results": {}}, result(21.0), 0.15)[0]
    assert len(differences(result(None), result(21.0), 0.15)) == 1


@pytest.mark.parametrize("module", [data, fingerprint, outcome, plan, settings, steps])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
