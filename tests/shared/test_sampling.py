"""The order of the samples is a function of the step."""

import pytest

from shared import gpu
from shared.errors import InputError
from shared.sampling import StepSampler
from tests.shared.toy import Noisy, config


def test_sampler_covers_each_epoch_once_and_divides_a_batch():
    steps = list(StepSampler(12, 4, seed=1, start=0, steps=6))
    for epoch in (steps[:3], steps[3:]):
        assert sorted(index for batch in epoch for index, _ in batch) == list(range(12))
    assert steps[:3] != steps[3:]
    assert list(StepSampler(12, 4, seed=1, start=2, steps=6)) == steps[2:]
    ranks = [list(StepSampler(12, 4, 1, 0, 6, rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks)] == steps
    parts = list(StepSampler(12, 4, 1, 0, 6, accumulate=2))
    assert [parts[i] + parts[i + 1] for i in range(0, 12, 2)] == steps


def test_sampler_of_a_set_smaller_than_a_batch():
    (batch,) = StepSampler(3, 8, seed=0, start=0, steps=1)
    assert len(batch) == 8 and {index for index, _ in batch} == {0, 1, 2}


class Broken(Noisy):
    """One of its samples can't be read."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if index == 7:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error, words", [
    (InputError("scans/a.nii: truncated: expected 5 bytes"), "^scans/a.nii: truncated: expected 5 bytes$"),
    (FileNotFoundError(2, "No such file or directory", "scans/b.nii"), "No such file or directory: 'scans/b.nii'$"),
])  # fmt: skip
def test_a_broken_file_is_the_same_sentence_in_workers(tmp_path, workers, error, words):
    settings = config(tmp_path, workers=workers)
    run = gpu.Run(settings, paper="toy")
    run.restore()
    with pytest.raises((InputError, OSError), match=words) as raised:
        for _ in run.batches(Broken(error), 3):
            pass
    assert "\n" not in str(raised.value)
