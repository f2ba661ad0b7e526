"""A run that something happened to: damaged files, changed data, two runners at once."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.fingerprint import fingerprint_of_data, read_marker, write_marker
from benchmarks.lock import locked
from tests.benchmarks.test_reproduce import environment, result_of, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scaffold")]


def test_every_file_that_is_damaged_is_made_again(scaffold, tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(scaffold, root, ignore=shutil.ignore_patterns("runs", "data", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.faults"],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    names = {name.rpartition("/")[2] for name in found["files"]}
    assert names >= {"checkpoint.pt", "metrics.csv", "log.csv", "config.json", "steps.json", "result.json", "panel.png"}
    assert {"panel.json", ".lock", ".standin-smoke.json", "case000.npz"} <= names
    assert not found["wrong"], "\n".join(found["wrong"])


@pytest.fixture
def data(scaffold, tmp_path):
    """A copy of the stand-in, as a user's own data set."""
    assert run(scaffold, "--profile", "smoke", "--variants", "input").returncode == 0
    folder = tmp_path / "mine"
    shutil.copytree(scaffold / "data" / "scaffold" / "standin-smoke", folder)
    return folder


def test_changed_data_runs_again_even_at_equal_size_and_time(scaffold, data):
    arguments = ["--profile", "smoke", "--variants", "input", "--data", str(data)]
    assert run(scaffold, *arguments).returncode == 0
    before = result_of(scaffold, "mine-smoke")["results"]
    done = run(scaffold, *arguments)
    assert "input, seed 0: up to date" in done.stdout
    case, other = sorted((data / "test").iterdir())
    status = case.stat()
    assert other.stat().st_size == status.st_size
    shutil.copyfile(other, case)
    os.utime(case, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = run(scaffold, *arguments)
    assert done.returncode == 0 and "up to date" not in done.stdout, done.stdout
    after = result_of(scaffold, "mine-smoke")["results"]
    assert after != before and len(set(map(str, after["input"]["0"].values()))) == 1


def test_a_second_runner_in_the_same_folder_gets_a_sentence(scaffold):
    arguments = ["--profile", "smoke", "--variants", "input"]
    with locked(scaffold / "runs" / "scaffold" / "standin-smoke" / ".lock", "in use here"):
        done = run(scaffold, *arguments)
        assert done.returncode == 2 and "is in use by another `make reproduce`" in done.stderr, done.stdout
        assert "up to date" not in done.stdout and "Traceback" not in done.stderr
    with locked(scaffold / "data" / "scaffold" / ".standin-smoke.lock", "in use here"):
        done = run(scaffold, *arguments)
        assert done.returncode == 2 and "is being made by another process" in done.stderr, done.stdout
    assert run(scaffold, *arguments).returncode == 0


def test_a_training_that_stopped_is_not_what_another_starts_from(scaffold, tmp_path):
    """`full` stops at a loss that is not finite and leaves a checkpoint; `tuned`, which needs it, must not use it."""
    root = tmp_path / "repository"
    shutil.copytree(scaffold, root, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    toml, train = (root / "papers" / "scaffold" / name for name in ("paper.toml", "train.py"))
    text = toml.read_text("utf-8")
    tuned = '[[variant]]\nname = "tuned"\nlabel = "Tuned"\nrole = "ablation"\nneeds = "full"\n\n[[metric]]'
    toml.write_text(text.replace("[[metric]]", tuned, 1), "utf-8")
    text = train.read_text("utf-8").replace('"full": {},', '"full": {}, "tuned": {},')
    nan = """        if config.variant == "full" and run.step == 2:
            run.save()
            loss = loss * float("nan")
"""
    changed = text.replace("        run.update(loss", nan + "        run.update(loss")
    assert changed != text and '"tuned"' in text
    train.write_text(changed, "utf-8")
    done = run(root, "--profile", "smoke", "--variants", "tuned")
    assert (root / "runs" / "scaffold" / "standin-smoke" / "full" / "seed0" / "checkpoint.pt").exists()
    assert done.returncode == 1 and "full, seed 0: FAILED" in done.stdout
    assert "tuned, seed 0: FAILED, needs" in done.stdout and "failed: tuned" in done.stdout


def test_fingerprints_follow_links_and_see_every_change(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.ledger.ROOT", tmp_path / "repository")
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "a").write_text("1")
    (data / "sub" / "b").write_text("2")
    (elsewhere / "c").write_text("3")
    (data / "link").symlink_to(elsewhere)
    (data / "loop").symlink_to(data)
    (data / "broken").symlink_to(tmp_path / "nowhere")
    for path in (data / "a", data / "sub" / "b", elsewhere / "c"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("benchmarks.fingerprint.FRESH", -1.0)  # digests are kept at once
    seen = [fingerprint_of_data(data)]
    assert fingerprint_of_data(data) == seen[0]
    kept = next((tmp_path / "repository" / "runs" / ".digests").iterdir())
    assert len(read_marker(kept)) == 3

    def look() -> None:
        seen.append(fingerprint_of_data(data))
        assert len(set(seen)) == len(seen), "a change was not seen"

    (data / "a").write_text("x")
    os.utime(data / "a", (1, 1))
    look()
    (elsewhere / "c").write_text("y")
    look()
    (data / "sub" / "b").rename(data / "sub" / "d")
    look()
    (data / "empty").touch()
    look()
    (data / "a").unlink()
    look()
    kept.write_text("odd", "utf-8")
    assert fingerprint_of_data(data) == seen[-1]


def test_a_fresh_file_is_read_again(tmp_path, monkeypatch):
    """Written twice within the resolution of the clock, a file could change without its times changing."""
    monkeypatch.setattr("benchmarks.ledger.ROOT", tmp_path / "repository")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("1")
    fingerprint_of_data(tmp_path / "data")
    assert not list((tmp_path / "repository").rglob("*.json"))


@pytest.mark.parametrize("odd", ["", "{", "[]", "null", '{"digest": "x", "content": {}}', "\udcff"])
def test_an_odd_marker_is_no_marker(tmp_path, odd):
    path = tmp_path / "marker.json"
    write_marker(path, {"a": 1})
    assert read_marker(path) == {"a": 1}
    path.write_bytes(odd.encode("utf-8", "surrogateescape"))
    assert read_marker(path) == {}
    path.write_text(json.dumps({**json.loads('{"digest": "x"}'), "content": {"a": 2}}), "utf-8")
    assert read_marker(path) == {}
