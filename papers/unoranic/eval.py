"""Evaluate on test images, draw the panel and the robustness curves, and take a user's own images apart.

python -m papers.unoranic.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.unoranic.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.unoranic.eval robustness --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out curves.png
python -m papers.unoranic.eval apply --checkpoint RUN/checkpoint.pt --input film.png --output out/restored.png
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

SHOWN = ("solarize", "inversion", "colour_jitter", "gaussian_noise", "motion_blur")


def image_values(method) -> dict:
    """All columns of metrics.csv: name -> (N,), a value for each test image."""
    from fnmatch import fnmatch

    from papers.unoranic import classification, revision

    values, kind = {}, method.config.method
    if kind not in ("resnet", "none"):
        values |= revision.reconstruction(method)
    if kind != "resnet":
        values |= revision.revision(method)
    if kind not in ("none", "mean"):
        classifier = classification.Classifier(method)
        values |= classification.classification(classifier)
        if any(fnmatch(method.table.name, pattern) for pattern in method.config.robustness):
            found = classification.robustness_values(classifier)
            values |= classification.robustness_means(values["disease_auc"], found)
    return values


def columns() -> list[str]:
    """The columns of metrics.csv after "case"."""
    from papers.unoranic.corruptions import CORRUPTIONS

    revised = [f"revised_{name}" for name in ("none", *CORRUPTIONS, "mean", "spread", "drop")]
    tasks = [f"{task}_{score}" for task in ("disease", "corruption") for score in ("auc", "acc", "gap")]
    return ["psnr", *revised, "drift", *tasks, "auc_corrupted", "auc_noisy", "auc_loss", "auc_loss_noise"]


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row for each of the equal random parts (blocks) of every data set's test images.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.unoranic.methods import methods_of
    from papers.unoranic.scores import block_means
    from shared.files import write_csv
    from shared.gpu import choose_device

    rows = []
    for name, method in methods_of(data, checkpoint, choose_device(device)).items():
        blocks = min(method.config.blocks, len(method.table.test.images))
        values = {column: block_means(found, blocks) for column, found in image_values(method).items()}
        for block in range(blocks):
            cells = {key: found[block].item() for key, found in values.items()}
            rows.append({"case": f"{name}/{block:02d}", **cells})
    write_csv(Path(out) / "metrics.csv", rows, ["case", *columns()])


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test image of each data set under five corruptions: the image, its corruption, what each checkpoint
    makes of it, and what unORANIC adds to the anatomy (Ŝ - Î_A, grey is none); below, PSNR by corruption.

    Args:
        data: the data set.
        checkpoints: of variants with reconstructions; the last one's Ŝ and residual are shown.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test image.
    """
    from papers.unoranic.corruptions import CORRUPTIONS
    from papers.unoranic.methods import TITLES, methods_of
    from papers.unoranic.revision import corrupted_by, psnr, revision
    from shared.figures import Picture, grid_of_pictures, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    methods = [methods_of(data, path, where) for path in checkpoints]
    tables = {name: method.table for name, method in methods[0].items()}
    titles = [TITLES[next(iter(found.values())).config.variant] for found in methods]
    rows, labels = [], []
    for name, table in tables.items():
        if not 0 <= case < len(table.test.images):
            raise InputError(f"{data}: {name} has no test image number {case}, it has {len(table.test.images)}")
        image = table.test.images[case : case + 1]
        for corruption in SHOWN:
            corrupted = corrupted_by(image, corruption, case)
            outputs = [found[name].outputs(corrupted) for found in methods]
            _, _, restored, faithful = outputs[-1]
            pictures = [image, corrupted, *(found[2] for found in outputs), faithful, (faithful - restored) / 2 + 0.5]
            rows.append([Picture(picture[0], window=(0, 1)) for picture in pictures])
            labels.append(f"{name}\n{corruption.replace('_', ' ')}")
    heads = ["clean I", "corrupted S", *titles, "faithful Ŝ", "Ŝ - restored"]
    grid = grid_of_pictures(rows, heads, None, row_labels=labels, inches=1.3, room=("below", 3.2))
    for axis, (name, table) in zip(grid.room.subplots(1, len(tables), squeeze=False)[0], tables.items()):
        images = table.test.images
        bars = {"corrupted S": [psnr(corrupted_by(images, key), images).mean().item() for key in CORRUPTIONS]}
        for title, found in zip(titles, methods):
            values = revision(found[name])
            bars[title] = [values[f"revised_{key}"].mean().item() for key in CORRUPTIONS]
        for place, (title, heights) in enumerate(bars.items()):
            offsets = [k + (place - (len(bars) - 1) / 2) * 0.8 / len(bars) for k in range(len(heights))]
            axis.bar(offsets, heights, 0.8 / len(bars), label=title, color=None if place else "0.7")
        axis.set_xticks(range(len(CORRUPTIONS)), [key.replace("_", " ") for key in CORRUPTIONS])
        axis.tick_params(axis="x", labelrotation=60, labelsize=8)
        axis.set_title(f"{name}: PSNR against the clean image, dB", fontsize=9)
    handles = axis.get_legend_handles_labels()
    grid.room.legend(*handles, loc="outside upper center", ncols=len(bars), fontsize=8, frameon=False)
    save_figure(grid.figure, out)


