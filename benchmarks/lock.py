"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fingerprint import remove
from shared.errors import InputError

try:
    import fcntl
except ImportError:  # not every system has it
    fcntl = None


@contextmanager
def locked(path: Path, sentence: str) -> Iterator[None]:
    """Hold the file `path` as a lock for the length of the block; it goes when the process does, however it goes.

    Raises:
        InputError: another process holds it; says `sentence`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        remove(path)
    if fcntl is None:
        with _locked_by_number(path, sentence):
            yield
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(sentence) from error
        except OSError:
            pass  # a network drive without locks: go on without
        yield


@contextmanager
def _locked_by_number(path: Path, sentence: str) -> Iterator[None]:
    """The same without `fcntl`: the file holds the number of its process, and counts while that one runs."""
    try:
        holder = int(path.read_text("utf-8"))
    except (OSError, ValueError):
        holder = 0
    if holder and holder != os.getpid() and _runs(holder):
        raise InputError(sentence)
    path.write_text(str(os.getpid()), "utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
