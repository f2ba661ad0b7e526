"""The scaffold of `make new` meets the contract as it is."""

import os
import subprocess
import sys

import pytest

from benchmarks.new import create
from shared.errors import InputError


@pytest.mark.parametrize("slug", ["Bad", "1st", "with-dash", "", "cdinet"])
def test_names_that_can_not_be(slug):
    with pytest.raises(InputError):
        create(slug)


@pytest.mark.slow
@pytest.mark.xdist_group("scaffold")
def test_the_scaffold_passes_the_contract(scaffold):
    tests = ["tests/test_contract.py", "tests/test_faults.py", "tests/papers/test_scaffold.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=scaffold,
        env={**os.environ, "PYTHONPATH": str(scaffold), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:]
