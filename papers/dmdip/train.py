"""Fit the networks of each pair of sections: dmDIP, the vanilla DIP, a control; or interpolate.

python -m papers.dmdip.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """dmDIP: super-resolution of one pair of T1w and T2w sections by networks that are fitted to it alone."""

    method: Literal["dmdip", "dip", "cascade", "sinc", "bicubic"] = "dmdip"
    """dual-modal DIP, a DIP per contrast, dmDIP without its sharing, zero-filled k-space, bicubic interpolation"""
    factor: int = 4
    """r, high over low resolution along each axis (paper: 2 and 4)"""
    replace: bool = True
    """central k-space replacement in each recorded result"""
    reuse: bool = False
    """take the results of the checkpoint `init` and fit nothing: the same fits without replacement"""
    size: int = 192
    """side of the high-resolution sections [pixels]; divisible by `factor` (paper: 192)"""
    sections: int = 10
    """coronal sections of each volume (paper: 10)"""
    steps: int = 7000
    """updates for each pair (paper: 7000)"""
    snapshots: int = 70
    """results recorded over the updates, evenly (paper: every 100 updates, 70)"""
    together: int = 1
    """pairs that are fitted at once, by networks of their own (paper: 1)"""
    lr: float = 0.01
    """learning rate of Adam (paper: 0.01)"""
    channels: int = 32
    """channels of the noise z (released DIP: 32)"""
    jitter: float = 0.03
    """standard deviation of the noise that is added to z in each update (released DIP at factor 4: 0.03)"""
    width: int = 128
    """channels of all SkipNets (released DIP: 128)"""
    skip: int = 4
    """channels of their skip branches (released DIP: 4)"""
    common_blocks: int = 2
    """blocks of the trunk f1 (paper: 2)"""
    arm_blocks: int = 6
    """blocks of the arms f2 and f3 (paper: 6)"""
    dip_blocks: int = 5
    """blocks of the vanilla DIP (released DIP: 5)"""


SMALL = {
    "size": 48, "sections": 1, "together": 10, "channels": 8, "width": 16, "skip": 8, "arm_blocks": 4, "dip_blocks": 4,
    "snapshots": 30,
}  # fmt: skip
"""What the profiles `cpu` and `study` share"""

PROFILES = {
    "smoke": {
        "size": 32, "sections": 1, "together": 2, "channels": 4, "width": 4, "skip": 2, "common_blocks": 1,
        "arm_blocks": 2, "dip_blocks": 2, "steps": 4, "snapshots": 2,
    },
    "cpu": SMALL | {"steps": 250},
    "study": SMALL | {"steps": 400},
    "paper": {"precision": "float32", "checkpoint_every": 600.0},
}  # fmt: skip

VARIANTS = {
    "full": {},
    "full_raw": {"replace": False, "reuse": True},
    "dip": {"method": "dip"},
    "dip_raw": {"method": "dip", "replace": False, "reuse": True},
    "cascade": {"method": "cascade"},
    "sinc": {"method": "sinc"},
    "bicubic": {"method": "bicubic", "replace": False},
}
VARIANTS |= {f"{name}_r2": {**values, "factor": 2} for name, values in VARIANTS.items() if name != "cascade"}


def fits(config: Config) -> bool:
    """Whether there are networks at all."""
    return config.method not in ("sinc", "bicubic")


def build_networks(config: Config, pairs: int, contrasts: int = 2):
    """Untrained networks for so many pairs at once, on the CPU.

    Raises:
        InputError: one contrast and a method that needs two.
    """
    from papers.dmdip.model import DIP, Cascade, DualModalDIP

    if config.method == "dip":
        return DIP(config.channels, config.width, config.skip, config.dip_blocks, pairs, contrasts)
    if contrasts != 2:
        raise InputError(f"the method {config.method} needs two contrasts; --method dip does with one")
    kind = DualModalDIP if config.method == "dmdip" else Cascade
    return kind(config.channels, config.width, config.skip, config.common_blocks, config.arm_blocks, pairs)


def fit(config: Config, run, trajectory, low, start: dict | None = None) -> None:
    """Fit all pairs, `together` at a time, and record what the networks give on the way (equations 1 and 2).

    Args:
        config: the settings.
        run: of `shared.gpu`; holds the networks of the pairs that are being fitted, and `trajectory`.
        trajectory: `trajectory.Trajectory`, to be filled.
        low: (N, contrasts, h, w), x0 in the units of the files.
        start: weights that the networks of each pair start from instead of random ones.

    Raises:
        InputError: the images are too small for the number of blocks, or `start` gives nothing finite.
    """
    import torch

    from papers.dmdip.data import JitteredNoise, scale_of
    from papers.dmdip.model import fidelity, fixed_noise
    from shared import gpu
    from shared.checkpoints import load_weights
    from shared.finite import finite

    size = trajectory.images.shape[-2:]
    together = min(config.together, len(low))
    check_blocks(config, size)

    def networks_for(group: int):
        networks = build_networks(config, together, low.shape[1])
        if start is not None:
            return load_weights(networks, start, config.init)
        return gpu.initialise_by_name(networks, gpu.stable_seed(config.seed, group) if group else config.seed)

    networks = networks_for(0)
    forward = run.prepare(networks)
    run.prepare(trajectory)
    optimizer = torch.optim.Adam(networks.parameters(), lr=config.lr, fused=True)
    run.restore(optimizer=optimizer)
    for group, first in enumerate(range(0, len(low), together)):
        begin = group * config.steps
        if run.step >= begin + config.steps:
            continue
        if group and run.step == begin:
            networks.load_state_dict(networks_for(group).state_dict())
            optimizer.state.clear()
        members = [min(first + k, len(low) - 1) for k in range(together)]  # the last one fills an incomplete group
        z = fixed_noise(together * config.channels, size, gpu.stable_seed(config.seed, "z", group))
        own = low[members]
        noise, clean = JitteredNoise(z, config.jitter, own / scale_of(own)), z[None].to(run.device)

        if start is not None and run.step == begin:
            finite(result(run, networks, clean), f"what the weights of {config.init} give")
        due = {max(1, (k + 1) * config.steps // config.snapshots): k for k in range(config.snapshots)}
        for step, batch in run.batches(noise, begin + config.steps):
            with run.autocast():
                images = forward(batch["z"])
            run.update(fidelity(images.float(), batch["low"], config.factor), optimizer)
            if step + 1 - begin in due:
                images = result(run, networks, clean)[: len(low) - first]  # without what fills the group
                trajectory.images[first : first + together, due[step + 1 - begin]] = images
    run.save()


def result(run, networks, z):
    """What the networks give for z without jitter, (P, contrasts, H, W) float32."""
    import torch

    with torch.no_grad(), run.autocast():
        return networks(z)[0].float()


def check_blocks(config: Config, size) -> None:
    """Mirrored borders need two pixels or more at every scale.

    Raises:
        InputError: the images are too small; says which settings help.
    """
    blocks = max(config.dip_blocks if config.method == "dip" else config.arm_blocks, 1)
    if config.method != "dip":
        blocks = max(blocks, config.common_blocks)
    if -(-min(size) // 2**blocks) < 2:
        raise InputError(
            f"images of {min(size)} pixels are too small for {blocks} blocks, which halve them as often: set "
            "--arm-blocks or --dip-blocks lower, or the images larger"
        )


def train(config: Config) -> None:
    """Fit, interpolate or copy the results of all pairs; writes config.json, checkpoint.pt and log.csv."""
    from papers.dmdip.data import low_resolution, read_pairs, scale_of
    from papers.dmdip.kspace import INTERPOLATIONS
    from papers.dmdip.trajectory import Trajectory, copy_results
    from shared import gpu

    if not 1 <= config.snapshots <= config.steps:
        raise InputError(f"--snapshots {config.snapshots} must be 1 or more, and --steps {config.steps} as many")
    if min(config.together, config.sections) < 1:
        raise InputError("--together and --sections must be 1 or more")
    low = low_resolution(read_pairs(config.data, config.sections, config.size, config.factor), config.factor)
    run = gpu.Run(config, paper="dmdip")
    trajectory = Trajectory(config.snapshots if fits(config) else 1, low, config.factor)
    if config.reuse:
        networks = build_networks(config, min(config.together, len(low)))
        run.prepare(networks)
        run.prepare(trajectory)
        run.restore()
        copy_results(config, [networks, trajectory], low)
        run.save()
    elif fits(config):
        fit(config, run, trajectory, low)
    else:
        run.prepare(trajectory)
        run.restore()
        trajectory.images[:, 0] = (INTERPOLATIONS[config.method](low, config.factor) / scale_of(low)).to(run.device)
        run.save()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
