"""Train mDDPM, one of its variants, or a baseline (section 3.1).

python -m papers.mddpm.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """mDDPM: unsupervised anomaly detection with a masked diffusion model."""

    method: Literal["diffusion", "vae", "intensity"] = "diffusion"
    """diffusion model; variational autoencoder; or the intensity itself as anomaly score, which trains nothing"""
    masking: Literal["none", "ipm", "fpm", "fpm_cm", "released"] = "fpm_cm"
    """masking block in training; released is the variant of FPM-CM in the released code"""
    ratio: tuple[float, float] = (0.1, 0.9)
    """least and largest share that is masked (paper: 0.1 0.9)"""
    sides: tuple[int, int] = (8, 32)
    """least and largest side of a masked rectangle, in pixels"""
    frequency_sides: tuple[int, int] = (4, 24)
    """least and largest side of a masked rectangle in the spectrum, in bins"""
    grid: int = 1
    """1: the whole slice is noised (paper); 2: one of 2 x 2 boxes at a time, as pDDPM does"""
    noise: Literal["simplex", "gaussian"] = "simplex"
    """noise of the forward process (paper: simplex)"""
    wavelength: float = 64.0
    """wavelength of the first of six octaves of simplex noise, in pixels (released code: 64)"""
    timesteps: int = 1000
    """T of the forward process (released code: 1000)"""
    t_test: int = 500
    """time step of the single pass at test (released code: 500)"""
    noise_draws: int = 1
    """reconstructions per slice that are averaged at test (paper: 1)"""
    width: int = 128
    """channels of the U-Net at full resolution (released code: 128)"""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """channels of each level, in widths (released code: 1 2 2)"""
    blocks: int = 3
    """residual blocks per level (released code: 3)"""
    vae_widths: tuple[int, ...] = (32, 64, 128, 128)
    """channels of the autoencoder's strided convolutions"""
    latent: int = 128
    """length of the autoencoder's code"""
    kl_weight: float = 1e-3
    """weight of the autoencoder's Kullback-Leibler term"""
    epochs: int = 1600
    """passes over the training volumes (paper: 1600)"""
    vae_epochs: int = 1600
    """the same for the autoencoder"""
    slices_per_volume: int = 6
    """random slices of each volume per epoch (released code: 6)"""
    lr: float = 1e-4
    """learning rate of Adam (released code: 1e-4)"""
    vae_lr: float = 1e-4
    """the same for the autoencoder"""
    schedule: Literal["constant", "onecycle"] = "constant"
    """learning rate over time (released code: constant); onecycle rises to lr and falls to 0"""
    validations: int = 100
    """evaluations on healthy validation slices; the best weights are kept"""
    validation_slices: int = 256
    """healthy slices for each of them"""
    train_set: str = "IXI"
    """name of the tables <name>_train_fold<fold>.csv and <name>_val_fold<fold>.csv (paper: IXI)"""
    fold: int = 0
    """which fold to train on (released code: 0 only)"""
    test_sets: tuple[str, ...] = ("Brats21", "MSLUB")
    """names of the tables <name>_val.csv and <name>_test.csv (paper: Brats21 MSLUB)"""
    curvature_flow: int = 3
    """iterations of curvature-flow smoothing on loading (released code: 3)"""
    crop: tuple[int, int, int] = (192, 192, 100)
    """voxels to crop or pad to on loading; 0 leaves an axis as it is (released code: 192 192 100)"""
    downsample: tuple[int, int, int] = (2, 2, 2)
    """factors of downsampling on loading (released code: 2 2 2)"""
    erosions: int = 3
    """iterations of brain-mask erosion at test (paper: 3)"""
    median: int = 5
    """side of the median filter at test, in voxels (paper: 5)"""
    smallest: int = 7
    """detections of this many voxels or fewer are dropped (released code: 7)"""


PROFILES = {
    "smoke": {
        "width": 8, "multipliers": (1, 1, 1), "blocks": 1, "vae_widths": (4, 8), "latent": 4, "batch_size": 2,
        "slices_per_volume": 2, "epochs": 1, "vae_epochs": 1, "validations": 1, "validation_slices": 2,
        "sides": (3, 8), "frequency_sides": (2, 8), "wavelength": 16.0, "timesteps": 100, "t_test": 50,
        "curvature_flow": 0, "crop": (0, 0, 0), "downsample": (1, 1, 1), "erosions": 1, "median": 1, "smallest": 0,
    },
    "cpu": {
        "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "vae_widths": (16, 32, 64), "batch_size": 4,
        "slices_per_volume": 6, "epochs": 8, "vae_epochs": 16, "lr": 5e-3, "vae_lr": 3e-3, "schedule": "onecycle",
        "validations": 3, "validation_slices": 48, "sides": (3, 13), "frequency_sides": (2, 10), "wavelength": 32.0,
        "curvature_flow": 0, "crop": (0, 0, 0), "downsample": (1, 1, 1), "erosions": 1, "median": 3, "smallest": 0,
    },
    "paper": {"batch_size": 32},
}  # fmt: skip

