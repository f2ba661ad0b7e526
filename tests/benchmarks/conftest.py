"""A copy of the repository that holds only the scaffold paper, to run things in."""

import shutil

import pytest

from benchmarks import ledger
from benchmarks.new import create


@pytest.fixture(scope="session")
def scaffold(tmp_path_factory):
    """Folder of a repository whose only paper is the scaffold of `make new`."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("shared", "benchmarks", "tests"):
        ignore = shutil.ignore_patterns("results", "__pycache__", "papers")
        shutil.copytree(ledger.ROOT / name, root / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ledger.ROOT / name, root / name)
    for name in ("papers", "tests/papers"):
        (root / name).mkdir()
        (root / name / "__init__.py").touch()
    create("scaffold", root)
    return root
