"""From a dataclass to a command line, and from a user's mistake to one sentence and exit code 2.

`train.py` of every paper holds a dataclass `Config(RunConfig)`, its `PROFILES` and `VARIANTS` (plain
dictionaries of values that differ from the defaults) and a function `train(config)`. Nothing here imports
torch, so that `--help` answers at once.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import InputError


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
    init: Path | None = None
    """checkpoint of another run to start from, for variants that need one"""


# A resumed run may differ in these; every other setting must be what the checkpoint was trained with.
MAY_CHANGE_ON_RESUME = {"data", "out", "device", "workers", "compile", "checkpoint_every", "resume", "init"}


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
    """Inverse of `config_to_dict`; keys that the class no longer has are an error.

    Raises:
        InputError: the values belong to another version of the code.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"the stored configuration has settings that this version does not know: {unknown}")
    restored = {}
    for name, value in values.items():
        if "Path" in str(fields[name].type) and value is not None:
            value = Path(value)
        if isinstance(value, list):
            value = tuple(value)
        restored[name] = value
    return config_class(**restored)


def run_main(function: Callable[[], None]) -> None:
    """Call `function`; turn a user's mistake into one sentence on stderr and exit code 2.

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
    except RuntimeError as error:
        if type(error).__name__ != "TrainingStopped":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


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
        train(tyro.cli(config_class, default=defaults, args=argv, description=description))

    run_main(main)


def commands(functions: dict[str, Callable], argv: list[str] | None = None) -> None:
    """The command line of an `eval.py`: one subcommand per function, its arguments as flags."""
    import tyro

    run_main(lambda: tyro.extras.subcommand_cli_from_dict(functions, args=argv))
