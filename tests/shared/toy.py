"""A small training with dropout, batch norm, augmentation and a scheduler, for the tests of `shared/`.

python -m tests.shared.toy --data DATA --out OUT
"""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared import gpu
from shared.checkpoints import load_checkpoint
from shared.cli import RunConfig, train_command


@dataclass
class Config(RunConfig):
    """A toy configuration."""

    steps: int = 8
    """updates"""
    dropout: float = 0.3
    """dropout probability"""
    poison: int = -1
    """step whose loss becomes NaN"""
    pause: float = 0.0
    """seconds of rest in each step"""


PROFILES = {"smoke": {"batch_size": 4, "steps": 4}, "cpu": {"batch_size": 4}, "paper": {"batch_size": 4}}
VARIANTS = {"full": {}, "dry": {"dropout": 0.0}}


class Noisy(torch.utils.data.Dataset):
    """Samples with random augmentation, drawn with torch and NumPy."""

    def __init__(self, length=12):
        self.x = torch.randn(length, 5, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(5) + 0.1 * torch.from_numpy(np.random.randn(5).astype(np.float32))
        return {"x": self.x[index] + noise, "y": self.x[index].sum(), "index": index}


class Net(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)
        )

    def forward(self, x):
        return self.layers(x)[:, 0]


def build_model(config):
    return Net(config.dropout)


def train(config, seen=None, interrupt_at=None):
    run = gpu.Run(config, paper="toy")
    model = run.prepare(build_model(config))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    run.restore(optimizer=optimizer, scheduler=scheduler)
    for step, batch in run.batches(Noisy(), config.steps):
        with run.autocast():
            loss = (model(batch["x"]) - batch["y"]).square().mean()
        if step == config.poison:
            loss = loss * float("nan")
        run.update(loss, optimizer, scheduler)
        time.sleep(config.pause)
        if seen is not None:
            seen.append((step, batch["index"].tolist(), batch["x"].sum().item()))
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
    return run


def config(tmp_path, name="run", **values):
    values = {"batch_size": 4, "device": "cpu", **values}
    return Config(data=tmp_path, out=tmp_path / name, **values)


def weights(folder):
    return load_checkpoint(Path(folder) / "checkpoint.pt", "toy")


def same(a, b):
    return all(torch.equal(a["models"][0][key], b["models"][0][key]) for key in a["models"][0])


def _process(rank, world, port, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(rank, *arguments)


def in_processes(function, *arguments, world=2):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "shared.gpu"])
    processes = [context.Process(target=_process, args=(r, world, port, function, arguments)) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world


def main(argv=None):
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
