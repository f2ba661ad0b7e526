"""Train IA-GCN, an ablation of it or a baseline: one network per fold of the cross-validation, side by side.

python -m papers.iagcn.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """IA-GCN: interpretable feature attention and a learned population graph for disease prediction.

    The batch size is the number of folds: each fold's network sees all subjects at every step. With --accumulate
    the folds are worked off in several parts, which saves memory.
    """

    method: Literal["iagcn", "dgm", "gcn", "ridge", "logistic", "forest", "majority"] = "iagcn"
    """the paper's method, the same without attention, Chebyshev GCN on a fixed graph; without a graph: linear
    classifier, logistic regression, random forest, the most frequent class"""
    folds: int = 10
    """parts of the cross-validation (paper: 10)"""
    inputs: Literal["all", "ridge", "top", "rest"] = "all"
    """features to train on: all, those that ridge regression selects, the top-k of attention (needs the checkpoint of
    an IA-GCN as `init`), or all but these (table 3 of the paper: a, b, d, c)"""
    selected: int = 30
    """number of features that ridge regression selects"""
    top: int = 4
    """k of the top-k by attention (paper: 4)"""
    exclude: tuple[str, ...] = ()
    """modalities to leave out, such as cognitive"""
    named: tuple[str, ...] = ("CDRSB", "CDRSB_bl", "MMSE", "MMSE_bl")
    """features that are expected at the top (paper: CDR and MMSE, both also at baseline)"""
    max_missing: float = 0.5
    """subjects who lack a larger share of the features are left out"""
    epochs: int = 600
    """updates of each fold's network, each on all subjects (paper: 600)"""
    lr: float = 0.01
    """learning rate of Adam (paper: not given)"""
    lr_mask: float = 0.05
    """the same for the mask M"""
    weight_decay: float = 0.003
    """weight of the squared weights of the classifier (paper: not given)"""
    graph_decay: float = 0.02
    """the same for the embedding that the graph is learned in (paper: not given)"""
    alpha: float = 0.6
    """weighting factor of the loss (paper: 0.6)"""
    alpha1: float = 0.01
    """weight of the mask's entropy (paper: not given)"""
    alpha2: float = 0.01
    """weight of the mask's size (paper: not given)"""
    loss_form: Literal["table", "printed"] = "table"
    """alpha weighs the cross entropy, as table 2 shows; or the mask losses, as equation 1 is printed"""
    hidden: tuple[int, int] = (32, 16)
    """units of the two graph convolutions (paper: 32 16)"""
    graph_hidden: int = 16
    """units of the first layer of the graph learning module (paper: 16)"""
    embedding: int = 8
    """dimensions in which the distance of two subjects is taken (paper: 8)"""
    temperature: float = 5.0
    """first value of t, which makes the graph's edges steep (paper: not given)"""
    threshold: float = -2.0
    """first value of T, the threshold of the graph (paper: not given)"""
    mask_start: float = 0.0
    """first value of M (paper: a constant, or normally distributed)"""
    mask_scatter: float = 0.0
    """standard deviation of M's first values"""
    chebyshev_order: int = 3
    """degree of the largest Chebyshev polynomial of the GCN (Parisot et al.: 3)"""
    trees: int = 100
    """trees of the random forest"""
    leaves: int = 64
    """most leaves of a tree"""


PROFILES = {
    "smoke": {"folds": 2, "batch_size": 2, "epochs": 4, "selected": 8, "trees": 20, "precision": "float32"},
    "cpu": {"batch_size": 10, "epochs": 200, "precision": "float32"},
    "study": {"batch_size": 10, "epochs": 200, "precision": "float32"},
    "paper": {"batch_size": 10, "precision": "float32"},
}

# The best of six weight decays each, see README.md; what is trained on other columns has those of the same method.
GCN, GCN_ALL = {"method": "gcn", "weight_decay": 0.02}, {"method": "gcn", "weight_decay": 0.2}
DGM, DGM_ALL = {"method": "dgm", "graph_decay": 0.003}, {"method": "dgm", "graph_decay": 0.2}
VARIANTS = {
    "majority": {"method": "majority"},
    "logistic": {"method": "logistic"},
    "forest": {"method": "forest"},
    "lc_all": {"method": "ridge"},
    "lc": {"method": "ridge", "inputs": "ridge"},
    "gcn_all": GCN_ALL,
    "gcn": GCN | {"inputs": "ridge"},
    "gcn_rest": GCN_ALL | {"inputs": "rest"},
    "gcn_top": GCN | {"inputs": "top"},
    "dgm_all": DGM_ALL,
    "dgm": DGM | {"inputs": "ridge"},
    "dgm_rest": DGM_ALL | {"inputs": "rest"},
    "dgm_top": DGM | {"inputs": "top"},
    "alpha00": {"alpha": 0.0},
    "alpha02": {"alpha": 0.2},
    "alpha04": {"alpha": 0.4},
    "full": {},
    "alpha08": {"alpha": 0.8},
    "alpha10": {"alpha": 1.0},
    "no_entropy": {"alpha1": 0.0},
    "no_size": {"alpha2": 0.0},
    "forest_nocog": {"method": "forest", "exclude": ("cognitive",)},
    "lc_nocog": {"method": "ridge", "inputs": "ridge", "exclude": ("cognitive",)},
    "dgm_nocog": DGM | {"inputs": "ridge", "exclude": ("cognitive",)},
    "full_nocog": {"exclude": ("cognitive",)},
}
CONTROLS = ("ridge", "logistic", "forest", "majority")  # methods that are fitted, without a graph and without epochs


