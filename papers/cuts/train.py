"""Train CUTS, an ablation of it, DFC or the supervised U-Net: one network per data set that lies in the folder.

python -m papers.cuts.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """CUTS: unsupervised, multigranular segmentation of medical images."""

    method: Literal["cuts", "dfc", "unet", "otsu", "felzenszwalb", "slic", "raw_kmeans", "random"] = "cuts"
    """the paper's method, or a baseline; of these only dfc and unet are trained"""
    readout: Literal["persistent", "best", "kmeans"] = "persistent"
    """how CUTS becomes one label map: persistent structures, the best level (an oracle), spectral k-means"""
    reuse: bool = False
    """take the networks of the checkpoint `init` as they are and train nothing: another readout of the same"""
    datasets: tuple[str, ...] = ("retina", "ventricles", "tumour")
    """data sets to use, of those that lie in the folder"""
    max_cases: int = 0
    """images per data set to evaluate; 0 is all (paper: all)"""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """filters of the encoder's layers (paper: 16 32 64 128)"""
    patch: int = 5
    """side of the patch that is compared and reconstructed, in pixels (released code: 5)"""
    anchors: int = 16
    """anchors S per image and step (released code: 16)"""
    candidates: int = 10
    """pixels around an anchor that are tried as its positive (released code: 10)"""
    radius: int = 5
    """farthest row or column of a positive from its anchor, in pixels (released code: 5)"""
    ssim_threshold: float = 0.5
    """least SSIM of a positive's patch (released code: 0.5)"""
    temperature: float = 0.5
    """tau of the contrastive loss (paper: 0.5)"""
    contrastive_weight: float = 0.01
    """lambda of section 3.1.3 (paper: 0.01)"""
    crop: int = 0
    """side of the random part of the image that is trained on, in pixels; 0 is the whole image (paper: 0)"""
    epochs: int = 200
    """most passes over the training images (released code: 200)"""
    steps_per_epoch: int = 5
    """least updates per epoch; small sets are repeated (released code: 5)"""
    patience: int = 10
    """epochs without a better validation loss before training stops (released code: 10)"""
    lr: float = 1e-3
    """learning rate of AdamW (released code: 1e-3)"""
    weight_decay: float = 1e-4
    """weight decay of AdamW (released code: 1e-4)"""
    clusters: int = 10
    """k of spectral k-means, and of k-means on raw pixels (paper: 10)"""
    landmarks: int = 500
    """landmarks of the diffusion map before spectral k-means (released code: 500)"""
    diffusion_steps: int = 2
    """diffusion time t of the coordinates for k-means and condensation (released code: 2)"""
    space: Literal["diffusion", "embedding"] = "diffusion"
    """what is condensed: diffusion coordinates of the embedding, as in the authors' library, or itself (text)"""
    coordinates: int = 30
    """number of diffusion coordinates that are condensed"""
    micro_clusters: int = 2000
    """points that condensation starts from"""
    neighbours: int = 10
    """the first bandwidth is the median squared distance to this neighbour"""
    growth: float = 1.025
    """factor on the bandwidth after each iteration of condensation (released library: 1.025)"""
    merge: float = 0.1
    """points have met when closer than this, in square roots of the first bandwidth"""
    iterations: int = 600
    """most iterations of condensation"""
    max_segments: int = 100
    """levels with more segments are not looked at"""
    intact: float = 0.01
    """share of its area by which a segment may grow per iteration and still be intact"""
    smallest_segment: float = 0.005
    """smallest share of the image of a persistent segment"""
    felzenszwalb_scale: float = 1500.0
    """scale of Felzenszwalb's method (released code: 1500)"""
    slic_segments: int = 10
    """segments of SLIC (released code: 10)"""
    dfc_clusters: int = 10
    """channels and clusters of DFC"""
    dfc_lr: float = 0.1
    """learning rate of DFC's SGD (its authors: 0.1)"""
    dfc_least_labels: int = 3
    """DFC stops when it uses no more labels than this (its authors: 3)"""
    dfc_continuity: float = 1.0
    """weight of DFC's spatial continuity (its authors: 1)"""
    unet_width: int = 32
    """channels of the U-Net at full resolution"""


