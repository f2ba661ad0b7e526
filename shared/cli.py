"""From a dataclass to a command line, and from a user's mistake to one sentence and exit code 2.

`train.py` of every paper holds a dataclass `Config(RunConfig)`, its `PROFILES` and `VARIANTS` (plain
dictionaries of values that differ from the defaults) and a function `train(config)`. Nothing here imports
torch, so that `--help` answers at once.
"""

import argparse
import dataclasses
import errno
import functools
import inspect
import json
import math
import os
import shlex
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import InputError
from shared.files import refuse_overwriting_inputs, refuse_unwritable


@dataclass
class RunConfig:
    """What every training run has, whatever the paper. A paper's own `Config` adds its hyperparameters."""

    data: Path
    """folder of the data set, in the layout that the paper's README describes"""
    out: Path
    """folder of the run: config.json, checkpoint.pt, log.csv"""
    profile: str = "cpu"
    """set of defaults: smoke (seconds), cpu (minutes on 2 cores), paper (the paper's recipe, on a GPU)"""
    variant: str = "full"
    """the proposed method, a baseline or an ablation"""
    seed: int = 0
    """seed of the weights, the order of the samples and every random draw"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """arithmetic of the forward pass; auto is float32 on CPU and bf16 autocast on GPU"""
    batch_size: int = 1
    """samples per update, over all devices and accumulation steps together"""
    accumulate: int = 1
    """split each batch into this many parts, one after the other, to save memory"""
    workers: int = 0
    """processes that load data; 0 loads in the training process"""
    compile: bool = False
    """run torch.compile on the model"""
    channels_last: bool = False
    """keep convolution weights and inputs channels-last in memory"""
    deterministic: bool = True
    """on a GPU, prefer deterministic kernels over faster ones"""
    checkpoint_every: float = 60.0
    """seconds between two checkpoints; a kill loses at most this much work"""
    resume: bool = False
    """go on from the checkpoint in `out`, if there is one"""
    overwrite: bool = False
    """start anew where `out` holds a checkpoint, which is lost then"""
    init: Path | None = None
    """checkpoint of another run to start from, for variants that need one"""


# A resumed run may differ in these; every other setting must be what the checkpoint was trained with.
MAY_CHANGE_ON_RESUME = {
    "data",
    "out",
    "device",
    "workers",
    "compile",
    "checkpoint_every",
    "resume",
    "overwrite",
    "init",
}


def configure(
    config_class: type,
    profiles: dict[str, dict],
    variants: dict[str, dict],
    profile: str,
    variant: str,
    **values,
):
    """Defaults of `config_class`, then the profile's values, then the variant's, then `values`.

    Raises:
        InputError: unknown profile or variant.
    """
    for kind, name, known in (("profile", profile, profiles), ("variant", variant, variants)):
        if name not in known:
            raise InputError(f"there is no {kind} '{name}': choose one of {', '.join(known)}")
    settings = {**profiles[profile], **variants[variant], **values}
    return config_class(profile=profile, variant=variant, **settings)


def config_to_dict(config) -> dict[str, Any]:
    """The dataclass as JSON types: paths become strings, tuples become lists."""
    as_dict = dataclasses.asdict(config)
    return json.loads(json.dumps(as_dict, default=str))


def config_from_dict(config_class: type, values: dict[str, Any]):
    """Inverse of `config_to_dict`.

    Raises:
        InputError: the values belong to another version of the code (settings are unknown or missing), or one
            has another type than its field, or is out of range.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown, missing = sorted(map(str, set(values) - fields)), sorted(fields - set(values))
    if unknown:
        raise InputError(f"the stored configuration has settings that this version does not know: {unknown}")
    if missing:
        raise InputError(f"the stored configuration lacks settings that this version has: {missing}")
    kinds = typing.get_type_hints(config_class)
    config = config_class(**{name: _restored(kinds[name], value, name) for name, value in values.items()})
    check_settings(config)
    return config


