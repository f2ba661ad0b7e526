"""`make table CHECK=1` sees what does not fit the ledger's numbers, and `--verdicts` mends verdicts, not numbers.
What the tables say of a made-up paper."""

import copy
import doctest
import json
import re
import shutil

import pytest

from benchmarks import finding, ledger, page, table
from benchmarks.claims import check_all


@pytest.fixture
def result(tmp_path, monkeypatch):
    """Path of CDI-Net's recorded result in a copy of the repository, where it is as new as the code."""
    for name in ("papers", "benchmarks", "shared"):
        shutil.copytree(ledger.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "RESULTS.md"):
        shutil.copyfile(ledger.ROOT / name, tmp_path / name)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    description = tmp_path / "papers" / "cdinet" / "paper.toml"
    lines = description.read_text("utf-8").splitlines(keepends=True)
    description.write_text("".join(line for line in lines if not line.startswith("outdated =")), "utf-8")
    code = ledger.digest_of_paper("cdinet", standin=True)
    for path in (ledger.RESULTS / "cdinet").glob("standin-*.json"):
        tamper(path, lambda content: content.update(code=code))
    table.write_all()
    return ledger.result_path("cdinet", "standin", "cpu")


def tamper(path, change):
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=1), "utf-8")


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


@pytest.mark.parametrize("profile", ["cpu", "study"])
def test_code_that_is_newer_than_its_result(result, profile):
    tamper(result, lambda content: content.update(code="0" * 16))
    if profile == "study":
        tamper(result, lambda content: content.update(profile="study"))
        result.rename(result.with_name("standin-study.json"))
    assert any("older than the code" in problem for problem in of_paper("cdinet"))


def test_an_older_result_may_wait_as_long_as_it_is_older(result):
    toml = ledger.ROOT / "papers" / "cdinet" / "paper.toml"
    toml.write_text('outdated = "recorded tomorrow"\n' + toml.read_text("utf-8"), "utf-8")
    assert any("`outdated` in paper.toml must go" in problem for problem in of_paper("cdinet"))
    tamper(result, lambda content: content.update(code="0" * 16))
    table.write_all()
    assert of_paper("cdinet") == []
    text = (ledger.ROOT / "papers" / "cdinet" / "README.md").read_text("utf-8")
    assert "earlier version of the code: recorded tomorrow" in text


# --- what the tables say ---------------------------------------------------------------------------------


def made_up(gaps=(0.5, 1.0, 2.0)) -> tuple[dict, dict]:
    """A paper whose method is better by `gaps` at half, full and double length, and its result."""

    def rows(value: float) -> dict:
        return {s: {f"case{c}": {"psnr": value + 0.01 * ((3 * c + int(s)) % 4)} for c in range(6)} for s in "012"}

    def tables(gap: float) -> dict:
        return {"input": rows(10.0), "unet": rows(20.0), "full": rows(20.0 + gap)}

    paper = {
        "slug": "madeup",
        "name": "Made-up",
        "standin": "Nothing.",
        "variant": [
            {"name": "input", "label": "Input", "role": "input"},
            {"name": "unet", "label": "U-Net, small", "role": "baseline", "reported": ["Unet", "U-Net"]},
            {"name": "full", "label": "Method", "role": "proposed", "reported": "Ours"},
        ],
        "metric": [
            {"column": "psnr", "label": "PSNR", "unit": "dB", "better": "higher", "digits": 1,
             "reported": {"table": "Table 2", "metric": "psnr"}},
        ],
        "result": [
            {"table": "Table 1", "method": "Unet", "metrics": {"psnr": 1.0}},
            {"table": "Table 2", "method": "U-Net", "metrics": {"psnr": 31.0}},
            {"table": "Table 2", "method": "Ours", "metrics": {"psnr": 33.5}},
        ],
        "profiles": {"study": {}},
        "study": {"length": "steps", "headline": "C1"},
        "claim": [
            {"id": "C0", "text": "The U-Net works", "kind": "order", "metric": "psnr", "variants": ["unet", "input"],
             "reported": "31 > 20"},
            {"id": "C1", "text": "The method is better", "kind": "order", "metric": "psnr",
             "variants": ["full", "unet"], "requires": ["C0"], "reported": "33.5 > 31"},
            {"id": "C2", "text": "It is more pleasing", "kind": "order", "metric": "psnr",
             "variants": ["full", "unet"], "decidable": "nobody was asked", "reported": "a poll"},
            {"id": "C3", "text": "Each part helps", "kind": "order", "metric": "psnr", "variants": ["full", "part"],
             "reported": "Table 3"},
        ],
    }  # fmt: skip
    values = {"0.5": {"steps": 50}, "1": {"steps": 100}, "2": {"steps": 200}}
    result = {
        "slug": "madeup",
        "dataset": "standin",
        "standin": True,
        "profile": "study",
        "seeds": dict.fromkeys(("input", "unet", "full"), 3),
        "cases": 6,
        "code": "0",
        "overrides": {},
        "date": "2026-11-30",
        "device": "2 CPU cores",
        "versions": {"torch": "2.15.0"},
        "minutes": 2.0,
        "processor_minutes": 3.5,
        "memory_mb": 512,
        "results": tables(gaps[1]),
        "lengths": {"setting": ["steps"], "values": values, "results": {"0.5": tables(gaps[0]), "2": tables(gaps[2])}},
    }
    return paper, {**result, "verdicts": check_all(paper, result)}


