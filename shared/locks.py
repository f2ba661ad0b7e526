"""One process at a time in a folder."""

from pathlib import Path

from shared.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # on Windows alone
    msvcrt = None


class Lock:
    """Holds the file `path` as a lock until `release`, or until this process is gone, however it went.

    Processes that this one starts don't inherit it, so that a worker that outlives a killed training doesn't
    keep the folder. Where the system or the drive has no locks, nothing is locked.

    Args:
        path: of the lock file; it stays there, empty.
        sentence: what to say when another process holds it.

    Raises:
        InputError: another process holds it.
    """

    def __init__(self, path: Path, sentence: str):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+b")
        try:
            if fcntl is not None:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt is not None:
                self.file.seek(0)
                msvcrt.locking(self.file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            self.file.close()
            raise InputError(sentence) from error
        except OSError:  # a network drive without locks: go on without
            pass

    def release(self) -> None:
        self.file.close()