PROFILES = {
    "smoke": {
        "widths": (4, 8), "crop": 24, "anchors": 4, "epochs": 1, "steps_per_epoch": 2, "batch_size": 2,
        "max_cases": 2, "micro_clusters": 150, "landmarks": 60, "growth": 1.2, "unet_width": 4,
    },
    "cpu": {
        "widths": (8, 16, 24, 32), "crop": 64, "batch_size": 4, "epochs": 15, "steps_per_epoch": 10,
        "max_cases": 6, "micro_clusters": 1500, "unet_width": 8,
    },
    "paper": {"batch_size": 16},
}  # fmt: skip

VARIANTS = {
    "random": {"method": "random"},
    "otsu": {"method": "otsu"},
    "felzenszwalb": {"method": "felzenszwalb"},
    "felzenszwalb_fine": {"method": "felzenszwalb", "felzenszwalb_scale": 200.0},
    "slic": {"method": "slic"},
    "raw_kmeans": {"method": "raw_kmeans"},
    "dfc": {"method": "dfc"},
    "lambda0": {"contrastive_weight": 0.0, "readout": "kmeans", "datasets": ("retina",)},
    "lambda1": {"contrastive_weight": 1.0, "readout": "kmeans", "datasets": ("retina",)},
    "full": {},
    "kmeans": {"readout": "kmeans", "reuse": True},
    "best": {"readout": "best", "reuse": True},
    "unet": {"method": "unet"},
}


def trains(config: Config) -> bool:
    """Whether a configuration has anything to train."""
    return config.method in ("cuts", "dfc", "unet") and not config.reuse


def build_model(config: Config, channels: int):
    """The network of a configuration for images of so many channels, on the CPU; None if it has none."""
    from papers.cuts.baselines import DFC, UNet
    from papers.cuts.model import CUTS

    if config.method == "cuts":
        return CUTS(channels, config.widths, config.patch)
    if config.method == "dfc":
        return DFC(channels, config.dfc_clusters)
    return UNet(channels, config.unet_width) if config.method == "unet" else None


class EarlyStopping:
    """The best weights by validation loss, and when to stop. Part of the checkpoint."""

    def __init__(self, epochs: int, patience: int):
        self.epochs, self.patience = epochs, patience
        self.state = {"first_step": -1, "epoch": 0, "best_epoch": 0, "best_loss": float("inf"), "weights": {}}

    @property
    def finished(self) -> bool:
        state = self.state
        return state["epoch"] >= self.epochs or state["epoch"] - state["best_epoch"] >= self.patience

    def update(self, loss: float, model) -> None:
        """After each epoch."""
        self.state["epoch"] += 1
        if loss < self.state["best_loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            self.state.update(best_loss=loss, best_epoch=self.state["epoch"], weights=weights)

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)


def loss_parts(config: Config, model, batch: dict) -> dict:
    """Losses of one batch: "loss" is what is minimised, the others are its parts."""
    import torch

    from papers.cuts.baselines import dfc_loss, unet_loss
    from papers.cuts.model import contrastive_loss, cuts_loss, reconstruction_loss

    if config.method == "unet":
        return {"loss": unet_loss(model(batch["image"]), batch["mask"])}
    if config.method == "dfc":
        return {"loss": dfc_loss(model(batch["image"]), config.dfc_continuity)}
    pixels = torch.cat([batch["anchors"], batch["positives"]], dim=1)
    embeddings, patches = model(batch["image"], pixels)
    anchors, positives = embeddings.split(batch["anchors"].shape[1], dim=1)
    contrastive = contrastive_loss(anchors, positives, config.temperature)
    reconstruction = reconstruction_loss(patches[:, : anchors.shape[1]], batch["patches"])
    total = cuts_loss(contrastive, reconstruction, config.contrastive_weight)
    return {"loss": total, "contrastive": contrastive, "reconstruction": reconstruction}


def validation_loss(config: Config, model, dataset, device) -> float:
    """Mean loss over a data set, in evaluation mode and with the same random draws every time."""
    import torch
    from torch.utils.data import default_collate

    from shared.gpu import to_device

    model.eval()
    total = 0.0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for first in range(0, len(dataset), config.batch_size):
            items = [dataset[k] for k in range(first, min(first + config.batch_size, len(dataset)))]
            loss = loss_parts(config, model, to_device(default_collate(items), device))["loss"]
            total += loss.item() * len(items)
    model.train()
    return total / len(dataset)


