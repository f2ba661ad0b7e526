"""Plots: Dice against the number of labelled patients, and slices by their features."""

from pathlib import Path

from shared.errors import InputError

NAMES = {"pcl": "PCL", "gcl": "GCL", "simclr": "SimCLR", "none": "Random"}


def read_runs(runs: Path) -> dict[str, dict[int, list[float]]]:
    """Fold Dice of all fine-tuned runs of full length below a folder: method -> M -> a value per seed."""
    from shared.text_files import number, read_csv_rows, read_json

    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted(Path(runs).rglob("metrics.csv")):
        config_path = path.with_name("config.json")
        if not config_path.is_file() or "@" in path.parent.parent.name:
            continue
        config = read_json(config_path, "the config.json of a run")
        if not {"stage", "variant", "method", "labelled"} <= config.keys():
            raise InputError(f"{config_path}: is not the configuration of a run of PCL")
        if config["stage"] != "finetune" or config["variant"].startswith("transfer") or config["method"] not in NAMES:
            continue
        rows = {row["case"]: row for row in read_csv_rows(path, ["case", "dice_fold"], "case")}
        if "fold" in rows:
            value = number(rows["fold"]["dice_fold"], f"{path}: dice_fold")
            found.setdefault(config["method"], {}).setdefault(config["labelled"], []).append(value)
    if not found:
        raise InputError(f"{runs} holds no evaluated fine-tuning run: expected metrics.csv beside config.json")
    return found


def reported() -> dict[str, dict[int, tuple[float, float]]]:
    """The paper's ACDC: method -> M -> (Dice, its standard deviation)."""
    import tomllib

    with Path(__file__).with_name("paper.toml").open("rb") as file:
        rows = [row for row in tomllib.load(file)["result"] if row["table"] == "T2"]
    return {
        row["method"]: {int(m[1:]): (value, row["spread"][m]) for m, value in row["metrics"].items()} for row in rows
    }


def curves(runs: Path, out: Path) -> None:
    """Draw Dice against the number M of labelled patients: ours on the left, the paper's ACDC on the right.

    Args:
        runs: folder with all runs of a data set, such as runs/pcl/standin-study.
        out: a .png file.
    """
    import numpy as np

    from shared.figures import pyplot, save_figure

    ours, theirs = read_runs(runs), reported()
    figure = pyplot().figure(figsize=(8.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, (method, name) in enumerate(NAMES.items()):
        values = {m: ours[method][m] for m in sorted(ours.get(method, {}))}
        if values:
            means = [np.mean(some) for some in values.values()]
            spread = [np.std(some, ddof=1) if len(some) > 1 else 0 for some in values.values()]
            left.errorbar(list(values), means, spread, color=f"C{colour}", marker="o", capsize=3, label=name)
        means, spread = zip(*theirs[name].values())
        right.errorbar(list(theirs[name]), means, spread, color=f"C{colour}", marker="o", capsize=3, label=name)
    seeds = max(len(values) for by_m in ours.values() for values in by_m.values())
    left.set_title(f"ours: {Path(runs).name}, {seeds} seeds", fontsize=9)
    right.set_title("the paper: ACDC, 5 folds", fontsize=9)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks([2, 6, 10, 30, 80], ["2", "6", "10", "30", "80"])
        axis.minorticks_off()
        axis.set_xlabel("labelled patients M")
        axis.grid(alpha=0.3)
    left.set_ylabel("foreground Dice of the fold")
    right.legend(fontsize=8)
    save_figure(figure, out)


def embedding(data: Path, checkpoints: list[Path], out: Path, device: str = "auto") -> None:
    """Draw the slices of the held-out patients by t-SNE of their features, coloured by position.

    Args:
        data: the data set.
        checkpoints: of pre-trained or fine-tuned encoders, a picture each.
        out: a .png file.
        device: auto, cpu, cuda, ...
    """
    from sklearn.manifold import TSNE

    from papers.pcl.data import read_unlabelled, split_patients
    from papers.pcl.eval import load_network
    from papers.pcl.layouts import find_patients
    from papers.pcl.scores import all_positions, slice_features
    from shared.figures import pyplot, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    figure = pyplot().figure(figsize=(3.4 * len(checkpoints) + 0.8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(checkpoints), squeeze=False)[0]
    for axis, path in zip(axes, checkpoints):
        model, config, layout = load_network(path, where)
        if config.method == "atlas":
            raise InputError(f"{path}: variant '{config.variant}' has no encoder; give one that has")
        _, held_out = split_patients(find_patients(data, layout.name)[1], config.folds, config.fold)
        stacks = read_unlabelled(held_out, layout, config.spacing_mm, cine=False)
        features = slice_features(model, stacks, where)
        perplexity = min(30, max(2, (len(features) - 1) // 3))
        points = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(features)
        dots = axis.scatter(*points.T, c=all_positions(stacks), s=12, cmap="viridis")
        axis.set_title(config.variant, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(dots, ax=axes.tolist(), label="position, base to apex")
    save_figure(figure, out)
