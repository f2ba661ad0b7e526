"""`make table CHECK=1` sees what does not fit the ledger's numbers, and `--verdicts` mends verdicts, not numbers."""

import json
import shutil

import pytest

from benchmarks import ledger, table


@pytest.fixture
def result(tmp_path, monkeypatch):
    """Path of CDI-Net's recorded result in a copy of the repository."""
    for name in ("papers", "benchmarks", "shared"):
        shutil.copytree(ledger.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "RESULTS.md"):
        shutil.copyfile(ledger.ROOT / name, tmp_path / name)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    return ledger.result_path("cdinet", "standin", "cpu")


def tamper(path, change):
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def of_paper(slug):
    return [problem for problem in table.problems() if problem.startswith(slug) or f"papers/{slug}/" in problem]


def test_the_ledger_is_as_the_tables_say(result):
    assert of_paper("cdinet") == []


def test_a_verdict_that_its_numbers_do_not_give(result):
    before = ledger.read_result(result)
    name, verdict = next(iter(before["verdicts"].items()))
    wrong = "not reproduced" if verdict["verdict"] == "reproduced" else "reproduced"
    tamper(result, lambda content: content["verdicts"][name].update(verdict=wrong))
    assert any(f"{name} is recorded as {wrong}" in problem for problem in of_paper("cdinet"))
    table.renew_verdicts()
    after = ledger.read_result(result)
    assert of_paper("cdinet") == [] and all(after[key] == before[key] for key in ("verdicts", "results", "code"))


def test_a_number_that_was_changed_by_hand(result):
    def better(content):
        for by_seed in content["results"].values():
            for rows in by_seed.values():
                for row in rows:
                    row[:] = [value and 1.5 * value for value in row]

    tamper(result, better)
    assert any("differs from the ledger" in problem for problem in of_paper("cdinet"))


def test_code_that_is_newer_than_its_result(result):
    description = ledger.ROOT / "papers" / "cdinet" / "paper.toml"  # the copy's
    lines = description.read_text("utf-8").splitlines(keepends=True)
    description.write_text("".join(line for line in lines if not line.startswith("outdated =")), "utf-8")
    tamper(result, lambda content: content.update(code="0" * 16))
    assert any("older than the code" in problem for problem in of_paper("cdinet"))
