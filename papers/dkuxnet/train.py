"""Train DKUXNet, an ablation of it, V-Net, UA-MT or a mean mask on the left-atrium scans.

python -m papers.dkuxnet.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """DKUXNet: semi-supervised left-atrium segmentation by consistent query distributions."""

    network: Literal["dkuxnet", "vnet", "ua_mt", "mean_mask"] = "dkuxnet"
    """the proposed method; supervised V-Net; V-Net with an uncertain mean teacher; the mean of the labelled masks"""
    labelled_fraction: float = 0.1
    """part of the scans in train.list whose labels are used (paper: 0.05, 0.1, 0.2, 1)"""
    use_qdc: bool = True
    """contrastive loss on the query distribution, L_qdc"""
    use_segc: bool = True
    """contrastive loss on the segmentation, L_segc"""
    crop: tuple[int, int, int] = (112, 112, 80)
    """sides of the random crop in voxels, divisible by 16 (paper: 112, 112, 80)"""
    strides: tuple[int, int, int] = (18, 18, 4)
    """steps of the sliding window in voxels (LA protocol: 18, 18, 4)"""
    voxel_mm: float = 0.625
    """voxel size of the training scans in mm; `apply` resamples a user's scan to it (LA 2018: 0.625)"""
    shrink: int = 1
    """scans are read with blocks of so many voxels along each axis averaged into one (protocol: 1)"""
    rotate_and_flip: bool = True
    """random right-angle turns and flips in the plane (LA protocol: yes)"""
    fill_with_labelled: bool = False
    """draw labelled crops in place of the unlabelled ones, as supervised training does"""
    steps: int = 6000
    """updates (paper: not given; LA protocol: 6000)"""
    vnet_updates: float = 1.0
    """updates of V-Net and UA-MT as a multiple of `steps` (LA protocol: 1)"""
    dims: tuple[int, ...] = (48, 96, 192, 384)
    """widths of the four UX-Net stages (released code: 48, 96, 192, 384)"""
    hidden: int = 768
    """width at 1/16 of the resolution (released code: 768)"""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """blocks of each stage (released code: 2, 2, 2, 2)"""
    layer_scale: float = 1e-6
    """initial factor of the UX blocks' residual branches (released code: 1e-6)"""
    query_groups: tuple[int, ...] = (16, 16)
    """queries per class, background first; their number is the number of classes (released code: 16, 4, 12)"""
    kmax_scales: int = 2
    """decoder scales that update the queries: 2 is 1/8 and 1/4 (released code), 3 adds 1/2"""
    kmax_layers: int = 2
    """kMaX layers per scale (released code: 2)"""
    query_channels: int = 256
    """channels of a query (kMaX: 256)"""
    key_depth: int = 128
    """key channels of the self-attention, all heads together (kMaX: 128)"""
    value_depth: int = 256
    """value channels, all heads together (kMaX: 256)"""
    heads: int = 8
    """attention heads (kMaX: 8)"""
    ffn: int = 2048
    """hidden channels of the feed-forward networks (kMaX: 2048)"""
    embedding: int = 128
    """length of the vectors whose inner product is a mask logit (kMaX: 128)"""
    mask_gain: float = 0.1
    """initial gain of the batch norm on mask logits (kMaX: 0.1)"""
    norm_momentum: float = 0.01
    """share of the newest batch in the running statistics of batch norms around the queries (released code: 0.01)"""
    distribution_weight: float = 0.1
    """weight of the supervised loss on the query distribution, within L_seg (released code: 0.1, summed)"""
    consistency_weight: float = 0.1
    """largest weight w(t) of the consistency losses (LA protocol: 0.1)"""
    ramp_fraction: float = 0.4
    """part of the updates over which w(t) rises"""
    temperature: float = 0.1
    """tau of both contrastive losses"""
    sampled_voxels: int = 512
    """voxels per crop that enter the contrastive losses, equally many of every (pseudo-)class"""
    confidence: float = 0.7
    """smallest probability of a pseudo-class; less certain unlabelled voxels are left out"""
    lr: float = 1e-4
    """AdamW's learning rate for DKUXNet, polynomial decay 0.9 (released code: 1e-4)"""
    weight_decay: float = 1e-4
    """weight decay of all optimisers (LA protocol: 1e-4)"""
    vnet_code: Literal["ua_mt", "monai"] = "ua_mt"
    """the supervised V-Net is that of UA-MT, as in the LA protocol, or MONAI's, as Milletari et al. describe it"""
    filters: int = 16
    """width of the first level of UA-MT's V-Net (LA protocol: 16); MONAI's has always 16"""
    vnet_optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9 and tenfold steps down at 5/12 and 10/12 (LA protocol), or AdamW as for DKUXNet"""
    lr_vnet: float = 1e-2
    """learning rate of V-Net and UA-MT (LA protocol: 0.01 with SGD)"""
    dropout: float = 0.5
    """dropout of UA-MT's V-Nets (UA-MT: 0.5)"""
    ema: float = 0.99
    """decay of UA-MT's teacher (UA-MT: 0.99)"""
    uncertainty_passes: int = 8
    """stochastic passes of the teacher that estimate its uncertainty (UA-MT: 8)"""


