"""Train DKUXNet, an ablation of it, V-Net or UA-MT on the left-atrium scans.

python -m papers.dkuxnet.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """DKUXNet: semi-supervised left-atrium segmentation by consistent query distributions."""

    network: Literal["dkuxnet", "vnet", "ua_mt"] = "dkuxnet"
    """the proposed method; supervised V-Net; V-Net with an uncertainty-aware mean teacher"""
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
    filters: int = 16
    """width of V-Net's first level (LA protocol: 16)"""
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
    "query_channels": 16, "key_depth": 16, "value_depth": 16, "heads": 4, "ffn": 32, "embedding": 16,
    "mask_gain": 3.0, "filters": 4, "vnet_optimizer": "adamw",
}  # fmt: skip
PROFILES = {
    "smoke": {
        **SMALL, "crop": (32, 16, 16), "strides": (32, 16, 16), "voxel_mm": 5.0, "steps": 2, "lr": 1e-3,
        "lr_vnet": 1e-3, "sampled_voxels": 32, "uncertainty_passes": 2, "query_groups": (2, 2),
    },
    "cpu": {
        **SMALL, "crop": (32, 32, 16), "strides": (16, 16, 8), "voxel_mm": 2.5, "steps": 120, "lr": 5e-3,
        "lr_vnet": 5e-3, "sampled_voxels": 256, "uncertainty_passes": 4, "vnet_updates": 2.0, "dropout": 0.2,
    },
    "paper": {"batch_size": 2},
}  # fmt: skip

