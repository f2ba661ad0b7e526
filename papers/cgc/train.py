"""Make the proposal P, train on it with cross-grained contrast, or train an ablation or a baseline.

    python -m papers.cgc.train --data DATA --out runs/mine --profile cpu --variant full

P comes from a Gaussian mixture unless `--init` is the checkpoint of variant `gmm` (the same P, computed once) or of
variant `mumford_shah`, or `--proposal files` takes the masks of any other method.
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
    method: Literal["network", "gmm", "mumford_shah", "autoencoder"] = "network"
    """segmentation network; the proposal alone; Mumford-Shah network; reconstruction baseline"""
    target: Literal["proposal", "truth"] = "proposal"
    """what the network is trained on; truth is the supervised upper bound"""
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
    opening: int = 1
    """voxels of the opening that cleans P"""
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
    overlap: float = 0.5
    """overlap of the windows at inference"""
    test_fraction: float = 0.2
    """fraction of the cases for the test, by hash of the name"""


PROFILES = {
    "smoke": {
        "patch": (8, 12, 12), "widths": (4, 8, 8), "norm": "batch", "steps": 4, "embedding": 8, "gmm_voxels": 1000,
        "gmm_restarts": 1, "code": 4, "overlap": 0.0, "test_fraction": 0.34, "segments": 3,
    },
    "cpu": {
        "patch": (16, 24, 24), "widths": (8, 16, 32), "norm": "batch", "steps": 100, "embedding": 32, "lr": 3e-3,
        "gmm_voxels": 4000, "gmm_restarts": 2, "code": 64, "overlap": 0.25, "test_fraction": 0.334,
    },
    "paper": {"workers": 8},
}  # fmt: skip

MEANS_VOXELS = 2000  # of each volume, for the constants of the Mumford-Shah functional

ALONE = {"use_coarse": False, "use_fine": False}
VARIANTS = {
    "gmm": {"method": "gmm"},
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


def build_model(config: Config, channels: int, spacing: tuple[float, float, float], piecewise: tuple[int, ...] = (0,)):
    """The network of a configuration, on the CPU. It remembers the spacing (z, y, x) in mm that it was trained at.

    `piecewise` are the channels of the Mumford-Shah functional.
    """
    import torch

    from papers.cgc.autoencoder import AutoEncoder
    from papers.cgc.model import Segmenter, UNet3d
    from papers.cgc.mumford_shah import MumfordShahNet

    if config.method == "autoencoder":
        model = AutoEncoder(channels, config.patch, config.widths, config.code)
    elif config.method == "mumford_shah":
        model = MumfordShahNet(channels, piecewise, config.segments, config.widths, config.norm)
    else:
        cgc = {
            "grid": config.grid,
            "embedding": config.embedding,
            "temperature": config.temperature,
            "coarse": config.use_coarse,
            "fine": config.use_fine,
            "sim": config.sim,
            "anchors": config.anchors,
            "coverage": (config.lesion_coverage, config.normal_coverage),
            "cell_coverage": (config.cell_lesion, config.cell_normal),
        }
        backbone = UNet3d(channels, 2, config.widths, config.norm)
        model = Segmenter(backbone, config.patch, cgc if config.use_coarse or config.use_fine else None)
    model.register_buffer("spacing_mm", torch.tensor(spacing, dtype=torch.float64))
    return model.to(memory_format=torch.channels_last_3d)  # 1.4 times as fast on a CPU


def region_rule(config: Config):
    """Size and coverage of regions (M3)."""
    from papers.cgc.data import RegionRule

    return RegionRule(config.patch, config.lesion_coverage, config.normal_coverage, config.brain_coverage)


def proposal_rule(config: Config):
    """How P is made (M1)."""
    from papers.cgc.proposal import ProposalRule

    return ProposalRule(
        config.gmm_components,
        config.gmm_voxels,
        config.gmm_restarts,
        config.posterior,
        config.lesion_volume,
        config.opening,
        config.smallest,
        config.keep,
    )


def least_size(config: Config) -> tuple[int, ...]:
    """Volumes are padded to this size, so that the largest zoomed region fits."""
    return tuple(round(n * (1 + config.scale)) + 1 for n in config.patch)


def proposals_of(config: Config, volumes, device) -> list:
    """Stage 1: P of all training volumes, bool (D, H, W) each (M1). No label is opened.

    Raises:
        InputError: `--init` is of another method or data set, or a mask is missing.
    """
    from tqdm import tqdm

    from papers.cgc.inference import load_model, predict_mask
    from papers.cgc.proposal import Proposals, gmm_proposal, read_proposal
    from shared.checkpoints import load_checkpoint
    from shared.errors import InputError

    if config.proposal == "files":
        if config.proposal_files is None:
            raise InputError("--proposal files needs --proposal-files, a folder of <ID>.nii.gz")
        return [read_proposal(config.proposal_files / f"{case.name}.nii.gz", case) for case in cases_of(volumes)]
    if config.init is None:
        if config.proposal != "gmm":
            raise InputError(f"--proposal {config.proposal} needs --init, the checkpoint of that variant")
        rule = proposal_rule(config)
        waiting = tqdm(cases_of(volumes), total=len(volumes), desc="proposals", disable=None, leave=False)
        return [gmm_proposal(case, rule, config.seed) for case in waiting]
    content = load_checkpoint(config.init, "cgc")
    if content["config"]["method"] != config.proposal:
        raise InputError(
            f"{config.init}: expected a checkpoint whose method is {config.proposal}, found "
            f"{content['config']['method']}"
        )
    if config.proposal == "mumford_shah":
        model, trained = load_model(config.init, device)
        return [predict_mask(model, trained, case, device) for case in cases_of(volumes)]
    stored = Proposals()
    stored.load_state_dict(content["objects"]["proposals"])
    masks = []
    for case in cases_of(volumes):
        mask = stored.masks.get(case.name)
        size = [part.stop - part.start for part in case.box]
        if mask is None or list(mask.shape) != [max(n, least) for n, least in zip(size, volumes.least)]:
            raise InputError(f"{config.init}: has no proposal for {case.name}; it belongs to another data set")
        masks.append(mask)
    return masks


def cases_of(volumes):
    """All volumes of a split, one after the other."""
    return (volumes[index] for index in range(len(volumes)))


def train(config: Config) -> None:
    """Train on the cases of the training split; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import math

    import torch

    from papers.cgc.data import RegionPairs, Volumes
    from papers.cgc.model import segmentation_loss
    from papers.cgc.mumford_shah import intensity_means, mumford_shah_loss
    from papers.cgc.proposal import Proposals, channels_of
    from shared import gpu

    volumes = Volumes(config.data, "train", config.test_fraction, least_size(config))
    first = volumes[0]
    run = gpu.Run(config, paper="cgc")
    if config.method == "gmm":
        store = Proposals()
        run.restore(proposals=store)
        if not store.masks:
            store.masks = dict(zip(volumes.names, proposals_of(config, volumes, run.device)))
        for _ in run.batches(volumes, 0):
            pass
        return

    if config.method == "mumford_shah":
        masks = None  # P of another method must not come from the mixture
    elif config.target == "truth":
        masks = [volumes.lesion(index) for index in range(len(volumes))]
    else:
        masks = proposals_of(config, volumes, run.device)
    gpu.seed_everything(config.seed)  # whatever the proposals have drawn
    plain = build_model(config, first.image.shape[0], first.spacing, channels_of(first.modalities))
    if config.method == "mumford_shah":
        plain.means.copy_(intensity_means(cases_of(volumes), config.segments, MEANS_VOXELS, config.seed))
    model = run.prepare(plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1)))
    )
    run.restore(optimizer=optimizer, scheduler=cosine)

    kinds = {"network": "pair", "autoencoder": "normal", "mumford_shah": "any"}[config.method]
    regions = RegionPairs(
        volumes, masks, region_rule(config), kinds, config.scale, config.gamma, config.brightness, config.flip
    )
    for step, batch in run.batches(regions, config.steps):
        image, mask, brain = (batch[name].flatten(0, 1) for name in ("image", "mask", "brain"))
        if config.method == "autoencoder":
            with run.autocast():
                reconstruction = model(image)
            loss = (reconstruction.float() - image).abs().mean()
            run.update(loss, optimizer, cosine)
        elif config.method == "mumford_shah":
            with run.autocast():
                logits = model(image)
            loss = mumford_shah_loss(
                logits.float().softmax(1), image[:, plain.piecewise], brain, config.length, plain.means
            )
            run.update(loss, optimizer, cosine)
        else:
            ramp = min(1.0, (step + 1) / max(config.ramp * config.steps, 1))
            with run.autocast():
                logits, contrast = model(image, mask)
            segmentation = segmentation_loss(logits, mask)
            if contrast is None:
                run.update(segmentation, optimizer, cosine)
                continue
            loss = segmentation + ramp * (config.weight_coarse * contrast.coarse + config.weight_fine * contrast.fine)
            run.update(loss, optimizer, cosine, segmentation=segmentation, coarse=contrast.coarse, fine=contrast.fine)
    if config.method == "autoencoder":
        set_threshold(plain, config, volumes, masks, run.device)
        run.save()


def set_threshold(model, config: Config, volumes, masks: list, device) -> None:
    """The autoencoder's threshold: the share of brain that it marks in training is the share that P has."""
    from papers.cgc.autoencoder import residual, threshold_without_labels
    from papers.cgc.inference import reconstruct

    residuals, brains, share = [], [], []
    model.eval()
    for case, mask in zip(cases_of(volumes), masks):
        residuals.append(residual(case, reconstruct(model, config, case, device)))
        brains.append(case.brain.numpy())
        share.append(float(mask.sum() / case.brain.sum()))
    model.train()
    model.threshold.fill_(threshold_without_labels(residuals, brains, sum(share) / len(share)))


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
