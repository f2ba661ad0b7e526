"""What a reviewer would ask for beside the networks: the paper's linear classifier, logistic regression, a random
forest, the most frequent class. scikit-learn fits them; the modules hold what was fitted, so that a checkpoint does.

Each is chosen among six settings within the training subjects of its fold.
"""

import numpy as np
import torch
from torch import Tensor, nn

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0)
"""of ridge regression"""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""of logistic regression: the inverse of the penalty"""
SHAPES = tuple((features, leaf) for features in ("sqrt", 0.1, 0.3) for leaf in (1, 3))
"""of the forest: features tried at a split, fewest subjects in a leaf"""


class LinearClassifier(nn.Module):
    """Scores (N, c) of a fitted linear model; its weights are buffers, so nothing trains it by gradient."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(features, classes))
        self.register_buffer("intercept", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, c)."""
        return x @ self.coefficients + self.intercept

    def set(self, coefficients: np.ndarray, intercept: np.ndarray) -> None:
        """Take over scikit-learn's (c, D) and (c,); of two classes it keeps the second one's alone."""
        coefficients, intercept = np.atleast_2d(coefficients), np.atleast_1d(intercept)
        if len(coefficients) < len(self.intercept):
            coefficients, intercept = np.stack([0 * coefficients[0], coefficients[0]]), np.array([0, 1]) * intercept
        self.coefficients.copy_(torch.from_numpy(coefficients.T))
        self.intercept.copy_(torch.from_numpy(intercept))


class Forest(nn.Module):
    """Scores (N, c), logarithms of the classes' shares, of a fitted forest of decision trees.

    Args:
        trees: in the forest.
        leaves: most of a tree.
        classes: c.
    """

    def __init__(self, trees: int, leaves: int, classes: int):
        super().__init__()
        nodes = 2 * leaves - 1
        self.leaves, self.depth = leaves, leaves - 1
        self.register_buffer("feature", torch.zeros(trees, nodes, dtype=torch.int16))
        self.register_buffer("threshold", torch.full((trees, nodes), torch.inf, dtype=torch.float64))
        self.register_buffer("below", torch.zeros(trees, nodes, 2, dtype=torch.int16))  # a leaf leads to itself
        self.register_buffer("share", torch.full((trees, nodes, classes), 1 / classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, c)."""
        tree, place = torch.arange(len(self.feature), device=x.device), x.new_zeros(len(x), len(self.feature)).long()
        for _ in range(self.depth):
            value = x.gather(1, self.feature[tree, place].long())
            side = (value.double() > self.threshold[tree, place]).long()
            after = self.below[tree, place, side].long()
            if torch.equal(after, place):
                break
            place = after
        return self.share[tree, place].mean(1).clamp_min(1e-6).log()

    def set(self, fitted) -> None:
        """Take over the trees of a `RandomForestClassifier` with as many trees and at most as many leaves."""
        for number, tree in enumerate(estimator.tree_ for estimator in fitted.estimators_):
            n = tree.node_count
            leaf = tree.children_left < 0
            below = np.stack([tree.children_left, tree.children_right], 1)
            below[leaf] = np.flatnonzero(leaf)[:, None]
            self.feature[number, :n] = torch.from_numpy(np.where(leaf, 0, tree.feature).astype(np.int16))
            self.threshold[number, :n] = torch.from_numpy(np.where(leaf, np.inf, tree.threshold))
            self.below[number, :n] = torch.from_numpy(below.astype(np.int16))
            share = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
            self.share[number, :n] = torch.from_numpy(share).float()


def fit_control(method: str, network: LinearClassifier | Forest, x: np.ndarray, label: np.ndarray, seed: int) -> None:
    """Fit a fold's control on its training subjects.

    Args:
        method: ridge, logistic, forest or majority.
        network: gets what was fitted.
        x: (n, D), standardised.
        label: (n,), 0 to c - 1.
        seed: of the forest and of the parts in which settings are compared.
    """
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if method == "majority":
        network.intercept.copy_(torch.from_numpy(np.log(np.bincount(label) / len(label))))
        return
    if method == "forest":
        network.set(fit_forest(x, label, len(network.feature), network.leaves, seed))
        return
    parts = StratifiedKFold(min(5, int(np.bincount(label).min())), shuffle=True, random_state=seed)
    model, grid = {
        "ridge": (RidgeClassifier(), {"alpha": PENALTIES}),
        "logistic": (LogisticRegression(max_iter=1000), {"C": STRENGTHS}),
    }[method]
    best = GridSearchCV(model, grid, scoring="accuracy", cv=parts).fit(x, label).best_estimator_
    network.set(best.coef_, best.intercept_)


def fit_forest(x: np.ndarray, label: np.ndarray, trees: int, leaves: int, seed: int):
    """The forest with the fewest errors on subjects that its trees did not draw, of those in `SHAPES`."""
    import warnings

    from sklearn.ensemble import RandomForestClassifier

    found = []
    for features, leaf in SHAPES:
        forest = RandomForestClassifier(
            trees,
            max_features=features,
            min_samples_leaf=leaf,
            max_leaf_nodes=leaves,
            oob_score=True,
            random_state=seed,
        )
        with warnings.catch_warnings():  # of subjects that every tree drew, where there are few trees
            warnings.simplefilter("ignore")
            found.append(forest.fit(x, label))
    return max(found, key=lambda forest: forest.oob_score_)


def select_by_ridge(x: np.ndarray, label: np.ndarray, keep: int) -> list[int]:
    """Conventional selection (table 3b): a ridge classifier drops a tenth of all features at a time.

    Args:
        x: (n, D) features of the training subjects.
        label: (n,).
        keep: number of features to keep.

    Returns:
        the columns that are kept, in ascending order.
    """
    from sklearn.feature_selection import RFE
    from sklearn.linear_model import RidgeClassifier

    return RFE(RidgeClassifier(), n_features_to_select=keep, step=0.1).fit(x, label).get_support(True).tolist()
