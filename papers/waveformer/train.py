"""Train WaveFormer, an ablation of it or a baseline on the same backbone.

python -m papers.waveformer.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """WaveFormer: multi-organ and skin-lesion segmentation with wavelet-based attention."""

    dataset: Literal["synapse", "isic"] = "synapse"
    """which of the two data sets in the folder: abdominal CT with 8 organs, or dermoscopy with one lesion"""
    network: Literal["waveformer", "unet", "prior"] = "waveformer"
    """the transformer, MONAI's U-Net, or a table of where and how bright organs are"""
    attention: Literal["fet", "efficient", "standard"] = "fet"
    """the paper's attention, or another one on the same backbone"""
    bridge: bool = True
    """multi-scale context enhancement (MSCE) of the skip connections"""
    boundary: bool = True
    """boundary attention within FET"""
    levels: int = 1
    """levels of the boundary pyramid (released script: 1; released default: 3)"""
    dims: tuple[int, ...] = (128, 320, 512)
    """channels of the stages (paper: 128 320 512, the released compact model; 64 128 320 512 has four stages)"""
    heads: tuple[int, ...] = (4, 10, 16)
    """attention heads of the encoder's stages (released code: 4 10 16; four stages: 2 4 10 16)"""
    decoder_heads: tuple[int, ...] = (8, 4)
    """attention heads of the decoder's stages, the finest first (released code: 8 4)"""
    branch_norms: bool | None = None
    """layer norms on the branches of FET; None is as released: with three stages, not with four"""
    legacy: bool = False
    """reproduce the released code's slips in heads, softmax axis and reshapes"""
    legacy_params: bool = False
    """build the layers that the released code never calls (12.9 of 47.0 million parameters)"""
    image_size: int = 224
    """side of the square input in pixels, divisible by 32 (paper: 224)"""
    augmentations: tuple[str, ...] = (
        "flip_ud", "flip_lr", "noise", "blur", "contrast", "scale", "rotate", "shear", "piecewise", "translate",
    )  # fmt: skip
    """what may be applied to a training image (released code: these ten)"""
    augment_most: int = 4
    """most augmentations of one image (released code: 4)"""
    epochs: int = 400
    """passes over the training images (paper: 400)"""
    steps: int | None = None
    """instead of epochs, a number of updates"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9 (paper), or AdamW, which short runs need"""
    lr: float = 0.05
    """learning rate, polynomial decay with power 0.9 (paper: 0.05 with SGD)"""
    plain_lr: float | None = None
    """learning rate of transformers with another attention than FET; None is `lr` (paper: one rate)"""
    unet_lr: float | None = None
    """learning rate of the U-Net; None is `lr`"""
    unet_width: int = 64
    """channels of the U-Net at full resolution"""
    weight_decay: float = 1e-4
    """weight decay (paper: 1e-4)"""
    clip: float | None = None
    """largest norm of the gradient; None doesn't clip (paper: none)"""
    dice_weight: float = 0.6
    """weight of the Dice loss, the rest is cross-entropy (paper: 0.6)"""
    spacing_mm: tuple[float, float, float] = (3.0, 0.76, 0.76)
    """voxel size (z, x, y) in mm for distances, where the file has none (BTCV: 2.5 to 5, 0.54 to 0.98)"""


SMALL = {
    "heads": (2, 4, 8), "decoder_heads": (2, 4), "optimizer": "adamw", "clip": 1.0, "branch_norms": False,
    "augmentations": ("rotate", "scale", "translate"), "augment_most": 1,
}  # fmt: skip
STUDY = {
    **SMALL, "dims": (16, 32, 64), "unet_width": 12, "image_size": 64, "batch_size": 4, "steps": 800,
    "lr": 4e-3, "plain_lr": 2e-3, "unet_lr": 4e-3,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "dims": (8, 16, 32), "unet_width": 4, "image_size": 32, "batch_size": 2, "steps": 4, "lr": 1e-3},
    "cpu": STUDY,
    "study": STUDY,
    "paper": {"batch_size": 24},
}  # fmt: skip

VARIANTS = {
    "prior": {"network": "prior"},
    "unet": {"network": "unet"},
    "standard": {"attention": "standard", "bridge": False},
    "baseline": {"attention": "efficient", "bridge": False},
    "no_msce": {"bridge": False},
    "no_boundary": {"boundary": False},
    "full": {},
    "levels3": {"levels": 3},
}


