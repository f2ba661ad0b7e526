"""Train SR4ZCT on the thick slices of each test volume, a wrong model of them, SMORE, or supervised networks.

python -m papers.sr4zct.train --data DATA --out runs/mine --profile cpu --variant full
"""

import math
from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError

# Thickness/overlap in pixels, which are 1 mm in the paper: of table 1, of table 2, and of figure 5.
TABLE_1 = ("2.5/1.25", "3.75/1.875", "5/2.5", "6.25/3.125")
TABLE_2 = ("5/2", "5/2.5", "5/3")
FIGURE_5 = ("5/2.5",)
SETTINGS = tuple(dict.fromkeys(TABLE_1 + TABLE_2))
ERRORS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # of thickness and of overlap in figure 5, pixels


@dataclass
class Config(RunConfig):
    """SR4ZCT: through-plane resolution enhancement of CT, learnt from the in-plane images of the same volume."""

    method: Literal["sr4zct", "supervised", "interpolation"] = "sr4zct"
    """training on axial images, training on other volumes' through-plane images, or nothing but interpolation"""
    views: tuple[Literal["cor", "sag"], ...] = ("cor", "sag")
    """through-plane images that are evaluated, and that the supervised baseline has a network for (paper: both)"""
    settings: tuple[str, ...] = SETTINGS
    """simulated slices, thickness/overlap in pixels, 1 mm in the paper (four in table 1, three in table 2)"""
    left_out: tuple[str, ...] = ()
    """of these, the ones that this variant takes no part in"""
    test_volumes: tuple[str, ...] = ("lung_023",)
    """names of the volumes to enhance (paper: lung_023)"""
    train_volumes: tuple[str, ...] = ("lung_006", "lung_014", "lung_022")
    """names of the volumes that the supervised baseline learns from (paper: 006, 014, 022)"""
    pixel: float = 1.0
    """side of an in-plane pixel and of the wanted isotropic voxel, mm; in-plane pixels are averaged to it (paper: 1)"""
    thickness_error: float = 0.0
    """what the model of the slices has the thickness wrong by, pixels (figure 5: -0.5 to 0.5)"""
    overlap_error: float = 0.0
    """what it has the overlap wrong by, pixels (figure 5: -0.5 to 0.5)"""
    smore_stride: int = 0
    """SMORE instead: a convolution of the thickness's width, in whole pixels, with this stride (paper: 2 and 3)"""
    samples: int = 9
    """interpolated points that are averaged over a slice's thickness (released code: 9)"""
    depth: int = 100
    """layers of the MS-D network (paper: 100)"""
    dilations: int = 10
    """dilations 1, 2, ..., cyclic (released code: 10)"""
    identity: bool = False
    """start each network as the identity instead of a constant image: saves the first hundreds of updates"""
    crop: int = 0
    """side of the random square of an image that is trained on, pixels; 0 is the whole image (paper: 0)"""
    epochs: int = 200
    """passes over the training pairs of each network (paper: 200)"""
    steps: int = 0
    """updates of each network instead of epochs; 0 counts epochs"""
    lr: float = 1e-3
    """learning rate of Adam (released code: 1e-3)"""
    supervised_lr: float = 0.0
    """the same for the supervised baseline, where another one suits it better; 0 is `lr`"""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: from lr down to a hundredth of it over the training of each network"""
    image_step: int = 1
    """evaluate every n-th coronal and sagittal image (paper: 1)"""
    merge: bool = False
    """also evaluate the mean of the coronal-wise and the sagittal-wise result, which `apply` writes, coronally"""


SMALL = {
    "depth": 12, "dilations": 4, "identity": True, "crop": 32, "batch_size": 4, "lr": 3e-3, "supervised_lr": 1e-2,
    "schedule": "cosine", "image_step": 10, "views": ("cor",),
}  # fmt: skip
PROFILES = {
    "smoke": {
        "settings": ("5/2.5", "5/2"), "train_volumes": ("lung_006",), "depth": 3, "dilations": 2, "crop": 16,
        "steps": 4, "batch_size": 2, "lr": 1e-2, "image_step": 12,
    },
    "cpu": SMALL | {"steps": 1500},
    "study": SMALL | {"steps": 4000},
    "paper": {},
}  # fmt: skip


def wrong_model(thickness_error: float, overlap_error: float) -> str:
    """Name of the variant of figure 5 that takes 5/2.5 mm for something else."""
    return f"wrong_{5 + thickness_error:g}_{2.5 + overlap_error:g}"


# 5/2.5 mm, which no convolution fits, is in both tables and in figure 5: it has variants of its own, so that what the
# headline compares can be trained often without all other settings.
NOT_5_25 = tuple(setting for setting in SETTINGS if setting not in FIGURE_5)
NOT_TABLE_1 = tuple(setting for setting in SETTINGS if setting not in TABLE_1)
NOT_TABLE_2 = tuple(setting for setting in SETTINGS if setting not in TABLE_2)
VARIANTS = {
    "interpolation": {"method": "interpolation"},
    "supervised": {"method": "supervised", "left_out": NOT_TABLE_1},
    "smore2": {"smore_stride": 2, "left_out": NOT_5_25},
    "smore3": {"smore_stride": 3, "left_out": NOT_5_25},
    "smore2_other": {"smore_stride": 2, "left_out": NOT_TABLE_2 + FIGURE_5},
    "smore3_other": {"smore_stride": 3, "left_out": NOT_TABLE_2 + FIGURE_5},
    "full": {"merge": True, "left_out": NOT_5_25},
    "full_other": {"left_out": FIGURE_5},
    **{
        wrong_model(t, o): {"thickness_error": t, "overlap_error": o, "left_out": NOT_5_25}
        for t in ERRORS
        for o in ERRORS
        if t or o
    },
}


def settings_of(config: Config) -> tuple[str, ...]:
    """The settings that a variant takes part in."""
    return tuple(setting for setting in config.settings if setting not in config.left_out)


def networks_of(config: Config) -> list[tuple[str, str]]:
    """What each network of a run is for: (setting, test volume), or for the supervised baseline (setting, view)."""
    if config.method == "interpolation":
        return []
    second = config.views if config.method == "supervised" else config.test_volumes
    return [(setting, name) for setting in settings_of(config) for name in second]


def build_model(config: Config):
    """One untrained network, on the CPU."""
    from papers.sr4zct.model import MSD

    return MSD(config.depth, config.dilations, config.identity)


def axial_pairs(config: Config, volume, geometry):
    """Training pairs of a volume (X, Y, K) whose slices have this geometry, by the model of the configuration.

    Raises:
        InputError: the errors of the model leave no possible geometry.
    """
    from papers.sr4zct.data import AxialPairs
    from papers.sr4zct.scaling import SliceGeometry

    pixel = geometry.pixel
    thickness = geometry.thickness + config.thickness_error * pixel
    model = SliceGeometry(pixel, thickness, geometry.overlap + config.overlap_error * pixel)
    return AxialPairs(volume, model, config.samples, config.smore_stride, config.crop)


def training_pairs(config: Config, volumes: dict, setting: str, second: str):
    """The data set of one network of `networks_of`."""
    from papers.sr4zct.data import ThroughPlanePairs, parse_setting

    geometry = parse_setting(setting, config.pixel)
    if config.method == "supervised":
        return ThroughPlanePairs(list(volumes.values()), geometry, second, config.crop)
    return axial_pairs(config, volumes[second].acquire(geometry), geometry)


def learning_rate(config: Config, progress: float) -> float:
    """Of the share `progress` of a network's training."""
    lr = (config.supervised_lr if config.method == "supervised" else 0) or config.lr
    if config.schedule == "constant":
        return lr
    return lr * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def fit(config: Config, run, names: list, pairs_of) -> None:
    """Train one network after the other (equation 1, M6); `pairs_of(*name)` gives the training pairs of each."""
    import torch

    from papers.sr4zct.model import l2_loss
    from shared.gpu import initialise_by_name

    networks = [initialise_by_name(build_model(config), config.seed) for _ in names]
    wrapped = [run.prepare(network) for network in networks]
    optimizers = [torch.optim.Adam(network.parameters(), lr=learning_rate(config, 0.0)) for network in networks]
    run.restore(**{f"optimizer_{'_'.join(name)}": item for name, item in zip(names, optimizers)})
    start = 0
    for name, network, forward, optimizer in zip(names, networks, wrapped, optimizers):
        if config.steps and run.step >= start + config.steps:
            start += config.steps
            continue
        pairs = pairs_of(*name)
        steps = config.steps or config.epochs * max(1, len(pairs) // config.batch_size)
        if run.step >= start + steps:
            start += steps
            continue
        check_sizes(config, pairs, name)
        if run.step == start:
            network.set_scale(*pairs.examples())
        for step, batch in run.batches(pairs, start + steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, (step - start) / steps)
            with run.autocast():
                loss = l2_loss(network, forward(batch["input"]), batch["target"])
            run.update(loss, optimizer)
        start += steps
    run.save()


def check_sizes(config: Config, pairs, name: tuple) -> None:
    """Images of one batch must have one size, and hold the largest dilation.

    Raises:
        InputError: they don't; says which setting helps.
    """
    largest = config.crop or math.inf
    shapes = {tuple(min(side, largest) for side in pairs.pair(index)[0].shape) for index in (0, 1, len(pairs) - 1)}
    smallest = min(min(shape) for shape in shapes)
    if smallest < config.dilations:
        raise InputError(f"{'/'.join(name)}: images of {smallest} pixels are too small for dilation {config.dilations}")
    if len(shapes) > 1 and config.batch_size > 1:
        raise InputError(f"{'/'.join(name)}: images of sizes {shapes} don't fit one batch; set crop, or batch-size 1")


def train(config: Config) -> None:
    """Train the networks of a variant; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    from papers.sr4zct.data import parse_setting, read_thin_volume
    from shared import gpu
    from shared.files import refuse_duplicates, refuse_overlap

    refuse_duplicates(config.settings, "--settings")
    refuse_duplicates(config.views, "--views")
    refuse_duplicates(config.test_volumes, "--test-volumes")
    refuse_duplicates(config.train_volumes, "--train-volumes")
    refuse_overlap(config.train_volumes, config.test_volumes, "--train-volumes and --test-volumes")
    names = config.train_volumes if config.method == "supervised" else config.test_volumes
    for setting in settings_of(config):
        parse_setting(setting, config.pixel)
    volumes = {name: read_thin_volume(config.data, name, config.pixel) for name in names}
    run = gpu.Run(config, paper="sr4zct")
    fit(config, run, networks_of(config), lambda setting, second: training_pairs(config, volumes, setting, second))


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
