"""Linear probes on frozen embeddings (M6), and areas under the ROC curve as means over images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the L2 penalty, of which the validation images choose


class Probe(nn.Module):
    """One linear layer on standardised embeddings (B, latent) -> logits (B, classes)."""

    def __init__(self, mean: Tensor, scale: Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(len(mean), classes, dtype=mean.dtype, device=mean.device)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.linear((embeddings.to(self.mean) - self.mean) / self.scale)


def fit(embeddings: Tensor, labels: Tensor, classes: int, strength: float) -> Probe:
    """Logistic regression to convergence: mean cross-entropy + strength / 2 * |weights|², by L-BFGS in float64.

    Args:
        embeddings: (N, latent) of clean or corrupted training images.
        labels: (N,) int64.
        classes: number of logits.
        strength: of the penalty; the bias has none.
    """
    embeddings = embeddings.double()
    probe = Probe(embeddings.mean(0), embeddings.std(0).clamp(min=1e-6), classes)
    nn.init.zeros_(probe.linear.weight)
    nn.init.zeros_(probe.linear.bias)
    inputs = (embeddings - probe.mean) / probe.scale
    optimizer = torch.optim.LBFGS(
        probe.linear.parameters(), max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.linear(inputs), labels) + strength / 2 * probe.linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe.requires_grad_(False)


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
