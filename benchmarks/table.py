"""The tables, made from the ledger: README.md (a row per paper and data set), RESULTS.md (a line per claim), and each
paper's README (all numbers).

python -m benchmarks.table           write them
python -m benchmarks.table --check   fail if one differs from the ledger, or a result is older than its code
python -m benchmarks.table --verdicts   check all claims again on the ledger's numbers, after a change of claims
"""

import sys
from pathlib import Path

from benchmarks import ledger
from benchmarks.checkout import need_checkout
from benchmarks.finding import SIGNS, data_name, digits_of, effect, finding_of, front_row, sentence
from benchmarks.page import section
from shared.cli import run_main

BEGIN, END = "<!-- results: made by `make table`, do not edit -->", "<!-- /results -->"


def front_table() -> str:
    """The table of all papers: a row per data set with the strongest profile there is, and a sentence per paper."""
    heads = ["paper", "data", "headline metric", "baseline → proposed", "better by [95 %]", "✓ ✗ ○", "profile", "date"]
    lines, findings = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], []
    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        link = f"[{paper['name']}](papers/{slug}/README.md)"
        results = ledger.strongest(ledger.results_of(slug))
        for result in results:
            mark = "" if is_current(slug, result) else "*"
            lines.append(f"| {' | '.join([link, *front_row(paper, result)])}{mark} |")
        if results:
            findings.append(f"* {sentence(paper, most_telling(paper, results))}")
        else:
            lines.append(f"| {link} | not run |" + " – |" * (len(heads) - 2))
    if any(line.endswith("* |") for line in lines):
        lines += ["", "\\* measured with an earlier version of the code"]
    return "\n".join([*lines, "", *findings])


def is_current(slug: str, result: dict) -> bool:
    """Whether a result comes from the paper's code as it is."""
    return result["code"] == ledger.digest_of_paper(slug, result["standin"])


def most_telling(paper: dict, results: list[dict]) -> dict:
    """The result that stands for a paper: one whose headline has numbers, of current code, of a profile that decides,
    on the paper's own data, in this order; of equals the first."""

    def weight(result: dict) -> tuple[bool, ...]:
        found = finding_of(paper, result)
        has_numbers = found is not None and found.row is not None
        strong, own = result["profile"] in ("study", "paper"), ledger.is_own(paper, result["dataset"])
        return has_numbers, is_current(paper["slug"], result), strong, own

    return max(results, key=weight)


