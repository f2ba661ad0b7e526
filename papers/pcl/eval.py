"""Evaluate encoders and U-Nets, draw figures, segment a user's own stacks, export the encoder.

python -m papers.pcl.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.pcl.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.pcl.eval curves --runs runs/pcl/standin-study --out curves.png
python -m papers.pcl.eval embedding --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out tsne.png
python -m papers.pcl.eval pairs --data STACKS
python -m papers.pcl.eval export --checkpoint RUN/checkpoint.pt --output encoder.pt
python -m papers.pcl.eval apply --checkpoint RUN/checkpoint.pt --input heart.nii.gz --output labels.nii.gz
"""

from pathlib import Path

from papers.pcl.pictures import curves, embedding
from papers.pcl.threshold import pairs
from shared.cli import commands
from shared.errors import InputError

# What metrics.csv has in every row; cells are empty where a variant has no such value.
COLUMNS = ("dice", "dice_fold", "position_error", "false_negative_rate")


def load_network(checkpoint: Path, device):
    """The network of a checkpoint in evaluation mode, its configuration and its layout.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.pcl.layouts import LAYOUTS
    from papers.pcl.train import Config, build_model
    from shared.checkpoints import fitting, load_checkpoint, load_model, load_weights

    model, config = load_model(checkpoint, "pcl", Config, build_model, device)
    if config.stage == "finetune" and config.select == "best":
        content = load_checkpoint(checkpoint, "pcl")
        with fitting(checkpoint):
            best = content["objects"]["best"]["weights"]
        if best:
            load_weights(model, best, checkpoint)
    return model, config, LAYOUTS[config.layout]


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
    from papers.pcl import scores
    from papers.pcl.data import read_labelled, read_unlabelled, split_patients
    from papers.pcl.layouts import find_patients
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config, layout = load_network(checkpoint, where)
    _, patients = find_patients(data, layout.name)
    training, held_out = split_patients(patients, config.folds, config.fold)
    rows = []
    if config.stage == "pretrain":
        reference = read_unlabelled(training, layout, config.spacing_mm, cine=False)
        stacks = read_unlabelled(held_out, layout, config.spacing_mm, cine=False)
        values = {"position_error": scores.position_errors(model, reference, stacks, where)}
        if config.method != "none":
            values["false_negative_rate"] = scores.false_negatives(config, stacks)
        owners = [stack.patient for stack in stacks for _ in stack.image]
        for patient in held_out:
            mine = [index for index, owner in enumerate(owners) if owner == patient.name]
            rows.append({"case": patient.name} | {name: value[mine].mean() for name, value in values.items()})
    else:
        stacks = read_labelled(held_out, layout, config.spacing_mm)
        totals = scores.overlap(model, stacks, where, len(layout.class_names))
        for patient, (both, sizes) in totals.items():
            classes = scores.dice_of(both, sizes)
            named = {f"dice_{name}": value for name, value in zip(layout.class_names, classes)}
            rows.append({"case": patient, "dice": sum(classes) / len(classes), **named})
        rows.append({"case": "fold", "dice_fold": scores.dice_of_fold(totals)})
    columns = dict.fromkeys(["case", *COLUMNS, *(key for row in rows for key in row)])
    write_csv(Path(out) / "metrics.csv", rows, list(columns))


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

    from papers.pcl.data import read_labelled, split_patients
    from papers.pcl.layouts import find_patients
    from papers.pcl.scores import probabilities
    from shared.figures import Picture, grid_of_pictures
    from shared.gpu import choose_device

    where = choose_device(device)
    models = [load_network(path, where) for path in checkpoints]
    if any(config.stage == "pretrain" for _, config, _ in models):
        raise InputError("the panel shows segmentations: give checkpoints of fine-tuned variants")
    _, config, layout = models[0]
    if any(other.name != layout.name for _, _, other in models):
        raise InputError("the panel shows one patient: give checkpoints of variants of one data set")
    _, patients = find_patients(data, layout.name)
    _, held_out = split_patients(patients, config.folds, config.fold)
    if not 0 <= case < len(held_out):
        raise InputError(f"{data}: there is no held-out patient number {case}, the fold has {len(held_out)}")
    stack = read_labelled([held_out[case]], layout, config.spacing_mm)[0]
    rows = {"image": np.zeros_like(stack.label)}
    for model, of_model, _ in models:
        rows[of_model.variant] = probabilities(model, stack.image, where, stack.name).argmax(1).numpy()
    rows["truth"] = stack.label
    shown = np.unique(np.linspace(0, len(stack.image) - 1, 7).round().astype(int))
    aspect = stack.spacing_mm[1] / stack.spacing_mm[2]
    grid_of_pictures(
        [[Picture(stack.image[z], labels=labels[z], aspect=aspect) for z in shown] for labels in rows.values()],
        [f"position {(z + 1) / len(stack.image):.2f}" for z in shown],
        out,
        row_labels=list(rows),
        window=(-1.5, float(np.percentile(stack.image, 99.5))),
        heading=f"{stack.name}, base to apex",
        label_names=layout.class_names,
        inches=1.5,
    )


def export(checkpoint: Path, output: Path) -> None:
    """Write the pre-trained encoder as a plain state dictionary, for anybody's U-Net.

    Load it with `Encoder(width=W).load_state_dict(torch.load(output, weights_only=True))`, and copy it into a
    U-Net of your own with `papers.pcl.model.copy_encoder(encoder, unet)`.

    Args:
        checkpoint: of a pre-training variant.
        output: a .pt file.
    """
    from papers.pcl.model import Encoder
    from papers.pcl.weights import load_encoder
    from shared.checkpoints import fitting, load_weights, save_tensors

    weights = load_encoder(checkpoint)
    with fitting(checkpoint):
        width = len(weights["levels.0.0.weight"])
        encoder = Encoder(width=width)
    load_weights(encoder, weights, checkpoint)
    save_tensors(Path(output), weights)
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

    from papers.pcl.data import read_frames, spacing_of
    from papers.pcl.scores import probabilities
    from shared import nifti, resample
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI label map, its name must end in .nii or .nii.gz")
    where = choose_device(device)
    model, config, layout = load_network(checkpoint, where)
    if config.stage == "pretrain":
        raise InputError(f"{checkpoint}: variant '{config.variant}' does not segment; give a fine-tuned one")
    image = nifti.load(input, ndim={3, 4})
    stack, frames = read_frames(image, layout, spacing_of(layout, config.spacing_mm))
    values, labels = np.array([0, *layout.labels], dtype=np.int16), []
    for number, frame in enumerate(frames):
        soft = probabilities(model, frame, where, f"{input}, frame {number}").numpy()
        maps = [nifti.make_image(soft[:, channel], stack.affine, Path(input)) for channel in range(soft.shape[1])]
        total = np.stack([resample.resample_to(one, image).data for one in maps])
        total[0] += total.sum(0) < 0.5  # beyond the field of view: background
        labels.append(values[total.argmax(0)])
    nifti.save(output, labels[0] if image.data.ndim == 3 else np.stack(labels, axis=-1), like=image)
    print(f"wrote {output} with the labels {', '.join(f'{v} {n}' for v, n in zip(layout.labels, layout.class_names))}")


def main(argv: list[str] | None = None) -> None:
    functions = (evaluate, panel, curves, embedding, pairs, export, apply)
    commands({function.__name__: function for function in functions}, argv)


if __name__ == "__main__":
    main()