def robustness(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", dataset: str = "") -> None:
    """Draw the AUC of the disease against the severity of each common corruption (figure 5b), and write the numbers
    to a .csv file of the same name.

    Args:
        data: the data set.
        checkpoints: a curve each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        dataset: name of the data set; empty is the last one in alphabetic order.
    """
    from papers.unoranic.classification import Classifier, robustness_values
    from papers.unoranic.common_corruptions import COMMON_CORRUPTIONS, SEVERITIES
    from papers.unoranic.methods import TITLES, methods_of
    from papers.unoranic.scores import auc_values
    from shared.figures import pyplot, save_figure
    from shared.files import refuse_overwriting_inputs, write_csv
    from shared.gpu import choose_device

    curves, where, rows, columns = Path(out).with_suffix(".csv"), choose_device(device), [], 5
    refuse_overwriting_inputs(curves, data, *checkpoints)
    for checkpoint in checkpoints:
        found = methods_of(data, checkpoint, where)
        name = dataset or list(found)[-1]
        if name not in found or found[name].config.method in ("none", "mean"):
            raise InputError(f"{checkpoint}: has no classifier for '{name}'; it knows {', '.join(found)}")
        classifier, test, variant = Classifier(found[name]), found[name].table.test, found[name].config.variant
        clean = auc_values(classifier.probabilities(test.images, "disease"), test.labels).mean().item()
        values = robustness_values(classifier)
        for key in COMMON_CORRUPTIONS:
            curve = [clean, *(values[key, severity].mean().item() for severity in SEVERITIES)]
            for severity, auc in enumerate(curve):
                rows.append({"variant": variant, "corruption": key, "severity": severity, "auc": f"{auc:.6f}"})
    lines = -(-len(COMMON_CORRUPTIONS) // columns)
    figure = pyplot().figure(figsize=(2.4 * columns, 2.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True)
    for axis, key in zip(axes.flat, COMMON_CORRUPTIONS):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            curve = [float(row["auc"]) for row in rows if (row["variant"], row["corruption"]) == (variant, key)]
            axis.plot([0, *SEVERITIES], curve, marker="o", markersize=3, label=TITLES[variant])
        axis.set_title(key.replace("_", " "), fontsize=9)
    for axis in axes.flat[len(COMMON_CORRUPTIONS) :]:
        axis.axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=8)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(f"AUC on {name}", fontsize=9)
    write_csv(curves, rows)
    save_figure(figure, out)


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    device: str = "auto",
    dataset: str | None = None,
    slice: int | None = None,
) -> None:
    """Take images apart into anatomy and characteristics.

    From a picture or a NIfTI slice, `output` is a PNG of the anatomy Î_A; beside it lie NAME_faithful.png (Ŝ),
    NAME_residual.png (Ŝ - Î_A, mid-grey is none), NAME_overview.png and NAME_features.npz. From a MedMNIST table
    (.npz), `output` is an .npz of all its test images. Both .npz hold `anatomy`, `characteristics` (N, latent),
    `restored`, `reconstruction` and `residual` (N, C, H, W).

    Args:
        checkpoint: of variant full or no_consistency.
        input: a picture (.png, .jpg, ...), .nii, .nii.gz, or .npz in the layout of MedMNIST. Pictures are cropped to
            their central square and averaged down to the network's size.
        output: .png, or .npz for a table.
        device: auto, cpu, cuda, ...
        dataset: which network of the checkpoint to use; default: the first for this number of channels, and the one of
            the same name for a table.
        slice: number of a NIfTI volume's axial slice, from the feet to the head; default: the middle one.
    """
    from papers.unoranic.data import name_of, read_own_image, read_table
    from papers.unoranic.methods import in_batches, load_networks
    from papers.unoranic.pictures import overview, save_arrays, write_png
    from shared.files import refuse_overwriting_inputs
    from shared.finite import finite
    from shared.gpu import choose_device

    input, output, where = Path(input), Path(output), choose_device(device)
    is_table = input.suffix == ".npz"
    if output.suffix != (".npz" if is_table else ".png"):
        raise InputError(f"{output}: expected a name with {'.npz' if is_table else '.png'} for this input")
    beside = {
        name: output.with_name(f"{output.stem}_{name}")
        for name in ("faithful.png", "residual.png", "overview.png", "features.npz")
    }
    for path in beside.values() if not is_table else ():
        refuse_overwriting_inputs(path, input, checkpoint)
    networks, config, known = load_networks(checkpoint, where)
    if config.method != "unoranic":
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no two branches: use one of variant 'full'")
    if is_table:
        images = read_table(input, config.side).test.images
        dataset = dataset or (name_of(input) if name_of(input) in known else None)
    else:
        images = read_own_image(input, config.side, slice)
    fitting = [name for name, (channels, _) in known.items() if channels == images.shape[1]]
    dataset = dataset or next(iter(fitting), None)
    if dataset not in fitting:
        kind = "colour" if images.shape[1] == 3 else "grey"
        raise InputError(f"{checkpoint}: has no network '{dataset}' for {kind} images; it has {', '.join(known)}")
    found = in_batches(lambda part: tuple(networks[dataset](part)), images.to(where))
    names = ("anatomy", "characteristics", "restored", "reconstruction")
    parts = {name: finite(part.cpu(), f"the {name} of {input}") for name, part in zip(names, found)}
    parts["residual"] = parts["reconstruction"] - parts["restored"]
    if is_table:
        save_arrays(output, parts)
        return
    save_arrays(beside["features.npz"], parts)
    overview(images, parts, beside["overview.png"])
    write_png(beside["faithful.png"], parts["reconstruction"][0])
    write_png(beside["residual.png"], 0.5 + parts["residual"][0] / 2)
    write_png(output, parts["restored"][0])  # the file that was asked for comes last


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "robustness": robustness, "apply": apply}, argv)


if __name__ == "__main__":
    main()