ONLY_SEG = {"use_qdc": False, "use_segc": False}
VARIANTS = {
    "full": {},
    "lseg": ONLY_SEG,
    "lseg_filled": {**ONLY_SEG, "fill_with_labelled": True},
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
    from papers.dkuxnet.model import DKUXNet
    from papers.dkuxnet.vnet import VNet

    if config.network != "dkuxnet":
        dropout = config.dropout if config.network == "ua_mt" else 0.0
        return VNet(1, len(config.query_groups), config.filters, dropout)
    return DKUXNet(
        1, config.query_groups, config.dims, config.hidden, config.depths, config.layer_scale, config.kmax_scales,
        config.kmax_layers, config.query_channels, config.key_depth, config.value_depth, config.heads, config.ffn,
        config.embedding, config.mask_gain,
    )  # fmt: skip


def updates(config: Config) -> int:
    """Updates of this configuration's network."""
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


def contrastive_losses(config: Config, output, label, key):
    """L_qdc and L_segc of a batch in which views 2b and 2b + 1 show crop b (M12, M13).

    Args:
        output: `model.Output` of all views.
        label: (B, W, H, D), -1 where not labelled.
        key: (B, W, H, D), uniform random numbers that choose the voxels.
    """
    from papers.dkuxnet.losses import gather_voxels, info_nce, pseudo_classes, sample_voxels
    from shared.distributed import gather

    probabilities = output.logits.softmax(dim=1)
    first, second = probabilities[0::2], probabilities[1::2]
    classes = pseudo_classes((first, second), label, config.confidence)
    number = output.logits.shape[1]
    index, valid = sample_voxels(classes, key.flatten(1), config.sampled_voxels, number)

    def everywhere(x):  # of all processes, one row a voxel
        return gather(x).flatten(0, 1)

    chosen, valid = everywhere(classes.gather(1, index)), everywhere(valid.long()).bool()

    def contrast(first, second):
        pair = (everywhere(gather_voxels(maps, index)) for maps in (first, second))
        return info_nce(*pair, chosen, valid, config.temperature)

    return contrast(output.response[0::2], output.response[1::2]), contrast(first, second)


def dkuxnet_loss(config: Config, model, batch: dict, step: int):
    """L_seg + w(t) (L_qdc + L_segc) and its parts for the log."""
    from papers.dkuxnet.losses import distribution_loss, rampup, segmentation_loss

    views, label, key = batch["views"].flatten(0, 2), batch["label"].flatten(0, 1), batch["key"].flatten(0, 1)
    output = model(views)
    label_of_view = label.repeat_interleave(2, dim=0)
    seg = segmentation_loss(output.logits, label_of_view)
    of_layers = [distribution_loss(layer, label_of_view) for layer in output.layer_distributions]
    distribution = distribution_loss(output.distribution, label_of_view) + sum(of_layers) / len(of_layers)
    loss = seg + config.distribution_weight * distribution
    parts = {"seg": seg, "distribution": distribution}
    if config.use_qdc or config.use_segc:
        qdc, segc = contrastive_losses(config, output, label, key)
        weight = config.consistency_weight * rampup(step, config.ramp_fraction * config.steps)
        loss = loss + weight * (config.use_qdc * qdc + config.use_segc * segc)
        parts |= {"qdc": qdc, "segc": segc, "weight": weight}
    return loss, parts


def ua_mt_loss(config: Config, model, teacher, batch: dict, step: int):
    """Supervised loss on labelled crops, consistency with the teacher on unlabelled ones (UA-MT, eqs. 1 to 4)."""
    import math

    import torch

    from papers.dkuxnet.losses import rampup, segmentation_loss, uncertainty_masked_mse
    from papers.dkuxnet.vnet import predictive_entropy

    views, label = batch["views"].flatten(0, 1), batch["label"].flatten(0, 1)
    logits = model(views[:, 0])
    seg = segmentation_loss(logits, label)
    unlabelled = label.flatten(1).amin(1) < 0
    if not unlabelled.any():
        return seg, {"seg": seg}
    inputs = views[unlabelled, 1]
    with torch.no_grad():  # the target and all stochastic passes are one batch, as many copies of the crops
        copies = inputs.repeat(config.uncertainty_passes + 1, 1, 1, 1, 1)
        noise = (0.1 * torch.randn_like(copies)).clamp(-0.2, 0.2)
        noise[: len(inputs)] = 0
        target, *passes = teacher(copies + noise).float().split(len(inputs))
        entropy = predictive_entropy(torch.stack(passes).softmax(dim=2))
    steps = updates(config)
    threshold = (0.75 + 0.25 * rampup(step, steps)) * math.log(logits.shape[1])
    consistency = uncertainty_masked_mse(logits[unlabelled], target, entropy, threshold)
    weight = config.consistency_weight * rampup(step, config.ramp_fraction * steps)
    return seg + weight * consistency, {"seg": seg, "consistency": consistency, "weight": weight}


def train(config: Config) -> None:
    """Train on the scans of train.list; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import copy

    import torch

    from papers.dkuxnet.data import CropPairs
    from papers.dkuxnet.losses import segmentation_loss
    from shared import gpu
    from shared.errors import InputError

    if any(side % 16 or side <= 0 for side in config.crop) or max(config.crop) < 32:
        raise InputError(f"--crop {config.crop}: each side must be divisible by 16, and one at least 32")
    if config.query_channels < 1 or config.key_depth % config.heads or config.value_depth % config.heads:
        raise InputError(f"--heads {config.heads} must divide --key-depth and --value-depth")
    classes = len(config.query_groups)
    use_unlabelled = not config.fill_with_labelled
    dataset = CropPairs(
        config.data, config.labelled_fraction, config.crop, use_unlabelled, config.rotate_and_flip, classes
    )
    run = gpu.Run(config, paper="dkuxnet")
    model = run.prepare(build_model(config))
    optimizer, scheduler = build_optimizer(config, model)
    kept = {"optimizer": optimizer, "scheduler": scheduler}
    if config.network == "ua_mt":
        kept["teacher"] = teacher = copy.deepcopy(run.models[0]).requires_grad_(False)
    run.restore(**kept)

    for step, batch in run.batches(dataset, updates(config)):
        with run.autocast():
            if config.network == "dkuxnet":
                loss, parts = dkuxnet_loss(config, model, batch, step)
            elif config.network == "ua_mt":
                loss, parts = ua_mt_loss(config, model, teacher, batch, step)
            else:
                views, label = batch["views"].flatten(0, 1), batch["label"].flatten(0, 1)
                loss, parts = segmentation_loss(model(views[:, 0]), label), {}
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
