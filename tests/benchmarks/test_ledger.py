"""The ledger: what is written comes back, fifty papers are small, and the digest counts what the code does."""

import doctest
import os
import random
import shutil
import subprocess
import sys

import pytest

from benchmarks import ledger
from tests.test_contract import child_seconds


def made_up(variants=3, seeds=3, cases=5, columns=4, lengths=True, points=100) -> dict:
    """A result whose numbers are random; its first variant has one seed more, its last lacks a case and a column."""
    rng = random.Random(0)
    names = [f"variant_{number}" for number in range(variants)]

    def table(last: bool) -> dict:
        rows = {
            f"subset/case{number:03d}": {
                f"metric_{c}": ledger.short(rng.uniform(0, 100)) for c in range(columns - (last and columns > 1))
            }
            for number in range(cases - last)
        }
        return {case: {f"metric_{c}": row.get(f"metric_{c}") for c in range(columns)} for case, row in rows.items()}

    def tables(names: list[str]) -> dict:
        return {
            name: {str(seed): table(name == names[-1]) for seed in range(seeds + (name == names[0]))} for name in names
        }

    result = {
        "slug": "madeup",
        "dataset": "standin",
        "standin": True,
        "profile": "study",
        "seeds": dict.fromkeys(names, seeds),
        "overrides": {},
        "code": "0123456789abcdef",
        "verdicts": {
            f"C{number}": {
                "verdict": "inconclusive",
                "evidence": [
                    {"compared": "a better than b", "mean": 0.123456, "low": -0.123456, "high": 1.23456,
                     "half_width": 1.23456, "seeds": 5, "cases": cases, "means": {"a": 0.123456, "b": 0.234567},
                     "verdict": "inconclusive"}
                ] * 2,
            }
            for number in range(12)
        },
        "results": tables(names),
    }  # fmt: skip
    if lengths:
        values = {length: {"steps": steps} for length, steps in (("0.5", 50), ("1", 100), ("2", 200))}
        some = {length: ledger.only_columns(tables(names[:2]), ["metric_0"]) for length in ("0.5", "2")}
        result["lengths"] = {"setting": ["steps"], "values": values, "results": some}
    rows = [[step, float(f"{rng.random():.4g}"), float(f"{rng.random():.4g}"), None] for step in range(points)]
    curve = {"columns": ["step", "loss", "validation", "rate"], "rows": rows}
    result["curves"] = {name: {seed: curve for seed in by_seed} for name, by_seed in result["results"].items()}
    return result


