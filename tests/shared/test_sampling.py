"""The order of the samples is a function of the step."""

from shared.sampling import StepSampler


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
