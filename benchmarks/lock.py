"""One runner at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fingerprint import remove
from shared.locks import Lock


@contextmanager
def locked(path: Path, sentence: str) -> Iterator[None]:
    """Hold the file `path` as a lock for the length of the block; a folder in its place goes.

    Raises:
        InputError: another process holds it; says `sentence`.
    """
    if path.is_dir():
        remove(path)
    lock = Lock(path, sentence)
    try:
        yield
    finally:
        lock.release()
