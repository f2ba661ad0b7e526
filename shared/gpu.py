"""Devices, precision, seeds, several processes, checkpoints: what surrounds a training loop.

A paper's loop stays plain PyTorch; `Run` gives it batches and takes the loss:

    run = gpu.Run(config, paper="cdinet")
    model = run.prepare(build_model(config))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    run.restore(optimizer=optimizer)                        # --resume
    for step, batch in run.batches(dataset, config.steps):
        with run.autocast():
            loss = criterion(model(batch["image"]), batch["label"])
        run.update(loss, optimizer)                         # backward, step, log, stop if not finite

What holds for every paper that is written so:

* Batch number k is a function of (seed, k) alone, and so is every random draw made in the data set's
  `__getitem__`, for any number of processes and workers.
* A run that is stopped and resumed gives, on CPU, bit for bit the weights of one that was not.
* N processes with the same global batch follow the loss of one process (batch norm is synchronised).
* A checkpoint is complete or absent: it is written beside the old one and then renamed.
"""

import atexit
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from shared.checkpoints import (
    fitting,
    load_all_weights,
    load_checkpoint,
    load_config,
    misfit,
    misfit_of_moments,
    name_of_nan,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from shared.cli import MAY_CHANGE_ON_RESUME, RunConfig, check_settings, config_to_dict
from shared.distributed import synchronise_batch_norm
from shared.errors import InputError
from shared.files import refuse_overwriting_inputs, write_atomically
from shared.locks import Lock
from shared.sampling import SeededSamples, StepSampler, read_batches
from shared.training_log import TrainingLog


class TrainingStopped(RuntimeError):
    """The run can't go on, and the last good checkpoint was kept: a loss or weights that are not finite."""


# --- device, precision, seeds ----------------------------------------------------------------------------


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`auto` is the GPU of this process if there is one, else the CPU.

    Raises:
        InputError: a device that torch does not know or this machine does not have.
    """
    if name in ("auto", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        if name == "auto":
            return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' can't be used here: try --device cpu or --device auto") from error
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def initialise_by_name(model: nn.Module, seed: int, init: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """Initial weights that depend on the seed and on each module's name alone.

    Variants of a paper that are trained with the same seed then start from the same weights wherever names
    and shapes agree, so that their difference is the method's and not that of two draws.

    Every submodule that has `reset_parameters` is reset under a seed made of (`seed`, its name), children
    before parents; then `init` is called in the same way. What a module's `__init__` has done to its layers is
    undone by this: such a module says it in its own `reset_parameters`, or `init` does it. A parameter that
    belongs to neither keeps its value.

    Args:
        model: on the CPU, before `Run.prepare`.
        seed: of the run.
        init: the paper's own initialisation of one module, as `nn.Module.apply` takes it.

    Returns:
        the same model. The global generators go on as if nothing had been drawn.
    """

    def reset(module: nn.Module) -> None:
        for name in ("reset_parameters", "_reset_parameters"):  # the latter in nn.MultiheadAttention
            if hasattr(module, name):
                getattr(module, name)()

    children_first = list(model.named_modules())[::-1]
    with torch.random.fork_rng(devices=[]):
        for kind, function in (("reset", reset), ("init", init)):
            for name, module in children_first if function else ():
                torch.default_generator.manual_seed(stable_seed(seed, kind, name))
                function(module)
    return model


def stable_seed(*parts: int | str) -> int:
    """A seed made of numbers and names, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def set_determinism(deterministic: bool) -> None:
    """Deterministic kernels where torch has them. CPU kernels already are; on a GPU this costs speed."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.set_float32_matmul_precision("high")


def precision_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of the forward pass: `auto` is bf16 on a GPU and float32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def to_device(batch, device: torch.device):
    """Move tensors in nested dictionaries, lists and tuples; leave anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


# --- the run ---------------------------------------------------------------------------------------------


class Run:
    """One training run: its device, its processes, its folder `config.out`, the step that it is at.

    Args:
        config: the paper's configuration.
        paper: slug, written into the checkpoint and checked when one is read.

    Raises:
        InputError: the device is not there, a setting is out of range, the batch can't be divided over
            processes and accumulation steps, or the folder is in use by another training, holds a checkpoint
            (and neither `resume` nor `overwrite` is set) or is the data set itself.
    """

    def __init__(self, config: RunConfig, paper: str):
        check_settings(config)
        self.config, self.paper, self.out = config, paper, Path(config.out)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", 0)))
        self.dtype = precision_dtype(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if config.batch_size % (self.world * config.accumulate):
            raise InputError(
                f"--batch-size {config.batch_size} can't be divided into {self.world} processes "
                f"times --accumulate {config.accumulate}"
            )
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        set_determinism(config.deterministic)
        seed_everything(config.seed)
        self.step = 0
        self.models: list[nn.Module] = []
        self._wrapped: list[nn.Module] = []
        self._objects: dict[str, object] = {}
        self._rows: list[dict] = []
        self._micro = 0
        self._interrupted = False
        self._seeded = False
        self._log = TrainingLog(self.out / "log.csv")
        self._take_folder()

    @property
    def checkpoint_path(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def _take_folder(self) -> None:
        refuse_overwriting_inputs(self.out, self.config.data)
        anew = not self.config.resume
        if anew:
            refuse_overwriting_inputs(self.checkpoint_path, self.config.init)
        if anew and not self.config.overwrite and self.checkpoint_path.exists():
            raise InputError(
                f"{self.checkpoint_path} is there already: go on from it with --resume, start anew and lose it with "
                "--overwrite, or choose another --out"
            )
        if self.is_main:
            self._lock = Lock(
                self.out / ".lock",
                f"{self.out} is in use by another training: wait for it, stop it, or choose another --out",
            )
            if anew:
                self._clear_folder()

    def _clear_folder(self) -> None:
        for name in ("checkpoint.pt", "log.csv"):
            (self.out / name).unlink(missing_ok=True)
        text = json.dumps(config_to_dict(self.config), indent=2)
        write_atomically(self.out / "config.json", lambda path: path.write_text(text + "\n", "utf-8"))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move to the device; channels-last, synchronised batch norm, DistributedDataParallel, compile."""
        if self.world > 1:
            model = synchronise_batch_norm(model, self.device)
        model = model.to(self.device)
        if self.config.channels_last:
            for parameter in model.parameters():
                layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
                if layout is not None:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        self.models.append(model)
        wrapped = model
        if self.config.compile:
            wrapped = torch.compile(wrapped)
        if self.world > 1 and any(parameter.requires_grad for parameter in model.parameters()):
            ids = [self.device.index] if self.device.type == "cuda" else None
            wrapped = nn.parallel.DistributedDataParallel(
                wrapped,
                device_ids=ids,
                broadcast_buffers=False,  # batch norm is synchronised already
            )
        self._wrapped.append(wrapped)
        return wrapped

    def restore(self, **objects) -> int:
        """Register what a checkpoint must hold beside the models (anything with `state_dict`: optimizers,
        schedulers, averaged models) and, with `--resume`, load all of it.

        Returns:
            the step to go on from; 0 for a new run.
        """
        self._objects = objects
        if not self.config.resume or not self.checkpoint_path.exists():
            if self.config.resume and self.is_main:
                self._clear_folder()
            return 0
        content = load_checkpoint(self.checkpoint_path, self.paper)
        load_config(content, type(self.config), self.checkpoint_path)
        now = config_to_dict(self.config)
        changed = [
            f"{name} was {content['config'].get(name)!r} and is now {value!r}"
            for name, value in now.items()
            if name not in MAY_CHANGE_ON_RESUME and content["config"].get(name) != value
        ]
        if changed:
            raise InputError(f"{self.checkpoint_path}: can't resume with other settings: {'; '.join(changed)}")
        load_all_weights(self.models, content["models"], self.checkpoint_path)
        with fitting(self.checkpoint_path):
            self._restore_objects(content)
            if len(content["rng"]) == self.world:
                set_rng_state(content["rng"][self.rank], self.device)
                self._seeded = True
        self.step = content["step"]
        if self.is_main:
            self._log.keep(self.step)
        return self.step

    def _restore_objects(self, content: dict) -> None:
        """Optimizers, schedulers and what else was registered; anything that does not fit is a ValueError."""
        for name, item in self._objects.items():
            state = content["objects"][name]
            found = None
            if isinstance(item, torch.optim.Optimizer):
                found = misfit(item.state_dict()["param_groups"], state["param_groups"])
                found = found or misfit_of_moments(item, state)
            elif isinstance(item, nn.Module | torch.optim.lr_scheduler.LRScheduler):
                found = misfit(item.state_dict(), state)
            if found:
                raise ValueError(f"{name}: {found}")
            item.load_state_dict(state)
        if found := misfit(self.scaler.state_dict(), content["scaler"]):
            raise ValueError(f"scaler: {found}")
        self.scaler.load_state_dict(content["scaler"])

    def save(self) -> None:
        """Write the checkpoint, after making sure that every loss up to here and the weights are finite."""
        self._flush_log()
        name = name_of_nan([model.state_dict() for model in self.models])
        if name is not None:
            raise TrainingStopped(f"the weights {name} became nan by step {self.step}; {self._what_is_kept()}")
        rng = [rng_state(self.device)]
        if self.world > 1:
            gathered = [None] * self.world
            dist.all_gather_object(gathered, rng[0])
            rng = gathered
        if self.is_main:
            content = {
                "paper": self.paper,
                "config": config_to_dict(self.config),
                "step": self.step,
                "models": [model.state_dict() for model in self.models],
                "objects": {name: item.state_dict() for name, item in self._objects.items()},
                "scaler": self.scaler.state_dict(),
                "rng": rng,
            }
            save_checkpoint(self.checkpoint_path, content)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context of the forward pass: autocast to the run's precision; nothing for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batches(self, dataset: Dataset, steps: int, collate=default_collate) -> Iterator[tuple[int, dict]]:
        """Yield (step, batch on the device) from the current step up to `steps`, and look after the run:
        progress bar, checkpoints, Ctrl-C and SIGTERM, the last checkpoint.

        With `accumulate` n each step is yielded n times, with another part of the batch. Call it again
        with a larger `steps` for a further phase of the training (another data set, say).

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
            TrainingStopped: a loss was not finite; the last good checkpoint is kept.
        """
        from tqdm import tqdm

        config = self.config
        if not self._seeded:  # so that variants with other weights draw the same numbers in the loop
            seed_everything(stable_seed(config.seed, "loop", self.step))
            self._seeded = True
        sampler = StepSampler(
            len(dataset),
            config.batch_size,
            config.seed,
            self.step,
            steps,
            self.rank,
            self.world,
            config.accumulate,
        )
        loader = DataLoader(
            SeededSamples(dataset, config.seed),
            batch_sampler=sampler,
            num_workers=config.workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader would draw from the run's random numbers
        )
        quiet = not sys.stderr.isatty() or not self.is_main
        row = int(os.environ.get("PROGRESS_ROW", 0))  # several trainings may share a terminal
        bar = tqdm(
            total=steps,
            initial=self.step,
            desc=config.variant,
            unit="step",
            disable=quiet,
            leave=False,
            position=row,
        )
        self._saved_at = time.monotonic()
        with self._interruptible(), bar:
            for position, batch in enumerate(read_batches(loader)):
                self._micro = position % config.accumulate
                last = self._micro == config.accumulate - 1
                for wrapped in self._wrapped:
                    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
                        wrapped.require_backward_grad_sync = last
                yield self.step, to_device(batch, self.device)
                if not last:
                    continue
                self.step += 1
                self._after_step(bar)
            if self.step == steps:
                self.save()

    def _after_step(self, bar) -> None:
        if self.device.type == "cpu" or self.step % 20 == 0:
            losses = self._flush_log()
            bar.set_postfix_str(losses, refresh=False)
        bar.update()
        stop = self._interrupted
        due = time.monotonic() - self._saved_at > self.config.checkpoint_every
        if self.world > 1:  # all processes must decide alike
            flags = torch.tensor([float(stop), float(due)], device=self.device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            stop, due = bool(flags[0]), bool(flags[1])
        if stop or due:
            self.save()
            self._saved_at = time.monotonic()
        if stop:
            raise KeyboardInterrupt(f"stopped after step {self.step}, and {self.checkpoint_path} is written")

    @contextlib.contextmanager
    def _interruptible(self):
        """Ctrl-C and SIGTERM set a flag that is looked at after each step; a second Ctrl-C stops at once."""

        def on_signal(number, frame):
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        try:
            old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: leave signals alone
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def update(self, loss: Tensor, optimizer, scheduler=None, *, clip: float | None = None, name="loss", **parts):
        """Backward pass and, at the last accumulation part, one step of optimizer and scheduler.

        Args:
            loss: mean loss of this part of the batch.
            clip: largest norm of the gradient, if it is to be clipped.
            name: column of `loss` in log.csv; give another for a second optimizer in the same step.
            **parts: tensors or numbers for further columns.
        """
        self.scaler.scale(loss / self.config.accumulate).backward()
        self._record(name, loss)
        for key, value in parts.items():
            self._record(key, value)
        if self._micro < self.config.accumulate - 1:
            return
        self.step_optimizer(optimizer, clip)
        if scheduler is not None:
            scheduler.step()

    def step_optimizer(self, optimizer, clip: float | None = None) -> None:
        if clip is not None:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    # The log. Values stay on the device until a flush, so that a GPU is not made to wait at every step.

    def _record(self, key: str, value) -> None:
        if not self._rows or self._rows[-1]["step"] != self.step + 1:
            self._rows.append({"step": self.step + 1})
        value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
        self._rows[-1].setdefault(key, []).append(value)

    def _flush_log(self) -> str:
        """Write the waiting rows; average them over accumulation parts and processes first."""
        rows, self._rows = self._rows, []
        written = []
        for row in rows:
            values = {key: torch.stack(value).mean() for key, value in row.items() if key != "step"}
            if self.world > 1:
                stacked = torch.stack([value.to(self.device) for value in values.values()])
                dist.all_reduce(stacked)
                values = dict(zip(values, stacked / self.world))
            written.append({"step": row["step"], **{key: value.item() for key, value in values.items()}})
        if self.is_main and written:
            self._log.append(written)
        for row in written:
            for key, value in row.items():
                if not math.isfinite(value):
                    raise TrainingStopped(f"{key} became {value} at step {row['step']}; {self._what_is_kept()}")
        if not written:
            return ""
        return ", ".join(f"{key} {value:.4g}" for key, value in written[-1].items() if key != "step")

    def _what_is_kept(self) -> str:
        if self.checkpoint_path.exists():
            return f"the checkpoint {self.checkpoint_path} of an earlier step is kept"
        return "no checkpoint had been written yet"