SMALL = {
    "dims": (4, 8, 16, 32), "hidden": 64, "depths": (1, 1, 1, 1), "layer_scale": 0.1, "query_groups": (4, 4),
    "kmax_layers": 1, "query_channels": 8, "key_depth": 16, "value_depth": 16, "heads": 4, "ffn": 32, "embedding": 8,
    "mask_gain": 3.0, "norm_momentum": 0.1, "sampled_voxels": 128, "filters": 8, "vnet_optimizer": "adamw",
    "uncertainty_passes": 4, "dropout": 0.2,
}  # fmt: skip
COARSE = {
    **SMALL, "crop": (32, 16, 16), "strides": (16, 8, 8), "voxel_mm": 3.75, "lr": 2e-3, "lr_vnet": 5e-3,
    "vnet_updates": 2.0,
}  # fmt: skip
"""What the profiles `cpu` and `study` share"""
PROFILES = {
    "smoke": {
        **SMALL, "crop": (32, 16, 16), "strides": (32, 16, 16), "voxel_mm": 5.0, "steps": 2, "lr": 1e-3,
        "lr_vnet": 1e-3, "sampled_voxels": 32, "uncertainty_passes": 2, "query_groups": (2, 2), "filters": 4,
    },
    "cpu": {**COARSE, "steps": 220},
    "study": {**COARSE, "steps": 400},
    "paper": {"batch_size": 2},
}  # fmt: skip

ONLY_SEG = {"use_qdc": False, "use_segc": False}
VARIANTS = {
    "mean_mask": {"network": "mean_mask", "fill_with_labelled": True},
    "full": {},
    "lseg": ONLY_SEG,
    "lseg_filled": {**ONLY_SEG, "fill_with_labelled": True},
    "lseg_100": {**ONLY_SEG, "labelled_fraction": 1.0},
    "lseg_qdc": {"use_segc": False},
    "lseg_segc": {"use_qdc": False},
    "full_5": {"labelled_fraction": 0.05},
    "full_20": {"labelled_fraction": 0.2},
    "full_100": {"labelled_fraction": 1.0},
    "vnet": {"network": "vnet", "fill_with_labelled": True},
    "vnet_100": {"network": "vnet", "fill_with_labelled": True, "labelled_fraction": 1.0},
    "ua_mt": {"network": "ua_mt", "ramp_fraction": 1.0},
}


