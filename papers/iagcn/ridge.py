"""The linear baseline and the conventional feature selection: ridge regression on the labels, in closed form.

Written out, since fits of this size take milliseconds and importing scikit-learn takes seconds; the tests compare
both functions with scikit-learn's RidgeClassifier and RFE.
"""

import torch
from torch import Tensor, nn


def fit_ridge(x: Tensor, label: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression on targets of +1 for a class and -1 for the others.

    Args:
        x: (n, D) features of the training subjects.
        label: (n,) integers.
        classes: c.
        penalty: weight of the squared coefficients.

    Returns:
        coefficients (D, c), intercept (c,).
    """
    x = x.double()
    target = 2.0 * nn.functional.one_hot(label, classes).double() - 1
    centre, middle = x.mean(0), target.mean(0)
    gram = (x - centre).T @ (x - centre) + penalty * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    coefficients = torch.linalg.solve(gram, (x - centre).T @ (target - middle))
    return coefficients.float(), (middle - centre @ coefficients).float()


def choose_penalty(x: Tensor, label: Tensor, classes: int, penalties: tuple[float, ...]) -> float:
    """The penalty with the fewest errors on training subjects that are left out, one in five at a time."""
    part = torch.arange(len(x), device=x.device) % 5
    errors = []
    for penalty in penalties:
        wrong = 0
        for k in range(5):
            coefficients, intercept = fit_ridge(x[part != k], label[part != k], classes, penalty)
            wrong += int(((x[part == k].float() @ coefficients + intercept).argmax(1) != label[part == k]).sum())
        errors.append(wrong)
    return penalties[errors.index(min(errors))]


def select_by_ridge(
    x: Tensor, label: Tensor, classes: int, keep: int, penalty: float = 1.0, step: float = 0.1
) -> Tensor:
    """Recursive feature elimination: fit, drop the features with the smallest squared coefficients, fit again.

    Args:
        x: (n, D) features of the training subjects.
        keep: number of features to keep.
        step: share of the D features that is dropped at a time.

    Returns:
        (keep,) columns, in ascending order.
    """
    columns = torch.arange(x.shape[1], device=x.device)
    at_once = max(1, int(step * x.shape[1]))
    while len(columns) > keep:
        coefficients, _ = fit_ridge(x[:, columns], label, classes, penalty)
        importance = (coefficients**2).sum(1)
        drop = min(at_once, len(columns) - keep)
        columns = columns[importance.argsort(stable=True)[drop:].sort().values]
    return columns


class RidgeClassifier(nn.Module):
    """Scores (N, c) of a fitted ridge regression; its weights are buffers, so nothing trains it by gradient."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(features, classes))
        self.register_buffer("intercept", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.coefficients + self.intercept
