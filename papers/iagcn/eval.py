"""Evaluate per fold, draw the panel, predict new subjects of a table.

python -m papers.iagcn.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.iagcn.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.iagcn.eval apply --checkpoint RUN/checkpoint.pt --data DATA --input new.csv --output predictions.csv
"""

import csv
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

COLOURS = {"cognitive": "tab:red", "MRI": "tab:blue", "PET": "tab:orange", "DTI": "tab:green", "CSF": "tab:purple"}


class Trained:
    """The networks of a checkpoint, with the table that they were trained on.

    Raises:
        InputError: no checkpoint of this paper, or a table with other subjects, labels or features.
    """

    def __init__(self, data: Path, checkpoint: Path, device):
        import torch

        from papers.iagcn.data import Preparation, assign_folds, read_table
        from papers.iagcn.folds import FoldNetworks
        from papers.iagcn.train import Config, build_network, graphs
        from shared.checkpoints import load_checkpoint, load_config

        content = load_checkpoint(checkpoint, "iagcn")
        self.config = load_config(content, Config, checkpoint)
        self.table = read_table(data, self.config.exclude, self.config.max_missing)
        self.preparation = Preparation(self.table, self.config.folds)
        self.preparation.load_state_dict(content["objects"]["preparation"])
        state = self.preparation.state
        if state["subjects"] != self.table.digest or state["features"] != self.table.features:
            raise InputError(
                f"{checkpoint}: was trained on other subjects or features than those of {self.table.source}; the test "
                "folds would not be the same"
            )
        self.fold_of = assign_folds(self.table, self.config.folds)
        width, classes, self.device = state["columns"].shape[1], len(state["classes"]), device
        networks = [build_network(self.config, width, classes) for _ in range(self.config.folds)]
        model = FoldNetworks(networks)
        model.load_state_dict(content["models"][0])
        self.networks = [model.network(fold).to(device) for fold in range(self.config.folds)]
        self.inputs = [self.preparation.inputs(self.table.x, fold).to(device) for fold in range(self.config.folds)]
        self.graphs = [None] * self.config.folds
        if self.config.method == "gcn":
            self.graphs = graphs(self.config, torch.stack(self.inputs), self.table)

    def probabilities(self, fold: int):
        """(N, c) array: what the fold's network says of all subjects, those that it was trained on included."""
        import torch

        graph = self.graphs[fold]
        with torch.no_grad():
            network, x = self.networks[fold], self.inputs[fold]
            scores = network(x) if graph is None else network(x, graph)
        return scores.softmax(1).cpu().double().numpy()

    def test_probabilities(self):
        """(N, c) array: each subject as seen by the one network that did not see their label."""
        import numpy as np

        found = np.zeros((len(self.table.rid), len(self.table.classes)))
        for fold in range(self.config.folds):
            inside = self.fold_of == fold
            found[inside] = self.probabilities(fold)[inside]
        return found

    def attention(self):
        """(F, D) array: the attention M' of each fold's network, or None if the method has none."""
        import numpy as np
        import torch

        if self.config.method != "iagcn":
            return None
        with torch.no_grad():
            return np.stack([network.attention.weights.cpu().double().numpy() for network in self.networks])


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV, atomically."""
    from shared.files import write_atomically

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(Path(path), write)


def importance_rows(trained: Trained) -> list[dict]:
    """A row per feature, the most important first: name, modality, mean, smallest and largest value over the folds.

    The value is the attention of IA-GCN. Methods without attention give, for each feature, the share of the folds
    in which it is an input (1 or less where features were selected).
    """
    import numpy as np

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


def prediction_rows(rids: list[str], probability, classes: list[str]) -> list[dict]:
    """A row per subject: the most probable class and all probabilities."""
    return [
        {"RID": rid, "prediction": classes[row.argmax()], **{f"p({c})": f"{p:.6f}" for c, p in zip(classes, row)}}
        for rid, row in zip(rids, probability)
    ]


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv, a row per fold; predictions.csv, what each subject gets when tested; importances.csv.

    Columns of metrics.csv: acc, auc, f1 in percent on the fold's test subjects; constant, percent of them that get
    the class that most of them get (100: the same answer for all); for IA-GCN avg4 and avgo, mean attention of the
    top features and of the others, and hits, how many of the expected features are at the top.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for the three files.
        device: auto, cpu, cuda, ...
    """
    import numpy as np

    from papers.iagcn.scores import accuracy, attention_scores, auc, macro_f1
    from shared.gpu import choose_device

    trained = Trained(data, checkpoint, choose_device(device))
    config, table, attention = trained.config, trained.table, trained.attention()
    probability, rows = trained.test_probabilities(), []
    for fold in range(config.folds):
        inside = trained.fold_of == fold
        label, p = table.label[inside], probability[inside]
        row = {"case": f"fold{fold:02d}", "acc": accuracy(label, p), "auc": auc(label, p), "f1": macro_f1(label, p)}
        row["constant"] = 100 * np.bincount(p.argmax(1)).max() / len(p)
        row |= {"avg4": "", "avgo": "", "hits": ""}
        if attention is not None:
            row |= attention_scores(attention[fold], trained.preparation.names(fold), config.named, config.top)
        rows.append(row)
    write_csv(Path(out) / "importances.csv", importance_rows(trained))
    predictions = prediction_rows(table.rid, probability, list(table.classes))
    for row, fold, label in zip(predictions, trained.fold_of, table.label):
        row |= {"fold": int(fold), "DX": table.classes[label]}
    write_csv(Path(out) / "predictions.csv", predictions)
    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw what a reader must see: above, each checkpoint's accuracy by fold, the most important features of the
    first IA-GCN, and the mean attention of each modality; below, the graph of up to four checkpoints, subjects in
    the order of their diagnosis and test subjects marked.

    Args:
        data: the data set.
        checkpoints: of any variants.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the fold whose graph is drawn.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.iagcn.scores import accuracy
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [Trained(data, path, where) for path in checkpoints]
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4), gridspec_kw={"width_ratios": [1.1, 1.1, 1, 1]})

    axis, by_fold = axes[0, 0], []
    for trained in loaded:
        p, label, fold_of = trained.test_probabilities(), trained.table.label, trained.fold_of
        by_fold.append([accuracy(label[fold_of == k], p[fold_of == k]) for k in range(trained.config.folds)])
    axis.boxplot(by_fold, orientation="horizontal", showmeans=True)
    axis.set_yticks(range(1, len(loaded) + 1), [trained.config.variant for trained in loaded], fontsize=7)
    majority = 100 * np.bincount(loaded[0].table.label).max() / len(loaded[0].table.label)
    axis.axvline(majority, color="gray", linestyle=":", linewidth=1)
    axis.invert_yaxis()
    axis.set_title("accuracy of the test folds [%]\n(dotted: share of the largest class)", fontsize=8)

    with_attention = [trained for trained in loaded if trained.config.method == "iagcn"]
    if with_attention:
        draw_importances(axes[0, 1], with_attention[0])
        if len(with_attention) > 1:
            draw_importances(axes[0, 2], with_attention[1])
        draw_attention_by_size(axes[0, 3], with_attention)
    with_graph = [trained for trained in loaded if trained.config.method in ("iagcn", "dgm", "gcn")]
    for axis, trained in zip(axes[1], with_graph):
        draw_graph(axis, trained, min(case, trained.config.folds - 1))
    for axis in axes.flat:
        if not axis.has_data():
            axis.axis("off")
    figure.tight_layout(pad=0.6)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def short_name(feature: str) -> str:
    """A column's name without the name and date of the table that it was merged from."""
    for mark in ("_UCSFFSX", "_DTIROI", "_UPENNBIOMK9"):
        feature = feature.split(mark)[0]
    return feature


