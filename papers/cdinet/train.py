"""Train CDI-Net, an ablation of it or a baseline (sections 2.3 and 2.5).

python -m papers.cdinet.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """CDI-Net: denoising, limited-angle reconstruction and attenuation correction of cardiac SPECT."""

    network: Literal["cdinet", "separate", "dudoss", "reprojection", "passthrough"] = "cdinet"
    """the proposed method; separate networks for projections and attenuation map; DuDoSS; the smoothed ML-EM image
    projected again with the mean attenuation map; the input as it is"""
    backbone: Literal["serdunet", "unet", "attention"] = "serdunet"
    """network of each domain: dense squeeze-and-excitation U-Net (released code), U-Net (text), Attention U-Net"""
    iterations: int = 5
    """unrolled iterations N, each with its own weights (paper: 5)"""
    width: int = 32
    """channels of CDI-Net's networks at full resolution (released code: 32)"""
    separate_width: int = 64
    """the same for the baselines' U-Nets (released code: 64); in cpu and study so that they have as many parameters
    as CDI-Net in all"""
    separate_as_wide: bool = False
    """give the baselines' networks CDI-Net's `width` instead"""
    projection_depth: int = 3
    """resolution levels of the projection networks (released code: 3)"""
    image_depth: int = 4
    """resolution levels of the image networks (released code: 4)"""
    gaussian_std: float | None = 0.02
    """standard deviation of the initial weights (released code: 0.02); None is PyTorch's initialisation"""
    use_cidc: bool = True
    """cross-iteration dense connections"""
    use_cdrc: bool = True
    """cross-domain residual connections"""
    use_awr: bool = True
    """adaptive weight recalibrators"""
    awr_residual: bool = True
    """global residual connection of the recalibrators (text: yes; released code: no)"""
    epochs: int = 50
    """passes over the training studies for CDI-Net (paper: 50)"""
    separate_epochs: int = 200
    """the same for networks that are trained separately (paper: 200)"""
    separate_as_long: bool = False
    """train separate networks for `epochs` instead: as many updates as CDI-Net"""
    lr_projection: float = 1e-4
    """learning rate of the projection networks (text: 1e-4; released code: 1e-3)"""
    lr_image: float = 1e-3
    """learning rate of the image networks (text: 1e-3; released code: 1e-4)"""
    schedule: Literal["decay", "onecycle"] = "decay"
    """of both learning rates: `lr_decay` after each epoch (paper), or one cycle up to them and down to 0"""
    lr_decay: float = 0.99
    """factor on both learning rates after each epoch (paper: 0.99)"""
    beta1: float = 0.5
    """Adam's first momentum (released code: 0.5)"""
    weight_projection: float = 1.0
    """w_P of eq. 8 (paper: 1)"""
    weight_mu: float = 1.0
    """w_mu of eq. 8 (paper: 1)"""
    low_dose_scale: float = 1.0
    """factor that makes low-dose counts match the full dose; 10 for files with unscaled 10 % counts"""
    mlem_iterations: int = 30
    """iterations of the attenuation-corrected ML-EM at evaluation (paper: 30)"""


SMALL = {
    "backbone": "unet", "projection_depth": 3, "image_depth": 3, "width": 8, "separate_width": 12, "iterations": 2,
    "gaussian_std": None, "schedule": "onecycle", "lr_projection": 5e-3, "lr_image": 5e-3,
}  # fmt: skip
PROFILES = {
    "smoke": {
        **SMALL, "projection_depth": 2, "image_depth": 2, "width": 2, "separate_width": 3,
        "epochs": 1, "separate_epochs": 1,
    },
    "cpu": {**SMALL, "epochs": 9, "separate_epochs": 13},
    "study": {**SMALL, "epochs": 18, "separate_epochs": 26},
    "paper": {},
}  # fmt: skip

VARIANTS = {
    "full": {},
    "wo_cidc": {"use_cidc": False},
    "wo_cdrc": {"use_cdrc": False},
    "wo_awr": {"use_awr": False},
    "n1": {"iterations": 1},
    "separate_unet": {"network": "separate", "backbone": "unet"},
    "separate_narrow": {"network": "separate", "backbone": "unet", "separate_as_wide": True},
    "separate_short": {"network": "separate", "backbone": "unet", "separate_as_long": True},
    "separate_attention": {"network": "separate", "backbone": "attention"},
    "dudoss": {"network": "dudoss", "backbone": "unet"},
    "reprojection": {"network": "reprojection"},
    "input": {"network": "passthrough"},
}


def build_model(config: Config, projector):
    """The network of a configuration, on the CPU."""
    from papers.cdinet.baselines import DuDoSS, Passthrough, ReprojectedImage, SeparateNets
    from papers.cdinet.model import CDINet

    if config.network == "passthrough":
        return Passthrough()
    if config.network == "reprojection":
        return ReprojectedImage(projector)
    sizes = {
        "backbone": config.backbone,
        "projection_depth": config.projection_depth,
        "image_depth": config.image_depth,
    }
    if config.network != "cdinet":
        width = config.width if config.separate_as_wide else config.separate_width
        return {"separate": SeparateNets, "dudoss": DuDoSS}[config.network](projector, width=width, **sizes)
    return CDINet(
        projector,
        iterations=config.iterations,
        width=config.width,
        use_cidc=config.use_cidc,
        use_cdrc=config.use_cdrc,
        use_awr=config.use_awr,
        awr_residual=config.awr_residual,
        **sizes,
    )


def epochs_of(config: Config) -> int:
    """Passes over the training studies; 0 for what has nothing to learn by gradients."""
    if config.network in ("passthrough", "reprojection"):
        return 0
    return config.epochs if config.network == "cdinet" or config.separate_as_long else config.separate_epochs


def train(config: Config) -> None:
    """Train on the studies of `train/`; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.cdinet.backbones import init_gaussian
    from papers.cdinet.data import CardiacSpectDataset, load_projector
    from papers.cdinet.model import case_mean, cdi_loss
    from shared import gpu

    projector = load_projector(config.data)
    dataset = CardiacSpectDataset(config.data, "train", projector, config.low_dose_scale)
    run = gpu.Run(config, paper="cdinet")
    init = None if config.gaussian_std is None else partial(init_gaussian, std=config.gaussian_std)
    model = gpu.initialise_by_name(build_model(config, projector), config.seed, init)
    if config.network == "reprojection":
        model.fit(dataset[number] for number in range(len(dataset)))
    model = run.prepare(model)

    steps_per_epoch = max(1, len(dataset) // config.batch_size)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in parameters.items() if "projection_network" in name], "lr": config.lr_projection},
        {"params": [p for name, p in parameters.items() if "projection_network" not in name], "lr": config.lr_image},
    ]
    if not parameters:
        groups = [{"params": [torch.zeros(1)], "lr": 0.0}]  # nothing is learnt by gradients, there are 0 epochs
    optimizer = torch.optim.Adam(groups, betas=(config.beta1, 0.999), fused=True)
    steps = epochs_of(config) * steps_per_epoch
    if config.schedule == "onecycle":
        highest = [group["lr"] for group in groups]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps + 1, cycle_momentum=False)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch, config.lr_decay)
    run.restore(optimizer=optimizer, scheduler=scheduler)

    for _, batch in run.batches(dataset, steps):
        with run.autocast():
            predictions = model(batch["projections_low"], batch["image_low"])
        loss = cdi_loss(
            predictions,
            batch["projections_full"],
            batch["mu"],
            case_mean(batch["projections_low"]),
            config.weight_projection,
            config.weight_mu,
        )
        run.update(loss, optimizer, scheduler)


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
