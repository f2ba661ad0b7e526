"""The page of a result: provenance, all numbers, verdicts, the length curve. In Markdown, and for the terminal."""

from benchmarks import ledger
from benchmarks.finding import (
    LENGTHS,
    data_name,
    decimals,
    digits_of,
    effect,
    metric_of,
    number,
    reported_value,
    sentence,
)
from benchmarks.ledger import INCONCLUSIVE, NOT_DECIDABLE, NOT_RUN, claims_for

ELSEWHERE = "the paper, on its own data"


def duration(result: dict) -> str:
    """`4.2 minutes (8.1 of processor) on 2 CPU cores`."""
    used = result.get("processor_minutes")
    processor = "" if used is None else f" ({used:.1f} of processor)"
    return f"{result['minutes']:.1f} minutes{processor} on {result['device']}"


def seeds_text(result: dict) -> str:
    """`3 seeds`, or `3 to 5 seeds` where variants differ."""
    numbers = sorted(set(result["seeds"].values()))
    text = " to ".join(str(seeds) for seeds in dict.fromkeys([numbers[0], numbers[-1]]))
    return f"{text} seed{'s' if numbers[-1] > 1 else ''}"


def provenance(paper: dict, result: dict) -> str:
    """How a result was made, in a sentence or two."""
    text = (
        f"{data_name(result).capitalize() if result['standin'] else result['dataset']}, {result['cases']} rows "
        f"of test cases, profile `{result['profile']}`, {seeds_text(result)}, {duration(result)}, "
        f"peak memory {result['memory_mb'] / 1024:.1f} GiB, torch {result['versions']['torch']}, {result['date']}."
    )
    if result["code"] != ledger.digest_of_paper(paper["slug"], result["standin"]):
        why = f": {paper['outdated']}" if "outdated" in paper else ""
        text += f" Measured with an earlier version of the code{why}."
    if result["overrides"]:
        changed = ", ".join(f"`{name}={value}`" for name, value in result["overrides"].items())
        text += f" Changed from the profile: {changed}."
    return text


# --- numbers ---------------------------------------------------------------------------------------------


def variants_in(paper: dict, result: dict) -> list[dict]:
    return [variant for variant in paper["variant"] if variant["name"] in result["results"]]


def metrics_in(paper: dict, result: dict) -> list[dict]:
    """The metrics of which some variant has a value on these test cases."""
    names = [variant["name"] for variant in variants_in(paper, result)]
    return [
        metric
        for metric in paper["metric"]
        if any(ledger.mean_of(result, name, metric["column"], metric.get("cases", "*")) for name in names)
    ]


def value_cell(paper: dict, result: dict, variant: dict, metric: dict) -> str:
    """`ours ± sd`, a dash where there is none; on the paper's own data its number in brackets."""
    ours = ledger.mean_of(result, variant["name"], metric["column"], metric.get("cases", "*"))
    digits = metric.get("digits", 3)
    cell = "–" if ours is None else f"{number(ours[0], digits)} ± {ours[1]:.{digits}f}"
    theirs = reported_value(paper, variant, metric) if ledger.is_own(paper, result["dataset"]) else None
    return cell if theirs is None else f"{cell} ({theirs:g})"


def head_of(metric: dict) -> str:
    unit = f" [{metric['unit']}]" if metric.get("unit") else ""
    return f"{metric['label']}{unit} {'↓' if metric['better'] == 'lower' else '↑'}"


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row are the heads."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def numbers(paper: dict, result: dict) -> str:
    """Markdown table: a row per variant, a column per metric.

    On data that is not the paper's own, its numbers stand in a column of their own at the end, or, where there are many
    metrics, in a table of their own.
    """
    variants, metrics = variants_in(paper, result), metrics_in(paper, result)
    heads = ["variant", "seeds", *map(head_of, metrics)]
    ours = [
        [v["label"], str(len(result["results"][v["name"]])), *(value_cell(paper, result, v, m) for m in metrics)]
        for v in variants
    ]
    values = [[reported_value(paper, variant, metric) for metric in metrics] for variant in variants]
    theirs = [["–" if value is None else f"{value:g}" for value in row] for row in values]
    reported = [any(value is not None for value in row) for row in values]
    if ledger.is_own(paper, result["dataset"]) or not any(reported):
        return markdown([heads, *ours])
    if len(metrics) <= 4:
        heads.append(ELSEWHERE + (" (in this order)" if len(metrics) > 1 else ""))
        cells = [" / ".join(row) if there else "–" for row, there in zip(theirs, reported)]
        return markdown([heads, *([*row, cell] for row, cell in zip(ours, cells))])
    rows = [[v["label"], *row] for v, row, there in zip(variants, theirs, reported) if there]
    other = markdown([["variant", *heads[2:]], *rows])
    return f"{markdown([heads, *ours])}\n\n{ELSEWHERE.capitalize()}:\n\n{other}"


# --- claims ----------------------------------------------------------------------------------------------


def evidence_parts(verdict: dict, least: int) -> list[str]:
    """The contrasts of a verdict with their intervals, numbers with `least` digits or more, and its reason."""
    parts = []
    for row in verdict["evidence"]:
        text = f"{row['compared']}: {effect(row, least)}"
        if row["verdict"] == INCONCLUSIVE and row["half_width"]:
            text += f", could have seen {number(row['half_width'], decimals(row['half_width'], least))}"
        parts.append(text)
    return [*parts, *([verdict["reason"]] if verdict.get("reason") else [])]


def verdict_of(result: dict, claim: dict) -> dict:
    return result["verdicts"].get(claim["id"], {"verdict": "not checked", "evidence": []})


