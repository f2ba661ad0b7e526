"""log.csv of a training run: a row per step, in one form however often the run was stopped and resumed."""

import csv
from pathlib import Path

from shared.files import write_atomically


def append_to_log(path: Path, rows: list[dict[str, float]]) -> None:
    """Add rows; a new file gets a heading line of the first row's columns."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def truncate_log(path: Path, step: int) -> None:
    """Drop the rows after `step`: those after the last checkpoint, and one that a kill cut short."""
    if not path.exists():
        return
    header, *rows = path.read_text("utf-8").splitlines()
    kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step]
    write_atomically(path, lambda temporary: temporary.write_text("\n".join([header, *kept]) + "\n", "utf-8"))


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a log.csv."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows else {}
