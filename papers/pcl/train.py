"""Pre-train an encoder by positional contrastive learning, or fine-tune a U-Net from it.

    python -m papers.pcl.train --data DATA --out runs/pcl --variant pretrain_pcl
    python -m papers.pcl.train --data DATA --out runs/unet --variant full --init runs/pcl/checkpoint.pt

Any folder of unlabelled stacks will do for the first: --layout stacks. The released code is commit bf339fc.
"""

import math
from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """PCL: contrastive pre-training on slice positions, and fine-tuning with M labelled patients."""

    stage: Literal["pretrain", "finetune"] = "finetune"
    """contrastive pre-training of the encoder, or training of the U-Net on labelled patients"""
    method: Literal["pcl", "gcl", "simclr", "none", "atlas", "forest"] = "pcl"
    """positive pairs: near slices, a partition's, own views; none: random weights; atlas, forest: simple controls"""
    layout: str = "auto"
    """acdc, chd, mmwhs, hvsmr, stacks (unlabelled), or auto"""
    spacing_mm: float | None = None
    """in-plane spacing of the slices; None is the data set's (ACDC 1.25, MMWHS 1.0, HVSMR 0.7, CHD as it is)"""
    patch: int | None = None
    """side of the training patch in pixels; None is the data set's (ACDC, HVSMR 352, CHD 512, MMWHS 256)"""
    width: int = 48
    """channels of the first level (released code: 48 for ACDC and HVSMR, 32 for CHD and MMWHS)"""
    embedding: int = 512
    """length of a slice's embedding (released code: 512)"""
    threshold: float = 0.35
    """t: slices nearer than this fraction of the stack are positive (released code: 0.35 ACDC, 0.1 CHD)"""
    partitions: int = 4
    """parts of a stack for GCL (4)"""
    temperature: float = 0.1
    """T of the contrastive loss (released code: 0.1)"""
    base_temperature: float = 0.07
    """T0, which only scales the loss (released code: 0.07)"""
    labelled: int = 2
    """M, patients with labels that fine-tuning may use (paper: 2 to 80)"""
    draw: int | None = None
    """which M patients are drawn; None draws anew for each seed, 0 is the released code's"""
    folds: int = 5
    """of the cross-validation (paper: 5)"""
    fold: int = 0
    """the one that is held out"""
    pretrain_patients: Literal["all", "train"] = "train"
    """patients whose unlabelled slices are seen in pre-training (released code: all, the held-out ones too)"""
    pretrain_epochs: int = 300
    """passes over all slices (released code: 300)"""
    pretrain_steps: int | None = None
    """instead of pretrain_epochs, a number of updates"""
    finetune_epochs: int = 100
    """passes over the slices of the M patients (released code: 100)"""
    finetune_steps: int | None = None
    """instead of finetune_epochs, a number of updates, the same for every M"""
    pretrain_optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum 0.9 (released code), or Adam, which short runs need"""
    pretrain_lr: float = 0.1
    """learning rate of pre-training, cosine to 0 (released code: 0.1)"""
    finetune_lr: float = 5e-5
    """learning rate of fine-tuning with Adam, cosine to 0 (released code: 5e-5)"""
    finetune_lr_end: float = 5e-6
    """below which that does not fall (released code: 5e-6 in its HVSMR example, 1e-6 for CHD and by default)"""
    weight_decay: float = 1e-5
    """of both stages (released code: 1e-5)"""
    spatial_probability: float = 0.67
    """how often a view is deformed instead of cropped (released code: 0.67)"""
    elastic_alpha: tuple[float, float] = (100.0, 350.0)
    """strength of the elastic deformation, pixels (released code: 100 to 350 at the full resolution)"""
    elastic_sigma: tuple[float, float] = (14.0, 17.0)
    """its smoothness, pixels (released code: 14 to 17 at the full resolution)"""
    scale: tuple[float, float] = (0.7, 1.3)
    """range of random scaling (released code: 0.7 to 1.3)"""
    augment: bool | None = None
    """augment in fine-tuning; None is as the released code does: on ACDC and HVSMR, not on CHD and MMWHS"""
    select: Literal["last", "best"] = "last"
    """weights that are evaluated: the last, or the best on the held-out fold as in the released code"""
    validate_every: int = 2
    """epochs between two validations for select = best (released code: 2)"""


# 5 mm pixels are 4 of the paper's: sigma shrinks by that, alpha by its square, and the deformation in mm stays.
SMALL = {
    "spacing_mm": 5.0, "patch": 32, "width": 4, "elastic_alpha": (6.3, 22.0), "elastic_sigma": (3.5, 4.3),
    "pretrain_optimizer": "adam", "pretrain_lr": 2e-3, "finetune_lr": 5e-3, "finetune_lr_end": 5e-5, "folds": 3,
    "channels_last": True,
}  # fmt: skip
PROFILES = {
    "smoke": {
        **SMALL, "spacing_mm": 8.0, "width": 2, "embedding": 16, "elastic_sigma": (2.0, 3.0),
        "pretrain_steps": 2, "finetune_steps": 4,
    },
    "cpu": {**SMALL, "pretrain_steps": 1800, "finetune_steps": 900},
    "study": {**SMALL, "pretrain_steps": 1800, "finetune_steps": 900},
    "paper": {"pretrain_patients": "all"},
}  # fmt: skip

PRETRAIN = {"stage": "pretrain", "batch_size": 32}
FINETUNE = {"stage": "finetune", "batch_size": 10}
METHODS = {"random": "none", "simclr": "simclr", "gcl": "gcl", "pcl": "pcl"}
CONTROLS = ("atlas", "forest")
VARIANTS = {
    **{f"pretrain_{method}": {**PRETRAIN, "method": method} for method in ("pcl", "gcl", "simclr")},
    "untrained": {**PRETRAIN, "method": "none"},
    **{f"{name}_m{m}": {**FINETUNE, "method": name, "labelled": m} for m in (2, 6) for name in CONTROLS},
    "full": {**FINETUNE, "method": "pcl", "labelled": 2},
    **{f"{name}_m2": {**FINETUNE, "method": METHODS[name], "labelled": 2} for name in ("random", "simclr", "gcl")},
    **{f"{name}_m{m}": {**FINETUNE, "method": METHODS[name], "labelled": m} for m in (6, 10) for name in METHODS},
    **{
        f"transfer_{name}": {**FINETUNE, "method": METHODS[name], "labelled": 2, "layout": "hvsmr"}
        for name in ("random", "gcl", "pcl")
    },
}


def augmentation_of(config: Config) -> dict:
    """The settings of `augmentation.draw_view`."""
    return {
        "probability": config.spatial_probability,
        "alpha": config.elastic_alpha,
        "sigma": config.elastic_sigma,
        "scale": config.scale,
    }


def build_model(config: Config):
    """The network of a configuration, on the CPU: encoder and projection head, the U-Net, or a simple control."""
    from papers.pcl.atlas import Atlas
    from papers.pcl.forest import Forest
    from papers.pcl.layouts import LAYOUTS
    from papers.pcl.model import ContrastiveNet, UNet

    if config.stage == "pretrain":
        return ContrastiveNet(1, config.width, config.embedding)
    layout = LAYOUTS[config.layout]
    classes = len(layout.labels) + 1
    if config.method == "atlas":
        return Atlas(classes, 2 * (config.patch or layout.patch))
    if config.method == "forest":
        return Forest(classes, config.seed)
    return UNet(1, classes, config.width)


def total_steps(config: Config, slices: int) -> int:
    """Updates of a run; an incomplete last batch of an epoch is dropped."""
    per_epoch = max(1, slices // config.batch_size)
    if config.method == "none" and config.stage == "pretrain":
        return 0
    if config.stage == "pretrain":
        return config.pretrain_steps or config.pretrain_epochs * per_epoch
    return config.finetune_steps or config.finetune_epochs * per_epoch


def train(config: Config) -> None:
    """Train one stage; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    if config.stage == "pretrain":
        pretrain(config)
    else:
        finetune(config)


