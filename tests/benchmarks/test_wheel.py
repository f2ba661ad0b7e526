"""The package without its repository: it holds every paper.toml, and says in one sentence what it can't do there."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from benchmarks import ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which a wheel of the package was unpacked."""
    pytest.importorskip("setuptools")
    root = tmp_path_factory.mktemp("source")
    for name in ("papers", "shared", "benchmarks"):
        shutil.copytree(ledger.ROOT / name, root / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ledger.ROOT / name, root / name)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=root, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(installed, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_every_paper_toml_is_in_the_wheel(installed):
    packed = {path.parent.name for path in (installed / "papers").glob("*/paper.toml")}
    assert packed == set(ledger.slugs())


def test_papers_work_outside_of_a_checkout(installed, tmp_path):
    slug = ledger.slugs()[0]
    done = run(installed, tmp_path, f"papers.{slug}.train", "--help")
    assert done.returncode == 0 and "--variant" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "command", ["reproduce --paper {slug} --profile smoke", "data --paper {slug}", "table", "new --slug fresh"]
)
def test_commands_that_need_a_checkout_say_so(installed, tmp_path, command):
    name, *arguments = command.format(slug=ledger.slugs()[0]).split()
    done = run(installed, tmp_path, f"benchmarks.{name}", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and "needs a checkout of the repository" in done.stderr
    assert not list(tmp_path.iterdir()) and not (installed / "runs").exists() and not (installed / "data").exists()
