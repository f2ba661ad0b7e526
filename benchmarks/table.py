"""The tables, made from the ledger: README.md (all papers), RESULTS.md (all numbers), each paper's README.

python -m benchmarks.table           write them
python -m benchmarks.table --check   fail if one differs from the ledger, or a result is older than its code
python -m benchmarks.table --verdicts   check all claims again on the ledger's numbers, after a change of claims
"""

import sys
from pathlib import Path

from benchmarks import ledger
from benchmarks.claims import REPRODUCED
from benchmarks.ledger import claims_for

BEGIN, END = "<!-- results: made by `make table`, do not edit -->", "<!-- /results -->"


def reported_value(paper: dict, variant: dict, metric: dict) -> float | None:
    """The paper's own number for a variant and a metric, or None where it gives none.

    A variant's `reported_in` says where its row differs from the metric's: another table, dataset or setting.
    """
    if "reported" not in metric or "reported" not in variant:
        return None
    source = {**metric["reported"], **variant.get("reported_in", {})}
    for row in paper.get("result", []):
        matches = row["method"] == variant["reported"] and row["table"] == source["table"]
        matches &= source.get("dataset", row.get("dataset")) == row.get("dataset")
        matches &= source.get("setting", row.get("setting")) == row.get("setting")
        if matches and source["metric"] in row["metrics"]:
            return row["metrics"][source["metric"]]
    return None


def dataset_name(result: dict) -> str:
    return "**stand-in**" if result["standin"] else result["dataset"]


def seeds_text(result: dict) -> str:
    """`3 seeds`, or `3 to 5 seeds` where variants differ."""
    seeds = result["seeds"]
    numbers = sorted(set(seeds.values())) if isinstance(seeds, dict) else [seeds]
    text = " to ".join(str(number) for number in dict.fromkeys([numbers[0], numbers[-1]]))
    return f"{text} seed{'s' if numbers[-1] > 1 else ''}"


def duration(result: dict) -> str:
    return f"{result['minutes']:.1f} min on {result['device']}"


def value_cell(paper: dict, result: dict, variant: dict, metric: dict) -> str:
    """`ours ± sd (paper's)`; a dash where the variant has no such value."""
    ours = ledger.mean_of(result, variant["name"], metric["column"], metric.get("cases", "*"))
    theirs = reported_value(paper, variant, metric)
    digits = metric.get("digits", 3)
    cell = "–" if ours is None else f"{ours[0]:.{digits}f} ± {ours[1]:.{digits}f}"
    return cell if theirs is None else f"{cell} ({theirs:g})"


