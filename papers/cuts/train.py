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
    readout: Literal["kmeans", "diffusion"] = "kmeans"
    """how the embedding becomes label maps: spectral k-means, or diffusion condensation"""
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
    """most passes over the training images (released code: 200); 0 keeps the initial weights"""
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
    """diffusion time t of the coordinates for k-means (released code: 2)"""
    components: int = 50
    """principal components of the embedding that are condensed (CATCH: 50)"""
    neighbours: int = 100
    """the distance to this neighbour is the bandwidth of the graph before condensation (released code: 100)"""
    walk: int = 13
    """steps of the walk on that graph, which smooths the embedding (CATCH: chosen by an entropy)"""
    powers: int = 13
    """steps of the walk per iteration of condensation (CATCH: chosen by an entropy, at most as many as before)"""
    growth: float = 1.025
    """factor on the bandwidth per iteration of condensation (CATCH: 1.025)"""
    merge: float = 0.01
    """points have met when closer than this share of the first bandwidth (CATCH: a quantile of the distances)"""
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
    unet_epochs: int = 200
    """most passes of the U-Net over its training images"""
    unet_patience: int = 50
    """epochs of the U-Net without a better validation loss before its training stops"""


PROFILES = {
    "smoke": {
        "widths": (4, 8), "crop": 24, "anchors": 4, "epochs": 1, "steps_per_epoch": 2, "batch_size": 2,
        "max_cases": 2, "landmarks": 60, "growth": 1.2, "neighbours": 20, "unet_width": 4, "unet_epochs": 1,
    },
    "cpu": {
        "widths": (8, 16, 24, 32), "crop": 64, "batch_size": 4, "epochs": 10, "steps_per_epoch": 10, "patience": 100,
        "max_cases": 6, "precision": "bf16", "channels_last": True, "unet_width": 8, "unet_epochs": 20,
    },
    "study": {
        "crop": 64, "batch_size": 8, "epochs": 40, "steps_per_epoch": 5, "patience": 100, "precision": "bf16",
        "channels_last": True, "unet_width": 16, "unet_epochs": 60, "unet_patience": 20,
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
    "lambda0": {"contrastive_weight": 0.0, "datasets": ("retina",)},
    "lambda1": {"contrastive_weight": 1.0, "datasets": ("retina",)},
    "untrained": {"epochs": 0},
    "full": {},
    "diffusion": {"readout": "diffusion", "reuse": True},
    "unet": {"method": "unet"},
}


def trains(config: Config) -> bool:
    """Whether a configuration has anything to train."""
    return config.method in ("cuts", "dfc", "unet") and not config.reuse


def build_model(config: Config, channels: int):
    """The network of a configuration for images of so many channels, on the CPU; None if it has none."""
    from papers.cuts.baselines import DFC, unet
    from papers.cuts.model import CUTS

    if config.method == "cuts":
        return CUTS(channels, config.widths, config.patch)
    if config.method == "dfc":
        return DFC(channels, config.dfc_clusters)
    return unet(channels, config.unet_width) if config.method == "unet" else None


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
    from papers.cuts.stopping import EarlyStopping
    from shared import gpu
    from shared.gpu import initialise_by_name

    datasets = read_datasets(config.data, config.datasets)
    run = gpu.Run(config, paper="cuts")
    models, optimizers, stoppings, plain = {}, {}, {}, {}
    for name, cases in datasets.items():
        model = build_model(config, len(cases[0].image))
        if model is None:
            continue
        initialise_by_name(model, config.seed)
        models[name], plain[name] = run.prepare(model), model
        if config.method == "dfc":
            optimizers[name] = torch.optim.SGD(models[name].parameters(), lr=config.dfc_lr, momentum=0.9)
        else:
            optimizers[name] = torch.optim.AdamW(
                models[name].parameters(), lr=config.lr, weight_decay=config.weight_decay
            )
        length = (config.unet_epochs, config.unet_patience) if config.method == "unet" else ()
        stoppings[name] = EarlyStopping(*(length or (config.epochs, config.patience)))
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
        if stopping.epochs == 0:
            stopping.keep(plain[name])
        while not stopping.finished:
            end = stopping.state["first_step"] + (stopping.state["epoch"] + 1) * steps_per_epoch
            for _, batch in run.batches(training, end):
                with run.autocast():
                    parts = loss_parts(config, model, batch)
                run.update(parts.pop("loss"), optimizer, **parts)
            finish_epoch(config, model, plain[name], validation, stopping, run)
    run.save()


def finish_epoch(config: Config, model, plain_model, validation, stopping, run) -> None:
    """Validate and note the weights. DFC's loss falls most when clusters vanish, so it has a rule of its own:
    the last weights count, and it stops when `dfc_least_labels` are left (as its authors' code does)."""
    from papers.cuts.stopping import labels_in_use, validation_loss

    if config.method != "dfc":
        value = validation_loss(
            lambda batch: loss_parts(config, model, batch), model, validation, config.batch_size, run
        )
        stopping.update(value, plain_model)
        return
    if labels_in_use(plain_model, validation, run.device) <= config.dfc_least_labels and stopping.state["weights"]:
        stopping.state["epoch"] = stopping.epochs
    else:
        stopping.update(-stopping.state["epoch"], plain_model)


def load_networks(config: Config, run, stoppings: dict) -> None:
    """Networks and best weights of the checkpoint `config.init`, for another readout of the same training.

    Raises:
        InputError: no checkpoint given, or one of other networks.
    """
    from shared.checkpoints import load_checkpoint, load_weights

    if config.init is None:
        raise InputError("this variant trains nothing: give the checkpoint of variant 'full' as --init")
    content = load_checkpoint(config.init, "cuts")
    expected = [f"stopping_{name}" for name in stoppings]
    if len(content["models"]) != len(expected) or not set(expected) <= set(content["objects"]):
        raise InputError(f"{config.init}: its networks are not those of this configuration and data set")
    for model, state in zip(run.models, content["models"], strict=True):
        load_weights(model, state, config.init)
    for name, stopping in stoppings.items():
        stopping.load_state_dict(content["objects"][f"stopping_{name}"])


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
