"""Evaluate encoders and U-Nets, draw figures, segment a user's own stacks, export the encoder.

python -m papers.pcl.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.pcl.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.pcl.eval curves --runs runs/pcl/standin-cpu --out curves.png
python -m papers.pcl.eval embedding --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out tsne.png
python -m papers.pcl.eval pairs --data STACKS
python -m papers.pcl.eval export --checkpoint RUN/checkpoint.pt --output encoder.pt
python -m papers.pcl.eval apply --checkpoint RUN/checkpoint.pt --input heart.nii.gz --output labels.nii.gz
"""

import csv
import json
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

# What metrics.csv has in every row; cells are empty where a variant has no such value.
COLUMNS = (
    "dice", "dice_fold_m2", "dice_fold_m6", "dice_fold_m10", "transfer_fold_m2", "position_error", "false_negative_rate"
)  # fmt: skip
NEIGHBOURS = 10  # of the position probe
SLICES_AT_ONCE = 32


def load_model(checkpoint: Path, device):
    """The network of a checkpoint in evaluation mode, its configuration and, for a U-Net, its layout.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.pcl.data import LAYOUTS
    from papers.pcl.train import Config, build_model
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "pcl")
    config = load_config(content, Config, checkpoint)
    layout = LAYOUTS[config.layout]
    model = build_model(config, len(layout.labels) + 1)
    weights = content["models"][0]
    if config.stage == "finetune" and config.select == "best":
        weights = content["objects"]["best"]["weights"] or weights
    model.load_state_dict(weights)
    return model.to(device).eval(), config, layout


def probabilities(unet, stack, device):
    """Softmax (Z, classes, Y, X) of a stack (Z, Y, X), slice by slice, whole slices padded to multiples of 16."""
    import torch

    from papers.pcl.data import pad_to_multiple

    unet.eval()
    parts = []
    with torch.no_grad():
        for part in torch.as_tensor(stack).split(SLICES_AT_ONCE):
            padded, (rows, columns) = pad_to_multiple(part[:, None])
            parts.append(unet(padded.to(device)).softmax(1)[..., rows, columns].cpu())
    return torch.cat(parts)


def overlap(unet, stacks, device, classes: int) -> dict[str, tuple]:
    """Per patient (intersection, predicted + true), int64 arrays of the foreground classes over all slices."""
    import torch

    from shared.metrics import overlap_counts

    totals: dict[str, tuple] = {}
    for stack in stacks:
        found = probabilities(unet, stack.image, device).argmax(1)
        counts = overlap_counts(found[None], torch.as_tensor(stack.label).long()[None], range(1, classes + 1))
        both, sizes = counts.intersection[0], (counts.prediction + counts.truth)[0]
        before = totals.get(stack.patient, (0, 0))
        totals[stack.patient] = (before[0] + both, before[1] + sizes)
    return totals


def dice_of(both, sizes) -> list[float]:
    """Dice of each class from its counts; 1 where neither map has the class."""
    return [2 * int(a) / int(b) if b else 1.0 for a, b in zip(both, sizes)]


def fold_dice(unet, stacks, device) -> float:
    """Foreground Dice as in the released code: counts of the whole fold first, then the mean over the classes."""
    totals = overlap(unet, stacks, device, max(int(stack.label.max()) for stack in stacks)).values()
    classes = dice_of(sum(both for both, _ in totals), sum(sizes for _, sizes in totals))
    return sum(classes) / len(classes)


def slice_features(model, stacks, device):
    """Features (N, 16f) of all slices of some stacks, global averages of the encoder's centre, as a NumPy array."""
    import torch

    from papers.pcl.data import pad_to_multiple

    parts = []
    with torch.no_grad():
        for stack in stacks:
            for part in torch.as_tensor(stack.image).split(SLICES_AT_ONCE):
                padded, _ = pad_to_multiple(part[:, None])
                parts.append(model.encoder(padded.to(device))[-1].mean((2, 3)).float().cpu())
    return torch.cat(parts).numpy()


