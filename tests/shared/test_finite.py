"""Predictions are finite or an error."""

import math

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.finite import finite

GOOD = [
    torch.zeros(2, 3), torch.tensor([1, 2]), torch.tensor(True), torch.zeros(0), torch.zeros(2, dtype=torch.bfloat16),
    np.zeros((2, 3)), np.array([1, 2]), np.array([], np.float32), np.float32(1.5), 3, 0.25, True, [1.0, 2.0],
]  # fmt: skip


@pytest.mark.parametrize("values", GOOD)
def test_finite_values_pass_as_they_are(values):
    assert finite(values, "the prediction") is values


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_others_are_one_sentence(bad):
    for values in (
        torch.tensor([[1.0, bad], [bad, 2.0]]), np.array([[1.0, bad], [bad, 2.0]], np.float32),
        torch.tensor([1.0, bad, bad, 2.0], dtype=torch.float16), [1.0, bad, bad, 2.0],
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^the mask of case 7 is not finite \(2 of 4 values\): .*--checkpoint"):
            finite(values, "the mask of case 7")
    for values in (bad, np.float32(bad), torch.tensor(bad)):
        with pytest.raises(InputError, match="1 of 1"):
            finite(values, "the age")