def draw_importances(axis, trained: Trained, shown: int = 14) -> None:
    """Bars: mean attention of the features with the most of it, with the range over folds."""
    rows = importance_rows(trained)[:shown]
    mean, low, high = ([float(row[key]) for row in rows] for key in ("attention", "lowest", "highest"))
    colours = [COLOURS.get(row["modality"], "tab:gray") for row in rows]
    spread = [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]]
    axis.barh(range(len(rows)), mean, color=colours, xerr=spread, error_kw={"linewidth": 0.7})
    axis.set_yticks(range(len(rows)), [short_name(row["feature"]) for row in rows], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title(f"{trained.config.variant}: attention, mean\nand range over the folds", fontsize=8)
    from matplotlib.patches import Patch

    present = dict.fromkeys(row["modality"] for row in rows)
    axis.legend(
        handles=[Patch(color=COLOURS.get(m, "tab:gray"), label=m) for m in present], fontsize=6, loc="lower right"
    )


def draw_attention_by_size(axis, loaded: list[Trained]) -> None:
    """Curves: attention of all features in falling order, one per IA-GCN."""
    import numpy as np

    for trained in loaded:
        values = np.sort(trained.attention(), axis=1)[:, ::-1].mean(0)
        axis.plot(range(1, len(values) + 1), values, label=f"{trained.config.variant} (α = {trained.config.alpha:g})")
    axis.set_xscale("log")
    axis.set_xlabel("features, in falling order", fontsize=7)
    axis.set_title("attention", fontsize=8)
    axis.legend(fontsize=6)


def draw_graph(axis, trained: Trained, fold: int) -> None:
    """Edge weights of a fold's graph as an image; test subjects are ticks at the left."""
    import numpy as np
    import torch

    network, table, config = trained.networks[fold], trained.table, trained.config
    with torch.no_grad():
        if config.method == "gcn":
            graph, kind = -trained.graphs[fold], "fixed graph, normalised"
        else:
            graph, kind = network.graph_learning(trained.inputs[fold]), "learned graph"
    order = np.argsort(table.label, kind="stable")
    weights = graph.cpu().numpy()[np.ix_(order, order)]
    top = 1.0 if config.method != "gcn" else float(np.quantile(weights, 0.99)) or 1.0
    picture = axis.imshow(weights, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    axis.figure.colorbar(picture, ax=axis, fraction=0.046)
    counts = np.bincount(table.label, minlength=len(table.classes))
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color="white", linewidth=0.6)
        axis.axvline(end - 0.5, color="white", linewidth=0.6)
    axis.set_xticks(ends - counts / 2, table.classes, fontsize=6)
    tested = np.flatnonzero(trained.fold_of[order] == fold)
    axis.set_yticks(tested, [""] * len(tested))
    axis.set_title(f"{config.variant}: {kind}, fold {fold}\n(ticks: test subjects)", fontsize=8)


def apply(
    checkpoint: Path,
    data: Path,
    input: Path,
    output: Path,
    impute_missing: bool = False,
    device: str = "auto",
) -> None:
    """Predict subjects without a diagnosis; writes the predictions and, beside them, the features' importances.

    A graph network knows only the subjects of its graph. New ones are joined to the population that it was trained
    on (so `data` must be at hand): each is standardised with the training statistics, embedded by the trained graph
    module, and listens to the known subjects and to itself, never to other new ones. Nothing is trained again. The
    probabilities are the mean over the networks of all folds.

    Args:
        checkpoint: of a variant with a learned graph, or of a linear classifier.
        data: the data set that it was trained on.
        input: .csv with RID and the features by their names, a row per subject; empty cells are missing values.
        output: .csv: RID, prediction, probability of each class. Beside it NAME_importances.csv.
        impute_missing: take the training mean for features that the file lacks.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file is missing or broken or lacks features, or the checkpoint does not fit `data`.
    """
    import numpy as np
    import torch

    from papers.iagcn.data import read_new_subjects
    from papers.iagcn.model import edges_of_new_subjects
    from shared.gpu import choose_device

    if output.suffix != ".csv":
        raise InputError(f"{output}: the output is a table, its name must end in .csv")
    trained = Trained(data, checkpoint, choose_device(device))
    if trained.config.method == "gcn":
        raise InputError(
            f"{checkpoint}: a GCN on a fixed graph has no rule for new subjects; use one of variant 'full'"
        )
    state = trained.preparation.state
    rids, x = read_new_subjects(input, state["features"], impute_missing)
    known = len(trained.table.rid)
    edges = edges_of_new_subjects(known, len(rids)).to(trained.device)
    total = np.zeros((len(rids), len(state["classes"])))
    for fold, network in enumerate(trained.networks):
        new = trained.preparation.inputs(x, fold).to(trained.device)
        with torch.no_grad():
            if trained.config.method == "ridge":
                scores = network(new)
            else:
                scores = network(torch.cat([trained.inputs[fold], new]), edges)[known:]
        total += scores.softmax(1).cpu().double().numpy() / trained.config.folds
    write_csv(output.with_name(f"{output.stem}_importances.csv"), importance_rows(trained))
    write_csv(output, prediction_rows(rids, total, state["classes"]))
    print(f"wrote {output}: {len(rids)} subjects, joined to {known} known ones")
    absent = np.isnan(x).mean(1)
    if absent.max() > trained.config.max_missing:
        worst = int(absent.argmax())
        print(f"note: subject {rids[worst]} lacks {absent[worst]:.0%} of the features; the training mean stands in")


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
