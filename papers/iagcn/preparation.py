"""The folds of the cross-validation, and how the table becomes each fold's input: scaled, with the columns chosen."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.iagcn.data import Table
from shared.checkpoints import fitting, load_checkpoint, misfit
from shared.errors import InputError


def assign_folds(table: Table, folds: int) -> np.ndarray:
    """Fold (N,) in which each subject is tested: that of folds.csv, or each class dealt out in random order.

    The deal is the same for all methods and seeds.

    Raises:
        InputError: folds.csv names other folds or lacks a subject, or a class is too small.
    """
    if table.fold is not None:
        lacking = [rid for rid in table.rid if rid not in table.fold]
        if lacking:
            raise InputError(f"{table.source.parent / 'folds.csv'}: has no fold for subject {lacking[0]}")
        fold = np.array([table.fold[rid] for rid in table.rid])
        if set(fold.tolist()) != set(range(folds)):
            raise InputError(
                f"{table.source.parent / 'folds.csv'}: expected folds 0 to {folds - 1}, found "
                f"{sorted(set(fold.tolist()))}; --folds and --batch-size set their number"
            )
        return fold
    smallest = np.bincount(table.label).min()
    if smallest < folds:
        raise InputError(f"{table.source}: its smallest class has {smallest} subjects, too few for {folds} folds")
    rng, fold, dealt = np.random.default_rng(0), np.zeros(len(table.rid), dtype=np.int64), 0
    for label in range(len(table.classes)):
        members = rng.permutation(np.flatnonzero(table.label == label))
        fold[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return fold


class Preparation:
    """How the table becomes each fold's input: which columns, and their mean and scatter in its training subjects.

    Part of the checkpoint.
    """

    def __init__(self, table: Table, folds: int):
        self.state = {
            "features": list(table.features),
            "modalities": list(table.modalities),
            "classes": list(table.classes),
            "subjects": table.digest,
            "mean": torch.zeros(folds, len(table.features), dtype=torch.float64),
            "scatter": torch.ones(folds, len(table.features), dtype=torch.float64),
            "columns": torch.arange(len(table.features)).expand(folds, -1).clone(),
        }

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        """Take over a state, of as many folds.

        Raises:
            ValueError: it is not built like this one, or names columns that are not there.
        """
        columns = state["columns"]
        found = misfit({**self.state, "columns": columns}, state)
        if found or columns.dim() != 2 or len(columns) != len(self.state["columns"]):
            raise ValueError(found or f"its columns are {tuple(columns.shape)}")
        if not 0 <= int(columns.min()) <= int(columns.max()) < len(state["features"]):
            raise ValueError("it names columns that are not there")
        self.state = dict(state)

    def fit(self, x: np.ndarray, fold: int) -> None:
        """Mean and standard deviation of the training subjects x (n, D); 0 and 1 where no value, or one, is known."""
        known = np.isfinite(x)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, x, 0).sum(0) / count
        scatter = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(0) / count)
        self.state["mean"][fold] = torch.from_numpy(mean)
        self.state["scatter"][fold] = torch.from_numpy(np.where(scatter > 1e-12 * np.abs(mean), scatter, 1.0))

    def standardise(self, x: np.ndarray, fold: int) -> Tensor:
        """(n, D) with NaN -> (n, D) float32 of all features; a missing value becomes the mean, that is 0."""
        scaled = (torch.from_numpy(x) - self.state["mean"][fold]) / self.state["scatter"][fold]
        return torch.nan_to_num(scaled, nan=0.0).float()

    def inputs(self, x: np.ndarray, fold: int) -> Tensor:
        """The same, of the columns that the fold's network sees: (n, k)."""
        return self.standardise(x, fold)[:, self.state["columns"][fold]]

    def names(self, fold: int) -> list[str]:
        """Names of those columns."""
        return [self.state["features"][k] for k in self.state["columns"][fold].tolist()]


class Folds(Dataset):
    """The numbers of the folds, which is what a batch holds; all else lies on the device already."""

    def __init__(self, folds: int):
        self.folds = folds

    def __len__(self) -> int:
        return self.folds

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.folds:
            raise IndexError(index)
        return {"fold": index}


def prepare(config, table: Table, fold_of: np.ndarray) -> Preparation:
    """Standardisation and choice of features of each fold, from its training subjects alone (M9)."""
    from papers.iagcn.controls import select_by_ridge

    preparation = Preparation(table, config.folds)
    chosen = []
    for fold in range(config.folds):
        training = fold_of != fold
        preparation.fit(table.x[training], fold)
        if config.inputs == "ridge":
            x = preparation.standardise(table.x[training], fold).numpy()
            keep = min(config.selected, len(table.features))
            chosen.append(select_by_ridge(x, table.label[training], keep))
    if config.inputs in ("top", "rest"):
        chosen = top_by_attention(config, table).tolist()
    if config.inputs == "rest":
        chosen = [[k for k in range(len(table.features)) if k not in top] for top in chosen]
    if chosen:
        preparation.state["columns"] = torch.tensor(chosen)
    return preparation


def top_by_attention(config, table: Table) -> Tensor:
    """(F, k) columns with the largest attention in each fold of the IA-GCN in `config.init`.

    The fold's own network decides, so the labels of its test subjects have no part in the choice.

    Raises:
        InputError: no checkpoint, one without attention, or one of other subjects, features or folds.
    """
    if config.init is None:
        raise InputError(
            "this variant needs the attention of an IA-GCN: give the checkpoint of variant 'full' as --init"
        )
    content = load_checkpoint(config.init, "iagcn")
    with fitting(config.init):
        mask = content["models"][0].get("weights.attention/mask")
        if mask is None:
            raise InputError(
                f"{config.init}: variant '{content['config']['variant']}' has no attention; give one of 'full'"
            )
        state, shape = content["objects"]["preparation"], (config.folds, len(table.features))
        same = state["subjects"] == table.digest and state["features"] == table.features and mask.shape == shape
        if not same:
            raise InputError(
                f"{config.init}: was trained on other subjects, features or folds than those of {table.source}"
            )
        return mask.argsort(dim=1, descending=True, stable=True)[:, : config.top].sort(dim=1).values
