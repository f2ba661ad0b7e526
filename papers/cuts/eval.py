"""Evaluate per image, draw the panel, and segment a user's own photograph or slice from fine to coarse.

python -m papers.cuts.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.cuts.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.cuts.eval apply --checkpoint RUN/checkpoint.pt --input photo.jpg --output out/levels.nii.gz
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError


def score(found, case) -> dict[str, float | str]:
    """A row of metrics.csv: the five metrics of table 1, and what the levels show (claims C3 and C4)."""
    from papers.cuts import scores

    mask = found.labels if found.labels.dtype == bool else scores.binarise(found.labels, case.truth)
    row = {**scores.measure(mask, case.truth), "best_dice": "", "gain": "", "levels": "", "nested": "", "finer": ""}
    if found.levels:
        row["best_dice"] = scores.best_level(found.levels, case.truth)[0]
        row["gain"] = row["best_dice"] - row["dice"]
        row["levels"], row["nested"] = len(found.levels), scores.nested_share(found.levels)
        if case.white_matter is not None:
            row["finer"] = scores.scale_gap(found.levels, case.truth, case.white_matter)
    return row


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per image with Dice, Hausdorff distance, SSIM, ERGAS and RMSE; of condensation also the
    Dice of the best level, and what the levels are like.

    Unsupervised methods are scored on all images (or `max_cases` of each data set), the U-Net on its test set.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.cuts.data import cases_to_score, read_datasets
    from papers.cuts.segmentation import load_networks, segment
    from papers.cuts.train import build_model
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    rows = []
    for name, cases in read_datasets(data, config.datasets).items():
        network = networks.get(name)
        if network is None and build_model(config, 1) is not None:
            raise InputError(f"{checkpoint}: was not trained on '{name}', which {data} holds; train on this folder")
        for case in cases_to_score(cases, config.method == "unet", config.max_cases):
            rows.append({"case": case.name, **score(segment(config, network, case, where), case)})
    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw a test image of each data set: image, truth, each checkpoint's label map with the mask that M11 picks.

    Args:
        data: the data set.
        checkpoints: a column each, and one more for the best level of condensation.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test image.
    """
    from papers.cuts.baselines import to_picture
    from papers.cuts.data import cases_to_score, read_datasets
    from papers.cuts.scores import best_level
    from papers.cuts.segmentation import load_networks, segment
    from shared.figures import Picture, grid_of_pictures
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [load_networks(path, where) for path in checkpoints]
    datasets = read_datasets(data, loaded[0][1].datasets)
    titles, rows, names = ["image"], [], []
    for _, config in loaded:
        titles += ["persistent", "best level"] if config.readout == "diffusion" else [config.variant]
    for name, cases in datasets.items():
        shown = cases_to_score(cases, supervised=True)
        item = shown[min(case, len(shown) - 1)]
        picture = to_picture(item.image)
        row = [Picture(picture, truth=item.truth)]
        for networks, config in loaded:
            if name not in config.datasets:
                row.append(None)
                continue
            found = segment(config, networks.get(name), item, where)
            row.append(segments(picture, found.labels, item.truth))
            if found.levels:
                row.append(segments(picture, found.levels[best_level(found.levels, item.truth)[1]], item.truth))
        rows.append(row)
        names.append(item.name)
    grid_of_pictures(rows, titles, Path(out), row_labels=names)


