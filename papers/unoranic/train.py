"""Train unORANIC, an ablation of it or a baseline: one network per data set that lies in the folder.

python -m papers.unoranic.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """unORANIC: anatomy and image characteristics in embeddings of their own, without labels."""

    batch_size: int = 64
    """images per update, each with its corrupted variants (paper: 64)"""
    method: Literal["unoranic", "ae", "resnet", "pca", "mean", "none"] = "unoranic"
    """the paper's method, autoencoder, supervised ResNet-18; without network: pca, mean (training image) and none (the
    image itself)"""
    datasets: tuple[str, ...] = ()
    """data sets to use, as blood for bloodmnist.npz; empty is all that lie in the folder"""
    side: int = 28
    """pixels of an image's side: 28, 56, 112 or 224; larger images are averaged down (paper: 28)"""
    width: int = 32
    """channels of the first stage of encoders and decoders (released code: 32)"""
    latent: int = 256
    """length of an embedding (paper: 256)"""
    code_factor: int = 1
    """length of the autoencoder's code in units of `latent`; 2 is as much as unORANIC's decoder sees"""
    linear_updown: bool = True
    """no LeakyReLU after the strided convolutions, which is what the released code computes (text: with it)"""
    grey_start: bool = False
    """untrained decoders give images around mid-grey, which shortens the training (paper: no)"""
    n_variants: int = 3
    """corrupted variants v beside S for the consistency loss (text and released code: 3)"""
    corruption_probability: float = 0.25
    """of each of the twelve corruptions, for each image and variant (released code: 0.25)"""
    reconstruction_weight: float = 1.0
    """lambda_reconstruction (released code: 1)"""
    consistency_weight: float = 1.0
    """lambda_consistency (released code: 1)"""
    epochs: int = 1000
    """passes over the training images (released code: 1000)"""
    steps: int = 0
    """updates per data set instead of `epochs`; 0 is epochs"""
    lr_min: float = 1e-4
    """lowest learning rate of the cycle (released code: 1e-4)"""
    lr_max: float = 1e-2
    """highest learning rate of the first cycle, halved in each further one (released code: 1e-2)"""
    lr_rise: int = 0
    """length of the cycle's rising half; 0 is 5 times the batches per epoch (released code: 5 times)"""
    lr_per: Literal["epoch", "batch"] = "epoch"
    """what `lr_rise` counts: the released code moves on after each epoch"""
    betas: tuple[float, float] = (0.95, 0.999)
    """of Adam (released code: 0.95 and 0.999)"""
    resnet_width: int = 64
    """channels of the first stage of ResNet-18 (MedMNIST: 64)"""
    resnet_epochs: int = 100
    """epochs of the ResNets (MedMNIST: 100)"""
    resnet_steps: int = 0
    """updates of the ResNets per data set instead of `resnet_epochs`; 0 is epochs"""
    resnet_lr: float = 1e-3
    """learning rate of the ResNets, a tenth after half and after three quarters of the updates (MedMNIST: 1e-3)"""
    resnet_corrupted_lr: float | None = None
    """learning rate of the ResNet on corrupted images; None is `resnet_lr`"""
    resnet_corrupted: bool = False
    """train the disease ResNet on corrupted images, as the other methods are"""
    robustness: tuple[str, ...] = ("pneumonia*",)
    """names of data sets, as patterns, for which robustness is evaluated (paper: pneumonia)"""
    blocks: int = 10
    """equal random parts of the test set that metrics.csv has a row each for"""


SMALL = {
    "width": 8, "latent": 64, "n_variants": 2, "batch_size": 16, "steps": 2000, "lr_rise": 500, "lr_per": "batch",
    "betas": (0.8, 0.99), "grey_start": True, "channels_last": True, "resnet_width": 8, "resnet_steps": 2000,
    "resnet_lr": 1e-2, "resnet_corrupted_lr": 1e-3,
}  # fmt: skip

PROFILES = {
    "smoke": {
        "width": 2, "latent": 8, "n_variants": 2, "batch_size": 4, "steps": 4, "lr_rise": 2, "lr_max": 3e-4,
        "lr_per": "batch", "resnet_width": 2, "resnet_steps": 2, "blocks": 2, "robustness": ("blood",),
    },
    "cpu": SMALL,
    "study": SMALL,
    "paper": {"workers": 8},
}  # fmt: skip

VARIANTS = {
    "corrupted": {"method": "none"},
    "mean": {"method": "mean"},
    "pca": {"method": "pca"},
    "ae": {"method": "ae"},
    "ae_wide": {"method": "ae", "code_factor": 2},
    "resnet": {"method": "resnet"},
    "resnet_corrupted": {"method": "resnet", "resnet_corrupted": True},
    "no_consistency": {"consistency_weight": 0.0, "n_variants": 0},
    "full": {},
}


class KnownTables:
    """Name, channels and number of classes of each network's data set. Part of the checkpoint."""

    def __init__(self, tables: dict):
        self.tables = {name: [table.channels, table.classes] for name, table in tables.items()}

    def state_dict(self) -> dict:
        return dict(self.tables)

    def load_state_dict(self, state: dict) -> None:
        if state != self.tables:
            raise ValueError(f"it was trained on {state}, and the data are {self.tables}")


