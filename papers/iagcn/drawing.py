"""The parts of the panel: accuracies, attentions and graphs of trained networks."""

import numpy as np
import torch

from papers.iagcn.scores import accuracy
from papers.iagcn.trained import Trained, importance_rows
from shared.figures import Picture

COLOURS = {"cognitive": "tab:red", "MRI": "tab:blue", "PET": "tab:orange", "DTI": "tab:green", "CSF": "tab:purple"}


def draw_accuracies(axis, loaded: list[Trained]) -> None:
    """Boxes: accuracy of the test folds, one per checkpoint."""
    by_fold = []
    for trained in loaded:
        p, label, fold_of = trained.test_probabilities(), trained.table.label, trained.fold_of
        by_fold.append([accuracy(label[fold_of == k], p[fold_of == k]) for k in range(trained.config.folds)])
    axis.boxplot(by_fold, orientation="horizontal", showmeans=True)
    axis.set_yticks(range(1, len(loaded) + 1), [trained.config.variant for trained in loaded], fontsize=7)
    majority = 100 * np.bincount(loaded[0].table.label).max() / len(loaded[0].table.label)
    axis.axvline(majority, color="gray", linestyle=":", linewidth=1)
    axis.invert_yaxis()
    axis.set_title("accuracy of the test folds [%]\n(dotted: share of the largest class)", fontsize=8)


def short_name(feature: str) -> str:
    """A column's name without the name and date of the table that it was merged from."""
    for mark in ("_UCSFFSX", "_DTIROI", "_UPENNBIOMK9"):
        feature = feature.split(mark)[0]
    return feature


def draw_importances(axis, trained: Trained, shown: int = 14) -> None:
    """Bars: mean attention of the features with the most of it, with the range over folds."""
    from matplotlib.patches import Patch

    rows = importance_rows(trained)[:shown]
    mean, low, high = ([float(row[key]) for row in rows] for key in ("attention", "lowest", "highest"))
    colours = [COLOURS.get(row["modality"], "tab:gray") for row in rows]
    spread = [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]]
    axis.barh(range(len(rows)), mean, color=colours, xerr=spread, error_kw={"linewidth": 0.7})
    axis.set_yticks(range(len(rows)), [short_name(row["feature"]) for row in rows], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title(f"{trained.config.variant}: attention, mean\nand range over the folds", fontsize=8)
    present = dict.fromkeys(row["modality"] for row in rows)
    axis.legend(
        handles=[Patch(color=COLOURS.get(m, "tab:gray"), label=m) for m in present], fontsize=6, loc="lower right"
    )


def draw_attention_by_size(axis, loaded: list[Trained]) -> None:
    """Curves: attention of all features in falling order, one per IA-GCN."""
    for trained in loaded:
        values = np.sort(trained.attention(), axis=1)[:, ::-1].mean(0)
        axis.plot(range(1, len(values) + 1), values, label=f"{trained.config.variant} (α = {trained.config.alpha:g})")
    axis.set_xscale("log")
    axis.set_xlabel("features, in falling order", fontsize=7)
    axis.set_title("attention", fontsize=8)
    axis.legend(fontsize=6)


def picture_of_graph(trained: Trained, fold: int) -> Picture:
    """Edge weights of a fold's graph, subjects in the order of their diagnosis, 0 to 1 or to the 99th percentile."""
    order = np.argsort(trained.table.label, kind="stable")
    if trained.config.method == "gcn":
        graph = -trained.graphs[fold]
    else:
        with torch.no_grad():
            graph = trained.networks[fold].graph_learning(trained.inputs[fold])
    weights = graph.cpu().numpy()[np.ix_(order, order)]
    top = float(np.quantile(weights, 0.99)) or 1.0 if trained.config.method == "gcn" else 1.0
    return Picture(weights, window=(0.0, top))


def mark_classes(axis, trained: Trained) -> None:
    """Lines between the diagnoses."""
    for end in np.cumsum(np.bincount(trained.table.label))[:-1]:
        axis.axhline(end - 0.5, color="white", linewidth=0.6)
        axis.axvline(end - 0.5, color="white", linewidth=0.6)