def pretrain(config: Config) -> None:
    """Contrastive training of the encoder on unlabelled slices (M1, M2, M5 to M8)."""
    import torch

    from papers.pcl.augmentation import view
    from papers.pcl.data import SliceViews, read_unlabelled, split_patients
    from papers.pcl.layouts import find_patients
    from papers.pcl.model import contrastive_loss, initialise, positive_mask
    from shared import gpu
    from shared.distributed import gather

    layout, patients = find_patients(config.data, config.layout)
    config.layout = layout.name
    if config.pretrain_patients == "train":
        patients, _ = split_patients(patients, config.folds, config.fold)
    stacks = read_unlabelled(patients, layout, config.spacing_mm)
    dataset = SliceViews(stacks, config.patch or layout.patch, config.partitions, **augmentation_of(config))
    steps = total_steps(config, len(dataset))

    run = gpu.Run(config, paper="pcl")
    model = run.prepare(gpu.initialise_by_name(build_model(config), config.seed, initialise))
    if config.pretrain_optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), config.pretrain_lr, momentum=0.9, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), config.pretrain_lr, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    run.restore(optimizer=optimizer, scheduler=scheduler)

    for _, batch in run.batches(dataset, steps):
        embeddings = []
        for number in range(2):
            drawn = [batch[name][:, number] for name in ("matrix", "strength", "sigma", "noise")]
            seen, _ = view(batch["image"], *drawn)
            with run.autocast():  # each view by itself: batch norm sees B slices, not both views of them
                embeddings.append(model(seen))
        # Every pair of the whole mini-batch counts, whichever process it is on.
        first, second = (gather(embedding.float()) for embedding in embeddings)
        positions, partitions = gather(batch["position"]), gather(batch["partition"])
        mask = positive_mask(config.method, positions, partitions, config.threshold)
        loss = contrastive_loss(first, second, mask, config.temperature, config.base_temperature)
        run.update(loss, optimizer, scheduler)