def _restored(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the type that an annotation asks for: a list as a tuple, a string as a path.

    Raises:
        InputError: it has another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _restored(kind, value, name)
    if origin is Literal and any(value == known and type(value) is type(known) for known in arguments):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        parts = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(parts) == len(value):
            return tuple(_restored(part, item, name) for part, item in zip(parts, value))
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and type(value) in (int, float):
        return value
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = kind.__name__ if isinstance(kind, type) and origin is None else str(kind).replace("typing.", "")
    raise InputError(f"the setting '{name}' is {value!r}, expected {expected}")


def check_settings(config) -> None:
    """What holds for every paper's settings: numbers are finite, and none is negative whose default isn't, ...

    Raises:
        InputError: a setting is out of range.
    """
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number) and number != default:
                raise InputError(f"{_flag(field.name)} {number} is not finite")
        if type(value) is int and value < 0 and not (type(default) is int and default < 0):
            raise InputError(f"{_flag(field.name)} {value} is negative")
    for name in ("batch_size", "accumulate"):
        if getattr(config, name) < 1:
            raise InputError(f"{_flag(name)} must be at least 1, found {getattr(config, name)}")
    if config.checkpoint_every < 0:
        raise InputError(f"{_flag('checkpoint_every')} {config.checkpoint_every} is negative")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def run_main(function: Callable[[], None]) -> None:
    """Call `function`; turn a user's mistake into one sentence on stderr and exit code 2.

    So is what the system refuses: a full disk, a folder that can't be written, a file where a folder should be.
    A run that stopped itself (`shared.gpu.TrainingStopped`, a loss that is not finite) exits with code 1,
    Ctrl-C and SIGTERM with 130. Anything else is a defect of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 shows ? instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        function()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{': ' + str(interrupt) if str(interrupt) else ''}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` has read enough
        sys.stdout = None
        sys.exit(1)
    except ConnectionError:
        raise
    except OSError as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "TrainingStopped":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


REASONS = {
    errno.ENOSPC: "there is no space left on the disk; free some, or choose a place on another disk",
    errno.EDQUOT: "your share of the disk is used up; free some, or choose a place on another disk",
    errno.EFBIG: "the system allows no larger file; raise its limit, or choose another place",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EACCES: "you have no permission for this; choose another place, or change its rights",
    errno.EPERM: "you have no permission for this; choose another place, or change its rights",
    errno.EEXIST: "there is something of this name already; choose another name",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.EISDIR: "this is a folder, expected a file; choose the name of a file",
    errno.ENOTEMPTY: "this folder is not empty; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOENT: "there is no such file or folder",
    errno.EIO: "could not be read or written",
}


def sentence_of(error: OSError) -> str:
    """What the system refused, as a sentence with the path, the reason and what to do."""
    path = None if error.filename is None else os.fsdecode(error.filename)
    if path is not None and error.errno in (errno.ENOTDIR, errno.EEXIST):
        blocking = next((p for p in (Path(path), *Path(path).parents) if os.path.isfile(p)), None)
        if blocking is not None:
            return f"{blocking}: this is a file, expected a folder; choose another path"
    reason = REASONS.get(error.errno, error.strerror or str(error) or type(error).__name__)
    if error.errno == errno.EIO and error.strerror and error.strerror != os.strerror(errno.EIO):
        reason = f"{reason} ({error.strerror})"
    reason = " ".join(reason.split())
    return reason if path is None else f"{shortened(path)}: {reason}"


def shortened(path: str, most: int = 300) -> str:
    """A path that fits a sentence."""
    return path if len(path) <= most else f"{path[: most // 2]}...{path[-most // 2 :]}"


def train_command(
    config_class: type,
    profiles: dict[str, dict],
    variants: dict[str, dict],
    train: Callable[[Any], None],
    argv: list[str] | None = None,
) -> None:
    """The command line of a `train.py`: every field of the configuration is a flag.

    `--profile` and `--variant` are read first, because they set the defaults of all other flags.
    """
    import tyro

    def main() -> None:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--profile", default="cpu")
        first.add_argument("--variant", default="full")
        chosen, _ = first.parse_known_args(argv)
        required = {"data": tyro.MISSING, "out": tyro.MISSING}
        defaults = configure(config_class, profiles, variants, chosen.profile, chosen.variant, **required)
        description = (
            f"{config_class.__doc__}\n\nProfiles: {', '.join(profiles)}. Variants: {', '.join(variants)}. "
            f"Defaults below are those of profile '{chosen.profile}', variant '{chosen.variant}'."
        )
        config = tyro.cli(config_class, default=defaults, args=argv, description=description)
        check_settings(config)
        try:
            train(config)
        except KeyboardInterrupt as interrupt:
            if not str(interrupt):  # before there was anything to go on from
                raise
            raise KeyboardInterrupt(f"{interrupt}; go on with: {resuming_command(config_class, argv)}") from None

    run_main(main)


def resuming_command(config_class: type, argv: list[str] | None = None) -> str:
    """The command that was given, with --resume, so that it can be typed as it stands."""
    module = config_class.__module__
    if module == "__main__":
        spec = sys.modules["__main__"].__spec__
        module = spec.name if spec is not None else sys.argv[0]
    given = sys.argv[1:] if argv is None else list(argv)
    dropped = ("--resume", "--no-resume", "--overwrite", "--no-overwrite")
    python = [sys.orig_argv[0] if sys.orig_argv else "python"]
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        python = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", processes)]
    command = [*python, "-m", module, *(part for part in given if part not in dropped), "--resume"]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def commands(functions: dict[str, Callable], argv: list[str] | None = None) -> None:
    """The command line of an `eval.py`: one subcommand per function, its arguments as flags.

    Arguments named `out` (a folder or a file), `output`, `..._output` and `figure` (files) are written, all other
    paths are read. Before a function is called, what it will write is looked at: a place that can't be written,
    or that is one of the inputs, is said at once and not after an hour's work.
    """
    import tyro

    checked = {name: _looks_before_it_writes(name, function) for name, function in functions.items()}
    run_main(lambda: tyro.extras.subcommand_cli_from_dict(checked, args=argv))


def _looks_before_it_writes(name: str, function: Callable) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        reads, writes = [], []
        for key, value in signature.bind(*args, **kwargs).arguments.items():
            is_output = key in ("out", "output", "figure") or key.endswith("_output")
            for path in value if isinstance(value, list | tuple) else [value]:
                if isinstance(path, Path):
                    (writes if is_output else reads).append((key, path))
        for key, path in writes:
            if name == "evaluate" and path.is_file():
                raise InputError(f"{path}: this is a file, expected the folder for metrics.csv")
            if key != "out" and path.is_dir():
                raise InputError(f"{path}: this is a folder, expected the name of a file to write")
            refuse_overwriting_inputs(path, *(given for _, given in reads))
            refuse_unwritable(path)
        return function(*args, **kwargs)

    return call