VARIANTS = {
    "intensity": {"method": "intensity"},
    "vae": {"method": "vae", "masking": "none"},
    "ddpm": {"masking": "none"},
    "gaussian": {"masking": "none", "noise": "gaussian"},
    "pddpm": {"masking": "none", "grid": 2},
    "fpm": {"masking": "fpm"},
    "ipm": {"masking": "ipm"},
    "full": {},
    "released": {"masking": "released", "grid": 2},
}


def preparation(config: Config):
    """How volumes are prepared on loading."""
    from papers.mddpm.data import Preparation

    return Preparation(config.curvature_flow, tuple(config.crop), tuple(config.downsample))


def build_model(config: Config, height: int, width: int):
    """The model of a configuration for slices of that size, on the CPU; None for the intensity baseline.

    Raises:
        InputError: the network can't take slices of that size.
    """
    from papers.mddpm.model import DirectDiffusion
    from papers.mddpm.unet import UNet
    from papers.mddpm.vae import VAE

    if config.method == "intensity":
        return None
    levels = len(config.vae_widths) if config.method == "vae" else len(config.multipliers) - 1
    if height % 2**levels or width % 2**levels:
        raise InputError(
            f"the slices are {height} x {width} pixels, expected multiples of {2**levels}; set --crop to crop or pad"
        )
    if config.method == "vae":
        return VAE(height, width, config.vae_widths, config.latent)
    return DirectDiffusion(UNet(config.width, config.multipliers, config.blocks), config.timesteps, config.grid)


def slices_of(config: Config, volumes: list, masking: str):
    """The data set of random healthy slices."""
    from papers.mddpm.data import HealthySlices
    from papers.mddpm.masking import MaskingBlock

    block = MaskingBlock(masking, config.ratio, config.sides, config.frequency_sides)
    return HealthySlices(
        volumes, config.slices_per_volume, block, config.noise, config.wavelength, config.timesteps, config.grid,
        config.latent if config.method == "vae" else 0,
    )  # fmt: skip


def loss_parts(config: Config, model, batch: dict) -> dict:
    """Losses of one batch; "loss" is what is minimised."""
    from papers.mddpm.model import reconstruction_loss
    from papers.mddpm.vae import kl_divergence

    if config.method == "vae":
        prediction, mean, spread = model(batch["clean"], batch["code"])
        error, divergence = reconstruction_loss(prediction, batch["clean"]), kl_divergence(mean, spread)
        return {"loss": error + config.kl_weight * divergence, "error": error, "divergence": divergence}
    box = batch["box"] if config.grid > 1 else None
    prediction = model(batch["masked"], batch["noise"], batch["t"], box)
    return {"loss": reconstruction_loss(prediction, batch["clean"], box)}


class BestWeights:
    """The weights with the lowest healthy validation loss. Part of the checkpoint."""

    def __init__(self):
        self.state = {"validations": 0, "loss": float("inf"), "weights": {}}

    def update(self, loss: float, model) -> None:
        """After each validation: keep the model's weights if they are the best so far."""
        self.state["validations"] += 1
        if loss < self.state["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            self.state.update(loss=loss, weights=weights)

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)


def validation_batches(config: Config, volumes: list) -> list[dict]:
    """Healthy slices, unmasked, noised to the test's time step, the same for every call."""
    import torch
    from torch.utils.data import default_collate

    dataset = slices_of(config, volumes, "none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        items = [dataset[number % len(dataset)] for number in range(config.validation_slices)]
    for item in items:
        item |= {"t": torch.tensor(config.t_test)}
    return [default_collate(items[k : k + config.batch_size]) for k in range(0, len(items), config.batch_size)]


def validation_loss(config: Config, model, batches: list[dict], device) -> float:
    """Mean loss over the validation slices."""
    import torch

    from shared.gpu import to_device

    model.eval()
    total = count = 0
    with torch.no_grad():
        for batch in batches:
            loss = loss_parts(config, model, to_device(batch, device))["loss"]
            total, count = total + loss.item() * len(batch["clean"]), count + len(batch["clean"])
    model.train()
    return total / count


def train(config: Config) -> None:
    """Train on the healthy volumes of `train_set`; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.mddpm.data import read_volumes
    from shared import gpu

    table = f"{config.train_set}_{{}}_fold{config.fold}"
    volumes = read_volumes(config.data, table.format("train"), preparation(config))
    validation = read_volumes(config.data, table.format("val"), preparation(config))
    run = gpu.Run(config, paper="mddpm")
    plain = build_model(config, *volumes[0].image.shape[:2])
    if plain is None:
        run.restore()
        run.save()
        return
    model, dataset = run.prepare(plain), slices_of(config, volumes, config.masking)
    batches = validation_batches(config, validation)

    epochs = config.vae_epochs if config.method == "vae" else config.epochs
    steps = max(2, epochs * len(dataset) // config.batch_size)
    lr = config.vae_lr if config.method == "vae" else config.lr
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    if config.schedule == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    best = BestWeights()
    run.restore(optimizer=optimizer, scheduler=scheduler, best=best)

    while best.state["validations"] < config.validations:
        end = steps * (best.state["validations"] + 1) // config.validations
        for _, batch in run.batches(dataset, end):
            with run.autocast():
                parts = loss_parts(config, model, batch)
            run.update(parts.pop("loss"), optimizer, scheduler, **parts)
        best.update(validation_loss(config, plain, batches, run.device), plain)
    run.save()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