def test_the_finding_says_what_was_compared_by_how_much_and_whether_it_moves():
    paper, result = made_up()
    assert finding.sentence(paper, result) == (
        "**Made-up**, stand-in: PSNR 21.0 dB (Method) against 20.0 dB (U-Net, small), better by 1.0 [1.0, 1.0] over 6 "
        "cases and 3 seeds. C1 is reproduced. At half, full and double length of training it is +0.50, +1.00, +2.00: "
        "it grows with training."
    )
    assert finding.sentence(*made_up((2.0, 1.0, 0.5))).endswith("+2.00, +1.00, +0.50: it still moves.")
    paper, result = made_up((-2.0, -1.0, -1.0))
    text = finding.sentence(paper, result)
    assert "worse by 1.0 [1.0, 1.0]" in text and "C1 is not reproduced" in text
    assert text.endswith("−2.00, −1.00, −1.00: it stands still.")
    assert finding.front_row(paper, result) == [
        "stand-in", "PSNR", "20.0 → 19.0", "✗ −1.0 [−1.0, −1.0]", "0 1 0", "study", "2026-11-30",
    ]  # fmt: skip


def test_the_papers_number_stands_beside_ours_on_its_own_data_only():
    paper, result = made_up()
    assert "| Method | 3 | 21.0 ± 0.0 | 33.5 |" in page.numbers(paper, result)
    assert "the paper, on its own data" in page.numbers(paper, result)
    assert "33.5" not in finding.sentence(paper, result)
    paper["own"] = ["real*"]
    real = {**result, "dataset": "realdata", "standin": False}
    assert "| Method | 3 | 21.0 ± 0.0 (33.5) |" in page.numbers(paper, real)
    assert "| U-Net, small | 3 | 20.0 ± 0.0 (31) |" in page.numbers(paper, real)
    assert "on its own data" not in page.numbers(paper, real)
    assert "the paper has 33.5 against 31" in finding.sentence(paper, real)


def test_a_page_has_claims_that_do_not_count_apart_and_the_length_curve():
    paper, result = made_up()
    section, terminal = page.section(paper, result), page.for_terminal(paper, result)
    for text in (section, terminal):
        assert "C0" in text and "(control)" in text and "nobody was asked" in text
        assert "Not run in this profile: C3" in text or "not run in this profile: C3" in text
        assert "half (steps 50)" in text and "double (steps 200)" in text and "still moving" in text
        assert "2.0 minutes (3.5 of processor)" in text
    assert "Each part helps" not in section
    assert ledger.counts(result) == (1, 0, 0)


def test_many_metrics_have_the_papers_numbers_in_a_table_of_their_own():
    paper, result = made_up()
    paper["metric"] += [{**copy.deepcopy(paper["metric"][0]), "label": f"PSNR {number}"} for number in range(4)]
    assert "| Method | 33.5 | 33.5 | 33.5 | 33.5 | 33.5 |" in page.numbers(paper, result)


def test_an_inconclusive_claim_says_what_could_have_been_seen():
    paper, result = made_up()
    del result["lengths"]
    for table_of_seed in result["results"]["full"].values():
        table_of_seed["case0"]["psnr"] -= 9.0
    result["verdicts"] = check_all(paper, result)
    half = f"{result['verdicts']['C1']['evidence'][0]['half_width']:.1f}"
    assert f"(an effect of {half} could have been seen)" in finding.sentence(paper, result)
    assert f"could have seen {half}" in page.section(paper, result)
    assert "Longer training: not measured" in finding.sentence(paper, result)


def test_the_front_table_fits_a_screen():
    for line in table.front_table().splitlines():
        if line.startswith("|"):
            cells = [
                re.sub(r"\[([^\]]*)\]\(papers[^)]*\)", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")
            ]
            assert len("  ".join(cells)) <= 110, cells


def test_a_paper_has_one_sentence_on_the_front_page():
    """On its own data, if that was measured in earnest and with the code as it is."""
    text = table.front_table()
    for slug in ledger.slugs():
        assert text.count(f"* **{ledger.load_paper(slug)['name']}**, ") <= 1
    paper, study = made_up()
    paper["own"], code = ["real"], ledger.digest_of_paper("madeup", True)
    study["code"] = code
    quick = {**study, "dataset": "other", "profile": "cpu"}
    real = {**study, "dataset": "real", "standin": False, "code": ledger.digest_of_paper("madeup", False)}
    assert table.most_telling(paper, [quick, study])["dataset"] == "standin"
    assert table.most_telling(paper, [quick, study, real])["dataset"] == "real"
    assert table.most_telling(paper, [quick, study, {**real, "code": "older"}])["dataset"] == "standin"
    assert table.most_telling(paper, [quick, {**study, "code": "older"}])["dataset"] == "other"


def test_examples_in_docstrings():
    assert doctest.testmod(finding).failed == 0
