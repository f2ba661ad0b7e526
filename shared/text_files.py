"""Text files that are read or refused: lists of names, JSON, tables.

Whatever is wrong with a file, the caller gets one `InputError` that names the file, what was expected and what was
found: no file, a folder, another encoding, too large, cut short, a name or key that comes twice, NaN.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.readers import need_file, quoted, reading

MOST_TEXT_BYTES = 2**30
"""a table, a list or a JSON file"""
MOST_NESTED = 64
"""levels of a JSON file"""


def read_text(path: str | Path, expected: str) -> str:
    """A file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: missing, larger than `MOST_TEXT_BYTES`, in another encoding, or with zero bytes.
    """
    path = need_file(path, expected)
    with reading(path, expected):
        size = path.stat().st_size
        if size > MOST_TEXT_BYTES:
            raise InputError(f"{path}: has {size / 2**30:.3g} GiB, more than the limit of 1 GiB; expected {expected}")
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not text in UTF-8 (byte {error.start}); expected {expected}") from error
    if "\0" in text:
        raise InputError(f"{path}: holds zero bytes, so it is no text; expected {expected}")
    return text


def read_names(path: str | Path, what: str) -> list[str]:
    """A list of names, one a line; blank lines and spaces around the names are dropped.

    Args:
        path: of the list.
        what: is named, in the plural: "scans".

    Raises:
        InputError: missing, no text, no name in it, or one twice.
    """
    text = read_text(path, f"a list of {what}, one a line")
    names = [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    if not names:
        raise InputError(f"{path}: names no {what}; expected one a line")
    refuse_duplicates(names, f"{path}: {what}")
    return names


def read_json(path: str | Path, expected: str, kind: type = dict, finite: bool = True) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        expected: what it should be, for the message: "a list of questions".
        kind: of the outermost value, dict or list.
        finite: refuse NaN and infinity, which JSON has not but Python writes.

    Raises:
        InputError: missing, truncated, another encoding, another kind, a key that comes twice in an object, nested too
            deeply, or numbers that are not finite.
    """

    def checked(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise InputError(f"{path}: holds the number {text[:40]}; expected finite ones")
        return value

    def whole(text: str) -> int:
        if len(text) > 19:
            raise InputError(f"{path}: holds the whole number {text[:40]}..., too large for 64 bits")
        return int(text)

    def entries(pairs: list[tuple[str, Any]]) -> dict:
        refuse_duplicates([key for key, _ in pairs], f"{path}: entries of one object")
        return dict(pairs)

    text = read_text(path, expected)
    with reading(Path(path), f"JSON with {expected}"):
        content = json.loads(
            text, parse_float=checked, parse_constant=checked, parse_int=whole, object_pairs_hook=entries
        )
    level, depth = [content], 0
    while level := [item for value in level for item in _children(value)]:
        depth += 1
        if depth > MOST_NESTED:
            raise InputError(f"{path}: is nested more than {MOST_NESTED} levels deep; expected {expected}")
    if "\\ud" in text.lower():  # half of a character, which no file name and no table can hold
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{path}: holds half of a surrogate pair, which is no character") from error
    if not isinstance(content, kind):
        names = {dict: "an object {...}", list: "a list [...]"}
        found = names.get(type(content), type(content).__name__)
        raise InputError(f"{path}: expected {expected} as {names[kind]}, found {found}")
    return content


def _children(value: Any) -> Collection:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# --- tables ----------------------------------------------------------------------------------------------


def read_csv_table(
    path: str | Path, columns: Sequence[str] = (), unique: str | None = None, delimiter: str = ","
) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows of a table, all cells as text.

    Args:
        path: of the .csv file.
        columns: that it must have; it may have others.
        unique: a column in which no value may come twice, such as that of the case.
        delimiter: between cells.

    Raises:
        InputError: missing, no text in UTF-8, no rows, a column that is lacking or comes twice, a row with more or
            fewer cells than the heading, a quotation that doesn't end, or a value of `unique` that comes twice.
    """
    expected = f"a table with the columns {', '.join(columns)}" if columns else "a table with a heading line"
    text = read_text(path, expected)
    header, rows = None, []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    with reading(Path(path), "a table"):
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_heading(Path(path), header, columns, delimiter)
            elif len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells and the heading {len(header)}; the file is "
                    "truncated, or a cell with a comma has no quotes"
                )
            else:
                rows.append(cells)
    if not rows:
        raise InputError(f"{path}: has no rows; expected {expected}")
    if unique is not None:
        place = header.index(unique)
        refuse_duplicates([row[place].strip() for row in rows], f"{path}: values of '{unique}'")
    return header, rows


def read_csv_rows(
    path: str | Path, columns: Sequence[str] = (), unique: str | None = None, delimiter: str = ","
) -> list[dict[str, str]]:
    """The rows of a table, column -> cell; arguments and errors are those of `read_csv_table`."""
    header, rows = read_csv_table(path, columns, unique, delimiter)
    return [dict(zip(header, row)) for row in rows]


def _check_heading(path: Path, header: list[str], columns: Sequence[str], delimiter: str) -> None:
    refuse_duplicates(header, f"{path}: columns")
    lacking = [name for name in columns if name not in header]
    if not lacking:
        return
    other = next((mark for mark in ";\t|," if mark != delimiter and len(header) == 1 and mark in header[0]), None)
    if other is not None:
        mark = {"\t": "tabulators"}.get(other, f"'{other}'")
        raise InputError(f"{path}: its cells are separated by {mark}, expected '{delimiter}'; save it so again")
    raise InputError(f"{path}: has no column '{lacking[0]}'; its columns are {quoted(header)}")


def number(text: str, what: str, finite: bool = True) -> float:
    """A cell as a number.

    Args:
        text: of the cell.
        what: it is and where, for the message: "scores.csv: age of subject 7".
        finite: refuse nan and inf.

    Raises:
        InputError: no number, or one that is not finite.

    Example:
        >>> number(" 1.5e3 ", "a.csv: age"), number("nan", "a.csv: age", finite=False)
        (1500.0, nan)
    """
    try:
        if "_" in text or not text.isascii():  # Python reads 1_000 and digits of other scripts
            raise ValueError
        value = float(text)
    except ValueError as error:
        hint = " with a decimal point" if text.count(",") == 1 else ""
        raise InputError(f"{what}: expected a number{hint}, found {text[:40]!r}") from error
    if finite and not math.isfinite(value):
        raise InputError(f"{what}: expected a finite number, found {text.strip()!r}")
    return value
