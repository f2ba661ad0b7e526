"""The scaffold of `make new` meets the contract as it is."""

import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import ledger
from benchmarks.new import create
from shared.errors import InputError


@pytest.mark.parametrize("slug", ["Bad", "1st", "with-dash", "", "cdinet"])
def test_names_that_can_not_be(slug):
    with pytest.raises(InputError):
        create(slug)


@pytest.mark.slow
def test_the_scaffold_passes_the_contract(tmp_path):
    for name in ("shared", "benchmarks", "tests"):
        shutil.copytree(ledger.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ledger.ROOT / name, tmp_path / name)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "__init__.py").touch()
    create("scaffold", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py", "tests/papers/test_scaffold.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "[scaffold]" not in done.stdout or "failed" not in done.stdout