def test_what_is_written_comes_back(tmp_path):
    result = made_up()
    ledger.write_result(result, tmp_path / "result.json")
    back = ledger.read_result(tmp_path / "result.json")
    assert back.pop("columns") == [f"metric_{number}" for number in range(4)]
    assert back == result
    assert "subset/case004" not in back["results"]["variant_2"]["0"]
    assert back["results"]["variant_2"]["0"]["subset/case003"]["metric_3"] is None
    first = (tmp_path / "result.json").read_text("utf-8")
    ledger.write_result(back, tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text("utf-8") == first
    assert first.count("subset/case000") == 1 and first.count("metric_1") == 1
    old = {key: value for key, value in result.items() if key not in ("lengths", "curves")}
    ledger.write_result(old, tmp_path / "old.json")
    assert ledger.read_result(tmp_path / "old.json")["results"] == result["results"]


def test_numbers_that_are_long_or_not_finite(tmp_path):
    rows = {"a": {"dice": 1 / 3, "auc": float("nan")}, "b": {"dice": 2.0, "auc": None}}
    ledger.write_result({"profile": "cpu", "results": {"full": {"0": rows}}}, tmp_path / "result.json")
    back = ledger.read_result(tmp_path / "result.json")["results"]["full"]["0"]
    assert back == {"a": {"dice": 0.333333, "auc": None}, "b": {"dice": 2, "auc": None}}
    assert "[2,null]" in (tmp_path / "result.json").read_text("utf-8")


def test_the_head_is_all_but_the_numbers(tmp_path):
    result = made_up()
    ledger.write_result(result, tmp_path / "result.json")
    head = {key: value for key, value in result.items() if key not in ledger.NUMBERS}
    assert ledger.read_head(tmp_path / "result.json") == head


def test_a_smoke_result_can_not_enter_the_ledger():
    with pytest.raises(ValueError, match="smoke"):
        ledger.write_result({"profile": "smoke", "results": {}}, ledger.result_path("cdinet", "standin", "smoke"))


def test_counts_leave_out_what_does_not_count():
    words = [
        "reproduced",
        "reproduced",
        "not reproduced",
        "inconclusive",
        "not decidable here",
        "not run in this profile",
    ]
    verdicts = {str(number): {"verdict": word} for number, word in enumerate(words)}
    verdicts["control"] = {"verdict": "reproduced", "control": True}
    assert ledger.counts({"verdicts": verdicts}) == (2, 1, 1)


def test_the_strongest_profile_of_each_data_set():
    results = [
        {"dataset": d, "standin": d == "standin", "profile": p}
        for d, p in [("eye", "cpu"), ("standin", "cpu"), ("eye", "paper"), ("standin", "study"), ("eye", "study")]
    ]
    found = [(result["dataset"], result["profile"]) for result in ledger.strongest(results)]
    assert found == [("standin", "study"), ("eye", "paper")]


@pytest.mark.slow
def test_fifty_papers_are_small_and_listed_in_a_second(tmp_path):
    """Three results each: 12 variants, 3 seeds, 40 cases of 12 metrics, the study with a length curve."""
    for name in ("benchmarks", "shared"):
        ignore = shutil.ignore_patterns("results", "__pycache__", "standins", "speed")
        shutil.copytree(ledger.ROOT / name, tmp_path / name, ignore=ignore)
    texts = {}
    for profile, variants in (("cpu", 4), ("study", 12), ("paper", 12)):
        path = tmp_path / f"{profile}.json"
        result = made_up(variants, 3 if profile != "paper" else 1, 40, 12, lengths=profile == "study")
        ledger.write_result({**result, "profile": profile}, path)
        texts[profile] = path.read_text("utf-8")
    toml = (ledger.ROOT / "papers" / "nio" / "paper.toml").read_text("utf-8")
    size = 0
    for number in range(50):
        slug = f"paper{number:02d}"
        (tmp_path / "papers" / slug).mkdir(parents=True)
        (tmp_path / "papers" / slug / "paper.toml").write_text(toml, "utf-8")
        for profile, text in texts.items():
            path = tmp_path / "benchmarks" / "results" / slug / f"standin-{profile}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            size += len(text)
    before = child_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    seconds = child_seconds() - before
    print(f"{size / 1e6:.1f} MB ({', '.join(f'{p} {len(t) / 1e3:.0f} kB' for p, t in texts.items())}), {seconds:.2f} s")
    assert done.stdout.count("paper 0✓ 0✗ 12○") == 50
    assert size < 40e6 and seconds < 1.0


# --- paper.toml ------------------------------------------------------------------------------------------


def test_the_head_of_a_paper_is_read_alone():
    for slug in ledger.slugs():
        head, whole = ledger.load_paper_head(slug), ledger.load_paper(slug)
        assert all(whole[key] == value for key, value in head.items())
        assert {"name", "task", "modality"} <= set(head)


def test_entries_are_written_out():
    claim = {
        "id": "C1{d}",
        "variants": ["full", "base_{d}"],
        "weights": {"{d}_a": 1},
        "margin": "{m}",
        "cases": "{set}/*",
        "each": [{"d": "p", "set": "pneumonia28", "m": 2.0}, {"d": "s", "set": "skin28", "m": -1.0}],
    }
    first, second = ledger.written_out(claim)
    assert first == {
        "id": "C1p",
        "variants": ["full", "base_p"],
        "weights": {"p_a": 1},
        "margin": 2.0,
        "cases": "pneumonia28/*",
    }
    assert (second["id"], second["margin"], "each" in second) == ("C1s", -1.0, False)
    assert ledger.written_out({"id": "C2"}) == [{"id": "C2"}]


def test_the_headline():
    claims = [
        {"id": "C0", "kind": "order"},
        {"id": "T", "kind": "trend"},
        {"id": "N", "kind": "order", "decidable": "no"},
        {"id": "C1", "kind": "order", "requires": ["C0"]},
        {"id": "R", "kind": "best", "datasets": ["real"]},
    ]
    paper = {"claim": claims}
    assert ledger.headline(paper, "standin")["id"] == "C1"
    assert ledger.headline({**paper, "study": {"headline": "T"}}, "standin")["id"] == "T"
    paper["study"] = {"headline": ["R", "C1"]}
    assert [ledger.headline(paper, name)["id"] for name in ("real", "standin")] == ["R", "C1"]
    paper["study"] = {"headline": "R"}
    assert ledger.headline(paper, "standin") is None
    assert ledger.controls_of(paper) == {"C0"}


# --- the digest of code ----------------------------------------------------------------------------------

CODE = '''"""Text."""
from shared import gpu

def f(x):
    """Text."""
    from shared.gpu import gather
    return gather(x) + gpu.mean(x).sum()
'''


@pytest.mark.parametrize("old, new, same", [
    ("Text", "Other text", True),
    ("    return", "    # why\n    return", True),
    ("from shared.gpu import gather", "from shared.distributed import gather", True),
    ("from shared import gpu", "from shared import gpu, files", True),
    ("gpu.mean", "mean", True),
    ("from shared import gpu", "from elsewhere import gpu", False),
    ("gather(x) +", "gather(2 * x) +", False),
    (".sum()", ".mean()", False),
])  # fmt: skip
def test_what_counts_in_the_digest_of_code(tmp_path, old, new, same):
    path = tmp_path / "model.py"
    path.write_text(CODE, "utf-8")
    before = ledger.digest_of_code([path])
    assert old in CODE
    path.write_text(CODE.replace(old, new), "utf-8")
    assert (ledger.digest_of_code([path]) == before) == same


def test_examples_in_docstrings():
    assert doctest.testmod(ledger).failed == 0
