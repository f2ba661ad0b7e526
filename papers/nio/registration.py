"""Registers a pair with the method of a configuration, and reads the networks for it from a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from papers.nio.adaptation import Objective, optimise_field, optimise_weights, predict
from papers.nio.bspline import register_bspline
from papers.nio.data import Pair
from papers.nio.experiments import Domains
from papers.nio.model import LEVELS, voxel_to_unit
from papers.nio.train import Config, build_model, uses_network
from shared.checkpoints import load_checkpoint, load_config, load_weights
from shared.errors import InputError
from shared.finite import finite


def load_networks(checkpoint: Path, device) -> tuple[dict[str, nn.Module], Config]:
    """The networks of a checkpoint by source, in evaluation mode with their best weights, and the configuration.

    A variant without networks has none.

    Raises:
        InputError: no checkpoint of this paper, or one that its configuration doesn't fit.
    """
    content = load_checkpoint(checkpoint, "nio")
    config = load_config(content, Config, checkpoint)
    sources = [name.removeprefix("optimizer_") for name in content["objects"] if name.startswith("optimizer_")]
    networks = {}
    for number, source in enumerate(sources):
        network = build_model(config)
        weights = content["objects"].get(f"best_{source}", {}).get("weights")
        if weights:
            load_weights(network, weights, checkpoint)
        else:
            states = content["models"][LEVELS * number : LEVELS * (number + 1)]
            if len(states) != LEVELS:
                raise InputError(f"{checkpoint}: expected {LEVELS} levels for each of {', '.join(sources)}")
            for level, state in zip(network.levels, states):
                load_weights(level, state, checkpoint)
        networks[source] = network.to(device).eval()
    if uses_network(config) and not networks:
        raise InputError(f"{checkpoint}: holds no networks, which method '{config.method}' needs; train anew")
    return networks, config


def network_for(config: Config, networks: dict[str, nn.Module], source: str) -> nn.Module | None:
    """The network of a source, or None for methods without one.

    Raises:
        InputError: the checkpoint has none of this source.
    """
    if not uses_network(config):
        return None
    if source not in networks:
        raise InputError(
            f"the checkpoint has no network '{source}', it has {', '.join(networks)}; train on this data set"
        )
    return networks[source]


def register(
    config: Config,
    network: nn.Module | None,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    lung: bool = False,
    patience: int = 0,
) -> tuple[Tensor, list[float]]:
    """Register one pair with the method of a configuration.

    Args:
        config: of the run.
        network: f_θ0, or None for methods without one.
        moving, fixed: float32 (1, 1, X, Y, Z) in [0, 1] on the network's device.
        mask: (1, 1, X, Y, Z), lungs of the fixed image, or None.
        spacing_mm: voxel size.
        lung: with B-spline smoothing and random affine matrices at test time (M9).
        patience: see `adaptation.Objective`.

    Returns:
        unit field (1, 3, X, Y, Z) on the CPU, and the loss at each iteration (empty without optimisation).

    Raises:
        InputError: the field is not finite.
    """
    if config.method == "initial":
        return torch.zeros(1, 3, *fixed.shape[2:]), []
    if config.method == "bspline":
        # Without the mask: what is outside of the lungs is 0 already, and their outline guides a method this coarse.
        arrays = [image[0, 0].cpu().numpy() for image in (moving, fixed)]
        options = {"knots": config.bspline_knots, "iterations": config.bspline_iterations}
        voxels = register_bspline(*arrays, spacing_mm, **options, sampled=config.bspline_sampled)
        return finite(voxel_to_unit(torch.from_numpy(voxels)[None]), "the displacement field"), []
    extras = {"spline": True, "affine_sd": config.affine_sd} if lung else {}
    objective = Objective(config.lam, config.window, config.voxel_units, seed=config.seed, patience=patience, **extras)
    if config.method == "lapirn":
        return finite(predict(network, moving, fixed, objective).cpu(), "the displacement field"), []
    if config.method == "io":
        start = predict(network, moving, fixed, objective)
        found = optimise_field(start, moving, fixed, config.io_iterations, config.io_lr, objective, mask)
    else:
        iterations, lr = (0, 0, config.nio_iterations), config.nio_lr
        if config.method == "nio_m":
            iterations = config.nio_m_iterations_lung if lung else config.nio_m_iterations
            lr = config.nio_m_lr
        found = optimise_weights(network, moving, fixed, iterations, lr, objective, mask)
    return finite(found.field.cpu(), "the displacement field"), found.losses


def register_pair(
    config: Config, networks: dict[str, nn.Module], domains: Domains, setting: str, pair: Pair, device
) -> tuple[Tensor, list[float]]:
    """Unit field (1, 3, X, Y, Z) and losses of a test pair, with the network of its setting."""
    lung = setting == "lung"
    images = [torch.from_numpy(scan.image)[None, None].to(device) for scan in (pair.moving, pair.fixed)]
    mask = torch.from_numpy(pair.mask.astype("float32"))[None, None].to(device) if lung else None
    network = network_for(config, networks, domains.source_of(setting, pair))
    return register(config, network, *images, mask, pair.fixed.spacing_mm, lung)
