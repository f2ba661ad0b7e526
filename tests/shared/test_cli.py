"""The command line: defaults by profile and variant, and one sentence for a user's mistake."""

import errno
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from shared import files
from shared.cli import RunConfig, commands, config_from_dict, config_to_dict, configure, run_main, train_command
from shared.errors import InputError
from shared.locks import Lock
from shared.training_log import TrainingLog


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


# --- configurations that were stored ----------------------------------------------------------------------


@dataclass
class Everything(RunConfig):
    """Every kind of setting that a paper may have."""

    kind: Literal["a", "b", 3] = "a"
    count: int = 4
    offset: int = -2
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    spacing: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ("x",)
    limit: float | None = None
    table: Path | None = None


GOOD = config_to_dict(Everything(data=Path("d"), out=Path("o"), table=Path("t"), limit=2.0))


def test_stored_configurations_come_back():
    config = config_from_dict(Everything, GOOD)
    assert config == Everything(data=Path("d"), out=Path("o"), table=Path("t"), limit=2.0)
    for name, value in (("limit", None), ("table", None), ("kind", 3), ("rate", 1), ("offset", -7)):
        assert config_from_dict(Everything, {**GOOD, name: value}).__dict__[name] == value
    for sizes in ([], [3], [3, 4, 5, 6]):
        assert config_from_dict(Everything, {**GOOD, "sizes": sizes}).sizes == tuple(sizes)


@pytest.mark.parametrize("name, values", [
    ("kind", ["c", 3.0, "3", None, ["a"], {}]), ("count", [1.0, "4", True, None, [4], -1]), ("offset", [1.5]),
    ("rate", ["x", True, None, [1.0], float("nan"), float("inf")]), ("sizes", [[1.5], ["1"], 3, "12", None, [True]]),
    ("spacing", [[1.0], [1.0, 2.0, 3.0], [1.0, "x"], [1.0, float("nan")], {}]), ("names", ["x", [3]]),
    ("limit", ["x", float("inf"), [1.0]]), ("table", [3, ["t"]]), ("data", [None, 3]), ("resume", [0, "no", None]),
    ("batch_size", [0]), ("seed", [-1, 2.0]),
])  # fmt: skip
def test_stored_values_of_a_wrong_type_or_out_of_range(name, values):
    for value in values:
        with pytest.raises(InputError, match=name.replace("_", "[-_]")):
            config_from_dict(Everything, {**GOOD, name: value})


def test_stored_configurations_of_another_version():
    with pytest.raises(InputError, match=r"does not know: \['heigth'\]"):
        config_from_dict(Everything, {**GOOD, "heigth": 3})
    with pytest.raises(InputError, match=r"lacks settings that this version has: \['rate'\]"):
        config_from_dict(Everything, {name: value for name, value in GOOD.items() if name != "rate"})


@pytest.mark.parametrize("argv, message", [
    (("--lr", "nan"), "--lr nan is not finite"), (("--seed", "-4"), "--seed -4 is negative"),
    (("--batch-size", "0"), "--batch-size must be at least 1"),
])  # fmt: skip
def test_flags_out_of_range(argv, message, capsys):
    @dataclass
    class Rated(Config):
        """With a rate."""

        lr: float = 0.1
        """rate"""

    with pytest.raises(SystemExit) as stopped:
        train_command(Rated, PROFILES, VARIANTS, print, ["--data", "d", "--out", "o", *argv])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n" or message in captured.err and captured.err.count("\n") == 1
    assert not captured.out


# --- what the system refuses -----------------------------------------------------------------------------


def error_of(call, capsys) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run_main(call)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1 and message.startswith("error: "), message
    return message


