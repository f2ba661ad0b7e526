"""Damage every file of a finished run, one at a time, start again and compare; run by `test_recovery` in a scaffold.

All in one process, so that the runner's fork server imports torch once. Prints the cases that went wrong.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from benchmarks import ledger, reproduce
from benchmarks.fingerprint import digests_of_files, read_marker, remove, write_marker

ARGUMENTS = ["--paper", "scaffold", "--device", "cpu", "--profile", "smoke", "--variants", "input,full"]
RUN = ledger.ROOT / "runs" / "scaffold" / "standin-smoke"
COMPARED = ("results", "curves", "verdicts", "cases", "seeds")


def start() -> tuple[int, str]:
    """Exit code and output of the runner."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            reproduce.main(ARGUMENTS)
    except SystemExit as stopped:
        return stopped.code, output.getvalue()
    except Exception as error:
        return 1, f"{type(error).__name__}: {error}"
    return 0, output.getvalue()


def numbers() -> dict:
    result = json.loads((RUN / "result.json").read_text("utf-8"))
    return {key: result[key] for key in COMPARED}


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


FAULTS = {
    "removed": Path.unlink,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "altered": alter,
    "emptied": lambda path: path.write_bytes(b""),
    "replaced by a folder": replace_by_folder,
}


def interrupt() -> None:
    """As a training looks that was killed before its evaluation: a checkpoint, and nothing that says it is done."""
    folder = RUN / "full" / "seed0"
    state = read_marker(folder / "steps.json")
    write_marker(folder / "steps.json", {"started": state["started"]})
    remove(folder / "metrics.csv")


def main() -> None:
    code, output = start()
    assert code == 0, output
    undisturbed, wrong = numbers(), []
    written = {ledger.ROOT / "data": digests_of_files(ledger.ROOT / "data")}
    files = [path for top in ("runs", "data") for path in sorted((ledger.ROOT / top).rglob("*")) if path.is_file()]
    cases = [(path, name, None) for path in files for name in FAULTS]
    last = [RUN / "full" / "seed0" / name for name in ("checkpoint.pt", "log.csv", "config.json", ".lock")]
    last = [path for path in last if path.exists()]
    cases += [(path, name, interrupt) for path in last for name in FAULTS]
    # Of a log that nobody has recorded yet, one digit for another can't be seen.
    cases.remove((RUN / "full" / "seed0" / "log.csv", "altered", interrupt))
    for path, name, before in cases:
        if before:
            before()
        if path.name == ".lock" and not path.is_file():  # a training's own is there while it runs
            remove(path)
            path.touch()
        FAULTS[name](path)
        code, output = start()
        problem = None
        if code != 0:
            problem = f"exit code {code}, {output.strip().splitlines()[-1:]}"
        elif numbers() != undisturbed:
            problem = "other numbers"
        elif not path.is_file() and (path.name != ".lock" or path.parent == RUN):
            problem = "the file is not there again"
        elif any(digests_of_files(folder) != kept for folder, kept in written.items()):
            problem = "other files"
        if problem:
            when = " after an interruption" if before else ""
            wrong.append(f"{path.relative_to(ledger.ROOT)} {name}{when}: {problem}")
            print(wrong[-1], file=sys.stderr, flush=True)
            for top in ("runs", "data"):  # the next case must not suffer from this one
                remove(ledger.ROOT / top)
            start()
    print(json.dumps({"files": sorted({str(path.relative_to(ledger.ROOT)) for path in files}), "wrong": wrong}))


if __name__ == "__main__":
    sys.exit(main())
