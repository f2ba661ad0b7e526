"""Short training runs for the tests, in this process and in several processes."""

import importlib
import multiprocessing
import os
import socket
from pathlib import Path

from shared.cli import configure


def smoke_config(slug: str, variant: str, data: Path, out: Path, **values):
    """Configuration of the smoke profile."""
    module = importlib.import_module(f"papers.{slug}.train")
    return configure(
        module.Config,
        module.PROFILES,
        module.VARIANTS,
        "smoke",
        variant,
        data=data,
        out=out,
        device="cpu",
        **values,
    )


def train_variant(slug: str, variant: str, data: Path, out: Path, **values) -> None:
    """Train one variant with the smoke profile."""
    importlib.import_module(f"papers.{slug}.train").train(smoke_config(slug, variant, data, out, **values))


def _process(rank: int, world: int, port: int, arguments: tuple, values: dict) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    train_variant(*arguments, **values)


def train_in_processes(world: int, slug: str, variant: str, data: Path, out: Path, **values) -> None:
    """Train with `world` processes on CPU, as `torchrun` would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "shared.gpu"])
    arguments = (slug, variant, data, out)
    processes = [context.Process(target=_process, args=(rank, world, port, arguments, values)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world, f"processes ended with {codes}"