def segments(picture, labels, truth=None):
    """A cell of the panel: a label map in colours, or the outline of a mask; and what M11 makes of it."""
    import numpy as np

    from papers.cuts.scores import binarise
    from shared.figures import Picture

    if labels.dtype == bool:
        return Picture(picture, truth=truth, found=labels)
    found = None if truth is None else binarise(labels, truth)
    return Picture(picture, truth=truth, found=found, labels=1 + np.unique(labels, return_inverse=True)[1])


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    dataset: str | None = None,
    slice: int | None = None,
    pixel: tuple[int, int] | None = None,
    size: int = 128,
    device: str = "auto",
) -> None:
    """Segment a user's own image, without any label: the whole stack from fine to coarse, and a figure.

    Beside `output` (`levels.nii.gz`, say) are written levels_persistent.nii.gz and levels_kmeans.nii.gz (one
    label map each), levels.png (an overview), and with `pixel` levels_mask.nii.gz: the persistent segment that
    holds this pixel.

    Args:
        checkpoint: of a CUTS variant.
        input: a picture (.png, .jpg, ...), or .nii or .nii.gz with a slice or a volume.
        output: .nii or .nii.gz: labels (x, y, level), level 0 the finest; pixels of a photograph count from its
            top left, x to the right.
        dataset: network to use: retina, ventricles or tumour; default: the first with the input's channels.
        slice: number of the slice of a volume, along the third axis; default: the middle one.
        pixel: x and y of a pixel in the structure that is wanted.
        size: the image's longer side is resized to so many pixels (paper: 128); labels are given at full size.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing or broken, or a checkpoint without a network for it.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from papers.cuts import segmentation
    from papers.cuts.data import read_own_image
    from shared import nifti
    from shared.files import refuse_overwriting_inputs
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI label stack, its name must end in .nii or .nii.gz")
    if not 24 <= size <= 512:
        raise InputError(f"--size {size}: expected 24 to 512 pixels; the networks were trained on 128")
    stem = output.name.removesuffix(".gz").removesuffix(".nii")
    files = {name: output.with_name(f"{stem}_{name}{output.name[len(stem) :]}") for name in ("persistent", "kmeans")}
    if pixel is not None:
        files["mask"] = output.with_name(f"{stem}_mask{output.name[len(stem) :]}")
    for path in (output, output.with_name(f"{stem}.png"), *files.values()):
        refuse_overwriting_inputs(path, input, checkpoint)
    image, affine = read_own_image(Path(input), slice)
    where = choose_device(device)
    networks, config = segmentation.load_networks(checkpoint, where)
    network = choose_network(networks, config, dataset, len(image), checkpoint)
    full = image.shape[1:]
    if pixel is not None and not (0 <= pixel[0] < full[1] and 0 <= pixel[1] < full[0]):
        raise InputError(
            f"--pixel {pixel[0]} {pixel[1]} lies outside of {input}, which has {full[1]} x {full[0]} pixels"
        )
    shape = tuple(max(8, round(side * size / max(full))) for side in full)
    small = F.interpolate(torch.from_numpy(image)[None], shape, mode="bilinear", antialias=True)[0].to(where)
    embedding = segmentation.embedding_of(network, small, str(input))
    hierarchy = segmentation.condense_image(config, embedding)

    def to_full_size(labels) -> np.ndarray:
        rows, columns = ((np.arange(side) * small_side // side) for side, small_side in zip(full, shape))
        return labels[np.ix_(rows, columns)].astype(np.int16)

    levels = [to_full_size(labels) for labels in segmentation.levels_of(config, hierarchy, shape)]
    single = {
        "persistent": to_full_size(segmentation.persistent_map(config, hierarchy, shape)),
        "kmeans": to_full_size(segmentation.kmeans_map(config, embedding, shape)),
    }
    if pixel is not None:
        single["mask"] = (single["persistent"] == single["persistent"][pixel[1], pixel[0]]).astype(np.int16)
    for name, labels in single.items():
        nifti.save(files[name], labels.T, affine=affine)
    overview(image, levels, single, output.with_name(f"{stem}.png"))
    nifti.save(output, np.stack([labels.T for labels in levels], axis=-1), affine=affine)
    counts = [len(np.unique(labels)) for labels in levels]
    print(f"wrote {output}: {len(levels)} levels, from {counts[0]} to {counts[-1]} segments")


def choose_network(networks: dict, config, dataset: str | None, channels: int, checkpoint: Path):
    """The network for an image with so many channels.

    Raises:
        InputError: the checkpoint has none.
    """
    if config.method != "cuts":
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no encoder; use one of variant 'full'")
    fitting = {n: net for n, net in networks.items() if net.encoder.layers[0].in_channels == channels}
    if dataset is None and fitting:
        return next(iter(fitting.values()))
    if dataset not in fitting:
        kind = "colour photographs" if channels == 3 else "grey images"
        raise InputError(f"{checkpoint}: has no network '{dataset}' for {kind}; it has {', '.join(fitting) or 'none'}")
    return fitting[dataset]


def overview(image, levels: list, single: dict, out: Path, columns: int = 7) -> None:
    """A figure of the image, up to ten levels from fine to coarse, and the single label maps."""
    import numpy as np

    from papers.cuts.baselines import to_picture
    from shared.figures import Picture, grid_of_pictures

    picture = to_picture(image)
    cells = [Picture(picture, title="image")]
    for k in sorted({int(k) for k in np.linspace(0, len(levels) - 1, 10)}):
        cells.append(segments(picture, levels[k]))
        cells[-1] = Picture(picture, labels=cells[-1].labels, title=f"{len(np.unique(levels[k]))} segments")
    cells += [Picture(picture, labels=segments(picture, labels).labels, title=name) for name, labels in single.items()]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    grid_of_pictures(rows, [], out)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