def finetune(config: Config) -> None:
    """Training of the whole U-Net on M labelled patients with pixel cross-entropy (M1, M3, M4)."""
    import torch
    import torch.nn.functional as F

    from papers.pcl.augmentation import view
    from papers.pcl.data import LabelledSlices, draw_labelled, read_labelled, split_patients
    from papers.pcl.layouts import find_patients
    from papers.pcl.model import initialise
    from papers.pcl.scores import fold_dice
    from papers.pcl.weights import Best, load_encoder
    from shared import gpu
    from shared.checkpoints import load_weights

    layout, patients = find_patients(config.data, config.layout)
    config.layout = layout.name
    training, held_out = split_patients(patients, config.folds, config.fold)
    draw = config.seed if config.draw is None else config.draw
    stacks = read_labelled(draw_labelled(training, config.labelled, draw), layout, config.spacing_mm)
    augmented = layout.augment if config.augment is None else config.augment
    dataset = LabelledSlices(stacks, config.patch or layout.patch, augmented, **augmentation_of(config))
    validation = read_labelled(held_out, layout, config.spacing_mm) if config.select == "best" else []
    per_epoch = max(1, len(dataset) // config.batch_size)
    steps = total_steps(config, len(dataset))
    pretrained = config.method not in ("none", *CONTROLS)
    if pretrained and config.init is None:
        raise InputError(f"variant '{config.variant}' starts from an encoder of '{config.method}': give it by --init")

    run = gpu.Run(config, paper="pcl")
    network = gpu.initialise_by_name(build_model(config), config.seed, initialise)
    best = Best()
    if config.method in CONTROLS:
        network.fill(stacks)
        run.prepare(network)
        run.restore(best=best)
        run.save()
        return
    if pretrained:
        load_weights(network.encoder, load_encoder(config.init, config.width, config.method), config.init)
    model = run.prepare(network)
    optimizer = torch.optim.Adam(model.parameters(), config.finetune_lr, weight_decay=config.weight_decay)
    floor = config.finetune_lr_end / config.finetune_lr if config.finetune_lr else 0.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(  # a cosine to 0, cut off where it falls below the floor
        optimizer, lambda step: max(0.5 * (1 + math.cos(math.pi * step / steps)), floor)
    )
    run.restore(optimizer=optimizer, scheduler=scheduler, best=best)

    for step, batch in run.batches(dataset, steps):
        image, label = batch["image"], batch["label"]
        if augmented:
            image, label = view(image, *(batch[name] for name in ("matrix", "strength", "sigma", "noise")), label)
        with run.autocast():
            logits = model(image)
        run.update(F.cross_entropy(logits.float(), label), optimizer, scheduler)
        epoch, position = divmod(step + 1, per_epoch)
        if validation and (step + 1 == steps or (position == 0 and epoch % config.validate_every == 0)):
            best.offer(fold_dice(run.models[0], validation, run.device, len(layout.labels)), run.models[0])
            run.models[0].train()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
