"""What is up to date: digests of data, code, settings, and of what a step has written.

Nothing is trusted because it is there. What a step wrote is recorded with its digest in a *marker*, a small JSON file
that also holds a digest of itself; a file that is missing, cut short or altered, a marker among them, is made again.
"""

import ast
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ledger
from shared.cli import config_to_dict
from shared.errors import InputError
from shared.files import write_atomically

NOT_IN_DIGEST = ("data", "out", "device", "workers", "resume", "overwrite", "checkpoint_every", "init")
NOT_IN_NUMBERS = ("cli", "errors", "figures", "files", "finite", "locks", "training_log")
"""files of `shared/` that no number depends on (a configuration is in the digest itself)"""
FRESH = 3.0
"""seconds: a file that was just written could be written again without its times changing"""


# --- files -----------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def digest_of_file(path: Path) -> str | None:
    """Digest of a file's contents; None where there is no readable file."""
    if not os.path.isfile(path):
        return None
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def digests_of_files(folder: Path) -> dict[str, str]:
    """Name -> digest of all files under a folder, without the hidden ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = digest_of_file(path)
    return found


def changed(folder: Path, written: dict[str, str]) -> list[str]:
    """Names of the files that no longer are as they were written: missing, cut short, altered."""
    return [name for name, digest in written.items() if digest_of_file(folder / name) != digest]


# --- markers ---------------------------------------------------------------------------------------------


def write_marker(path: Path, content: dict) -> None:
    """Write a dictionary as JSON with its own digest, atomically."""
    if path.is_dir():
        remove(path)
    text = json.dumps(content, sort_keys=True)
    whole = json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest(), "content": content}, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(whole + "\n", "utf-8"))


def read_marker(path: Path) -> dict:
    """What `write_marker` wrote; empty where the file is missing, damaged or was altered."""
    try:
        whole = json.loads(path.read_text("utf-8"))
        text = json.dumps(whole["content"], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() == whole["digest"] and isinstance(whole["content"], dict):
            return whole["content"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


# --- data ------------------------------------------------------------------------------------------------


def _files(folder: Path) -> Iterator[str]:
    """All files under a folder, through links to folders, too (data sets are often put together from links)."""
    seen = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()  # a link to a folder that it lies in
            continue
        seen.add((status.st_dev, status.st_ino))
        names.sort()
        yield from (os.path.join(parent, name) for name in sorted(files))


def fingerprint_of_data(data: Path) -> str:
    """Digest of the names and contents of all files of a data set.

    Contents are read once: digests are kept under `runs/` together with the size, the times and the number of the file
    on its disk. Its time of change can't be set back by a program, so a file rewritten at equal size is seen.

    Raises:
        InputError: a file can't be read.
    """
    data = Path(data).resolve()
    kept = ledger.ROOT / "runs" / ".digests" / f"{hashlib.sha256(str(data).encode()).hexdigest()[:16]}.json"
    known, now = read_marker(kept), {}
    digest = hashlib.sha256()
    started = time.time()
    for path in _files(data):
        name = os.path.relpath(path, data)
        try:
            status = os.stat(path)
        except OSError:
            digest.update(f"{name} leads nowhere\n".encode(errors="surrogateescape"))
            continue
        identity = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
        content = known.get(name, [None])[-1] if known.get(name, [None])[:-1] == identity else digest_of_file(path)
        if content is None:
            raise InputError(f"{path} can't be read: it belongs to the data set, so look at its permissions")
        if max(status.st_mtime_ns, status.st_ctime_ns) / 1e9 < started - FRESH:
            now[name] = [*identity, content]
        digest.update(f"{name} {content}\n".encode(errors="surrogateescape"))
    if now != known:
        write_marker(kept, now)
    return digest.hexdigest()[:16]


# --- code and settings -----------------------------------------------------------------------------------


def shared_files(files: list[Path]) -> list[Path]:
    """The files of `shared/` that some files import, directly or through one another."""
    folder = ledger.ROOT / "shared"
    found, waiting = [], list(files)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[1:2] for alias in node.names if alias.name.startswith("shared.")]
            elif isinstance(node, ast.ImportFrom) and node.module == "shared":
                names = [[alias.name] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared."):
                names = [node.module.split(".")[1:2]]
            for path in (folder / f"{name}.py" for name, *_ in names):
                if path.exists() and path not in found and path.stem not in NOT_IN_NUMBERS:
                    found.append(path)
                    waiting.append(path)
    return sorted(found)


@functools.cache
def digest_of_numbers(slug: str, with_evaluation: bool) -> str:
    """Digest of the code that a training (and its evaluation) consists of: the paper's, and what it imports."""
    files = [path for path in ledger.paper_files(slug) if with_evaluation or path.name != "eval.py"]
    return ledger.digest_of_code(files + shared_files(files))


def digest_of_step(slug: str, config, data_fingerprint: str, with_evaluation: bool) -> str:
    """Digest of all that the outcome of a training (and its evaluation) depends on."""
    settings = {key: value for key, value in config_to_dict(config).items() if key not in NOT_IN_DIGEST}
    parts = [digest_of_numbers(slug, with_evaluation), json.dumps(settings, sort_keys=True), data_fingerprint]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
