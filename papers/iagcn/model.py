"""IA-GCN: feature attention, learned population graph, graph convolutions and the loss that makes attention sparse.

Everything here works on one network and one population: x is (N, D), a row per subject.
"""

from math import log

import torch
from torch import Tensor, nn

SMALLEST_DISTANCE = 1e-9  # squared; below it the gradient of the distance is zero


class FeatureAttention(nn.Module):
    """Interpretable attention module h_M (section 2.1): x' = sigmoid(M) * x, one mask for all subjects.

    Fits in front of any network for tables:

        >>> attention = FeatureAttention(354)
        >>> attention(torch.randn(564, 354)).shape
        torch.Size([564, 354])

    Args:
        features: D, columns of the table.
        start: first value of M; 0 is an attention of 0.5.
        scatter: standard deviation of M's first values; the paper starts from a constant or from a normal distribution.
    """

    def __init__(self, features: int, start: float = 0.0, scatter: float = 0.0):
        super().__init__()
        self.start, self.scatter = start, scatter
        self.mask = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.mask, self.start, self.scatter)

    @property
    def weights(self) -> Tensor:
        """M' (D,), in 0 to 1: the attention that each feature gets."""
        return torch.sigmoid(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights


def mask_entropy(weights: Tensor) -> Tensor:
    """F_MEL of eq. 1: the sum of -m log2 m over the last axis, (..., D) in 0 to 1 -> (...).

    Not the binary entropy: it is zero at 0 and 1, and largest (0.53) at m = 1/e, not at 0.5.
    """
    return -(weights * weights.clamp_min(1e-9).log() / log(2)).sum(-1)


def mask_size(weights: Tensor) -> Tensor:
    """F_MSL of eq. 1: the sum of the attentions over the last axis, (..., D) -> (...)."""
    return weights.sum(-1)


def interpretability_loss(
    cross_entropy: Tensor, weights: Tensor, alpha: float, alpha1: float, alpha2: float, form: str = "table"
) -> Tensor:
    """Loss L of section 2.4.

    Args:
        cross_entropy: L_c, (...).
        weights: attentions M' (..., D).
        alpha: weighting factor, 0 to 1.
        alpha1: weight of the mask's entropy.
        alpha2: weight of the mask's size.
        form: "table": alpha L_c + (1 - alpha)(...), which is what table 2 of the paper shows (alpha = 0 learns
            nothing); "printed": (1 - alpha) L_c + alpha (...), as in eq. 1.
    """
    share = {"table": alpha, "printed": 1 - alpha}[form]
    return share * cross_entropy + (1 - share) * (alpha1 * mask_entropy(weights) + alpha2 * mask_size(weights))


class GraphLearning(nn.Module):
    """Graph learning module g_phi (section 2.2): an MLP embeds each subject, and near ones are connected.

    g'_ij = 1 / (1 + exp(t |x_i - x_j| + T)), with t = exp(tau) > 0 and T trained. Nothing is cut off: the sigmoid
    is the soft threshold.

    Args:
        features: D.
        hidden: units of the first layer (paper: 16).
        embedding: dimensions in which distances are taken (paper: 8).
        temperature: first value of t.
        threshold: first value of T; below 0, else the graph starts almost empty.
    """

    def __init__(
        self, features: int, hidden: int = 16, embedding: int = 8, temperature: float = 5.0, threshold: float = -2.0
    ):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, embedding))
        self.log_temperature = nn.Parameter(torch.tensor(log(temperature)))
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.register_buffer("centre", torch.zeros(embedding))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Fix centre and scale so that the embedding of x (N, D) now has mean 0 and mean norm 1."""
        embedded = self.mlp(x)
        self.centre.copy_(embedded.mean(0))
        self.scale.copy_((embedded - self.centre).norm(dim=1).mean().clamp_min(1e-6))

    def embed(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, embedding)."""
        return (self.mlp(x) - self.centre) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> G' (N, N), symmetric, each weight in 0 to 1; a subject's edge to itself is sigmoid(-T)."""
        embedded = self.embed(x)
        square = (embedded * embedded).sum(1)
        distance = (square[:, None] + square - 2 * embedded @ embedded.T).clamp_min(SMALLEST_DISTANCE).sqrt()
        return torch.sigmoid(-(self.log_temperature.exp() * distance + self.threshold))


class GraphConvolution(nn.Module):
    """Each subject gets the weighted mean of its neighbours' projected features (M5, M6), no activation.

    Args:
        inputs, outputs: features before and after.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """x (N, inputs), graph (N, N) with weights of at least 0 -> (N, outputs)."""
        return graph @ self.project(x) / graph.sum(1, keepdim=True)


class IAGCN(nn.Module):
    """IA-GCN (figure 1): attention on the features, a graph learned from all features, two graph convolutions.

        >>> network = IAGCN(features=354, classes=3)
        >>> network(torch.randn(564, 354)).shape
        torch.Size([564, 3])

    Args:
        features: D.
        classes: c.
        attention: False leaves the mask out (m' = 1): the DGM baseline, with the same graph and classifier.
        hidden: units of the two graph convolutions (paper: 32 and 16).
        graph_hidden, embedding, temperature, threshold: see `GraphLearning`.
        mask_start, mask_scatter: see `FeatureAttention`.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        attention: bool = True,
        hidden: tuple[int, int] = (32, 16),
        graph_hidden: int = 16,
        embedding: int = 8,
        temperature: float = 5.0,
        threshold: float = -2.0,
        mask_start: float = 0.0,
        mask_scatter: float = 0.0,
    ):
        super().__init__()
        self.attention = FeatureAttention(features, mask_start, mask_scatter) if attention else None
        self.graph_learning = GraphLearning(features, graph_hidden, embedding, temperature, threshold)
        self.convolution1 = GraphConvolution(features, hidden[0])
        self.convolution2 = GraphConvolution(hidden[0], hidden[1])
        self.head = nn.Linear(hidden[1], classes)

    def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor:
        """Class scores (N, c) of the subjects x (N, D).

        Args:
            edges: (N, N) of 0 and 1, edges that are allowed; None allows all.
        """
        graph = self.graph_learning(x)  # of all features, not of the attended ones (M2)
        if edges is not None:
            graph = graph * edges
        hidden = x if self.attention is None else self.attention(x)
        hidden = torch.relu(self.convolution1(hidden, graph))
        hidden = torch.relu(self.convolution2(hidden, graph))
        return self.head(hidden)


def edges_of_new_subjects(known: int, new: int) -> Tensor:
    """(N, N) of 0 and 1 for `known` subjects followed by `new` ones: nobody listens to a new subject but itself.

    So what is predicted for a subject depends neither on who else is in the file nor changes the known ones.
    """
    edges = torch.zeros(known + new, known + new)
    edges[:, :known] = 1
    edges[range(known, known + new), range(known, known + new)] = 1
    return edges
