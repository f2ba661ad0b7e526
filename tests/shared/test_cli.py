"""The command line: defaults by profile and variant, and one sentence for a user's mistake."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.cli import RunConfig, config_from_dict, config_to_dict, configure, run_main, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """A toy configuration."""

    width: int = 4
    """channels"""
    sizes: tuple[int, ...] = (1, 2)
    """a tuple"""


PROFILES = {"smoke": {"width": 2}, "cpu": {"width": 8}, "paper": {"width": 32}}
VARIANTS = {"full": {}, "wide": {"width": 99}}


def parse(*argv):
    seen = []
    train_command(Config, PROFILES, VARIANTS, seen.append, ["--data", "d", "--out", "o", *argv])
    return seen[0]


def test_profile_then_variant_then_flags():
    assert parse().width == 8
    assert parse("--profile", "paper").width == 32
    assert parse("--profile", "paper", "--variant", "wide").width == 99
    assert parse("--variant", "wide", "--width", "5").width == 5
    config = parse("--profile", "smoke", "--resume")
    assert (config.profile, config.variant, config.resume, config.data) == ("smoke", "full", True, Path("d"))


@pytest.mark.parametrize("argv", [("--profile", "huge"), ("--variant", "none"), ("--width", "many")])
def test_wrong_flags_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_round_trip_through_json_types():
    config = configure(Config, PROFILES, VARIANTS, "cpu", "full", data=Path("d"), out=Path("o"), init=Path("i"))
    assert config_from_dict(Config, config_to_dict(config)) == config
    with pytest.raises(InputError, match="heigth"):
        config_from_dict(Config, {**config_to_dict(config), "heigth": 3})


@pytest.mark.parametrize("error, code", [
    (InputError("the file a.nii is empty"), 2), (KeyboardInterrupt("after step 3"), 130),
])  # fmt: skip
def test_exit_codes(error, code, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(fail)
    assert stopped.value.code == code
    assert str(error) in capsys.readouterr().err


def test_a_defect_keeps_its_traceback():
    def fail():
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_main(fail)
