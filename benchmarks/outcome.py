"""Put the files of a run together to a result, as the ledger has it."""

import csv
import math
import time
from pathlib import Path

from benchmarks import ledger, machine
from benchmarks.claims import check_all, with_lengths
from benchmarks.plan import Training
from benchmarks.runs import Setup

CURVE_POINTS = 100
"""points of each log.csv that a result holds"""


def _rounded(text: str, digits: int) -> float | None:
    """A cell of a table to so many significant digits; None where it is empty or not finite."""
    value = float(text) if text else math.nan
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def read_metrics(path: Path) -> dict[str, dict[str, float | None]]:
    """case -> column -> value of a metrics.csv, to 6 significant digits; not finite values become None."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["case"]: {k: _rounded(v, 6) for k, v in row.items() if k != "case"} for row in rows}


def read_curve(path: Path, points: int = CURVE_POINTS) -> dict | None:
    """Evenly thinned rows of a log.csv, always with the last, to 4 significant digits.

    Returns:
        `columns` and `rows`; None where nothing was logged.
    """
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file))
    read = [int if name == "step" else lambda cell: _rounded(cell, 4) for name in columns]
    kept = thinned(len(rows), points)
    return {"columns": columns, "rows": [[f(cell) for f, cell in zip(read, rows[index])] for index in kept]}


def thinned(length: int, points: int) -> list[int]:
    """
    >>> thinned(5, 10), thinned(100, 4)
    ([0, 1, 2, 3, 4], [24, 49, 74, 99])
    """
    if length <= points:
        return list(range(length))
    return [(index + 1) * length // points - 1 for index in range(points)]


def lengths_of(setup: Setup, paper: dict, dataset: str, used: dict[Training, dict], results: dict) -> dict | None:
    """The length curve: what the settings are at each length, and the results there, of the metrics that claims about
    its variants need."""
    curve = setup.plan.curve
    if curve is None:
        return None
    first = next(name for name in curve.trained)
    lengths = sorted({training.length for training in setup.plan.trainings()})
    values = {}
    for length in lengths:
        config = setup.config(Training(first, 0, length))
        values[f"{length:g}"] = {name: getattr(config, name) for name in curve.settings}
    found: dict[str, dict] = {f"{length:g}": {} for length in lengths if length != 1}
    for key, by_variant in found.items():
        for name in curve.trained + curve.untrained:
            if name in curve.untrained:
                by_variant[name] = {s: t for s, t in results.get(name, {}).items() if int(s) < curve.seeds}
                continue
            for seed in range(curve.seeds):
                training = Training(name, seed, float(key))
                if training in used:
                    table = read_metrics(setup.folder(training) / "metrics.csv")
                    by_variant.setdefault(name, {})[str(seed)] = table
    metrics = list(dict.fromkeys(item["metric"] for item in with_lengths(paper, dataset)))
    found = {length: ledger.only_columns(tables, metrics) for length, tables in found.items()}
    return {"setting": list(curve.settings), "values": values, "results": found}


def make_result(
    setup: Setup, paper: dict, dataset: str, standin: bool, parallel: int, used: dict[Training, dict]
) -> dict:
    """The result of a run: numbers, verdicts, and all that says where they come from.

    Args:
        setup: of the run.
        paper: its paper.toml.
        dataset: name of the data set.
        standin: whether it is the stand-in.
        parallel: trainings at a time.
        used: training -> what it used, of all that succeeded.
    """
    results: dict[str, dict] = {}
    curves: dict[str, dict] = {}
    durations: dict[str, list[float]] = {}
    memory = {"memory_mb": 0.0}
    for measured in used.values():
        for key in ("memory_mb", "gpu_memory_mb"):
            memory[key] = max(memory.get(key, 0.0), measured.get(key, 0.0))
    for training in (item for item in setup.plan.trainings() if item in used and item.length == 1):
        name, seed, folder = training.variant, str(training.seed), setup.folder(training)
        durations.setdefault(name, []).append(used[training]["seconds"])
        results.setdefault(name, {})[seed] = read_metrics(folder / "metrics.csv")
        curve = read_curve(folder / "log.csv")
        if curve:
            curves.setdefault(name, {})[seed] = curve
    result = {
        "slug": setup.slug,
        "dataset": dataset,
        "standin": standin,
        "profile": setup.profile,
        "seeds": setup.plan.seeds,
        "overrides": setup.overrides,
        "cases": max((len(table) for by_seed in results.values() for table in by_seed.values()), default=0),
        "code": ledger.digest_of_paper(setup.slug, standin),
        "date": time.strftime("%Y-%m-%d"),
        "device": machine.describe_device(setup.device),
        "versions": machine.versions(),
        "minutes": round(sum(item["seconds"] for item in used.values()) / 60 / parallel, 2),
        "processor_minutes": round(sum(item["processor_seconds"] for item in used.values()) / 60, 2),
        "parallel": parallel,
        "seconds_per_run": {name: round(sum(d) / len(d), 1) for name, d in durations.items()},
        **{key: round(value) for key, value in memory.items() if value},
    }
    if setup.data.seconds is not None:
        result["data_seconds"] = round(setup.data.seconds, 1)
    lengths = lengths_of(setup, paper, dataset, used, results)
    if lengths:
        result["lengths"] = lengths
    result |= {"curves": curves, "results": results}
    return {**result, "verdicts": check_all(paper, result)}
