"""The networks of a checkpoint, together with the table that they were trained on."""

from pathlib import Path

import numpy as np
import torch

from papers.iagcn.data import read_table
from papers.iagcn.folds import FoldNetworks
from papers.iagcn.preparation import Preparation, assign_folds
from papers.iagcn.train import CONTROLS, Config, build_network, graphs
from shared.checkpoints import fitting, load_all_weights, load_checkpoint, load_config
from shared.errors import InputError
from shared.finite import finite


class Trained:
    """What a checkpoint says of subjects.

    Args:
        data: the data set that it was trained on.
        checkpoint: of any variant.
        device: where the networks go.

    Raises:
        InputError: no checkpoint of this paper, or a table with other subjects, labels or features.
    """

    def __init__(self, data: Path, checkpoint: Path, device: torch.device):
        content = load_checkpoint(checkpoint, "iagcn")
        self.config, self.device = load_config(content, Config, checkpoint), device
        self.table = read_table(data, self.config.exclude, self.config.max_missing)
        self.fold_of = assign_folds(self.table, self.config.folds)
        self.preparation = Preparation(self.table, self.config.folds)
        with fitting(checkpoint):
            state = content["objects"]["preparation"]
            if state["subjects"] != self.table.digest or state["features"] != self.table.features:
                raise InputError(
                    f"{checkpoint}: was trained on other subjects or features than those of {self.table.source}; the "
                    "test folds would not be the same"
                )
            self.preparation.load_state_dict(state)
            width, classes = state["columns"].shape[1], len(self.table.classes)
            model = FoldNetworks([build_network(self.config, width, classes) for _ in range(self.config.folds)])
        load_all_weights([model], content["models"], checkpoint)
        self.networks = [model.network(fold).to(device) for fold in range(self.config.folds)]
        self.inputs = [self.preparation.inputs(self.table.x, fold).to(device) for fold in range(self.config.folds)]
        self.graphs = [None] * self.config.folds
        if self.config.method == "gcn":
            self.graphs = graphs(self.config, torch.stack(self.inputs), self.table)

    @torch.no_grad()
    def probabilities(self, fold: int) -> np.ndarray:
        """(N, c): what the fold's network says of all subjects, those that it was trained on included.

        Raises:
            InputError: some are not finite.
        """
        network, x, graph = self.networks[fold], self.inputs[fold], self.graphs[fold]
        scores = network(x) if graph is None else network(x, graph)
        return self._shares(scores, f"the prediction of fold {fold}")

    @torch.no_grad()
    def of_new(self, fold: int, x: np.ndarray, names: list[str], edges: torch.Tensor) -> np.ndarray:
        """(n, c): what the fold's network says of new subjects.

        Args:
            x: (n, D) their features, NaN where a value is missing.
            names: of the n subjects, for the error.
            edges: of the known and the new subjects, (N + n, N + n).

        Raises:
            InputError: some are not finite.
        """
        new = self.preparation.inputs(x, fold).to(self.device)
        if self.config.method in CONTROLS:
            scores = self.networks[fold](new)
        else:
            scores = self.networks[fold](torch.cat([self.inputs[fold], new]), edges)[len(self.table.rid) :]
        bad = (~scores.isfinite()).any(1).nonzero()
        subject = names[int(bad[0])] if len(bad) else names[0]
        return self._shares(scores, f"the prediction of subject {subject}")

    @staticmethod
    def _shares(scores: torch.Tensor, what: str) -> np.ndarray:
        return finite(scores.softmax(1), what).cpu().double().numpy()

    def test_probabilities(self) -> np.ndarray:
        """(N, c): each subject as seen by the one network that did not see their label."""
        found = np.zeros((len(self.table.rid), len(self.table.classes)))
        for fold in range(self.config.folds):
            inside = self.fold_of == fold
            found[inside] = self.probabilities(fold)[inside]
        return found

    def attention(self) -> np.ndarray | None:
        """(F, D): the attention M' of each fold's network, or None if the method has none."""
        if self.config.method != "iagcn":
            return None
        with torch.no_grad():
            weights = torch.stack([network.attention.weights for network in self.networks])
        return finite(weights, "the attention").cpu().double().numpy()


def importance_rows(trained: Trained) -> list[dict]:
    """A row per feature, the most important first: name, modality, mean, smallest and largest value over the folds.

    The value is the attention of IA-GCN. Methods without attention give, for each feature, the share of the folds
    in which it is an input (1 or less where features were selected).
    """
    state, attention = trained.preparation.state, trained.attention()
    kind = "attention" if attention is not None else "selected"
    values = np.zeros((trained.config.folds, len(state["features"])))
    for fold, columns in enumerate(state["columns"].numpy()):
        values[fold, columns] = 1.0 if attention is None else attention[fold]
    order = np.argsort(-values.mean(0), kind="stable")
    return [
        {
            "feature": state["features"][k],
            "modality": state["modalities"][k],
            kind: f"{values[:, k].mean():.6f}",
            "lowest": f"{values[:, k].min():.6f}",
            "highest": f"{values[:, k].max():.6f}",
        }
        for k in order
    ]