@pytest.mark.parametrize("number, words", [
    (errno.ENOSPC, "no space left on the disk"), (errno.EDQUOT, "share of the disk"), (errno.EROFS, "read-only"),
    (errno.EACCES, "no permission"), (errno.EPERM, "no permission"), (errno.ENOTDIR, "a file, not a folder"),
    (errno.EISDIR, "this is a folder"), (errno.ENAMETOOLONG, "name is too long"), (errno.EEXIST, "already"),
    (errno.EFBIG, "no larger file"), (errno.EIO, "could not be read or written"),
    (errno.ENFILE, os.strerror(errno.ENFILE)),
])  # fmt: skip
def test_what_the_system_refuses_is_a_sentence(number, words, capsys):
    def fail():
        raise OSError(number, os.strerror(number), "runs/a/checkpoint.pt")

    message = error_of(fail, capsys)
    assert message.startswith("error: runs/a/checkpoint.pt: ") and words in message


def test_errors_of_other_kinds(capsys):
    def refuse(error):
        def call():
            raise error

        return call

    assert error_of(refuse(OSError("1 requested\nand 0 written")), capsys) == "error: 1 requested and 0 written\n"
    with pytest.raises(ConnectionError):  # between processes: not the user's mistake
        run_main(refuse(ConnectionResetError()))
    with pytest.raises(SystemExit) as stopped:
        run_main(refuse(BrokenPipeError()))
    assert stopped.value.code == 1 and "error" not in capsys.readouterr().err


def places(folder: Path):
    """(a path that can't be written, words of the sentence that says why)."""
    file = folder / "a file"
    file.write_text("mine")
    yield file / "sub" / "x.csv", f"{file}: this is a file"
    yield folder / ("n" * 300) / "x.csv", "name is too long"
    if Path("/sys/kernel").is_dir():  # not even by root
        yield Path("/sys/kernel/nothing/x.csv"), "/sys/kernel"