def numbers(paper: dict, result: dict) -> str:
    """Markdown table of one result: a row per variant, a column per metric, the paper's numbers in brackets."""
    variants = [variant for variant in paper["variant"] if variant["name"] in result["results"]]
    arrow = {"lower": "↓", "higher": "↑"}
    metrics = [
        metric
        for metric in paper["metric"]
        if any(ledger.mean_of(result, v["name"], metric["column"], metric.get("cases", "*")) for v in variants)
    ]
    heads = []
    for metric in metrics:
        unit = f" [{metric['unit']}]" if metric.get("unit") else ""
        heads.append(f"{metric['label']}{unit} {arrow[metric['better']]}")
    lines = ["| variant | " + " | ".join(heads) + " |", "|---" * (len(metrics) + 1) + "|"]
    for variant in variants:
        cells = [value_cell(paper, result, variant, metric) for metric in metrics]
        lines.append(f"| {variant['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evidence_text(verdict: dict) -> str:
    """The contrasts of a verdict with their intervals, in one cell."""
    parts = []
    for row in verdict["evidence"]:
        interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        parts.append(f"{row['compared']}: {row['mean']:+.3g}{interval}")
    if verdict.get("reason"):
        parts.append(verdict["reason"])
    return "; ".join(parts)


def claims_table(paper: dict, result: dict) -> str:
    """Markdown table of the claims that speak about a result's data set, with verdict and evidence."""
    lines = [
        "| claim | the paper | verdict | evidence (predicted: positive), 95 % interval |",
        "|---|---|---|---|",
    ]
    for claim in claims_for(paper, result["dataset"]):
        verdict = result["verdicts"].get(claim["id"], {"verdict": "not checked", "evidence": []})
        lines.append(
            f"| **{claim['id']}** {claim['text']} | {claim.get('reported', '–')} "
            f"| {verdict['verdict']} | {evidence_text(verdict)} |"
        )
    return "\n".join(lines)


def provenance(paper: dict, result: dict) -> str:
    """One sentence on how a result was made."""
    text = (
        f"Data set {dataset_name(result)}, {result['cases']} test cases, profile `{result['profile']}`, "
        f"{seeds_text(result)}, {duration(result)}, "
        f"peak memory {result['memory_mb'] / 1024:.1f} GiB, torch {result['versions']['torch']}, {result['date']}."
    )
    if result["code"] != ledger.digest_of_paper(paper["slug"], result["standin"]):
        text += " Measured with an earlier version of the code."
    if result["overrides"]:
        changed = ", ".join(f"`{name}={value}`" for name, value in result["overrides"].items())
        text += f" Changed from the profile: {changed}."
    return text


def section(paper: dict, result: dict) -> str:
    """Everything about one result: provenance, numbers, claims."""
    legend = "Mean ± standard deviation over the test cases; in brackets the paper's number on its own data."
    parts = [provenance(paper, result)]
    if result["standin"]:
        parts.append(f"The stand-in: {paper['standin'].strip()}")
    return "\n\n".join([*parts, legend, numbers(paper, result), claims_table(paper, result)])


def for_terminal(paper: dict, result: dict) -> str:
    """The end of `make reproduce`: numbers and verdicts in plain text."""
    lines = [f"{paper['name']} on {result['dataset']} ({result['cases']} test cases, {seeds_text(result)}), "]
    lines[0] += f"{duration(result)}; in brackets the paper's numbers, on its own data"
    variants = [variant for variant in paper["variant"] if variant["name"] in result["results"]]
    width = max(len(variant["label"]) for variant in variants) + 2
    for metric in paper["metric"]:
        cells = [(v["label"], value_cell(paper, result, v, metric)) for v in variants]
        if all(cell.startswith("–") for _, cell in cells):
            continue
        unit = f" [{metric['unit']}]" if metric.get("unit") else ""
        lines.append(f"\n  {metric['label']}{unit}, {metric['better']} is better")
        lines += [f"    {label:{width}s} {cell}" for label, cell in cells]
    lines.append("\n  Claims")
    for claim in claims_for(paper, result["dataset"]):
        verdict = result["verdicts"][claim["id"]]
        lines.append(f"    {claim['id']:4s} {verdict['verdict'].upper():15s} {claim['text']}")
        lines.append(f"         the paper: {claim.get('reported', '–')}")
        lines += [f"         {part}" for part in evidence_text(verdict).split("; ") if part]
    if result["standin"]:
        lines.append("\n  This is a stand-in, not the paper's data. " + " ".join(paper["standin"].split()))
    return "\n".join(lines)


def verdict_counts(verdicts: dict[str, str]) -> str:
    return f"{list(verdicts.values()).count(REPRODUCED)} of {len(verdicts)}"


def compact() -> str:
    """The table of all papers: a row per result in the ledger."""
    head = "| paper | task | data set | headline: ours (paper's) | claims reproduced | measured |"
    lines = [head, "|---" * 6 + "|"]
    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        proposed = next(variant for variant in paper["variant"] if variant["role"] == "proposed")
        link = f"[{paper['name']}](papers/{slug}/README.md)"
        rows = ledger.results_of(slug)
        for result in rows:
            metrics = [
                metric
                for metric in paper["metric"]
                if ledger.mean_of(result, proposed["name"], metric["column"], metric.get("cases", "*"))
            ]
            headline = "–"
            if metrics:
                unit = f" {metrics[0]['unit']}" if metrics[0].get("unit") else ""
                headline = f"{metrics[0]['label']}{unit} {value_cell(paper, result, proposed, metrics[0])}"
            found = {name: v["verdict"] for name, v in result["verdicts"].items() if not v.get("control")}
            verdicts = ", ".join(f"{name} {verdict}" for name, verdict in found.items())
            lines.append(
                f"| {link} | {paper['task']} | {dataset_name(result)} | {headline} "
                f"| {verdict_counts(found)}: {verdicts} | {result['profile']}, {duration(result)} |"
            )
        if not rows:
            lines.append(f"| {link} | {paper['task']} | – | – | not run | – |")
    return "\n".join(lines)


def results_md() -> str:
    """RESULTS.md: every number of every result."""
    parts = [
        "# All results",
        "Made from the ledger in `benchmarks/results/` by `make table`. How a verdict is reached: "
        "`benchmarks/claims.py`. A stand-in is simulated data in the layout of the real data set: its "
        "numbers are not comparable with the paper's, its orders and trends are what the claims test.",
    ]
    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        for result in ledger.results_of(slug):
            parts += [
                f"## {paper['name']}: {dataset_name(result)}, profile {result['profile']}",
                section(paper, result),
            ]
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
    texts = {readme: between_markers(readme.read_text("utf-8"), compact(), readme)}
    texts[ledger.ROOT / "RESULTS.md"] = results_md()
    for slug in ledger.slugs():
        path = ledger.ROOT / "papers" / slug / "README.md"
        paper = ledger.load_paper(slug)
        results = ledger.results_of(slug)
        blocks = [f"### {dataset_name(r)}, profile {r['profile']}\n\n{section(paper, r)}" for r in results]
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


def main() -> None:
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


if __name__ == "__main__":
    main()