def position_errors(model, reference, stacks, device):
    """Absolute error of the position of every slice of `stacks`, predicted by its nearest slices in `reference`.

    k-NN regression (k = 10, cosine distance) on the features; no weight is trained.
    """
    import numpy as np
    from sklearn.neighbors import KNeighborsRegressor

    from papers.pcl.model import slice_positions

    def positions(some):
        return np.concatenate([slice_positions(len(stack.image)).numpy() for stack in some])

    known = positions(reference)
    probe = KNeighborsRegressor(min(NEIGHBOURS, len(known)), metric="cosine")
    probe.fit(slice_features(model, reference, device), known)
    return np.abs(probe.predict(slice_features(model, stacks, device)) - positions(stacks))


def false_negatives(config, stacks):
    """False-negative rate of a method's mask for every slice, over all pairs of slices of `stacks` (C5)."""
    import torch

    from papers.pcl.model import false_negative_rate, positive_mask, slice_partitions, slice_positions

    positions = torch.cat([slice_positions(len(stack.image)) for stack in stacks])
    partitions = torch.cat([slice_partitions(len(stack.image), config.partitions) for stack in stacks])
    mask = positive_mask(config.method, positions, partitions, config.threshold)
    return false_negative_rate(mask, positions, config.threshold).numpy()


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per patient of the held-out fold.

    A U-Net gets the foreground Dice of each patient, over all slices of its volumes, and in a last row `fold`
    the paper's measure, from the counts of all patients together. An encoder gets the error of the position
    that its features give (`position_error`, as a fraction of the stack) and the false-negative rate of the
    mask that it was trained with.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.pcl.data import find_patients, read_labelled, read_unlabelled, split_patients
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config, layout = load_model(checkpoint, where)
    _, patients = find_patients(data, layout.name)
    training, held_out = split_patients(patients, config.folds, config.fold)
    rows = []
    if config.stage == "pretrain":
        reference = read_unlabelled(training, layout, config.spacing_mm, cine=False)
        stacks = read_unlabelled(held_out, layout, config.spacing_mm, cine=False)
        values = {"position_error": position_errors(model, reference, stacks, where)}
        if config.method != "none":
            values["false_negative_rate"] = false_negatives(config, stacks)
        owners = [stack.patient for stack in stacks for _ in stack.image]
        for patient in held_out:
            mine = [index for index, owner in enumerate(owners) if owner == patient.name]
            rows.append({"case": patient.name} | {name: value[mine].mean() for name, value in values.items()})
    else:
        totals = overlap(model, read_labelled(held_out, layout, config.spacing_mm), where, len(layout.class_names))
        for patient, (both, sizes) in totals.items():
            classes = dice_of(both, sizes)
            named = {f"dice_{name}": value for name, value in zip(layout.class_names, classes)}
            rows.append({"case": patient, "dice": sum(classes) / len(classes), **named})
        classes = dice_of(sum(both for both, _ in totals.values()), sum(sizes for _, sizes in totals.values()))
        transfer = config.variant.startswith("transfer")
        column = f"{'transfer' if transfer else 'dice'}_fold_m{config.labelled}"
        rows.append({"case": "fold", column: sum(classes) / len(classes)})
    columns = dict.fromkeys(["case", *COLUMNS, *(key for row in rows for key in row)])

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(Path(out) / "metrics.csv", write)


# --- figures ---------------------------------------------------------------------------------------------


