"""Files that are whole or not there: nothing that was begun and not finished is left under its final name."""

import contextlib
import csv
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` and rename the result to `path`; a failure leaves `path` as it was.

    Raises:
        OSError: the disk is full, the folder can't be written, `path` is a folder, ...; it names `path`.
    """
    path = Path(path)
    if path.is_dir():  # before the work, where os.replace would say it after
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, temporary):
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An `OSError` in the block says that it happened to `path`: those of a write name no file, or `temporary`."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and (temporary is None or Path(os.fsdecode(named)) != temporary):
            raise
        number = error.errno or errno.EIO
        raise OSError(number, error.strerror or str(error), str(path)) from error


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
        with naming(folder):
            yield unfinished
            os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# --- what must not be overwritten, counted twice or read from elsewhere -----------------------------------


def refuse_overwriting_inputs(output: Path, *inputs: Path | None) -> None:
    """An output must be neither one of the inputs nor a file in a folder that is an input.

    Args:
        output: to be written, a file or a folder.
        *inputs: files and folders that are read; None stands for one that was not given.

    Raises:
        InputError: writing `output` would overwrite something of the user's.
    """
    output = Path(output)
    target = output.resolve()
    for given in (Path(given) for given in inputs if given is not None):
        source = given.resolve()
        if source == target or (given.exists() and output.exists() and os.path.samefile(given, output)):
            raise InputError(f"{output} is the input itself: choose another name for the output")
        if target.is_relative_to(source) and target.is_file():
            raise InputError(f"{output} is a file of the input {given}: choose another name for the output")


def refuse_unwritable(path: Path) -> None:
    """A file or folder that is to be written later: whether the nearest folder that is there can be written.

    Raises:
        OSError: it is a file, this process has no permission, the name is too long, ...
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)
    above = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, where `relative` comes from a list in the data set and must stay under `root`.

    Links that the user made in the folder are followed; it is the name that must not lead out of it.

    Raises:
        InputError: an absolute path, one that leaves `root`, or no name at all.

    Example:
        >>> inside(Path("data"), "images/a.png").as_posix()
        'data/images/a.png'
        >>> inside(Path("data"), "../secret.png")
        Traceback (most recent call last):
        shared.errors.InputError: data: a list names '../secret.png', which is not inside this folder
    """
    named = isinstance(relative, str) and relative.strip() and "\0" not in relative
    if not named or Path(relative).is_absolute() or Path(relative).drive:
        raise InputError(f"{root}: a list names {relative!r}, which is not the name of a file inside this folder")
    steps = os.path.normpath(relative.replace("\\", "/"))
    if steps.startswith("/") or steps == "." or steps.split(os.sep)[0] == "..":
        raise InputError(f"{root}: a list names {relative!r}, which is not inside this folder")
    return Path(root) / relative


def refuse_duplicates(names: Iterable, what: str) -> None:
    """Names, each of which may come once.

    Args:
        names: of cases, patients, files.
        what: names them, and where: "cases in train.csv".

    Raises:
        InputError: one comes twice.

    Example:
        >>> refuse_duplicates(["a", "b", "a"], "cases in train.csv")
        Traceback (most recent call last):
        shared.errors.InputError: cases in train.csv: 'a' comes 2 times; each may come once
    """
    counts = Counter(names)
    several = [name for name, count in counts.items() if count > 1]
    if several:
        more = f" (and {len(several) - 1} others more than once)" if len(several) > 1 else ""
        raise InputError(f"{what}: '{several[0]}' comes {counts[several[0]]} times{more}; each may come once")


def refuse_overlap(train: Iterable, test: Iterable, what: str) -> None:
    """Two lists of names that must have none in common.

    Args:
        train: names in one part.
        test: names in the other.
        what: names them, and where: "patients of train.csv and test.csv".

    Raises:
        InputError: a name is in both.

    Example:
        >>> refuse_overlap(["a", "b"], ["b"], "patients of train.csv and test.csv")
        Traceback (most recent call last):
        shared.errors.InputError: patients of train.csv and test.csv: 'b' is in both; the parts must have none in common
    """
    second = set(test)
    both = [name for name in dict.fromkeys(train) if name in second]
    if both:
        more = f" (and {len(both) - 1} others)" if len(both) > 1 else ""
        raise InputError(f"{what}: '{both[0]}'{more} is in both; the parts must have none in common")
