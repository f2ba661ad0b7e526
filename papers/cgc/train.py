"""Make the proposal P, train on it with cross-grained contrast, or train an ablation or a baseline.

    python -m papers.cgc.train --data DATA --out runs/mine --profile cpu --variant full

P comes from a Gaussian mixture, the same in all trainings, unless `--init` is the checkpoint of variant `mumford_shah`,
or `--proposal files` takes the masks of any other method.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """CGC: lesion segmentation without labels. The poster reports temperature and grid; the rest is our choice."""

    batch_size: int = 2
    """volumes per update; each gives a lesion and a normal region"""
    method: Literal["network", "gmm", "mumford_shah", "autoencoder", "brightness", "boosting"] = "network"
    """segmentation network; the proposal alone; Mumford-Shah network; reconstruction; threshold; gradient boosting"""
    target: Literal["proposal", "truth"] = "proposal"
    """what the network is trained on; truth is the supervised upper bound, on the same regions"""
    proposal: Literal["gmm", "mumford_shah", "files"] = "gmm"
    """method that makes P; mumford_shah needs --init"""
    proposal_files: Path | None = None
    """folder of <ID>.nii.gz, masks on the grid of the images, for --proposal files"""
    use_coarse: bool = True
    """coarse path: cross-entropy of lesion and normal regions"""
    use_fine: bool = True
    """fine path: contrast of lesion and normal cells"""
    grid: tuple[int, int, int] = (4, 6, 6)
    """cells of a region along z, y, x (paper: 6x6x4 in plane and depth, also 12x12x4 and 3x3x4)"""
    temperature: float = 0.2
    """tau of the contrastive loss (paper: 0.2)"""
    sim: Literal["cosine", "printed"] = "cosine"
    """similarity of embeddings: cosine, or with the sum of norms as printed, which doubles tau"""
    anchors: Literal["lesion", "both"] = "lesion"
    """cells that are anchors: lesion cells as in the formula, or normal ones too"""
    embedding: int = 128
    """length of an embedding"""
    weight_coarse: float = 0.1
    """weight of the coarse loss after the ramp"""
    weight_fine: float = 0.1
    """weight of the fine loss after the ramp"""
    ramp: float = 0.2
    """fraction of the steps over which both weights rise from 0"""
    patch: tuple[int, int, int] = (64, 96, 96)
    """voxels of a region, the network's input, along z, y, x"""
    widths: tuple[int, ...] = (32, 64, 128, 256, 320)
    """channels of the U-Net's levels"""
    norm: Literal["instance", "batch"] = "instance"
    """normalisation layers"""
    steps: int = 25000
    """updates"""
    lr: float = 1e-3
    """learning rate at the start; falls to 0 as a cosine"""
    weight_decay: float = 1e-4
    """of AdamW"""
    scale: float = 0.1
    """augmentation: zoom by up to this fraction"""
    gamma: float = 0.2
    """augmentation: exponent of the intensities within exp(± this)"""
    brightness: float = 0.1
    """augmentation: gain and offset of the intensities by up to this much"""
    flip: bool = True
    """augmentation: mirror along each axis"""
    lesion_coverage: float = 0.02
    """P covers at least this fraction of a lesion region"""
    normal_coverage: float = 0.001
    """P covers at most this fraction of a normal region"""
    brain_coverage: float = 0.6
    """the brain covers at least this fraction of a normal region"""
    cell_lesion: float = 0.5
    """P covers more than this fraction of a lesion cell"""
    cell_normal: float = 0.02
    """P covers less than this fraction of a normal cell"""
    proposal_seed: int = 0
    """of the mixture's voxels and restarts; apart from `seed`, so that P is the same in all trainings"""
    gmm_components: int | None = None
    """components of the mixture; default 5 for MRI, 4 for CT"""
    gmm_voxels: int = 50000
    """voxels that the mixture is fitted to"""
    gmm_restarts: int = 5
    """fits of the mixture, of which the likeliest is kept"""
    posterior: float = 0.9
    """P is where the lesion component is likelier than this"""
    lesion_volume: tuple[float, float] = (0.003, 0.15)
    """fraction of the brain that the lesion component may have"""
    median: int = 3
    """voxels of the median filter that cleans P and the autoencoder's residual; 1 is none"""
    opening: int = 1
    """voxels of the opening that cleans P; 0 is none"""
    smallest: float = 0.0005
    """pieces of P smaller than this fraction of the brain are dropped"""
    keep: int = 3
    """number of largest pieces of P that stay"""
    segments: int = 5
    """segments of the Mumford-Shah network"""
    length: float = 0.1
    """weight of the boundaries in the Mumford-Shah functional"""
    code: int = 128
    """length of the autoencoder's code of a region"""
    boosting_voxels: int = 100000
    """random voxels that gradient boosting is fitted to"""
    overlap: float = 0.5
    """overlap of the windows at inference"""
    test_fraction: float = 0.2
    """fraction of the cases for the test, by hash of the name"""