def save_figure(figure, out: Path) -> None:
    import matplotlib.pyplot as plt

    from shared.files import write_atomically

    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one held-out patient from base to apex: slices, each U-Net's segmentation, the truth.

    Args:
        data: the data set.
        checkpoints: of fine-tuned variants, a row each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the held-out patient.
    """
    import numpy as np

    from papers.pcl.data import find_patients, read_labelled, split_patients
    from shared.gpu import choose_device

    where = choose_device(device)
    models = [load_model(path, where) for path in checkpoints]
    if any(config.stage == "pretrain" for _, config, _ in models):
        raise InputError("the panel shows segmentations: give checkpoints of fine-tuned variants")
    _, config, layout = models[0]
    _, patients = find_patients(data, layout.name)
    _, held_out = split_patients(patients, config.folds, config.fold)
    if not 0 <= case < len(held_out):
        raise InputError(f"{data}: there is no held-out patient number {case}, the fold has {len(held_out)}")
    stack = read_labelled([held_out[case]], layout, config.spacing_mm)[0]
    rows = {"image": None}
    for model, of_model, _ in models:
        rows[of_model.variant] = probabilities(model, stack.image, where).argmax(1).numpy()
    rows["truth"] = stack.label
    shown = np.unique(np.linspace(0, len(stack.image) - 1, 7).round().astype(int))
    plt = pyplot()
    figure, axes = plt.subplots(len(rows), len(shown), figsize=(1.6 * len(shown), 1.75 * len(rows)), squeeze=False)
    colours = plt.get_cmap("tab10")(np.arange(10))
    for row, (name, labels) in enumerate(rows.items()):
        for column, z in enumerate(shown):
            axis = axes[row, column]
            axis.imshow(stack.image[z], cmap="gray", vmin=-1.5, vmax=np.percentile(stack.image, 99.5))
            if labels is not None:
                overlay = colours[(labels[z].astype(int) - 1) % 10].copy()
                overlay[..., 3] = 0.5 * (labels[z] > 0)
                axis.imshow(overlay, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"position {(z + 1) / len(stack.image):.2f}", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.suptitle(f"{stack.name}: " + ", ".join(layout.class_names), fontsize=9)
    figure.tight_layout(pad=0.4)
    save_figure(figure, out)


def read_runs(runs: Path) -> dict[str, dict[int, list[float]]]:
    """Fold Dice of all fine-tuned runs below a folder: method -> M -> a value per seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted(Path(runs).rglob("metrics.csv")):
        config_path = path.with_name("config.json")
        if not config_path.is_file():
            continue
        config = json.loads(config_path.read_text("utf-8"))
        if config.get("stage") != "finetune" or config["variant"].startswith("transfer"):
            continue
        with path.open(newline="") as file:
            rows = {row["case"]: row for row in csv.DictReader(file)}
        value = rows.get("fold", {}).get(f"dice_fold_m{config['labelled']}")
        if value:
            found.setdefault(config["method"], {}).setdefault(config["labelled"], []).append(float(value))
    if not found:
        raise InputError(f"{runs} holds no evaluated fine-tuning run: expected metrics.csv beside config.json")
    return found


def curves(runs: Path, out: Path) -> None:
    """Draw Dice against the number M of labelled patients: ours on the left, the paper's ACDC on the right.

    Args:
        runs: folder with all runs of a data set, such as runs/pcl/standin-cpu.
        out: a .png file.
    """
    import tomllib

    import numpy as np

    with Path(__file__).with_name("paper.toml").open("rb") as file:
        table = [row for row in tomllib.load(file)["result"] if row["table"] == "T2"]
    names = {"pcl": "PCL", "gcl": "GCL", "simclr": "SimCLR", "none": "Random"}
    ours, plt = read_runs(runs), pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
    for number, (method, name) in enumerate(names.items()):
        by_m = ours.get(method, {})
        m = sorted(by_m)
        if m:
            means = [np.mean(by_m[value]) for value in m]
            spread = [np.std(by_m[value], ddof=1) if len(by_m[value]) > 1 else 0 for value in m]
            axes[0].errorbar(m, means, spread, color=f"C{number}", marker="o", capsize=3, label=name)
        rows = [row for row in table if row["method"] == name]
        m = [int(row["setting"].removeprefix("M=")) for row in rows]
        means = [row["metrics"]["dice"] for row in rows]
        spread = [row["metrics"]["dice_std"] for row in rows]
        axes[1].errorbar(m, means, spread, color=f"C{number}", marker="o", capsize=3, label=name)
    seeds = max(len(values) for by_m in ours.values() for values in by_m.values())
    axes[0].set_title(f"ours: {Path(runs).name}, {seeds} seeds", fontsize=9)
    axes[1].set_title("the paper: ACDC, 5 folds", fontsize=9)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks([2, 6, 10, 30, 80], ["2", "6", "10", "30", "80"])
        axis.minorticks_off()
        axis.set_xlabel("labelled patients M")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("foreground Dice of the fold")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, out)


