"""Reads the results of a fit again, and makes sure that they are those of the data at hand."""

from pathlib import Path

from torch import Tensor

from papers.dmdip.data import Pair, low_resolution
from papers.dmdip.train import Config, build_networks, fits
from papers.dmdip.trajectory import Trajectory
from shared.checkpoints import fitting, load_checkpoint, load_config, load_weights
from shared.errors import InputError


def load_trajectory(checkpoint: Path, pairs_of) -> tuple[Trajectory, Config, list[Pair]]:
    """The results in a checkpoint, its settings, and the pairs they belong to.

    Args:
        checkpoint: of any variant.
        pairs_of: gives the pairs of the data set for the settings.

    Raises:
        InputError: no checkpoint of this paper, or it was fitted to other images than these.
    """
    content = load_checkpoint(checkpoint, "dmdip")
    config = load_config(content, Config, checkpoint)
    pairs = pairs_of(config)
    low = low_resolution(pairs, config.factor)
    with fitting(checkpoint):
        trajectory = Trajectory(config.snapshots if fits(config) else 1, low, config.factor)
        expected, found = 2 if fits(config) else 1, len(content["models"])
        if found != expected:
            raise InputError(f"{checkpoint}: holds {found} models, expected {expected}")
        of = content["models"][-1]["low"].shape
        if of[:1] != low.shape[:1]:
            where = pairs[0].paths[0].parents[2]
            raise InputError(f"{checkpoint}: was fitted to {of[0]} pairs, and the data ({where} ...) have {len(low)}")
        if fits(config):
            load_weights(build_networks(config, min(config.together, len(low))), content["models"][0], checkpoint)
    load_weights(trajectory, content["models"][-1], checkpoint)
    check_same_images(trajectory.low, low, pairs, checkpoint)
    return trajectory, config, pairs


def check_same_images(fitted: Tensor, low: Tensor, pairs: list[Pair], checkpoint: Path) -> None:
    """A fit says something about the images that it was made for only.

    Raises:
        InputError: one is another image now.
    """
    apart = (fitted - low).abs().amax((2, 3)) > 1e-3 * low.abs().amax((2, 3))
    for number, contrast in apart.nonzero().tolist():
        path = pairs[number].paths[contrast]
        raise InputError(f"{path}: {checkpoint} was fitted to another image of {pairs[number].name}; fit it anew")