SMALL = {
    "patch": (16, 24, 24), "widths": (8, 16, 32), "norm": "batch", "steps": 500, "embedding": 32, "lr": 3e-3,
    "code": 64, "overlap": 0.25, "test_fraction": 0.5,
    "median": 1, "opening": 0,  # 3 and 1 voxels are 3 and 1 mm in the paper profile: less than a voxel here
}  # fmt: skip
PROFILES = {
    "smoke": {
        "patch": (8, 12, 12), "widths": (8, 16), "norm": "batch", "steps": 12, "lr": 1e-2, "embedding": 8,
        "gmm_voxels": 1000, "gmm_restarts": 1, "code": 4, "overlap": 0.0, "test_fraction": 0.34, "segments": 3,
        "boosting_voxels": 2000,
    },
    "cpu": SMALL,
    "study": SMALL,
    "paper": {"workers": 8},
}  # fmt: skip

MEANS_VOXELS = 2000  # of each volume, for the constants of the Mumford-Shah functional

ALONE = {"use_coarse": False, "use_fine": False}
VARIANTS = {
    "gmm": {"method": "gmm", **ALONE},
    "brightness": {"method": "brightness", **ALONE},
    "boosting": {"method": "boosting", **ALONE},
    "mumford_shah": {"method": "mumford_shah", **ALONE},
    "ae": {"method": "autoencoder", **ALONE},
    "backbone": ALONE,
    "global": {"use_fine": False},
    "local": {"use_coarse": False},
    "full": {},
    "full_ms": {"proposal": "mumford_shah"},
    "grid12": {"grid": (4, 12, 12)},
    "grid3": {"grid": (4, 3, 3)},
    "tau007": {"temperature": 0.07},
    "tau01": {"temperature": 0.1},
    "tau03": {"temperature": 0.3},
    "tau07": {"temperature": 0.7},
    "tau09": {"temperature": 0.9},
    "supervised": {"target": "truth", **ALONE},
}


def load_network(checkpoint: Path, device):
    """The network of a checkpoint in evaluation mode, its configuration, and the volumes that it was trained on.

    The mixture has no network and fits any volume: None, its configuration, None.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version.
    """
    from papers.cgc.networks import Scanned, build_model
    from shared.checkpoints import fitting, load_all_weights, load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "cgc")
    config = load_config(content, Config, checkpoint)
    if config.method == "gmm":
        load_all_weights([], content["models"], checkpoint)
        return None, config, None
    with fitting(checkpoint):
        scanned = Scanned((), ())
        scanned.load_state_dict(content["objects"]["scanned"])
        model = build_model(config, scanned.modalities)
    load_all_weights([model], content["models"], checkpoint)
    return model.to(device).eval(), config, scanned


