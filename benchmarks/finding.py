"""What a paper's headline came to, in one row and one sentence, made from a result in the ledger."""

import math
from dataclasses import dataclass
from fnmatch import fnmatch

from benchmarks import ledger

SIGNS = {ledger.REPRODUCED: "✓", ledger.NOT_REPRODUCED: "✗", ledger.INCONCLUSIVE: "○"}
LONGEST_LABEL = 22
LENGTHS = {"0.5": "half", "1": "full", "2": "double"}


def data_name(result: dict) -> str:
    return "stand-in" if result["standin"] else result["dataset"]


def decimals(half_width: float | None, least: int = 0) -> int:
    """Digits after the point that show two digits of an interval's half width, and not fewer than `least`.

    >>> decimals(0.0123), decimals(1.5), decimals(40.0), decimals(40.0, 2), decimals(None, 2)
    (3, 1, 0, 2, 2)
    """
    return min(max(1 - math.floor(math.log10(half_width)), least), 5) if half_width else least


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number as it is printed, with a real minus.

    >>> number(-0.5, 2), number(0.5, 1, sign=True), number(-0.001, 1)
    ('−0.50', '+0.5', '0.0')
    """
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return (f"{value:+.{digits}f}" if sign else text).replace("-", "−")


def effect(row: dict, least: int) -> str:
    """The mean of a contrast and its interval, with `least` digits after the point or more: `+0.66 [0.40, 0.92]`."""
    digits = decimals(row["half_width"], least)
    mean = number(row["mean"], digits, sign=True)
    return mean if row["low"] is None else f"{mean} [{number(row['low'], digits)}, {number(row['high'], digits)}]"


def label_of(paper: dict, variant: str) -> str:
    return next(item["label"] for item in paper["variant"] if item["name"] == variant)


def metric_of(paper: dict, claim: dict, cases: list[str]) -> dict:
    """The `[[metric]]` that a claim is about: that of its column whose `cases` hold the claim's test cases."""
    same = [metric for metric in paper["metric"] if metric["column"] == claim["metric"]]
    cases = [case for case in cases if fnmatch(case, claim.get("cases", "*"))]

    def holds(metric: dict) -> bool:
        return metric.get("cases") == claim.get("cases") or all(fnmatch(c, metric.get("cases", "*")) for c in cases)

    return next((metric for metric in same if holds(metric)), same[0])


def digits_of(paper: dict, claim: dict) -> int:
    """Digits after the point with which a claim's metric is printed."""
    return next(metric.get("digits", 3) for metric in paper["metric"] if metric["column"] == claim["metric"])


def reported_value(paper: dict, variant: dict, metric: dict) -> float | None:
    """The paper's own number for a variant and a metric, or None where it gives none.

    `reported` of a variant is the name of its row, or several where the paper's tables call it differently. Its
    `reported_in` says where its row differs from the metric's: another table, dataset or setting.
    """
    if "reported" not in metric or "reported" not in variant:
        return None
    names = [variant["reported"]] if isinstance(variant["reported"], str) else variant["reported"]
    source = {**metric["reported"], **variant.get("reported_in", {})}
    for row in paper.get("result", []):
        matches = row["method"] in names and row["table"] == source["table"]
        matches &= source.get("dataset", row.get("dataset")) == row.get("dataset")
        matches &= source.get("setting", row.get("setting")) == row.get("setting")
        if matches and source["metric"] in row["metrics"]:
            return row["metrics"][source["metric"]]
    return None


@dataclass(frozen=True)
class Finding:
    """The headline of a paper on a data set."""

    claim: dict
    verdict: dict
    """as `claims.check_all` gives it"""
    metric: dict
    """table `[[metric]]` that it is about"""
    row: dict | None
    """the contrast that stands for the claim; None where nothing could be compared"""

    @property
    def pair(self) -> tuple[str, str] | None:
        """Names of the better and the worse variant, as the paper has it; None if not two are compared."""
        if self.row is None or self.claim["kind"] not in ("order", "best", "equal"):
            return None
        worse, better = self.row["means"]
        return better, worse


