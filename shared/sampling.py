"""Which sample comes when, and with which random numbers: a function of the seed and the step alone."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shared.errors import InputError


class StepSampler:
    """Batches of (index, seed) for the steps `start` to `steps`, a function of the step number alone.

    Each epoch is a new permutation; an incomplete last batch is dropped unless the data set is smaller
    than one batch, in which case batches run on over the epochs. With several processes each takes its
    part of the global batch; with accumulation each part is yielded as a batch of its own.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int, steps: int, rank=0, world=1, accumulate=1):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.steps = start, steps
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        usable = self.length - self.length % self.batch_size if self.length >= self.batch_size else self.length
        part = self.batch_size // (self.world * self.accumulate)
        cached_epoch, order = -1, None
        for step in range(self.start, self.steps):
            batch = []
            for k in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, position = divmod(k, usable)
                if epoch != cached_epoch:
                    cached_epoch, order = (
                        epoch,
                        np.random.default_rng([self.seed, epoch]).permutation(self.length),
                    )
                batch.append((int(order[position]), k))
            mine = batch[self.rank * part * self.accumulate : (self.rank + 1) * part * self.accumulate]
            for first in range(0, len(mine), part):
                yield mine[first : first + part]


class SeededSamples(Dataset):
    """Draws sample `index` with torch, NumPy and Python seeded by (run seed, position in the sequence)."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index_and_position: tuple[int, int]):
        index, position = index_and_position
        seed = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        numpy_state, python_state, torch_state = (
            np.random.get_state(),
            random.getstate(),
            torch.get_rng_state(),
        )
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_rng_state(torch_state)


def read_batches(loader: DataLoader) -> Iterator:
    """The batches of a loader; what is wrong with a file is said in the same sentence by workers as without them.

    Raises:
        InputError, OSError: by the data set; torch puts a worker's traceback around their text.
    """
    try:
        yield from loader
    except (InputError, OSError) as error:
        if "Original Traceback" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1]
        raise InputError(last.partition(": ")[2] or last) from error
