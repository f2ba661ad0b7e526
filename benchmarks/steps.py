"""Steps of a reproduction, each in a process of its own, so that one that fails does not take the others with it."""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from pathlib import Path

from benchmarks import ledger, machine
from benchmarks.fingerprint import read_marker, remove, write_marker
from shared.cli import run_main
from shared.errors import InputError


def _die_with_parent() -> None:
    """Stop (with a checkpoint) when the runner is gone, however it went."""
    sentinel = multiprocessing.parent_process().sentinel

    def wait() -> None:
        multiprocessing.connection.wait([sentinel])
        os.kill(os.getpid(), 15)

    threading.Thread(target=wait, daemon=True).start()


def _child(module: str, function: str, arguments: dict, report: Path, threads: int, row: int) -> None:
    """Import `module`, call `function(**arguments)`, and add what that used to `report`, even if it is interrupted."""
    _die_with_parent()
    os.environ["PROGRESS_ROW"] = str(row)

    def call() -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        start = time.perf_counter()
        try:
            getattr(importlib.import_module(module), function)(**arguments)
        finally:
            used = {"seconds": time.perf_counter() - start, **machine.usage()}
            write_marker(report, add_usage(read_marker(report), used))

    run_main(call)


def add_usage(before: dict, more: dict) -> dict:
    """What two steps have used, one after the other: seconds add up, of memory the larger peak counts.

    >>> add_usage({"seconds": 2.0, "memory_mb": 500.0}, {"seconds": 1.0, "memory_mb": 300.0})
    {'seconds': 3.0, 'memory_mb': 500.0}
    """
    total = dict(before)
    for key, value in more.items():
        total[key] = total.get(key, 0.0) + value if key.endswith("seconds") else max(total.get(key, 0.0), value)
    return total


class Steps:
    """Runs functions in fresh processes that have torch and the paper imported already (a fork server).

    `run` may be called from several threads: `parallel` of them share the cores.
    """

    def __init__(self, preload: list[str], parallel: int = 1):
        self.threads = max(1, machine.cores() // parallel)
        # `start` looks after all processes that have ended. While another thread joins one of them, both would read
        # its exit code, which can be read once: the later gets 255.
        self.one_at_a_time = threading.Lock()
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ledger.ROOT), os.environ.get("PYTHONPATH", "")])
        if sys.platform == "darwin":  # there a process that has used the system's libraries can't be forked safely
            self.context = multiprocessing.get_context("spawn")
        else:
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(preload)

    def run(self, module: str, function: str, arguments: dict, folder: Path, row: int = 0, go_on: bool = False) -> dict:
        """One step; its progress bar is in line `row`.

        Args:
            module: where the function is.
            function: its name.
            arguments: by name.
            folder: for the report of what the step has used.
            row: of the terminal.
            go_on: an earlier step of the same kind was interrupted, and what it used counts as well.

        Returns:
            `seconds`, `processor_seconds`, `memory_mb` and, on a GPU, `gpu_memory_mb`.

        Raises:
            InputError: the step could not use its input (its own sentence was printed).
            RuntimeError: the step failed.
            KeyboardInterrupt: the step was interrupted and has written its checkpoint.
        """
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / f".{function}.json"
        if not go_on or not report.is_file():
            remove(report)
        process = self.context.Process(target=_child, args=(module, function, arguments, report, self.threads, row))
        with self.one_at_a_time:
            process.start()
        try:
            multiprocessing.connection.wait([process.sentinel])
        except KeyboardInterrupt:
            multiprocessing.connection.wait(
                [process.sentinel]
            )  # Ctrl-C reached the step, too: it writes its checkpoint
            raise
        finally:
            with self.one_at_a_time:
                process.join()
        if process.exitcode == 0:
            used = read_marker(report)
            remove(report)
            return used
        if process.exitcode in (130, -15, -2):
            raise KeyboardInterrupt
        if process.exitcode == 2:
            raise InputError(f"{module}.{function} could not use its input")
        raise RuntimeError(f"{module}.{function} ended with exit code {process.exitcode}")
