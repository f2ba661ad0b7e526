"""Evaluate per fold, draw the panel, predict new subjects of a table.

python -m papers.iagcn.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.iagcn.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.iagcn.eval apply --checkpoint RUN/checkpoint.pt --data DATA --input new.csv --output predictions.csv
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

GRAPHS = 4  # drawn in the panel


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
    fold's top features and of the others, and hits, how many of the expected features are at the top by the mean
    attention over the folds (the same in each row).

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for the three files.
        device: auto, cpu, cuda, ...
    """
    import numpy as np

    from papers.iagcn import scores
    from papers.iagcn.trained import Trained, importance_rows
    from shared.files import write_csv
    from shared.gpu import choose_device

    trained = Trained(data, checkpoint, choose_device(device))
    config, table, attention = trained.config, trained.table, trained.attention()
    probability, rows = trained.test_probabilities(), []
    for fold in range(config.folds):
        inside = trained.fold_of == fold
        label, p = table.label[inside], probability[inside]
        row = {"case": f"fold{fold:02d}", "acc": scores.accuracy(label, p), "auc": scores.auc(label, p)}
        row |= {"f1": scores.macro_f1(label, p), "constant": 100 * np.bincount(p.argmax(1)).max() / len(p)}
        row |= {"avg4": "", "avgo": "", "hits": ""}
        if attention is not None:
            row["avg4"], row["avgo"] = scores.attention_of_top(attention[fold], config.top)
            row["hits"] = scores.hits(attention.mean(0), trained.preparation.names(0), config.named, config.top)
        rows.append(row)
    predictions = prediction_rows(table.rid, probability, list(table.classes))
    for row, fold, label in zip(predictions, trained.fold_of, table.label):
        row |= {"fold": int(fold), "DX": table.classes[label]}
    write_csv(Path(out) / "importances.csv", importance_rows(trained))
    write_csv(Path(out) / "predictions.csv", predictions)
    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw what a reader must see: above, the graph of up to four checkpoints, subjects in the order of their
    diagnosis; below, each checkpoint's accuracy by fold, the most important features of up to two IA-GCNs, and their
    attentions in falling order.

    Args:
        data: the data set.
        checkpoints: of any variants.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the fold whose graph is drawn.
    """
    from papers.iagcn import drawing
    from papers.iagcn.trained import Trained
    from shared.figures import grid_of_pictures, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [Trained(data, path, where) for path in checkpoints]
    with_graph = [trained for trained in loaded if trained.config.method in ("iagcn", "dgm", "gcn")][:GRAPHS]
    classes, fold = loaded[0].table.classes, min(case, min(trained.config.folds for trained in loaded) - 1)
    figure, axes, room = grid_of_pictures(
        [[drawing.picture_of_graph(trained, fold) for trained in with_graph] or [None]],
        [trained.config.variant for trained in with_graph],
        None,
        row_labels=[f"graph of fold {fold}: subjects\n{', '.join(classes)}"],
        cmap="magma",
        inches=3.0,
        room=("below", 3.4),
    )
    for axis, trained in zip(axes[0], with_graph):
        drawing.mark_classes(axis, trained)
    left, *middle, right = room.subplots(1, 4)
    drawing.draw_accuracies(left, loaded)
    with_attention = [trained for trained in loaded if trained.config.method == "iagcn"]
    for axis, trained in zip(middle, with_attention):
        drawing.draw_importances(axis, trained)
    if with_attention:
        drawing.draw_attention_by_size(right, with_attention)
    for axis in (*middle, right):
        if not axis.has_data():
            axis.axis("off")
    save_figure(figure, out)


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

    from papers.iagcn.data import read_new_subjects
    from papers.iagcn.model import edges_of_new_subjects
    from papers.iagcn.trained import Trained, importance_rows
    from shared.files import refuse_overwriting_inputs, write_csv
    from shared.gpu import choose_device

    if output.suffix != ".csv":
        raise InputError(f"{output}: the output is a table, its name must end in .csv")
    importances = output.with_name(f"{output.stem}_importances.csv")
    for path in (output, importances):
        refuse_overwriting_inputs(path, input, data, checkpoint)
    trained = Trained(data, checkpoint, choose_device(device))
    config, state = trained.config, trained.preparation.state
    if config.method == "gcn":
        raise InputError(
            f"{checkpoint}: a GCN on a fixed graph has no rule for new subjects; use one of variant 'full'"
        )
    rids, x = read_new_subjects(input, state["features"], impute_missing)
    known = len(trained.table.rid)
    edges = edges_of_new_subjects(known, len(rids)).to(trained.device)
    found = [trained.of_new(fold, x, rids, edges) for fold in range(config.folds)]
    write_csv(importances, importance_rows(trained))
    write_csv(output, prediction_rows(rids, np.mean(found, axis=0), state["classes"]))
    print(f"wrote {output}: {len(rids)} subjects, joined to {known} known ones")
    absent = np.isnan(x).mean(1)
    if absent.max() > config.max_missing:
        worst = int(absent.argmax())
        print(f"note: subject {rids[worst]} lacks {absent[worst]:.0%} of the features; the training mean stands in")


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
