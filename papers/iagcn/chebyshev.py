"""The fixed-graph baseline: Chebyshev graph convolutions on a population graph (Parisot et al., MICCAI 2017)."""

import torch
from torch import Tensor, nn


def population_graph(x: Tensor, age: Tensor | None = None, sex: Tensor | None = None) -> Tensor:
    """Affinity of subjects: similarity of their features, times in how many of age and sex they agree.

    exp(-r^2 / (2 s^2)) with the correlation distance r and its mean s; ages agree within two years. Without age and
    sex, similarity alone. Nobody is their own neighbour.

    Args:
        x: (N, D) features.
        age: (N,) years; NaN agrees with nobody.
        sex: (N,) any coding; NaN agrees with nobody.

    Returns:
        (N, N), at least 0, symmetric.
    """
    centred = x - x.mean(1, keepdim=True)
    centred = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
    distance = (1 - centred @ centred.T).clamp_min(0)
    affinity = torch.exp(-(distance**2) / (2 * distance.mean().clamp_min(1e-6) ** 2))
    agreements = []
    if age is not None:
        agreements.append(((age[:, None] - age).abs() <= 2).float())
    if sex is not None:
        agreements.append((sex[:, None] == sex).float())
    if agreements:
        affinity = affinity * sum(agreements)
    return affinity * (1 - torch.eye(len(x), device=x.device))


def scaled_laplacian(affinity: Tensor) -> Tensor:
    """2 L / l_max - 1 of the normalised Laplacian L, with its largest possible l_max = 2: that is -D^-1/2 A D^-1/2."""
    root = affinity.sum(1).clamp_min(1e-9).rsqrt()
    return -root[:, None] * affinity * root


class ChebyshevConvolution(nn.Module):
    """sum_k T_k(L) x W_k over the Chebyshev polynomials T_0 to T_order, by Clenshaw's recurrence.

    Args:
        inputs, outputs: features before and after.
        order: degree of the largest polynomial.
    """

    def __init__(self, inputs: int, outputs: int, order: int = 3):
        super().__init__()
        self.order = order
        self.project = nn.Linear(inputs, outputs * (order + 1), bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """x (N, inputs), laplacian (N, N) scaled to [-1, 1] -> (N, outputs)."""
        terms = self.project(x).chunk(self.order + 1, dim=1)  # x W_0, ..., x W_order: fewer columns than x
        later, last = torch.zeros_like(terms[0]), terms[-1]
        for term in terms[-2:0:-1]:
            later, last = last, term + 2 * laplacian @ last - later
        if self.order == 0:
            return last + self.bias
        return terms[0] + laplacian @ last - later + self.bias


class ChebyshevGCN(nn.Module):
    """Two Chebyshev convolutions and a linear head, of the same widths as the classifier of IA-GCN."""

    def __init__(self, features: int, classes: int, hidden: tuple[int, int] = (32, 16), order: int = 3):
        super().__init__()
        self.convolution1 = ChebyshevConvolution(features, hidden[0], order)
        self.convolution2 = ChebyshevConvolution(hidden[0], hidden[1], order)
        self.head = nn.Linear(hidden[1], classes)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """x (N, D), laplacian (N, N) from `scaled_laplacian` -> class scores (N, c)."""
        hidden = torch.relu(self.convolution1(x, laplacian))
        hidden = torch.relu(self.convolution2(hidden, laplacian))
        return self.head(hidden)