@pytest.mark.parametrize("write", [
    lambda path: files.write_csv(path, [{"case": 1}]),
    lambda path: files.write_atomically(path, lambda temporary: temporary.write_text("x")),
    lambda path: files.complete_or_absent(path).__enter__(),
    lambda path: Lock(path, "in use"),
    lambda path: TrainingLog(path).append([{"step": 1}]),
])  # fmt: skip
def test_places_that_can_not_be_written(write, tmp_path, capsys):
    for path, words in places(tmp_path):
        assert words in error_of(lambda path=path: write(path), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"] and (tmp_path / "a file").read_text() == "mine"


def test_a_place_without_permission_is_seen_before_the_work(tmp_path, monkeypatch, capsys):
    for path, words in list(places(tmp_path))[:2]:
        assert words in error_of(lambda path=path: files.refuse_unwritable(path), capsys)
    files.refuse_unwritable(tmp_path / "new" / "x.csv")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may do anything
    assert f"{tmp_path}: you have no permission" in error_of(
        lambda: files.refuse_unwritable(tmp_path / "new" / "x.csv"), capsys
    )


@pytest.fixture
def small_files_only():
    """The system lets no file grow beyond 20 kB: writes fail in their midst, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writers():
    """Every library that papers write with; each gets more than fits."""
    import h5py
    import nibabel

    from shared.figures import pyplot

    noise = np.random.default_rng(0).random((100, 100))
    volume = nibabel.Nifti1Image(noise[None].repeat(9, 0), np.eye(4))

    def npy(path):
        with path.open("wb") as file:
            np.save(file, noise)

    def npz(path):
        with path.open("wb") as file:
            np.savez(file, noise=noise)

    def hdf5(path):
        with h5py.File(path, "w") as file:
            file["noise"] = noise

    def picture(path):
        figure, axis = pyplot().subplots()
        axis.imshow(noise)
        try:
            figure.savefig(path, format="png", dpi=200)
        finally:
            pyplot().close(figure)

    def nifti(path):
        named = path.with_name("." + path.name + ".nii.gz")
        try:
            nibabel.save(volume, named)
            os.replace(named, path)
        finally:
            named.unlink(missing_ok=True)

    return {"npy": npy, "npz": npz, "hdf5": hdf5, "picture": picture, "nifti": nifti,
            "text": lambda path: path.write_text("x" * 50_000)}  # fmt: skip


@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5", "picture", "nifti", "text"])
def test_a_full_disk_leaves_the_old_file_and_one_sentence(kind, tmp_path, capsys, small_files_only):
    path = tmp_path / "mine"
    path.write_text("old")
    message = error_of(lambda: files.write_atomically(path, writers()[kind]), capsys)
    assert "mine" in message and len(message) < 600
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# --- what a command looks at before it works --------------------------------------------------------------


def run_command(argv, seen):
    def apply(checkpoint: Path, input: Path, output: Path, mask_output: Path | None = None, figure: Path | None = None):
        """Apply.

        Args:
            checkpoint: c
            input: i
            output: o
            mask_output: m
            figure: f
        """
        seen.append(output)

    def evaluate(data: Path, checkpoint: Path, out: Path):
        """Evaluate.

        Args:
            data: d
            checkpoint: c
            out: o
        """
        seen.append(out)

    def panel(checkpoints: list[Path], out: Path):
        """Panel.

        Args:
            checkpoints: c
            out: o
        """
        seen.append(out)

    commands({"apply": apply, "evaluate": evaluate, "panel": panel}, [str(part) for part in argv])


def test_commands_refuse_outputs_before_they_work(tmp_path, capsys):
    scan, folder, checkpoint = tmp_path / "scan.nii", tmp_path / "dicom", tmp_path / "run" / "checkpoint.pt"
    folder.mkdir()
    checkpoint.parent.mkdir()
    for path in (scan, folder / "1.dcm", checkpoint):
        path.write_text("mine")
    os.link(scan, tmp_path / "hard.nii")
    (tmp_path / "soft.nii").symlink_to(scan)
    given = ["apply", "--checkpoint", checkpoint, "--input", scan]
    refusals = [
        ([*given, "--output", scan], "input itself"),
        ([*given, "--output", tmp_path / "run" / ".." / "scan.nii"], "input itself"),
        ([*given, "--output", tmp_path / "hard.nii"], "input itself"),
        ([*given, "--output", tmp_path / "soft.nii"], "input itself"),
        ([*given, "--output", checkpoint], "input itself"),
        ([*given, "--output", tmp_path / "o.nii", "--mask-output", scan], "input itself"),
        ([*given, "--output", tmp_path / "o.nii", "--figure", scan], "input itself"),
        (["apply", "--checkpoint", checkpoint, "--input", folder, "--output", folder / "1.dcm"], "file of the input"),
        ([*given, "--output", folder], "this is a folder"),
        ([*given, "--output", scan / "o.nii"], "this is a file"),
        ([*given, "--output", tmp_path / ("n" * 300)], "too long"),
        (["evaluate", "--data", folder, "--checkpoint", checkpoint, "--out", scan], "expected the folder"),
        (["evaluate", "--data", folder, "--checkpoint", checkpoint, "--out", folder], "input itself"),
        (["evaluate", "--data", folder, "--checkpoint", checkpoint, "--out", scan / "sub"], "this is a file"),
        (["panel", "--checkpoints", checkpoint, scan, "--out", scan], "input itself"),
    ]
    seen = []
    for argv, words in refusals:
        with pytest.raises(SystemExit) as stopped:
            run_command(argv, seen)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and words in message and message.count("\n") == 1, (argv, message)
    assert not seen and scan.read_text() == "mine"
    accepted = [
        [*given, "--output", tmp_path / "new" / "o.nii"],
        ["apply", "--checkpoint", checkpoint, "--input", folder, "--output", folder / "new.nii"],
        ["evaluate", "--data", folder, "--checkpoint", checkpoint, "--out", checkpoint.parent],
        ["panel", "--checkpoints", checkpoint, "--out", tmp_path / "panel.png"],
    ]
    for argv in accepted:
        run_command(argv, seen)
    assert len(seen) == len(accepted)
