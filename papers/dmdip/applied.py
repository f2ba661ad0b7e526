"""The method on a user's own sections: settings, weights to start from, and the fit."""

import dataclasses
from pathlib import Path

from torch import Tensor

from papers.dmdip.kspace import sinc
from papers.dmdip.train import PROFILES, VARIANTS, Config, build_networks, fit, fits
from papers.dmdip.trajectory import Trajectory
from shared import gpu
from shared.checkpoints import fitting, load_checkpoint, load_config, load_weights
from shared.cli import configure
from shared.errors import InputError


def settings_for(
    checkpoint: Path | None, profile: str, contrasts: int, factor: int | None, steps: int | None, out: Path, device: str
) -> Config:
    """The checkpoint's settings, or the profile's: dmDIP for two contrasts and the vanilla DIP for one.

    Raises:
        InputError: the checkpoint has no networks, or is of a method for another number of contrasts.
    """
    changed = {"data": Path("."), "out": out, "device": device, "snapshots": 1, "init": checkpoint, "reuse": False}
    changed |= {"resume": False, "overwrite": False}
    if checkpoint is None:
        variant = "full" if contrasts == 2 else "dip"
        config = configure(Config, PROFILES, VARIANTS, profile, variant, **changed, factor=factor or 2)
    else:
        found = load_config(load_checkpoint(checkpoint, "dmdip"), Config, checkpoint)
        if not fits(found):
            raise InputError(f"{checkpoint}: variant {found.variant} has no networks; leave out --checkpoint")
        if contrasts != 2:
            raise InputError(f"{checkpoint}: is of a pair of contrasts; give --second, or leave out --checkpoint")
        config = dataclasses.replace(found, **changed, factor=factor or found.factor)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if config.factor < 2 or config.steps < 1:
        raise InputError(f"--factor {config.factor} must be 2 or more, and --steps {config.steps} 1 or more")
    return config


def weights_of_last(checkpoint: Path, config: Config, pairs: int) -> dict[str, Tensor]:
    """Weights of the last pair in a checkpoint, repeated for so many pairs."""
    content = load_checkpoint(checkpoint, "dmdip")
    found = load_config(content, Config, checkpoint)
    with fitting(checkpoint):
        state = content["models"][0]
        one = build_networks(found, 1).state_dict()
        together, left = divmod(len(next(iter(state.values()))), len(next(iter(one.values()))))
        if left or not 1 <= together <= found.together:
            raise InputError(f"{checkpoint}: its networks are not those of its settings; fit anew")
    load_weights(build_networks(found, together), state, checkpoint)
    repeated = {}
    for name, value in state.items():
        last = value.chunk(together)[-1]
        repeated[name] = last.repeat(pairs, *[1] * (last.dim() - 1))
    return repeated


def fit_sections(config: Config, low: Tensor, replacement: bool) -> Tensor:
    """(n, contrasts, h, w) -> (n, contrasts, r h, r w), in the units of the input.

    Sections that hold nothing above zero in one of their contrasts are interpolated (sinc).
    """
    shown = (low.amax((2, 3)) > 0).all(1).nonzero()[:, 0]
    fine = sinc(low, config.factor)
    if not len(shown):
        return fine
    trajectory = Trajectory(1, low[shown], config.factor)
    run = gpu.Run(config, paper="dmdip")
    together = min(config.together, len(shown))
    start = weights_of_last(config.init, config, together) if config.init is not None else None
    fit(config, run, trajectory, low[shown], start)
    for place, number in enumerate(shown.tolist()):
        fine[number] = trajectory.results(place, replacement, f"section {number}")[-1].cpu()
    return fine