def proposals_of(config: Config, volumes, device) -> list:
    """Stage 1: P of all training volumes, bool (D, H, W) each (M1). No label is opened.

    Raises:
        InputError: a mask is missing, or `--init` is no checkpoint of the Mumford-Shah network.
    """
    from tqdm import tqdm

    from papers.cgc.inference import predict_mask
    from papers.cgc.proposal import ProposalRule, gmm_proposal, read_proposal
    from shared.errors import InputError

    if config.proposal == "files":
        if config.proposal_files is None:
            raise InputError("--proposal files needs --proposal-files, a folder of <ID>.nii.gz")
        return [read_proposal(config.proposal_files / f"{case.name}.nii.gz", case) for case in volumes.cases()]
    waiting = tqdm(volumes.cases(), total=len(volumes), desc="proposals", disable=None, leave=False)
    if config.proposal == "gmm":
        return [gmm_proposal(case, ProposalRule.of(config)) for case in waiting]
    if config.init is None:
        raise InputError(f"--proposal {config.proposal} needs --init, the checkpoint of that variant")
    model, trained, scanned = load_network(config.init, device)
    if trained.method != config.proposal:
        raise InputError(f"{config.init}: expected a checkpoint of {config.proposal}, found one of {trained.method}")
    for case in volumes.cases():
        scanned.check_fits(case)
    return [predict_mask(model, trained, case, device) for case in waiting]


def train(config: Config) -> None:
    """Train on the cases of the training split; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import math

    import torch

    from papers.cgc.data import Volumes
    from papers.cgc.inference import set_threshold
    from papers.cgc.model import segmentation_loss
    from papers.cgc.mumford_shah import intensity_means, mumford_shah_loss
    from papers.cgc.networks import Scanned, build_model
    from papers.cgc.regions import Augmentation, RegionPairs, RegionRule, SingleRegions, least_size
    from shared import gpu

    volumes = Volumes(config.data, "train", config.test_fraction, least_size(config))
    scanned = Scanned(volumes.modalities, volumes[0].spacing)
    run = gpu.Run(config, paper="cgc")
    # P of the Mumford-Shah network must not come from the mixture.
    proposals = None if config.method == "mumford_shah" else proposals_of(config, volumes, run.device)
    if config.method == "gmm":
        run.restore()
        run.save()
        return
    plain = build_model(config, volumes.modalities)
    if config.method == "mumford_shah":
        plain.means.copy_(intensity_means(volumes.cases(), config.segments, MEANS_VOXELS, config.seed))
    model = run.prepare(plain)
    if config.method in ("brightness", "boosting"):
        run.restore(scanned=scanned)
        if config.method == "boosting":
            plain.remember(volumes.cases(), proposals, config.seed)
        else:
            set_threshold(plain, config, volumes.cases(), proposals, run.device)
        run.save()
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1)))
    )
    run.restore(optimizer=optimizer, scheduler=cosine, scanned=scanned)

    rule, augmentation = RegionRule.of(config), Augmentation.of(config)
    if config.method == "network":
        truth = [volumes.lesion(index) for index in range(len(volumes))] if config.target == "truth" else None
        regions = RegionPairs(volumes, proposals, rule, augmentation, truth)
    else:
        regions = SingleRegions(volumes, proposals, rule, augmentation)
    for step, batch in run.batches(regions, config.steps):
        batch = {name: values.flatten(0, 1) for name, values in batch.items()}
        parts = {}
        if config.method == "autoencoder":
            with run.autocast():
                reconstruction = model(batch["region"])
            loss = (reconstruction.float() - batch["region"]).abs().mean()
        elif config.method == "mumford_shah":
            with run.autocast():
                segments = model(batch["region"]).float().softmax(1)
            image = batch["region"][:, plain.piecewise]
            loss = mumford_shah_loss(segments, image, batch["inside"], config.length, plain.means)
        else:
            with run.autocast():
                logits, contrast = model(batch["image"], batch["mask"])
            loss = segmentation_loss(logits, batch["mask"])
            if contrast is not None:
                parts = {"segmentation": loss, "coarse": contrast.coarse, "fine": contrast.fine}
                ramp = min(1.0, (step + 1) / max(config.ramp * config.steps, 1))
                weighted = config.weight_coarse * contrast.coarse + config.weight_fine * contrast.fine
                loss = loss + ramp * weighted
        run.update(loss, optimizer, cosine, **parts)
    if config.method == "autoencoder":
        set_threshold(plain, config, volumes.cases(), proposals, run.device)
        run.save()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