def embedding(data: Path, checkpoints: list[Path], out: Path, device: str = "auto") -> None:
    """Draw the slices of the held-out patients by t-SNE of their features, coloured by position.

    Args:
        data: the data set.
        checkpoints: of pre-trained or fine-tuned encoders, a picture each.
        out: a .png file.
        device: auto, cpu, cuda, ...
    """
    import numpy as np
    from sklearn.manifold import TSNE

    from papers.pcl.data import find_patients, read_unlabelled, split_patients
    from papers.pcl.model import slice_positions
    from shared.gpu import choose_device

    where, plt = choose_device(device), pyplot()
    figure, axes = plt.subplots(1, len(checkpoints), figsize=(3.4 * len(checkpoints) + 0.8, 3.4), squeeze=False)
    for axis, path in zip(axes[0], checkpoints):
        model, config, layout = load_model(path, where)
        _, held_out = split_patients(find_patients(data, layout.name)[1], config.folds, config.fold)
        stacks = read_unlabelled(held_out, layout, config.spacing_mm, cine=False)
        features = slice_features(model, stacks, where)
        perplexity = min(30, max(2, (len(features) - 1) // 3))
        points = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(features)
        positions = np.concatenate([slice_positions(len(stack.image)).numpy() for stack in stacks])
        dots = axis.scatter(*points.T, c=positions, s=12, cmap="viridis")
        axis.set_title(config.variant, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(dots, ax=axes[0].tolist(), label="position, base to apex")
    save_figure(figure, out)


# --- for the user's own data -----------------------------------------------------------------------------


def expected_positives(slices: list[int], batch_size: int, method: str, threshold: float, partitions: int = 4) -> float:
    """Positives per anchor to expect in a batch of slices drawn at random from stacks of these lengths.

    The other view of the slice, and both views of every one of the B - 1 others with the probability that
    two different slices are a positive pair.
    """
    import torch

    from papers.pcl.model import positive_mask, slice_partitions, slice_positions

    positions = torch.cat([slice_positions(length) for length in slices])
    parts = torch.cat([slice_partitions(length, partitions) for length in slices])
    count = len(positions)
    pairs = positive_mask(method, positions, parts, threshold).sum().item() - count
    return 1 + 2 * (min(batch_size, count) - 1) * pairs / max(count * (count - 1), 1)


def pairs(
    data: Path,
    layout: str = "auto",
    batch_size: int = 32,
    thresholds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
) -> None:
    """Print how many positive pairs each threshold t gives on your own stacks.

    Choose t as the fraction of the stack over which the anatomy looks alike; an anchor needs some positives
    beyond its own other view, and most of the batch must stay negative.

    Args:
        data: a data set, or any folder of NIfTI stacks.
        layout: acdc, chd, mmwhs, hvsmr, stacks or auto.
        batch_size: slices per batch.
        thresholds: to try.
    """
    import numpy as np

    from papers.pcl.data import find_patients, slice_axis
    from shared import nifti

    found, patients = find_patients(data, layout)
    lengths, heights = [], []
    for volume in (volume for patient in patients for volume in patient.volumes):
        image = nifti.load(volume.image, ndim={3, 4})
        axis = slice_axis(image, found.slices_along)
        lengths.append(image.shape[axis])
        heights.append(image.shape[axis] * image.spacing[axis])
    length, height = np.median(lengths), np.median(heights)
    print(
        f"{len(lengths)} stacks ({found.name}), {min(lengths)} to {max(lengths)} slices, median {length:g} slices and "
        f"{height:.0f} mm; batches of {batch_size} slices, {2 * batch_size - 1} other views for each anchor"
    )
    print(f"{'':12s} {'positives per anchor':>21s} {'of all':>7s} {'slices':>7s} {'mm':>6s}")
    rows = [("GCL", "gcl", 1.0), *((f"PCL t = {t:g}", "pcl", t) for t in thresholds)]
    for name, method, threshold in rows:
        count = expected_positives(lengths, batch_size, method, threshold)
        reach = f"{threshold * length:7.1f} {threshold * height:6.0f}" if method == "pcl" else ""
        print(f"{name:12s} {count:21.1f} {count / (2 * batch_size - 1):7.0%} {reach}")


def export(checkpoint: Path, output: Path) -> None:
    """Write the pre-trained encoder as a plain state dictionary, for anybody's U-Net.

    Load it with `Encoder(width=W).load_state_dict(torch.load(output, weights_only=True))`, and copy it into a
    U-Net of your own with `papers.pcl.model.copy_encoder(encoder, unet)`.

    Args:
        checkpoint: of a pre-training variant.
        output: a .pt file.
    """
    from papers.pcl.train import load_encoder
    from shared.checkpoints import save_tensors

    weights = load_encoder(checkpoint)
    save_tensors(Path(output), weights)
    width = weights["levels.0.0.weight"].shape[0]
    print(f"wrote {output}: encoder of width {width}, {sum(value.numel() for value in weights.values()):,} numbers")


def apply(checkpoint: Path, input: Path, output: Path, device: str = "auto") -> None:
    """Segment a user's own stack or cine; the labels lie on its grid and have the data set's numbers.

    Args:
        checkpoint: of a fine-tuned variant.
        input: .nii or .nii.gz, 3D or 4D, short axis or axial as in training.
        output: .nii or .nii.gz.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a broken file, or a checkpoint of pre-training.
    """
    import numpy as np

    from papers.pcl.data import orientation_of, read_image, spacing_of
    from shared import nifti, resample
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI label map, its name must end in .nii or .nii.gz")
    where = choose_device(device)
    model, config, layout = load_model(checkpoint, where)
    if config.stage == "pretrain":
        raise InputError(f"{checkpoint}: variant '{config.variant}' does not segment; give a fine-tuned one")
    resampled, axis, stacks = read_image(Path(input), layout, spacing_of(layout, config.spacing_mm))
    orientation, like = orientation_of(resampled, axis), nifti.load(input)
    values = np.array([0, *layout.labels], dtype=np.int16)
    frames = []
    for stack in stacks:
        soft = probabilities(model, stack, where).numpy()
        grids = []
        for channel in soft.transpose(1, 0, 2, 3):
            image = nifti.make_image(orientation.restore(channel), resampled.affine, Path(input))
            same = image.shape == like.shape[:3]
            grids.append(image.data if same else resample.resample_to(image, like).data)
        total = np.stack(grids)
        total[0] += total.sum(0) < 0.5  # beyond the field of view: background
        frames.append(values[total.argmax(0)])
    labels = frames[0] if like.data.ndim == 3 else np.stack(frames, axis=-1)
    nifti.save(output, labels, like=like)
    print(f"wrote {output} with the labels {', '.join(f'{v} {n}' for v, n in zip(layout.labels, layout.class_names))}")


def main(argv: list[str] | None = None) -> None:
    functions = (evaluate, panel, curves, embedding, pairs, export, apply)
    commands({function.__name__: function for function in functions}, argv)


if __name__ == "__main__":
    main()
