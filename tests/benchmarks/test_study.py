"""The profile `study` on the scaffold paper: seeds per variant, the length curve; and recording."""

import json
import re
import shutil

import pytest

from benchmarks import ledger
from tests.benchmarks.test_reproduce import result_of, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scaffold")]

STUDY = """
[profiles.study]
seeds = 1
seeds_of = { full = 2, shallow = 2 }

[study]
length = "steps"
headline = "C1"
seeds = 1
"""


def copy_of(scaffold, root):
    shutil.copytree(scaffold, root, ignore=shutil.ignore_patterns("runs", "data", "__pycache__"))
    return root


@pytest.fixture(scope="module")
def root(scaffold, tmp_path_factory):
    """A scaffold whose study is two seeds of four updates."""
    root = copy_of(scaffold, tmp_path_factory.mktemp("study") / "repository")
    folder = root / "papers" / "scaffold"
    toml, train = folder / "paper.toml", folder / "train.py"
    text = re.sub(r"(?ms)^\[(profiles\.study|study)\].*?(?=^\[)", "", toml.read_text("utf-8"))
    text = text.replace('variants = ["full", "shallow"]', 'variants = ["full", "shallow", "input"]')
    assert '"shallow", "input"]' in text
    toml.write_text(text.replace("[profiles.paper]", STUDY + "\n[profiles.paper]", 1), "utf-8")
    text = re.sub(r"(?m)^    \"study\": .*\n", "", train.read_text("utf-8"))
    text = text.replace("PROFILES = {", 'PROFILES = {\n    "study": {"steps": 4},', 1)
    train.write_text(text, "utf-8")
    generator = root / "benchmarks" / "standins" / "scaffold.py"
    if '"study"' not in generator.read_text("utf-8"):
        generator.write_text(generator.read_text("utf-8").replace('{"smoke":', '{"study": (4, 2), "smoke":', 1))
    return root


@pytest.fixture(scope="module")
def studied(root):
    done = run(root, "--profile", "study")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_planned_and_found_is_printed(studied):
    assert "profile study, 10 trainings" in studied
    assert "shallow, full: 2 seeds" in studied and "input, mean: 1 seed\n" in studied
    assert "length curve of C1: shallow, full at half and double steps" in studied
    assert "processor minutes, of at most 60" in studied and "Length of training" in studied


def test_lengths_lie_in_folders_of_their_own(root, studied):
    folder = root / "runs" / "scaffold" / "standin-study"
    found = {}
    for path in folder.glob("*/seed0/config.json"):
        found[path.parent.parent.name] = json.loads(path.read_text("utf-8"))["steps"]
    assert found.pop("input") and found.pop("mean")
    assert found == {"full": 4, "full@0.5": 2, "full@2": 8, "shallow": 4, "shallow@0.5": 2, "shallow@2": 8}
    assert (folder / "full@2" / "seed0" / "log.csv").read_text("utf-8").count("\n") == 9
    assert not (folder / "full@2" / "seed1").exists() and (folder / "full" / "seed1").exists()


def test_the_result_holds_the_length_curve(root, studied):
    result = ledger.read_result(root / "runs" / "scaffold" / "standin-study" / "result.json")
    assert result["seeds"] == {"input": 1, "mean": 1, "shallow": 2, "full": 2}
    lengths = result["lengths"]
    assert lengths["setting"] == ["steps"]
    assert lengths["values"] == {"0.5": {"steps": 2}, "1": {"steps": 4}, "2": {"steps": 8}}
    for tables in lengths["results"].values():
        assert {name: list(by_seed) for name, by_seed in tables.items()} == {
            "input": ["0"], "shallow": ["0"], "full": ["0"]
        }  # fmt: skip
        assert tables["input"]["0"] == result["results"]["input"]["0"]
        assert tables["full"]["0"] != result["results"]["full"]["0"]
    assert [row["means"].keys() for row in result["verdicts"]["C1"]["lengths"]] == [{"0.5", "1", "2"}] * 2
    assert set(result["curves"]) == {"shallow", "full"}
    curve = result["curves"]["full"]["1"]
    assert curve["columns"][0] == "step" and [row[0] for row in curve["rows"]] == [1, 2, 3, 4]
    assert 0 < result["processor_minutes"] < 60 and result["minutes"] > 0 and result["data_seconds"] >= 0


