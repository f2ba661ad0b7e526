"""Files that are whole or not there: nothing that was begun and not finished is left under its final name."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` and rename the result to `path`; a failure leaves `path` as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[dict], columns: Sequence[str] | None = None) -> None:
    """A table with a heading line, atomically.

    Args:
        path: of the .csv file.
        rows: column -> value; cells that a row lacks stay empty.
        columns: in their order; by default those of the first row.

    Raises:
        ValueError: no row and no columns, or a row has a column that the table has not.
    """
    if not rows and columns is None:
        raise ValueError(f"{path}: a table needs rows, or names of columns")
    names = list(rows[0] if columns is None else columns)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `folder` at the end of the block; if that fails, nothing is left.

    Raises:
        InputError: `folder` is there already and holds something.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with complete_or_absent(Path(parent) / "data") as unfinished:
        ...         _ = (unfinished / "a.txt").write_text("a")
        ...     sorted(path.name for path in Path(parent).rglob("*"))
        ['a.txt', 'data']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: choose another folder, or remove it")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
