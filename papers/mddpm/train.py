"""Train mDDPM, one of its variants, or a baseline (section 3.1).

python -m papers.mddpm.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """mDDPM: unsupervised anomaly detection with a masked diffusion model."""

    method: Literal["diffusion", "vae", "pca", "mean", "intensity"] = "diffusion"
    """diffusion model; variational autoencoder; principal components; mean healthy scan; or intensity as score"""
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
    t_test: int = 499
    """time step of the single pass at test, counted from 0 (released code: 499)"""
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
    components: int = 8
    """principal components (of 8, 16, 32, 64, 128 the best AUPRC on the stand-in's patients for validation)"""
    kl_weight: float = 1e-3
    """weight of the autoencoder's Kullback-Leibler term"""
    epochs: int = 1600
    """passes over the training volumes (paper: 1600)"""
    slices_per_volume: int = 6
    """random slices of each volume per epoch (released code: 6)"""
    lr: float = 1e-4
    """learning rate of Adam (released code: 1e-4)"""
    masked_lr: float = 1e-4
    """the same where slices are masked"""
    boxed_lr: float = 1e-4
    """the same where one box at a time is noised"""
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


SMALL = {
    "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "vae_widths": (16, 32, 64), "batch_size": 4,
    "slices_per_volume": 6, "epochs": 14, "schedule": "onecycle", "validations": 4, "validation_slices": 48,
    "lr": 6e-3, "masked_lr": 3e-3, "boxed_lr": 3e-3, "vae_lr": 4e-3, "channels_last": True,
    "sides": (3, 13), "frequency_sides": (2, 10), "wavelength": 32.0,
    "curvature_flow": 0, "crop": (0, 0, 0), "downsample": (1, 1, 1), "erosions": 1, "median": 3, "smallest": 0,
}  # fmt: skip
PROFILES = {
    "smoke": {
        "width": 8, "multipliers": (1, 1, 1), "blocks": 1, "vae_widths": (4, 8), "latent": 4, "batch_size": 2,
        "slices_per_volume": 2, "epochs": 1, "validations": 1, "validation_slices": 2,
        "sides": (3, 8), "frequency_sides": (2, 8), "wavelength": 16.0, "timesteps": 100, "t_test": 49,
        "curvature_flow": 0, "crop": (0, 0, 0), "downsample": (1, 1, 1), "erosions": 1, "median": 1, "smallest": 0,
    },
    "cpu": {**SMALL, "epochs": 8},
    "study": SMALL,
    "paper": {"batch_size": 32},
}  # fmt: skip

VARIANTS = {
    "intensity": {"method": "intensity", "masking": "none"},
    "pca": {"method": "pca", "masking": "none"},
    "mean": {"method": "mean", "masking": "none"},
    "vae": {"method": "vae", "masking": "none"},
    "ddpm": {"masking": "none"},
    "gaussian": {"masking": "none", "noise": "gaussian"},
    "pddpm": {"masking": "none", "grid": 2},
    "fpm": {"masking": "fpm"},
    "ipm": {"masking": "ipm"},
    "full": {},
    "released": {"masking": "released", "grid": 2},
}


def split_tables(config: Config) -> tuple[str, list[str], list[str]]:
    """Names of the table for training, of those for tests, and of those for validation."""
    tests, validations = ([f"{name}_{part}" for name in config.test_sets] for part in ("test", "val"))
    fold = f"{config.train_set}_{{}}_fold{config.fold}"
    return fold.format("train"), tests, [fold.format("val"), *validations]


def preparation(config: Config):
    """How volumes are prepared on loading."""
    from papers.mddpm.data import Preparation

    return Preparation(config.curvature_flow, tuple(config.crop), tuple(config.downsample))


def build_model(config: Config, height: int, width: int, depth: int = 1):
    """The model for slices of that size (the mean scan: volumes), on the CPU; None for the intensity baseline.

    Raises:
        InputError: the network can't take slices of that size.
    """
    from papers.mddpm.components import MeanVolume, PrincipalComponents
    from papers.mddpm.model import DirectDiffusion
    from papers.mddpm.unet import UNet
    from papers.mddpm.vae import VAE

    if config.method == "intensity":
        return None
    if config.method == "pca":
        return PrincipalComponents(height, width, config.components)
    if config.method == "mean":
        return MeanVolume(height, width, depth)
    levels = len(config.vae_widths) if config.method == "vae" else len(config.multipliers) - 1
    if height % 2**levels or width % 2**levels:
        raise InputError(
            f"the slices are {height} x {width} pixels, expected multiples of {2**levels}; set --crop to crop or pad"
        )
    if config.method == "vae":
        return VAE(height, width, config.vae_widths, config.latent)
    return DirectDiffusion(UNet(config.width, config.multipliers, config.blocks), config.timesteps, config.grid)


def learning_rate(config: Config) -> float:
    """That of Adam for the kind of network; in the small profiles each kind has its own."""
    if config.method == "vae":
        return config.vae_lr
    if config.grid > 1:
        return config.boxed_lr
    return config.lr if config.masking == "none" else config.masked_lr


def slices_of(config: Config, volumes: list, masking: str):
    """The data set of random healthy slices."""
    from papers.mddpm.data import HealthySlices
    from papers.mddpm.masking import MaskingBlock

    block = MaskingBlock(masking, config.ratio, config.sides, config.frequency_sides)
    return HealthySlices(volumes, config.slices_per_volume, block, config.timesteps, config.grid)


def validation_batches(config: Config, volumes: list) -> list[dict]:
    """Healthy slices, unmasked, noised to the test's time step, the same for every call."""
    import torch
    from torch.utils.data import default_collate

    from papers.mddpm.objective import with_noise

    dataset = slices_of(config, volumes, "none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        items = [dataset[number % len(dataset)] for number in range(config.validation_slices)]
        items = [{**item, "t": torch.tensor(config.t_test)} for item in items]
        batches = [items[k : k + config.batch_size] for k in range(0, len(items), config.batch_size)]
        return [with_noise(config, default_collate(batch)) for batch in batches]


def train(config: Config) -> None:
    """Train on the healthy volumes of `train_set`; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.mddpm.data import every_healthy_slice, read_volumes, refuse_shared_cases, whole_scans
    from papers.mddpm.objective import loss_parts, with_noise
    from papers.mddpm.validation import BestWeights, mean_loss
    from shared import gpu

    tables = split_tables(config)
    refuse_shared_cases(config.data, *tables)
    volumes, validation = (read_volumes(config.data, name, preparation(config)) for name in (tables[0], tables[2][0]))
    run = gpu.Run(config, paper="mddpm")
    size = volumes[0].image.shape[:2]
    plain, best = build_model(config, *size, max(volume.image.shape[2] for volume in volumes)), BestWeights(*size)
    if config.method in ("intensity", "pca", "mean"):
        if config.method == "pca":
            plain.fit(every_healthy_slice(volumes))
        elif config.method == "mean":
            plain.fit(*whole_scans(volumes))
        if plain is not None:
            run.prepare(plain)
        run.restore(best=best)
        run.save()
        return
    model, dataset = run.prepare(gpu.initialise_by_name(plain, config.seed)), slices_of(config, volumes, config.masking)
    batches = validation_batches(config, validation)

    steps = max(2, config.epochs * len(dataset) // config.batch_size)
    lr = learning_rate(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    if config.schedule == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    run.restore(optimizer=optimizer, scheduler=scheduler, best=best)

    while best.state["validations"] < config.validations:
        end = steps * (best.state["validations"] + 1) // config.validations
        for _, batch in run.batches(dataset, end):
            with run.autocast():
                parts = loss_parts(config, model, with_noise(config, batch))
            run.update(parts.pop("loss"), optimizer, scheduler, **parts)
        best.update(mean_loss(partial(loss_parts, config), plain, batches, run.device), plain)
    run.save()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
