"""Short training runs for the tests, in this process and in several processes, and what is seen in them."""

import hashlib
import importlib
import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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


@dataclass
class Seen:
    """What a training did, in digests and booleans."""

    gradients: dict[str, bool] = field(default_factory=dict)
    """parameter -> whether it got a finite gradient in some step"""
    initial: dict[str, tuple] = field(default_factory=dict)
    """weight -> shape and digest before the first step"""
    source: tuple | None = None
    """samples, batch size: where these agree, the order of the samples has to"""
    batches: list[dict[str, tuple]] = field(default_factory=list)
    """of the first steps: name -> shape and digest"""


@contextmanager
def watching() -> Iterator[Seen]:
    """Look at the training that runs in this block."""
    import torch

    from shared import gpu

    seen = Seen()
    batches, step_optimizer = gpu.Run.batches, gpu.Run.step_optimizer

    def digest(value: torch.Tensor) -> tuple:
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return tuple(value.shape), hashlib.sha256(values).hexdigest()

    def look_at_batches(self, dataset, *args, **kwargs):
        first = seen.source is None
        if first:
            seen.source = (len(dataset), self.config.batch_size)
            for number, model in enumerate(self.models):
                seen.initial.update({f"{number}:{name}": digest(value) for name, value in model.named_parameters()})
        for step, batch in batches(self, dataset, *args, **kwargs):
            if first and step < 2:
                named = batch if isinstance(batch, dict) else dict(enumerate(batch))
                tensors = {str(name): value for name, value in named.items() if isinstance(value, torch.Tensor)}
                seen.batches.append({name: digest(value) for name, value in tensors.items()})
            yield step, batch

    def look_at_gradients(self, optimizer, clip=None):
        for number, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    key = f"{number}:{name}"
                    good = parameter.grad is not None and bool(parameter.grad.isfinite().all())
                    seen.gradients[key] = seen.gradients.get(key, False) or good
        return step_optimizer(self, optimizer, clip)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu.Run, "batches", look_at_batches)
        patched.setattr(gpu.Run, "step_optimizer", look_at_gradients)
        yield seen


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
