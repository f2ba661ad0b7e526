"""The other simple control: a random forest on a pixel's brightness, its surroundings and its place in the slice.

scikit-learn grows it on the M labelled patients; the module holds what was grown, so that a checkpoint does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from papers.pcl.data import Stack

BLURS_MM = (5.0, 10.0, 20.0)  # standard deviations
PIXELS = 50_000  # at most so many, drawn from all labelled slices
FEATURES = 1 + len(BLURS_MM) + 2


def pixel_features(stack: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """(Z, Y, X) to (Z * Y * X, 6) float32: brightness, three Gaussian blurs of the slice, pixels from its middle.

    Beyond the slice there are zeros, as in the padding of evaluation, so that this changes nothing inside.
    """
    from scipy.ndimage import gaussian_filter

    blurred = [gaussian_filter(stack, (0, sigma, sigma), mode="constant") for sigma in sigmas]
    middle = [np.arange(length) - (length - 1) / 2 for length in stack.shape[1:]]
    rows, columns = (np.broadcast_to(part, stack.shape) for part in np.meshgrid(*middle, indexing="ij"))
    return np.stack([stack, *blurred, rows, columns], -1).reshape(-1, FEATURES).astype(np.float32)


class Forest(nn.Module):
    """Class shares of a pixel, averaged over fitted decision trees; no weight is trained by gradient.

    Args:
        classes: with the background.
        seed: of the pixels that are drawn, and of the trees.
        trees: number of trees.
        leaves: most of a tree.
    """

    def __init__(self, classes: int, seed: int = 0, trees: int = 20, leaves: int = 4096):
        super().__init__()
        self.seed, self.leaves, nodes = seed, leaves, 2 * leaves - 1
        self.register_buffer("sigmas", torch.ones(len(BLURS_MM)))  # pixels
        self.register_buffer("feature", torch.zeros(trees, nodes, dtype=torch.int16))
        self.register_buffer("threshold", torch.full((trees, nodes), torch.inf, dtype=torch.float64))
        self.register_buffer("below", torch.zeros(trees, nodes, 2, dtype=torch.int16))  # a leaf leads to itself
        self.register_buffer("share", torch.full((trees, nodes, classes), 1 / classes))

    def fill(self, stacks: Sequence[Stack]) -> None:
        """Grow the trees on pixels of the labelled stacks, which have one in-plane spacing."""
        from sklearn.ensemble import RandomForestClassifier

        self.sigmas.copy_(torch.tensor(BLURS_MM) / stacks[0].spacing_mm[1])
        x = np.concatenate([pixel_features(stack.image, self.sigmas.tolist()) for stack in stacks])
        label = np.concatenate([stack.label.reshape(-1) for stack in stacks])
        drawn = np.random.default_rng(self.seed).permutation(len(x))[:PIXELS]
        grown = RandomForestClassifier(len(self.feature), max_leaf_nodes=self.leaves, random_state=self.seed)
        grown.fit(x[drawn], label[drawn])
        for number, tree in enumerate(estimator.tree_ for estimator in grown.estimators_):
            n, leaf = tree.node_count, tree.children_left < 0
            below = np.stack([tree.children_left, tree.children_right], 1)
            below[leaf] = np.flatnonzero(leaf)[:, None]
            self.feature[number, :n] = torch.from_numpy(np.where(leaf, 0, tree.feature).astype(np.int16))
            self.threshold[number, :n] = torch.from_numpy(np.where(leaf, np.inf, tree.threshold))
            self.below[number, :n] = torch.from_numpy(below.astype(np.int16))
            share = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
            self.share[number] = 0  # also of the classes that no pixel drawn has
            self.share[number][:n, grown.classes_.astype(int)] = torch.from_numpy(share).float()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to logits (B, classes, H, W)."""
        x = torch.from_numpy(pixel_features(image[:, 0].cpu().numpy(), self.sigmas.tolist())).to(image.device)
        total = x.new_zeros(len(x), self.share.shape[2])
        for feature, threshold, below, share in zip(self.feature, self.threshold, self.below, self.share):
            place = torch.zeros(len(x), dtype=torch.long, device=x.device)
            for _ in range(self.leaves - 1):  # the deepest that a tree can be
                value = x.gather(1, feature[place].long()[:, None])[:, 0].double()
                after = below[place, (value > threshold[place]).long()].long()
                if torch.equal(after, place):
                    break
                place = after
            total += share[place] / len(self.feature)
        return (total + 1e-3).log().reshape(len(image), *image.shape[2:], -1).permute(0, 3, 1, 2)