def build_model(config: Config):
    """The network of a configuration, on the CPU."""
    from papers.waveformer.baselines import PositionAndBrightness, UNet
    from papers.waveformer.data import CLASSES
    from papers.waveformer.model import WaveFormer

    check(config)
    classes = CLASSES[config.dataset]
    if config.network == "unet":
        return UNet(classes, config.unet_width)
    if config.network == "prior":
        return PositionAndBrightness(classes, config.image_size)
    return WaveFormer(
        3, classes, config.dims, config.heads, config.decoder_heads, config.attention, config.bridge,
        config.boundary, config.levels, config.branch_norms, config.legacy, config.legacy_params,
    )  # fmt: skip


def learning_rate(config: Config) -> float:
    """Of the network that the configuration names."""
    own = config.unet_lr if config.network == "unet" else None if config.attention == "fet" else config.plain_lr
    return config.lr if own is None else own


def check(config: Config) -> None:
    """Raises InputError for settings that can't work together."""
    from papers.waveformer.augmentation import ALL
    from shared.errors import InputError

    if config.image_size < 32 or config.image_size % 32:
        raise InputError(f"--image-size {config.image_size}: expected a multiple of 32, say 224")
    stages = len(config.dims)
    if stages not in (3, 4) or len(config.heads) != stages or len(config.decoder_heads) != stages - 1:
        raise InputError(
            f"--dims {config.dims} --heads {config.heads} --decoder-heads {config.decoder_heads}: expected 3 or 4 "
            "stages, as many heads, and one less for the decoder"
        )
    if config.unet_width < 1:
        raise InputError(f"--unet-width {config.unet_width}: expected 1 or more")
    pairs = [*zip(config.dims, config.heads), *zip(config.dims, config.decoder_heads)]
    if any(dim < 4 or head < 1 or dim % 4 or dim % head for dim, head in pairs):
        raise InputError(f"--dims {config.dims}: each must be divisible by 4 and by its number of heads")
    tokens = [(config.image_size // 4 // 2**stage) ** 2 * dim for stage, dim in enumerate(config.dims)]
    if any(count % config.dims[0] for count in tokens):
        raise InputError(f"--dims {config.dims} --image-size {config.image_size}: the first must divide all stages")
    if config.levels < 1:
        raise InputError(f"--levels {config.levels}: expected 1 or more")
    unknown = [name for name in config.augmentations if name not in ALL]
    if unknown:
        raise InputError(f"--augmentations {' '.join(unknown)}: choose from {', '.join(ALL)}")


def train(config: Config) -> None:
    """Train on the training slices; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.waveformer.data import Slices
    from papers.waveformer.losses import segmentation_loss
    from papers.waveformer.model import initialisation
    from shared import gpu

    model = build_model(config)
    dataset = Slices(config.data, config.dataset, config.image_size, config.augmentations, config.augment_most)
    run = gpu.Run(config, paper="waveformer")
    init = initialisation(model) if config.network == "waveformer" else None
    model = gpu.initialise_by_name(model, config.seed, init)
    if config.network == "prior":
        plain = Slices(config.data, config.dataset, config.image_size)
        model.fit(plain[number] for number in range(len(plain)))
    model = run.prepare(model)
    parameters = list(model.parameters()) or [torch.zeros(1)]  # a table learns nothing by gradients
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, learning_rate(config), momentum=0.9, weight_decay=config.weight_decay)
    else:
        rates = {"lr": learning_rate(config), "weight_decay": config.weight_decay}
        optimizer = torch.optim.AdamW(parameters, **rates, fused=True)
    steps = config.steps or config.epochs * max(1, len(dataset) // config.batch_size)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - min(step / steps, 1)) ** 0.9)
    run.restore(optimizer=optimizer, scheduler=decay)

    for _, batch in run.batches(dataset, 0 if config.network == "prior" else steps):
        with run.autocast():
            logits = model(batch["image"])
        loss, dice, cross_entropy = segmentation_loss(logits, batch["label"], config.dice_weight)
        run.update(loss, optimizer, decay, clip=config.clip, dice=dice, cross_entropy=cross_entropy)


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
