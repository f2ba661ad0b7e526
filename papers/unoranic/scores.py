"""Linear probes on frozen embeddings (M6), and areas under the ROC curve as means over images."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the L2 penalty, of which the validation images choose


class Probe(nn.Module):
    """One linear layer on standardised embeddings (B, latent) -> logits (B, classes), in float64."""

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor):
        super().__init__()
        for name, value in {"mean": mean, "scale": scale, "weight": weight, "bias": bias}.items():
            self.register_buffer(name, value)

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.linear((embeddings.to(self.mean) - self.mean) / self.scale, self.weight, self.bias)


def fit(embeddings: Tensor, labels: Tensor, classes: int, strength: float) -> Probe:
    """Logistic regression to convergence (scikit-learn): mean cross-entropy + strength / 2 * |weights|².

    Args:
        embeddings: (N, latent) of clean or corrupted training images, on the CPU.
        labels: (N,) int64. A class that does not occur gets a probability of nearly 0.
        classes: number of logits.
        strength: of the penalty; the bias has none.
    """
    from sklearn.linear_model import LogisticRegression

    embeddings = embeddings.double()
    mean, scale = embeddings.mean(0), embeddings.std(0).clamp(min=1e-6)
    weight = torch.zeros(classes, len(mean), dtype=torch.float64)
    bias = torch.full((classes,), -30.0, dtype=torch.float64)
    known = labels.unique()
    if len(known) == 1:
        bias[known] = 0
        return Probe(mean, scale, weight, bias)
    regression = LogisticRegression(C=1 / (strength * len(labels)), tol=1e-6, max_iter=2000)
    with warnings.catch_warnings():  # a weak penalty on separable classes converges slowly; validation decides on it
        warnings.simplefilter("ignore")
        regression.fit(((embeddings - mean) / scale).numpy(), labels.numpy())
    if len(known) == 2:  # one logit: of the second class, the first one's being 0
        weight[known[1]], bias[known] = torch.from_numpy(regression.coef_[0]), 0
        bias[known[1]] = float(regression.intercept_[0])
    else:
        weight[known], bias[known] = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    return Probe(mean, scale, weight, bias)


def fit_probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int) -> Probe:
    """The probe whose penalty gives the lowest cross-entropy on validation images; both are (embeddings, labels)."""
    probes = [fit(*train, classes, strength) for strength in STRENGTHS]
    losses = [F.cross_entropy(probe(val[0]), val[1]).item() for probe in probes]
    return probes[losses.index(min(losses))]


def placements(scores: Tensor, positive: Tensor) -> Tensor:
    """The area under the ROC curve of (N,) `scores`, spread over the images: (N,) values whose mean is the area.

    A positive's placement V is the share of negatives with a lower score, ties counting half, and a negative's is
    the share of positives with a higher one; both have the area as their mean. An image's value is
    area + N / P (V - area), with the number P of its own kind, so that the variance of the mean of the values is
    that of DeLong et al. (1988). NaN if there is no positive or no negative.
    """
    scores, count = scores.double(), len(scores)
    higher, lower = scores[positive], scores[~positive]
    if not len(higher) or not len(lower):
        return torch.full((count,), torch.nan, dtype=torch.float64, device=scores.device)
    wins = (higher[:, None] > lower).double() + 0.5 * (higher[:, None] == lower).double()
    area = wins.mean()
    values = torch.empty_like(scores)
    values[positive] = area + count / len(higher) * (wins.mean(1) - area)
    values[~positive] = area + count / len(lower) * (wins.mean(0) - area)
    return values


def auc_values(probabilities: Tensor, labels: Tensor) -> Tensor:
    """`placements` of a classifier (N, classes): of class 1 if there are two, else the mean over one-against-rest of
    the classes that occur, as MedMNIST's evaluator does."""
    if probabilities.shape[1] == 2:
        return placements(probabilities[:, 1], labels == 1)
    each = [placements(probabilities[:, k], labels == k) for k in range(probabilities.shape[1])]
    return torch.stack([values for values in each if not values.isnan().any()]).mean(0)


def block_means(values: Tensor, blocks: int) -> Tensor:
    """(N,) values of images to (blocks,): equal random parts of them, always the same ones.

    The mean over blocks is the mean over images, whatever the sizes: mean + blocks / N * sum of (value - mean).
    """
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    member = torch.empty(len(values), dtype=torch.long)
    member[order] = torch.arange(len(values)) % blocks
    values = values.double().cpu()
    mean = values.mean()
    sums = torch.zeros(blocks, dtype=torch.float64).index_add_(0, member, values - mean)
    return mean + sums * blocks / len(values)