def build_network(config: Config, features: int, classes: int):
    """The network of one fold, on the CPU."""
    from papers.iagcn.chebyshev import ChebyshevGCN
    from papers.iagcn.controls import Forest, LinearClassifier
    from papers.iagcn.model import IAGCN

    if config.method == "forest":
        return Forest(config.trees, config.leaves, classes)
    if config.method in CONTROLS:
        return LinearClassifier(features, classes)
    if config.method == "gcn":
        return ChebyshevGCN(features, classes, config.hidden, config.chebyshev_order)
    return IAGCN(
        features,
        classes,
        attention=config.method == "iagcn",
        hidden=config.hidden,
        graph_hidden=config.graph_hidden,
        embedding=config.embedding,
        temperature=config.temperature,
        threshold=config.threshold,
        mask_start=config.mask_start,
        mask_scatter=config.mask_scatter,
    )


def graphs(config: Config, x, table):
    """Second argument of the networks for the inputs x (F, N, k): (F, N, N) for the GCN, else None."""
    import torch

    from papers.iagcn.chebyshev import population_graph, scaled_laplacian

    if config.method != "gcn":
        return None
    age, sex = (torch.from_numpy(values).float().to(x.device) for values in (table.age, table.sex))
    age, sex = (None if values.isnan().all() else values for values in (age, sex))
    return torch.stack([scaled_laplacian(population_graph(one, age, sex)) for one in x])


def train(config: Config) -> None:
    """Train on all folds of `data`; writes config.json, checkpoint.pt and log.csv to `config.out`.

    Raises:
        InputError: the batch size is not the number of folds, or the data or `init` can't be used.
    """
    import torch
    import torch.nn.functional as F

    from papers.iagcn.controls import fit_control
    from papers.iagcn.data import read_table
    from papers.iagcn.folds import FoldNetworks
    from papers.iagcn.model import interpretability_loss, mask_entropy, mask_size
    from papers.iagcn.preparation import Folds, assign_folds, prepare
    from shared import gpu

    if config.batch_size != config.folds:
        raise InputError(
            f"--batch-size {config.batch_size} must equal --folds {config.folds}; --accumulate saves memory"
        )
    table = read_table(config.data, config.exclude, config.max_missing)
    fold_of = assign_folds(table, config.folds)
    preparation = prepare(config, table, fold_of)
    run = gpu.Run(config, paper="iagcn")
    inputs = torch.stack([preparation.inputs(table.x, fold) for fold in range(config.folds)])
    networks = []
    for fold in range(config.folds):
        network = build_network(config, inputs.shape[2], len(table.classes))
        networks.append(gpu.initialise_by_name(network, gpu.stable_seed(config.seed, "fold", fold)))
    if config.method in ("iagcn", "dgm"):
        for network, x in zip(networks, inputs):
            network.graph_learning.calibrate(x)
    label, fold_of = torch.from_numpy(table.label), torch.from_numpy(fold_of)
    if config.method in CONTROLS:
        for fold, (network, x) in enumerate(zip(networks, inputs)):
            known = fold_of != fold
            fit_control(config.method, network, x[known].numpy(), label[known].numpy(), config.seed)
    model = FoldNetworks(networks)
    wrapped = run.prepare(model)
    if config.method in CONTROLS:
        run.restore(preparation=preparation)
        run.save()
        return

    mask = model.weights["attention/mask"] if config.method == "iagcn" else None
    optimizer = torch.optim.Adam(parameter_groups(config, model), lr=config.lr)
    run.restore(optimizer=optimizer, preparation=preparation)
    inputs, label, fold_of = (tensor.to(run.device) for tensor in (inputs, label, fold_of))
    graph = graphs(config, inputs, table)
    for _, batch in run.batches(Folds(config.folds), config.epochs):
        folds = batch["fold"]
        training = (fold_of != folds[:, None]).float()  # (n, N)
        with run.autocast():
            scores = wrapped(folds, inputs[folds], None if graph is None else graph[folds])
        errors = F.cross_entropy(scores.float().transpose(1, 2), label.expand(len(folds), -1), reduction="none")
        cross_entropy = (errors * training).sum(1) / training.sum(1)  # L_c of each fold
        losses, parts = cross_entropy, {"cross_entropy": cross_entropy.mean()}
        if mask is not None:
            attention = torch.sigmoid(mask[folds])
            losses = interpretability_loss(
                cross_entropy, attention, config.alpha, config.alpha1, config.alpha2, config.loss_form
            )
            parts |= {"mask_entropy": mask_entropy(attention).mean(), "mask_size": mask_size(attention).mean()}
        # The sum over all folds, whatever part of them is in this batch, so that each is trained as if alone.
        run.update(losses.mean() * config.folds, optimizer, **parts)


def parameter_groups(config: Config, model) -> list[dict]:
    """For the optimizer: the classifier, the graph's embedding, and what has no weight decay (t, T and the mask)."""
    groups = {
        "classifier": {"params": [], "weight_decay": config.weight_decay},
        "embedding": {"params": [], "weight_decay": config.graph_decay},
        "graph": {"params": []},
        "mask": {"params": [], "lr": config.lr_mask},
    }
    for name, parameter in model.weights.items():
        where = "classifier"
        if name.startswith("graph_learning/"):
            where = "embedding" if name.startswith("graph_learning/mlp/") else "graph"
        groups["mask" if name == "attention/mask" else where]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
