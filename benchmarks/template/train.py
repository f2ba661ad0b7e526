"""Train the method, an ablation of it or a baseline.

python -m papers.template.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """Template: a denoiser."""

    network: Literal["denoiser", "identity", "mean"] = "denoiser"
    """the method, the input as it is, or the mean of neighbouring pixels"""
    width: int = 16
    """channels (paper: 64)"""
    depth: int = 3
    """hidden layers (paper: 17)"""
    steps: int = 300
    """updates (paper: 10000)"""
    lr: float = 1e-3
    """learning rate (paper: 1e-3)"""


PROFILES = {
    "smoke": {"width": 4, "depth": 1, "steps": 4, "batch_size": 2},
    "cpu": {"batch_size": 8},
    "study": {"steps": 1200, "batch_size": 8},
    "paper": {"width": 64, "depth": 17, "steps": 10000, "batch_size": 128},
}
VARIANTS = {
    "full": {},
    "shallow": {"depth": 0},
    "mean": {"network": "mean"},
    "input": {"network": "identity"},
}


def build_model(config: Config):
    """The network of a configuration, on the CPU."""
    from papers.template.model import Denoiser, Identity, Mean

    if config.network == "denoiser":
        return Denoiser(config.width, config.depth)
    return Mean() if config.network == "mean" else Identity()


def train(config: Config) -> None:
    """Train on the cases of `train/`; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    import torch

    from papers.template.data import TemplateDataset
    from shared import gpu

    dataset = TemplateDataset(config.data, "train")
    run = gpu.Run(config, paper="template")
    model = run.prepare(gpu.initialise_by_name(build_model(config), config.seed))  # the same weights in all variants
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters or [torch.zeros(1)], lr=config.lr, fused=True)
    run.restore(optimizer=optimizer)
    for _, batch in run.batches(dataset, config.steps if parameters else 0):
        with run.autocast():
            loss = torch.nn.functional.mse_loss(model(batch["noisy"]), batch["clean"])
        run.update(loss, optimizer)


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