def labels_in_use(model, dataset, device) -> float:
    """Mean number of labels that DFC gives to an image."""
    import torch

    model.eval()
    with torch.no_grad():
        images = (dataset[k]["image"].to(device)[None] for k in range(len(dataset)))
        counts = [len(model(image).argmax(1).unique()) for image in images]
    model.train()
    return sum(counts) / len(counts)


def training_data(config: Config, cases: list):
    """Training and validation data: 70 % and 30 % of all images; with labels (U-Net) 70 % and 10 %."""
    from papers.cuts.data import LabelledImages, PatchPairs, split

    sizes = {case.image.shape for case in cases}
    if len(sizes) > 1 and not (config.crop and config.method == "cuts"):
        raise InputError(f"{config.data}: the images of a data set must have one size to train on, found {sizes}")
    if config.method == "unet":
        _, valid, train = split(cases, (0.2, 0.1))
        return LabelledImages(train), LabelledImages(valid, augment=False)
    valid, train = split(cases, (0.3,))
    if config.method == "dfc":
        return LabelledImages(train, augment=False), LabelledImages(valid, augment=False)
    settings = (config.anchors, config.candidates, config.radius, config.patch, config.ssim_threshold)
    return tuple(PatchPairs(part, config.crop, *settings) for part in (train, valid))


def train(config: Config) -> None:
    """Train on the images of `data`; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.cuts.data import read_datasets
    from shared import gpu

    datasets = read_datasets(config.data, config.datasets)
    run = gpu.Run(config, paper="cuts")
    models, optimizers, stoppings, plain = {}, {}, {}, {}
    for name, cases in datasets.items():
        model = build_model(config, len(cases[0].image))
        if model is None:
            continue
        models[name], plain[name] = run.prepare(model), model
        if config.method == "dfc":
            optimizers[name] = torch.optim.SGD(models[name].parameters(), lr=config.dfc_lr, momentum=0.9)
        else:
            optimizers[name] = torch.optim.AdamW(
                models[name].parameters(), lr=config.lr, weight_decay=config.weight_decay
            )
        stoppings[name] = EarlyStopping(config.epochs, config.patience)
    objects = {f"optimizer_{name}": item for name, item in optimizers.items()}
    run.restore(**objects, **{f"stopping_{name}": item for name, item in stoppings.items()})
    if config.reuse:
        load_networks(config, run, stoppings)
    if not trains(config):
        run.save()
        return

    for name, cases in datasets.items():
        model, optimizer, stopping = models[name], optimizers[name], stoppings[name]
        training, validation = training_data(config, cases)
        steps_per_epoch = max(config.steps_per_epoch, -(-len(training) // config.batch_size))
        if stopping.state["first_step"] < 0:
            stopping.state["first_step"] = run.step
        while not stopping.finished:
            end = stopping.state["first_step"] + (stopping.state["epoch"] + 1) * steps_per_epoch
            for _, batch in run.batches(training, end):
                with run.autocast():
                    parts = loss_parts(config, model, batch)
                run.update(parts.pop("loss"), optimizer, **parts)
            finish_epoch(config, model, plain[name], validation, stopping, run.device)
    run.save()


def finish_epoch(config: Config, model, plain_model, validation, stopping: EarlyStopping, device) -> None:
    """Validate and note the weights. DFC's loss falls most when clusters vanish, so it has a rule of its own:
    the last weights count, and it stops when `dfc_least_labels` are left (as its authors' code does)."""
    if config.method != "dfc":
        stopping.update(validation_loss(config, model, validation, device), plain_model)
        return
    if labels_in_use(plain_model, validation, device) <= config.dfc_least_labels and stopping.state["weights"]:
        stopping.state["epoch"] = stopping.epochs
    else:
        stopping.update(-stopping.state["epoch"], plain_model)


def load_networks(config: Config, run, stoppings: dict) -> None:
    """Networks and best weights of the checkpoint `config.init`, for another readout of the same training.

    Raises:
        InputError: no checkpoint given, or one of other networks.
    """
    from shared.checkpoints import load_checkpoint

    if config.init is None:
        raise InputError("this variant trains nothing: give the checkpoint of variant 'full' as --init")
    content = load_checkpoint(config.init, "cuts")
    try:
        for model, state in zip(run.models, content["models"], strict=True):
            model.load_state_dict(state)
        for name, stopping in stoppings.items():
            stopping.load_state_dict(content["objects"][f"stopping_{name}"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{config.init}: its networks are not those of this configuration and data set") from error


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
