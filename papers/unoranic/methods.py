"""Every method seen through the same two questions, whatever it is: what are its embeddings, and its images?"""

from pathlib import Path

import torch
from torch import Tensor, nn

from papers.unoranic.baselines import MeanImage, PrincipalComponents
from papers.unoranic.data import ImageTable, read_tables
from papers.unoranic.train import Config, build_model
from shared.checkpoints import fitting, load_all_weights, load_checkpoint, load_config
from shared.errors import InputError
from shared.finite import finite

TITLES = {
    "corrupted": "corrupted image itself",
    "mean": "mean training image",
    "pca": "PCA",
    "ae": "autoencoder",
    "ae_wide": "autoencoder, wide",
    "resnet": "ResNet-18",
    "resnet_corrupted": "ResNet-18, corrupted images",
    "no_consistency": "unORANIC, λc = 0",
    "full": "unORANIC",
}


def load_networks(checkpoint: Path, device) -> tuple[dict, Config, dict]:
    """The networks of a checkpoint by data set, in evaluation mode (None where a method has none), the configuration,
    and [channels, classes] by data set.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version of its code.
    """
    content = load_checkpoint(checkpoint, "unoranic")
    config = load_config(content, Config, checkpoint)
    with fitting(checkpoint):
        known = {str(name): [int(number) for number in pair] for name, pair in content["objects"]["tables"].items()}
        networks = {name: build_model(config, channels, classes) for name, (channels, classes) in known.items()}
    trained = [network for network in networks.values() if network is not None]
    load_all_weights(trained, content["models"], checkpoint)
    for network in trained:
        network.to(device).eval()
    return networks, config, known


def in_batches(function, images: Tensor, size: int = 256):
    """`function` of images (N, C, H, W) in parts of `size`, without gradients; a tuple of outputs stays one."""
    with torch.no_grad():
        parts = [function(part) for part in images.split(size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(part) for part in zip(*parts))
    return torch.cat(parts)


class Method:
    """A method on one data set. Methods without training are computed here from the training images."""

    def __init__(self, network: nn.Module | None, config: Config, table: ImageTable, device):
        self.network, self.config, self.table, self.device = network, config, table, device
        if config.method == "mean":
            self.network = MeanImage(table.train.images).to(device)
        elif config.method == "pca":
            self.network = PrincipalComponents(table.train.images, config.latent).to(device)

    def run(self, function, images: Tensor):
        """`function` of images, in batches on the device; a sentence where it is not finite."""
        found = in_batches(function, images.to(self.device))
        for part in found if isinstance(found, tuple) else (found,):
            finite(part, f"what {self.config.variant} makes of the images of {self.table.name}")
        return found

    def outputs(self, images: Tensor) -> tuple:
        """(embedding of the anatomy, of the characteristics, restored image, reconstruction) of images.

        All but unORANIC have one embedding and one reconstruction for both purposes.
        """
        if self.config.method == "unoranic":
            return self.run(lambda part: tuple(self.network(part)), images)
        if self.config.method == "none":
            nothing = images.new_zeros(len(images), 1)
            return nothing, nothing, images, images
        embedding, reconstruction = self.run(self.network, images)
        return embedding, embedding, reconstruction, reconstruction

    def embedding(self, images: Tensor, of: str) -> Tensor:
        """(N, latent) of the "anatomy" or the "characteristics", without decoding."""
        if self.config.method == "pca":
            return self.run(self.network.embed, images)
        if self.config.method == "unoranic" and of == "characteristics":
            return self.run(self.network.characteristic_encoder, images)
        return self.run(self.network.anatomy_encoder, images)


def methods_of(data: Path, checkpoint: Path, device) -> dict[str, Method]:
    """A `Method` per data set.

    Raises:
        InputError: the checkpoint is of other data sets or of other images than those in the folder.
    """
    networks, config, known = load_networks(checkpoint, device)
    tables = read_tables(data, config.datasets, config.side)
    found = {name: [table.channels, table.classes] for name, table in tables.items()}
    if found != known:
        raise InputError(
            f"{checkpoint}: was trained on {known} and {data} holds {found} (name: channels, classes); these must agree"
        )
    return {name: Method(networks[name], config, table, device) for name, table in tables.items()}