def finding_of(paper: dict, result: dict) -> Finding | None:
    """The headline of a result; None where no claim stands for the paper on its data set.

    Of a claim with several contrasts the first stands for it; of `best` the one with the strongest rival.
    """
    claim = ledger.headline(paper, result["dataset"])
    if claim is None or claim["id"] not in result["verdicts"]:
        return None
    verdict = result["verdicts"][claim["id"]]
    rows = verdict["evidence"]
    row = min(rows, key=lambda item: item["mean"]) if rows and claim["kind"] == "best" else next(iter(rows), None)
    table = next(iter(next(iter(result["results"].values())).values()))
    return Finding(claim, verdict, metric_of(paper, claim, list(table)), row)


def length_text(verdict: dict, compared: str, least: int) -> str:
    """What half and double training does to a contrast."""
    curve = next((item for item in verdict.get("lengths", []) if item["compared"] == compared), None)
    if curve is None:
        return "Longer training: not measured."
    digits = decimals((max(curve["means"].values()) - min(curve["means"].values())) / 2, least)
    numbers = [number(curve["means"][length], digits, sign=True) for length in LENGTHS]
    moves = (
        "it still moves" if curve["moving"] else "it grows with training" if curve.get("growing") else "it stands still"
    )
    return f"At half, full and double length of training it is {', '.join(numbers)}: {moves}."


def sentence(paper: dict, result: dict) -> str:
    """What was compared, on what, by how much, with which interval, and whether longer training moves it."""
    found = finding_of(paper, result)
    where = f"**{paper['name']}**, {data_name(result)}"
    if found is None or found.row is None:
        why = "no claim is about this data set" if found is None else found.verdict.get("reason", "not computed")
        return f"{where}: the headline has no numbers ({why})."
    row, metric = found.row, found.metric
    least = digits_of(paper, found.claim)
    digits = decimals(row["half_width"], least)
    unit = f" {metric['unit']}" if metric.get("unit") else ""
    seeds = f"{row['cases']} cases and {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
    if found.pair:
        better, worse = found.pair
        means = [number(row["means"][name], digits) for name in (better, worse)]
        word, sign = ("better", 1) if row["mean"] >= 0 else ("worse", -1)
        shown = number(sign * row["mean"], digits)
        if row["low"] is not None:
            low, high = sorted((sign * row["low"], sign * row["high"]))
            shown += f" [{number(low, digits)}, {number(high, digits)}]"
        text = (
            f"{where}: {metric['label']} {means[0]}{unit} ({label_of(paper, better)}) against {means[1]}{unit} "
            f"({label_of(paper, worse)}), {word} by {shown} over {seeds}"
        )
        theirs = [reported_value(paper, v, metric) for n in found.pair for v in paper["variant"] if v["name"] == n]
        if ledger.is_own(paper, result["dataset"]) and None not in theirs:
            text += f"; the paper has {theirs[0]:g} against {theirs[1]:g}"
    else:
        text = f"{where}: {metric['label']}, {row['compared']}: {effect(row, least)}{unit} over {seeds}"
    word = found.verdict["verdict"]
    text += f". {found.claim['id']} is {word}"
    if word == ledger.INCONCLUSIVE and row["verdict"] == word and row["half_width"]:
        text += f" (an effect of {number(row['half_width'], digits)} could have been seen)"
    elif word == ledger.INCONCLUSIVE and not any(item["moving"] for item in found.verdict.get("lengths", [])):
        text += f" ({found.verdict.get('reason', 'another of its comparisons is')})"
    return f"{text}. {length_text(found.verdict, row['compared'], least)}"


def front_row(paper: dict, result: dict) -> list[str]:
    """Cells of the front table: data, metric, baseline → proposed, difference, ✓ ✗ ○, profile, date."""
    found = finding_of(paper, result)
    label, means, difference = "–", "–", "–"
    if found is not None:
        label, sign = found.metric["label"], SIGNS.get(found.verdict["verdict"], "–")
        label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1].rstrip(" ,") + "…"
        least = digits_of(paper, found.claim)
        if found.row is not None:
            difference = f"{sign} {effect(found.row, least)}"
        if found.pair:
            digits = decimals(found.row["half_width"], least)
            means = " → ".join(number(found.row["means"][name], digits) for name in reversed(found.pair))
    marks = " ".join(str(count) for count in ledger.counts(result))
    return [data_name(result), label, means, difference, marks, result["profile"], result["date"]]