def test_what_is_there_is_not_trained_again_without_lengths(root, studied):
    done = run(root, "--profile", "study", "--no-lengths")
    assert done.returncode == 0 and "no length curve: left out" in done.stdout
    assert done.stdout.count("up to date") == 7 and "lengths" not in result_of(root, "standin-study")
    done = run(root, "--profile", "study", "--variants", "full", "--seeds", "1")
    assert "no length curve: C1 compares input, shallow" in done.stdout and done.returncode == 0


def test_a_result_above_the_limit_is_not_recorded(root, studied):
    toml = root / "papers" / "scaffold" / "paper.toml"
    text = toml.read_text("utf-8")
    try:
        toml.write_text(text.replace("[profiles.study]", "[profiles.study]\nlimit = 0.001", 1), "utf-8")
        done = run(root, "--profile", "study", "--record")
    finally:
        toml.write_text(text, "utf-8")
    assert done.returncode == 1 and "not recorded: scaffold, standin, study" in done.stdout
    assert "processor minutes, and the limit is 0.001" in done.stdout
    assert not (root / "benchmarks" / "results" / "scaffold").exists()


def test_recorded_and_compared_with_the_ledger(root, studied):
    done = run(root, "--profile", "study", "--record")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = root / "benchmarks" / "results" / "scaffold" / "standin-study.json"
    picture = root / "runs" / "scaffold" / "standin-study" / "panel.png"
    assert recorded.with_suffix(".png").read_bytes() == picture.read_bytes()
    assert ledger.read_result(recorded) == ledger.read_result(picture.with_name("result.json"))
    done = run(root, "--profile", "study", "--check")
    assert done.returncode == 0 and "agrees with the ledger" in done.stdout and "about" in done.stdout
    result = ledger.read_result(recorded)
    for row in result["results"]["full"]["0"].values():
        row["psnr"] *= 2
    ledger.write_result(result, recorded)
    done = run(root, "--profile", "study", "--check")
    assert done.returncode == 1 and "failed: full psnr" in done.stdout


def test_an_effect_that_vanishes_with_training_is_still_moving(scaffold, tmp_path):
    """A made-up paper: its baseline is the same network, only slower, so that it catches up."""
    root = copy_of(scaffold, tmp_path / "repository")
    train = root / "papers" / "scaffold" / "train.py"
    text = train.read_text("utf-8")
    slower = text.replace('"shallow": {"depth": 0}', '"shallow": {"lr": 5e-3}')
    slower = re.sub(
        r'"study": \{.*\}', '"study": {"width": 8, "depth": 0, "steps": 80, "batch_size": 4, "lr": 2e-2}', slower
    )
    assert slower.count('"lr": ') == 2
    train.write_text(slower, "utf-8")
    toml = root / "papers" / "scaffold" / "paper.toml"
    text = re.sub(r"(?m)^seeds_of = .*", "seeds_of = { input = 1, mean = 1 }", toml.read_text("utf-8"))
    toml.write_text(text.replace('requires = ["C0"]', ""), "utf-8")
    generator = root / "benchmarks" / "standins" / "scaffold.py"
    generator.write_text(generator.read_text("utf-8").replace('"study": (64, 24)', '"study": (8, 6)'), "utf-8")
    done = run(root, "--profile", "study")
    assert done.returncode == 0, done.stdout + done.stderr
    found = result_of(root, "standin-study")["verdicts"]["C1"]
    (row,) = found["evidence"]
    (curve,) = found["lengths"]
    print(row, curve)
    assert row["verdict"] == "reproduced", "without the length curve it would pass for an effect"
    assert found["verdict"] == "inconclusive" and "still moving with training" in found["reason"]
    assert curve["moving"] and curve["means"]["0.5"] > curve["means"]["1"] > curve["means"]["2"]
    assert "it still moves" in done.stdout and "C1 is inconclusive" in done.stdout
