"""`make` hands over what a user gives byte for byte, and executes nothing of it. No environment is set up here."""

import json
import os
import shutil
import subprocess

import pytest

from benchmarks import ledger

STUB = """#!/bin/sh
exec {python} -c 'import json, os, sys
kept = {{k: v for k, v in os.environ.items() if k.startswith("GIVEN_")}}
print(json.dumps([sys.argv[1:], kept, os.environ.get("PYTEST_ADDOPTS")]))' "$@"
"""
HOSTILE = [
    "$(shell touch {mark})",
    "$(touch {mark})",
    "`touch {mark}`",
    "'; touch {mark}; '",
    '"; touch {mark}; "',
    "; touch {mark}",
    "| touch {mark}",
    "&& touch {mark} #",
    "> {mark}",
    "a\n\ttouch {mark}\n",
    "$x ${{HOME}} $$ $@ $(HOME) %",
    "$(eval $(shell touch {mark}))",
    "spaces  and\ttabs  ",
    "back\\slash \\' \\\" \\",
    '["a b", "c\'d"] {{"e": 1}}',
    "--help",
    "#comment",
    "ünïcode",
    "* ? [a-z] ~ !",
]
ARGUMENTS = {
    "PAPER": "--paper",
    "DATA": "--data",
    "NAME": "--name",
    "PROFILE": "--profile",
    "SEEDS": "--seeds",
    "VARIANTS": "--variants",
    "DEVICE": "--device",
    "SET": "--set",
    "JOBS": "--jobs",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the Makefile, an environment that counts as set up, and an interpreter that only repeats."""
    import sys

    root = tmp_path_factory.mktemp("checkout")
    shutil.copyfile(ledger.ROOT / "Makefile", root / "Makefile")
    for name in ("requirements.lock", "pyproject.toml"):
        (root / name).touch()
        os.utime(root / name, (1, 1))
    for folder, name in ((".venv", ".installed"), (".venv", ".installed-cpu"), ("stub", "python"), ("stub", "uv")):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_text(STUB.format(python=sys.executable))
        (root / folder / name).chmod(0o755)
    (root / "stub" / "ruff").symlink_to("python")
    return root


def make(root, *arguments, environment=None):
    given = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "PYTEST_ADDOPTS", *ARGUMENTS)}
    return subprocess.run(
        ["make", "BIN=stub", *arguments],
        cwd=root,
        env={**given, **(environment or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


def arrived(root, *arguments, environment=None) -> list:
    """What the stub got: its arguments and what `make` put into its environment."""
    done = make(root, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("value", HOSTILE)
def test_values_arrive_byte_for_byte_and_nothing_is_executed(checkout, tmp_path, value):
    mark = tmp_path / "executed"
    value = value.format(mark=mark)
    given = [f"{name}={value}" for name in ARGUMENTS]
    expected = [f"{flag}={value}" for flag in ARGUMENTS.values()]
    arguments, environment, _ = arrived(checkout, "reproduce", *given, "RECORD=" + value, "LENGTHS=" + value)
    assert arguments[:2] == ["-m", "benchmarks.reproduce"]
    assert sorted(arguments[2:]) == sorted([*expected, "--record"])
    assert all(environment[f"GIVEN_{name}"] == value for name in ARGUMENTS)
    for target, module, flags in (("data", "data", ["--paper", "--profile"]), ("new", "new", ["--slug"])):
        arguments, _, _ = arrived(checkout, target, *given)
        assert arguments == ["-m", f"benchmarks.{module}", *(f"{flag}={value}" for flag in flags)]
    for name in ARGUMENTS:  # from the environment of the shell that calls make
        assert (
            make(checkout, "-n", "reproduce", "PAPER=a", f"PYTHON={value}", environment={name: value}).returncode == 0
        )
    arguments, _, options = arrived(checkout, "test", f"ARGS={value}", f"CHECK={value}", f"PYTHON={value}")
    assert options == f" {value}" and arguments[:2] == ["-m", "pytest"]
    for target in ("list", "table", "lint", "setup", "help"):
        make(checkout, target, *given, f"CHECK={value}", f"RECORD={value}", f"PYTHON={value}", f"ARGS={value}")
    assert not mark.exists(), "something that a user gave was executed"


@pytest.mark.parametrize("value", [value for value in HOSTILE if value != "ünïcode"])
def test_the_name_of_a_build_is_letters_digits_and_dots(checkout, tmp_path, value):
    mark = tmp_path / "executed"
    done = make(checkout, "reproduce", "PAPER=a", f"TORCH={value.format(mark=mark)}")
    assert done.returncode == 2 and "TORCH is the name of a build" in done.stderr
    assert not mark.exists()


def test_an_interpreter_that_is_none_is_one_sentence_and_not_a_command(checkout, tmp_path):
    mark = tmp_path / "executed"
    bare = tmp_path / "bare"
    shutil.copytree(checkout, bare, symlinks=True)
    shutil.rmtree(bare / ".venv")
    done = make(bare, "setup", f"PYTHON=sh -c 'touch {mark}'; touch {mark} #")
    assert done.returncode == 2 and "Python 3.11 or newer is needed" in done.stdout
    assert not mark.exists() and not (bare / ".venv").exists()


def test_switches_and_defaults(checkout):
    plain = ["-m", "benchmarks.reproduce", "--paper=nio", "--profile=cpu", "--device=auto", "--jobs=1"]
    assert arrived(checkout, "reproduce", "PAPER=nio")[0] == plain
    assert arrived(checkout, "reproduce", "PAPER=nio", "RECORD=0", "CHECK=", "TORCH=cpu")[0] == plain
    switched = arrived(checkout, "reproduce", "PAPER=nio", "RECORD=1", "CHECK=1", "DRY=1", "LENGTHS=0")[0]
    assert switched == [*plain, "--no-lengths", "--record", "--check", "--dry-run"]
    assert arrived(checkout, "reproduce", environment={"PAPER": "nio", "NAME": "MACHINE"})[0] == plain
    assert arrived(checkout, "table", "CHECK=1")[0] == ["-m", "benchmarks.table", "--check"]
    done = make(checkout, "reproduce")
    assert done.returncode == 2 and "which paper?" in done.stdout
