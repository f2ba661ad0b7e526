"""From a checkpoint and an image to label maps: what each method of table 1 makes of it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from papers.cuts import baselines
from papers.cuts.condensation import Hierarchy, condense_pixels, persistent_structures
from papers.cuts.data import Case
from papers.cuts.model import embed
from papers.cuts.spectral import spectral_kmeans
from papers.cuts.train import Config, build_model
from shared.checkpoints import load_checkpoint, load_config, load_weights
from shared.errors import InputError
from shared.finite import finite


@dataclass
class Segmentation:
    """What a method makes of one image."""

    labels: np.ndarray
    """(H, W) label map; of condensation the persistent structures. A bool mask where it needs no hint (U-Net)"""
    levels: list[np.ndarray] = field(default_factory=list)
    """(H, W) each, fine to coarse; of condensation alone"""


def load_networks(checkpoint: Path, device) -> tuple[dict, Config]:
    """The networks of a checkpoint by data set, in evaluation mode with their best weights, and the configuration.
    No networks where a method has none.

    Raises:
        InputError: no checkpoint of this paper, or weights that don't fit.
    """
    content = load_checkpoint(checkpoint, "cuts")
    config = load_config(content, Config, checkpoint)
    networks = {}
    for key, state in content["objects"].items():
        if key.startswith("stopping_"):
            weights = state.get("weights") if isinstance(state, dict) else None
            first = next(iter(weights.values()), None) if isinstance(weights, dict) else None
            if not isinstance(first, torch.Tensor) or first.ndim < 2:
                raise InputError(f"{checkpoint}: holds no trained weights for {key.removeprefix('stopping_')}")
            network = load_weights(build_model(config, first.shape[1]), weights, checkpoint)
            networks[key.removeprefix("stopping_")] = network.to(device).eval()
    return networks, config


def embedding_of(network, image: torch.Tensor, name: str) -> torch.Tensor:
    """Embedding (H * W, d) of an image (C, H, W); a sentence where it is not finite."""
    return finite(embed(network, image), f"the embedding of {name}")


def condense_image(config: Config, embedding: torch.Tensor) -> Hierarchy:
    """M8 with the settings of a run: the hierarchy of an embedding (H * W, d)."""
    return condense_pixels(
        embedding.cpu().numpy(),
        neighbours=config.neighbours,
        walk=config.walk,
        components=config.components,
        met=config.merge,
        steps=config.powers,
        growth=config.growth,
        iterations=config.iterations,
    )


def levels_of(config: Config, hierarchy: Hierarchy, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Label maps (H, W) of all distinct levels, fine to coarse."""
    levels = [labels.reshape(shape) for labels in hierarchy.levels(config.max_segments)]
    return levels or [hierarchy.labels(-1).reshape(shape)]


def persistent_map(config: Config, hierarchy: Hierarchy, shape: tuple[int, ...]) -> np.ndarray:
    """M9 with the settings of a run: label map (H, W)."""
    return persistent_structures(hierarchy, config.intact, config.smallest_segment).reshape(shape)


def kmeans_map(config: Config, embedding: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """M10 with the settings of a run: label map (H, W)."""
    labels = spectral_kmeans(embedding, config.clusters, config.landmarks, config.diffusion_steps, config.seed)
    return labels.reshape(shape)


def segment(config: Config, network, case: Case, device) -> Segmentation:
    """What the method of a configuration makes of one image."""
    if config.method == "random":
        return Segmentation(baselines.random_labels(case.image, [config.seed, *case.name.encode()]))
    if config.method == "otsu":
        return Segmentation(baselines.otsu_watershed(case.image))
    if config.method == "felzenszwalb":
        return Segmentation(baselines.felzenszwalb_labels(case.image, config.felzenszwalb_scale))
    if config.method == "slic":
        return Segmentation(baselines.slic_labels(case.image, config.slic_segments))
    if config.method == "raw_kmeans":
        return Segmentation(baselines.raw_kmeans(case.image, config.clusters, config.seed))
    image, shape = torch.from_numpy(case.image).to(device), case.image.shape[1:]
    if config.method in ("dfc", "unet"):
        with torch.no_grad():
            response = finite(network(image[None])[0].float().cpu(), f"the segmentation of {case.name}")
        return Segmentation((response[0] > 0).numpy() if config.method == "unet" else response.argmax(0).int().numpy())
    embedding = embedding_of(network, image, case.name)
    if config.readout == "kmeans":
        return Segmentation(kmeans_map(config, embedding, shape))
    hierarchy = condense_image(config, embedding)
    return Segmentation(persistent_map(config, hierarchy, shape), levels_of(config, hierarchy, shape))
