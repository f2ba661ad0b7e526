"""Steps in processes of their own, several at a time."""

import os
import subprocess
import sys

import pytest

from benchmarks import ledger

SHORT_STEPS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from benchmarks.steps import Steps

steps = Steps(["json"], 4)

def one(number):
    return steps.run("json", "dumps", {"obj": number}, Path(sys.argv[1]) / str(number))

with ThreadPoolExecutor(4) as pool:
    print(len(list(pool.map(one, range(150)))))
"""


@pytest.mark.slow
def test_short_steps_from_several_threads_all_succeed(tmp_path):
    """They end while others begin: no thread may take the exit code that another one waits for."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_STEPS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ledger.ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "150\n", done.stderr
