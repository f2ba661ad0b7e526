"""log.csv of a training run: a row per step, in one form however often the run was stopped and resumed."""

import csv
import io
import math
from pathlib import Path

from shared.errors import InputError
from shared.files import naming, write_atomically

REMEDY = "; remove it, and a resumed run writes the steps that follow"


class TrainingLog:
    """Writes a log.csv. A column that appears later than others is empty in the rows before it.

    Args:
        path: of the file; it is made with the first rows.
    """

    def __init__(self, path: Path):
        self.path, self.columns = Path(path), None

    def append(self, rows: list[dict[str, float]]) -> None:
        """Add rows: "step" and whatever was measured in it."""
        if self.columns is None:
            self.columns = _read(self.path)[0] if self.path.exists() else []
        new = [name for row in rows for name in row if name not in self.columns]
        if new:
            before = _read(self.path)[1] if self.path.exists() else []
            self.columns += dict.fromkeys(new)
            self._rewrite(before)
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)

    def keep(self, step: int) -> None:
        """Drop the rows after `step`: those after the last checkpoint, and one that a kill cut short.

        Raises:
            InputError: the file is damaged.
        """
        if self.path.exists():
            self.columns, rows = _read(self.path, step)
            self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, lambda temporary: temporary.write_bytes(table.getvalue().encode()))


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a log.csv; NaN where a step has no such value.

    Raises:
        InputError: the file is missing or damaged.
    """
    columns, rows = _read(Path(path))
    return {name: [float(row[name] or math.nan) for row in rows] for name in columns}


def _read(path: Path, until: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows, those up to step `until`: what comes after need not be whole."""
    if not path.is_file():
        raise InputError(f"{path}: there is no log here; `train` writes it beside its checkpoint")
    try:
        header, *lines = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: damaged, for it is no table{REMEDY}") from error
    if header[:1] != ["step"] or len(set(header)) < len(header):
        raise InputError(f"{path}: damaged, for its heading does not begin with step{REMEDY}")
    rows, last = [], 0
    for number, cells in enumerate(lines, 2):
        whole = len(cells) == len(header) and all(not cell or _is_number(cell) for cell in cells)
        step = int(cells[0]) if whole and cells[0].isdigit() else None
        if until is not None and step is not None and step > until:
            break
        if step is None and until is not None and (last >= until or number == len(lines) + 1):
            break  # a kill cut it short
        if step is None or step <= last:
            raise InputError(f"{path}: damaged in line {number}{REMEDY}")
        rows.append(dict(zip(header, cells)))
        last = step
    return header, rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