def build_model(config: Config, channels: int, classes: int):
    """The network of a configuration, on the CPU; None if it has none."""
    from papers.unoranic.baselines import Classifiers
    from papers.unoranic.model import AutoEncoder, UnOranic

    sizes = (config.side, config.linear_updown, config.grey_start)
    if config.method == "unoranic":
        return UnOranic(channels, config.width, config.latent, *sizes)
    if config.method == "ae":
        return AutoEncoder(channels, config.width, config.latent * config.code_factor, *sizes)
    return Classifiers(channels, classes, config.resnet_width) if config.method == "resnet" else None


def steps_of(config: Config, images: int) -> int:
    """Updates for a data set of so many training images."""
    steps, epochs = config.steps, config.epochs
    if config.method == "resnet":
        steps, epochs = config.resnet_steps, config.resnet_epochs
    return steps or epochs * batches_per_epoch(config, images)


def batches_per_epoch(config: Config, images: int) -> int:
    return max(1, images // config.batch_size)


def learning_rate(config: Config, step: int, images: int) -> float:
    """At an update of a data set: triangles whose height halves (torch's CyclicLR, "triangular2"); steps for ResNet."""
    if config.method == "resnet":
        progress = step / steps_of(config, images)
        own = config.resnet_corrupted_lr if config.resnet_corrupted else None
        highest = config.resnet_lr if own is None else own
        return highest * (1 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    per_epoch = batches_per_epoch(config, images)
    position = step // per_epoch if config.lr_per == "epoch" else step
    rise = config.lr_rise or 5 * per_epoch
    cycle, place = divmod(position, 2 * rise)
    height = 1 - abs(place / rise - 1)
    return config.lr_min + (config.lr_max - config.lr_min) * height / 2**cycle


def corrupted_copies(batch: dict) -> tuple:
    """(copies, B, C, H, W) corrupted images of a batch, and (copies, B) whether each has any corruption."""
    from papers.unoranic.corruptions import corrupt
    from papers.unoranic.data import draws_of

    clean, draws = batch["image"], draws_of(batch)
    shape = (len(draws.applied) // len(clean), len(clean))
    corrupted = corrupt(clean.repeat(shape[0], 1, 1, 1), draws)
    return corrupted.unflatten(0, shape), draws.applied.any(1).unflatten(0, shape)


def loss_parts(config: Config, model, batch: dict, corrupted, is_corrupted) -> dict:
    """Losses of one batch: "loss" is what is minimised, the others are its parts."""
    import torch.nn.functional as F

    from papers.unoranic.model import unoranic_loss

    clean = batch["image"]
    if config.method == "unoranic":
        found = model(corrupted[0], corrupted[1:])
        return unoranic_loss(clean, corrupted[0], found, config.reconstruction_weight, config.consistency_weight)
    if config.method == "ae":
        return {"loss": F.mse_loss(model(corrupted[0])[1], corrupted[0])}
    disease, corruption = model(corrupted[1] if config.resnet_corrupted else clean, corrupted[0])
    parts = {
        "disease": F.cross_entropy(disease, batch["label"]),
        "corruption": F.cross_entropy(corruption, is_corrupted[0].long()),
    }
    return {"loss": sum(parts.values()), **parts}


def training_data(config: Config, table):
    """The training split with the corruptions that the method sees."""
    from papers.unoranic.data import CorruptedImages

    if config.method == "resnet":
        return CorruptedImages(table.train, 2, config.corruption_probability, detection=True)
    copies = 1 + config.n_variants if config.method == "unoranic" else 1
    return CorruptedImages(table.train, copies, config.corruption_probability)


def train(config: Config) -> None:
    """Train on the training split of every data set, one after the other; writes config.json, checkpoint.pt and
    log.csv to `config.out`."""
    import torch

    from papers.unoranic.data import read_tables
    from papers.unoranic.model import SIDES
    from shared import gpu
    from shared.errors import InputError

    if config.side not in SIDES:
        raise InputError(f"--side {config.side}: expected one of {', '.join(map(str, SIDES))}")
    if config.method == "unoranic" and config.consistency_weight and config.n_variants < 1:
        raise InputError(f"--n-variants {config.n_variants}: the consistency loss needs at least 1")
    tables = read_tables(config.data, config.datasets, config.side)
    run = gpu.Run(config, paper="unoranic")
    models, optimizers = {}, {}
    for name, table in tables.items():
        model = build_model(config, table.channels, table.classes)
        if model is not None:
            models[name] = run.prepare(gpu.initialise_by_name(model, config.seed))
            betas = (0.9, 0.999) if config.method == "resnet" else config.betas
            optimizers[name] = torch.optim.Adam(models[name].parameters(), betas=betas, fused=True)
    objects = {f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()}
    run.restore(tables=KnownTables(tables), **objects)

    end = 0
    for name, model in models.items():
        training, optimizer = training_data(config, tables[name]), optimizers[name]
        start, end = end, end + steps_of(config, len(training))
        for step, batch in run.batches(training, end):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step - start, len(training))
            corrupted = corrupted_copies(batch)  # in float32
            with run.autocast():
                parts = loss_parts(config, model, batch, *corrupted)
            run.update(parts.pop("loss"), optimizer, **parts)
    if not models:
        run.save()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