def results_md() -> str:
    """RESULTS.md: a line per claim."""
    parts = [
        "# Every claim",
        "Made from the ledger in `benchmarks/results/` by `make table`, from the strongest profile there is on each "
        "data set; all numbers are in the papers' pages. ✓ reproduced, ✗ not reproduced, ○ inconclusive; – does not "
        "count: not decidable on this data, not run in this profile, or a control. The effect is the difference that "
        "the paper predicts to be positive, with its 95 % interval. A stand-in is simulated data in the layout of the "
        "real data set.",
    ]
    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        for result in ledger.strongest(ledger.heads_of(slug)):
            title = f"## [{paper['name']}](papers/{slug}/README.md), {data_name(result)}, {result['profile']}"
            lines = ["| | claim | effect |", "|---|---|---|"]
            for claim in ledger.claims_for(paper, result["dataset"]):
                found = result["verdicts"].get(claim["id"], {"verdict": "not checked", "evidence": []})
                sign = "–" if found.get("control") else SIGNS.get(found["verdict"], "–")
                shown = "; ".join(effect(row, digits_of(paper, claim)) for row in found["evidence"]) or found.get(
                    "reason", "–"
                )
                if sign == "–":
                    shown = f"{'control, ' if found.get('control') else ''}{found['verdict']}: {shown}"
                lines.append(f"| {sign} | {claim['id']} {claim['text']} | {shown} |")
            parts += [title, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def between_markers(text: str, content: str, path: Path) -> str:
    """Replace what stands between the markers.

    Raises:
        ValueError: the markers are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: the lines '{BEGIN}' and '{END}' are missing")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.partition(END)[2]}"


def all_tables() -> dict[Path, str]:
    """The text that each file with a table should have."""
    readme = ledger.ROOT / "README.md"
    texts = {readme: between_markers(readme.read_text("utf-8"), front_table(), readme)}
    texts[ledger.ROOT / "RESULTS.md"] = results_md()
    for slug in ledger.slugs():
        path = ledger.ROOT / "papers" / slug / "README.md"
        paper = ledger.load_paper(slug)
        results = ledger.results_of(slug)
        blocks = [f"### {data_name(r)}, profile {r['profile']}\n\n{section(paper, r)}" for r in results]
        pictures = [picture_of(slug, result) for result in results]
        blocks = [f"{block}{picture}" for block, picture in zip(blocks, pictures)]
        texts[path] = between_markers(path.read_text("utf-8"), "\n\n".join(blocks) or "No result yet.", path)
    return texts


def picture_of(slug: str, result: dict) -> str:
    path = ledger.result_path(slug, result["dataset"], result["profile"]).with_suffix(".png")
    if not path.exists():
        return ""
    return f"\n\n![test case of {result['dataset']}](../../{path.relative_to(ledger.ROOT)})"


def write_all() -> None:
    """Write every table."""
    for path, text in all_tables().items():
        path.write_text(text, "utf-8")


def problems() -> list[str]:
    """Tables that differ from the ledger, results older than their code, verdicts that don't follow.

    Only the stand-in's results of `cpu` and `study` must be as new as the code, since anyone can make them anew. They
    may wait for it while `outdated` in paper.toml says why. A result on real data or of the profile `paper` that is
    older is marked so in its table.
    """
    from benchmarks.claims import check_all

    found = []
    for path, text in all_tables().items():
        if not path.exists() or path.read_text("utf-8") != text:
            found.append(f"{path.relative_to(ledger.ROOT)} differs from the ledger: run `make table`")
    for slug in ledger.slugs():
        paper, stale = ledger.load_paper(slug), []
        code = ledger.digest_of_paper(slug, standin=True)
        for result in ledger.results_of(slug):
            name = f"{slug}, {result['dataset']}, {result['profile']}"
            if result["profile"] == "smoke":
                found.append(f"{name}: a smoke result is in the ledger")
            if result["code"] != code and result["standin"] and result["profile"] in ("cpu", "study"):
                stale.append(f"{name}: the result is older than the code, run `make reproduce ... RECORD=1`")
            for claim, verdict in check_all(paper, result).items():
                now, then = verdict["verdict"], result["verdicts"].get(claim, {}).get("verdict")
                if now != then:
                    found.append(f"{name}: {claim} is recorded as {then}, its numbers say {now}")
        if "outdated" not in paper:
            found += stale
        elif not stale:
            found.append(
                f"{slug}: `outdated` in paper.toml must go, its results on the stand-in are as new as the code"
            )
    return found


def renew_verdicts() -> None:
    """Check the claims of every paper.toml again on the numbers in the ledger; no number changes."""
    from benchmarks.claims import check_all

    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        for result in ledger.results_of(slug):
            verdicts = check_all(paper, result)
            if verdicts != result["verdicts"]:
                path = ledger.result_path(slug, result["dataset"], result["profile"])
                ledger.write_result({**result, "verdicts": verdicts}, path)


def run() -> None:
    """What the command line asks for.

    Raises:
        InputError: this is no checkout of the repository.
    """
    need_checkout()
    if "--verdicts" in sys.argv[1:]:
        renew_verdicts()
    if "--check" in sys.argv[1:]:
        found = problems()
        for problem in found:
            print(problem)
        sys.exit(1 if found else 0)
    if "--result" in sys.argv[1:]:
        result = ledger.read_result(Path(sys.argv[sys.argv.index("--result") + 1]))
        print(f"## {result['slug']}\n\n{section(ledger.load_paper(result['slug']), result)}")
        return
    write_all()


def main() -> None:
    run_main(run)


if __name__ == "__main__":
    main()