def build_model(config: Config):
    """The network of a configuration, on the CPU."""
    classes = len(config.query_groups)
    if config.network == "mean_mask":
        from papers.dkuxnet.mean_mask import MeanMask

        return MeanMask(classes, config.crop)
    if config.network == "vnet" and config.vnet_code == "monai":
        from monai.networks.nets import VNet

        return VNet(3, 1, classes)
    if config.network in ("vnet", "ua_mt"):
        from papers.dkuxnet.vnet import VNet

        return VNet(1, classes, config.filters, config.dropout if config.network == "ua_mt" else 0.0)
    from papers.dkuxnet.model import DKUXNet

    return DKUXNet(
        1, config.query_groups, config.dims, config.hidden, config.depths, config.layer_scale, config.kmax_scales,
        config.kmax_layers, config.query_channels, config.key_depth, config.value_depth, config.heads, config.ffn,
        config.embedding, config.mask_gain, config.norm_momentum,
    )  # fmt: skip


def updates(config: Config) -> int:
    """Updates of this configuration's network."""
    if config.network == "mean_mask":
        return 0
    return round(config.steps * (1.0 if config.network == "dkuxnet" else config.vnet_updates))


def build_optimizer(config: Config, model):
    """Optimiser and schedule: AdamW with polynomial decay, or the LA protocol's SGD with steps down."""
    import torch

    steps = updates(config)
    if config.network != "dkuxnet" and config.vnet_optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr_vnet, momentum=0.9, weight_decay=config.weight_decay
        )
        fall = max(1, round(steps * 2500 / 6000))
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, fall, 0.1)
    lr = config.lr if config.network == "dkuxnet" else config.lr_vnet
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=config.weight_decay, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - min(step / steps, 1)) ** 0.9)
    return optimizer, decay


def check(config: Config) -> None:
    """
    Raises:
        InputError: settings that don't fit each other or the networks.
    """
    if any(side % 16 or side <= 0 for side in config.crop) or max(config.crop) < 32:
        raise InputError(f"--crop {config.crop}: each side must be divisible by 16, and one at least 32")
    if config.query_channels < 1 or config.key_depth % config.heads or config.value_depth % config.heads:
        raise InputError(f"--heads {config.heads} must divide --key-depth and --value-depth")
    if config.shrink < 1:
        raise InputError(f"--shrink {config.shrink}: expected 1 or more")


def train(config: Config) -> None:
    """Train on the scans of train.list; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import copy

    import torch

    from papers.dkuxnet.data import CropPairs, together
    from papers.dkuxnet.losses import segmentation_loss
    from papers.dkuxnet.objectives import dkuxnet_loss, ua_mt_loss
    from shared import gpu

    check(config)
    classes, use_unlabelled = len(config.query_groups), not config.fill_with_labelled
    dataset = CropPairs(
        config.data, config.labelled_fraction, config.crop, use_unlabelled, config.rotate_and_flip, classes,
        config.shrink,
    )  # fmt: skip
    run = gpu.Run(config, paper="dkuxnet")
    model = gpu.initialise_by_name(build_model(config), config.seed)
    if config.network == "mean_mask":
        model.fit(dataset.scan(path)[1] for path in dataset.labelled)
        run.prepare(model)
        run.restore()
        run.save()
        return
    model, steps = run.prepare(model), updates(config)
    optimizer, scheduler = build_optimizer(config, model)
    kept = {"optimizer": optimizer, "scheduler": scheduler}
    if config.network == "ua_mt":
        kept["teacher"] = teacher = copy.deepcopy(run.models[0]).requires_grad_(False)
    run.restore(**kept)

    for step, pairs in run.batches(dataset, steps):
        batch = together(pairs)
        with run.autocast():
            if config.network == "dkuxnet":
                loss, parts = dkuxnet_loss(config, model, batch, step)
            elif config.network == "ua_mt":
                loss, parts = ua_mt_loss(config, model, teacher, batch, step, steps)
            else:
                loss, parts = segmentation_loss(model(batch["views"][:, 0]), batch["label"]), {}
        run.update(loss, optimizer, scheduler, **parts)
        if config.network == "ua_mt":
            with torch.no_grad():
                decay = min(1 - 1 / (step + 1), config.ema)
                for mean, new in zip(teacher.parameters(), run.models[0].parameters()):
                    mean.lerp_(new, 1 - decay)


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