def claims_table(paper: dict, result: dict) -> str:
    """Markdown table of the claims with verdict and evidence; those that can't be decided and were not run apart."""
    rows = [["claim", "the paper", "verdict", "predicted: positive, 95 % interval"]]
    undecidable, left_out = [], []
    for claim in claims_for(paper, result["dataset"]):
        verdict = verdict_of(result, claim)
        parts = evidence_parts(verdict, digits_of(paper, claim))
        if verdict["verdict"] == NOT_DECIDABLE:
            undecidable.append(f"* **{claim['id']}** {claim['text']}: {'; '.join(reversed(parts))}")
        elif verdict["verdict"] == NOT_RUN:
            left_out.append(claim["id"])
        else:
            name = f"**{claim['id']}**{' (control)' if verdict.get('control') else ''}"
            cells = [f"{name} {claim['text']}", claim["reported"], verdict["verdict"]]
            rows.append([*cells, "; ".join(parts)])
    blocks = [markdown(rows)] if len(rows) > 1 else []
    if undecidable:
        blocks.append("Not decidable here, and not counted:\n\n" + "\n".join(undecidable))
    if left_out:
        blocks.append(f"Not run in this profile: {', '.join(left_out)}.")
    return "\n\n".join(blocks)


# --- the length curve ------------------------------------------------------------------------------------


def length_rows(paper: dict, result: dict) -> list[list[str]]:
    """Contrasts of claims at half, full and double length, with a row of heads; empty where there are none."""
    found = [(claim, verdict_of(result, claim)) for claim in claims_for(paper, result["dataset"])]
    curves = [(claim, verdict["lengths"]) for claim, verdict in found if "lengths" in verdict]
    if not curves or "lengths" not in result:
        return []
    values = result["lengths"]["values"]

    def setting(length: str) -> str:
        return ", ".join(f"{name} {value}" for name, value in values[length].items())

    heads = [f"{word} ({setting(length)})" for length, word in LENGTHS.items()]
    rows = [["claim", "compared", *heads, "seeds", "still moving"]]
    cases = list(next(iter(next(iter(result["results"].values())).values())))
    for claim, curve in curves:
        name = f"{claim['id']}, {head_of(metric_of(paper, claim, cases))}"
        for item in curve:
            spread = max(item["means"].values()) - min(item["means"].values())
            digits = decimals(spread / 2, digits_of(paper, claim))
            means = [number(item["means"][length], digits, sign=True) for length in LENGTHS]
            rows.append(
                [
                    name,
                    item["compared"],
                    *means,
                    str(item["seeds"]),
                    "yes" if item["moving"] else "it grows" if item.get("growing") else "no",
                ]
            )
    return rows


def length_table(paper: dict, result: dict) -> str:
    """Markdown table of the length curve, or nothing."""
    rows = length_rows(paper, result)
    return f"Length of training:\n\n{markdown(rows)}" if rows else ""


# --- the whole -------------------------------------------------------------------------------------------


def section(paper: dict, result: dict) -> str:
    """Everything about one result."""
    legend = "Mean ± standard deviation over the test cases, each averaged over its seeds"
    own = ledger.is_own(paper, result["dataset"])
    legend += "; in brackets the paper's number." if own else "."
    parts = [sentence(paper, result), provenance(paper, result)]
    if result["standin"]:
        parts.append(f"The stand-in: {paper['standin'].strip()}")
    parts += [legend, numbers(paper, result), claims_table(paper, result), length_table(paper, result)]
    return "\n\n".join(part for part in parts if part)


def for_terminal(paper: dict, result: dict) -> str:
    """The end of `make reproduce`: numbers, verdicts, the length curve and the finding in plain text."""
    lines = [f"{paper['name']} on {result['dataset']} ({result['cases']} rows of test cases, {seeds_text(result)}), "]
    lines[0] += duration(result)
    variants, own = variants_in(paper, result), ledger.is_own(paper, result["dataset"])
    width = max(len(variant["label"]) for variant in variants) + 2
    for metric in metrics_in(paper, result):
        unit = f" [{metric['unit']}]" if metric.get("unit") else ""
        lines.append(f"\n  {metric['label']}{unit}, {metric['better']} is better")
        for variant in variants:
            theirs = None if own else reported_value(paper, variant, metric)
            note = "" if theirs is None else f"   {ELSEWHERE}: {theirs:g}"
            lines.append(
                f"    {variant['label']:{width}s} {value_cell(paper, result, variant, metric):22s}{note}".rstrip()
            )
    lines.append("\n  Claims")
    left_out = []
    for claim in claims_for(paper, result["dataset"]):
        verdict = verdict_of(result, claim)
        if verdict["verdict"] == NOT_RUN:
            left_out.append(claim["id"])
            continue
        control = " (control)" if verdict.get("control") else ""
        lines.append(f"    {claim['id']:4s} {verdict['verdict'].upper():15s} {claim['text']}{control}")
        lines.append(f"         the paper: {claim['reported']}")
        lines += [f"         {part}" for part in evidence_parts(verdict, digits_of(paper, claim))]
    if left_out:
        lines.append(f"    not run in this profile: {', '.join(left_out)}")
    rows = length_rows(paper, result)
    if rows:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines.append("\n  Length of training")
        lines += [f"    {'  '.join(cell.ljust(n) for cell, n in zip(row, widths))}".rstrip() for row in rows]
    lines.append(f"\n  {sentence(paper, result).replace('**', '')}")
    if result["standin"]:
        lines.append("\n  This is a stand-in, not the paper's data. " + " ".join(paper["standin"].split()))
    return "\n".join(lines)
