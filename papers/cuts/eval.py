"""Evaluate per image, draw the panel, and segment a user's own photograph or slice from fine to coarse.

python -m papers.cuts.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.cuts.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.cuts.eval apply --checkpoint RUN/checkpoint.pt --input photo.jpg --output out/levels.nii.gz
"""

import csv
from pathlib import Path

from shared.cli import commands, config_from_dict
from shared.errors import InputError


def load_networks(checkpoint: Path, device):
    """The networks of a checkpoint by data set, in evaluation mode with their best weights, and the
    configuration. No networks where a method has none.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.cuts.train import Config, build_model
    from shared.checkpoints import load_checkpoint

    content = load_checkpoint(checkpoint, "cuts")
    config = config_from_dict(Config, content["config"])
    networks = {}
    for key, state in content["objects"].items():
        if key.startswith("stopping_") and state["weights"]:
            first = next(iter(state["weights"].values()))
            model = build_model(config, first.shape[1])
            model.load_state_dict(state["weights"])
            networks[key.removeprefix("stopping_")] = model.to(device).eval()
    return networks, config


def condense_image(config, embedding):
    """M8 with the settings of a run: the hierarchy of an embedding (H * W, d)."""
    from papers.cuts.condensation import condense_pixels
    from papers.cuts.spectral import diffusion_coordinates

    points = embedding
    if config.space == "diffusion":
        points = diffusion_coordinates(
            embedding, config.coordinates, config.landmarks, steps=config.diffusion_steps, seed=config.seed
        )
    return condense_pixels(
        points,
        micro=config.micro_clusters,
        seed=config.seed,
        neighbours=config.neighbours,
        growth=config.growth,
        merge=config.merge,
        iterations=config.iterations,
    )


class StoredLevels:
    """Label stacks of a run's images in levels.npz, so that the oracle "best one" need not condense them again.

    A stack is stored under a digest of the embedding and the settings, so it can't be another image's.
    """

    def __init__(self, folder: Path | None):
        import numpy as np

        self.stacks: dict = {}
        if folder is not None and (Path(folder) / "levels.npz").exists():
            with np.load(Path(folder) / "levels.npz") as file:
                self.stacks = {name: file[name] for name in file}

    def name(self, config, case, embedding) -> str:
        import hashlib

        settings = [config.micro_clusters, config.neighbours, config.growth, config.merge, config.iterations]
        settings += [config.space, config.coordinates, config.landmarks, config.diffusion_steps, config.seed]
        content = embedding.cpu().numpy().tobytes() + repr((*settings, config.max_segments)).encode()
        return f"{case.name}/{hashlib.sha256(content).hexdigest()[:12]}"

    def write(self, folder: Path) -> None:
        import numpy as np

        from shared.files import write_atomically

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **self.stacks)

        write_atomically(Path(folder) / "levels.npz", write)


def levels_of(config, hierarchy, shape) -> list:
    """Label maps (H, W) of all distinct levels, fine to coarse."""
    levels = [labels.reshape(shape) for labels in hierarchy.levels(config.max_segments)]
    return levels or [hierarchy.labels(-1).reshape(shape)]


def persistent_map(config, hierarchy, shape):
    """M9 with the settings of a run: label map (H, W)."""
    from papers.cuts.condensation import persistent_structures

    return persistent_structures(hierarchy, config.intact, config.smallest_segment).reshape(shape)


def segment(config, network, case, device, stored: StoredLevels | None = None) -> dict:
    """What a method makes of one image: "labels" (H, W), or "mask" of the U-Net; "levels" with condensation.

    Args:
        stored: label stacks to look up (for the best level) or to add to (for the persistent structures).
    """
    import numpy as np
    import torch

    from papers.cuts import baselines
    from papers.cuts.model import embed
    from papers.cuts.spectral import spectral_kmeans

    if config.method == "random":
        seed = [config.seed, *case.name.encode()]
        return {"labels": baselines.random_labels(case.image, seed)}
    if config.method == "otsu":
        return {"labels": baselines.otsu_watershed(case.image)}
    if config.method == "felzenszwalb":
        return {"labels": baselines.felzenszwalb_labels(case.image, config.felzenszwalb_scale)}
    if config.method == "slic":
        return {"labels": baselines.slic_labels(case.image, config.slic_segments)}
    if config.method == "raw_kmeans":
        return {"labels": baselines.raw_kmeans(case.image, config.clusters, config.seed)}
    image, shape = torch.from_numpy(case.image).to(device), case.image.shape[1:]
    if config.method in ("dfc", "unet"):
        with torch.no_grad():
            response = network(image[None])[0].float().cpu()
        if config.method == "unet":
            return {"mask": (response[0] > 0).numpy()}
        return {"labels": response.argmax(0).int().numpy()}
    embedding = embed(network, image)
    if config.readout == "kmeans":
        labels = spectral_kmeans(embedding, config.clusters, config.landmarks, config.diffusion_steps, config.seed)
        return {"labels": labels.reshape(shape)}
    stored = stored or StoredLevels(None)
    name = stored.name(config, case, embedding)
    if config.readout == "best" and name in stored.stacks:
        return {"levels": list(stored.stacks[name])}
    hierarchy = condense_image(config, embedding)
    levels = levels_of(config, hierarchy, shape)
    stored.stacks[name] = np.stack(levels).astype(np.uint8 if config.max_segments <= 256 else np.int32)
    return {"labels": persistent_map(config, hierarchy, shape), "levels": levels}


def score(config, found: dict, case) -> dict[str, float | str]:
    """A row of metrics.csv: the five metrics of table 1, and what the levels show (claim C4)."""
    from papers.cuts import scores

    if "mask" in found:
        row = scores.measure(found["mask"], case.truth)
    elif config.method == "cuts" and config.readout == "best":
        row = scores.best_level(found["levels"], case.truth)
    else:
        row = scores.measure(scores.binarise(found["labels"], case.truth), case.truth)
    row |= {"levels": "", "nested": "", "finer": ""}
    if "levels" in found:
        row["levels"], row["nested"] = len(found["levels"]), scores.nested_share(found["levels"])
        if case.white_matter is not None:
            row["finer"] = scores.scale_gap(found["levels"], case.truth, case.white_matter)
    return row


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per image with Dice, Hausdorff distance, SSIM, ERGAS and RMSE; and levels.npz,
    all label stacks (T, H, W) from fine to coarse, where a method makes them.

    Unsupervised methods are scored on all images (or `max_cases` of each data set), the U-Net on its test set.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.cuts.data import cases_to_score, read_datasets
    from papers.cuts.train import build_model
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    oracle = config.method == "cuts" and config.readout == "best"
    stored = StoredLevels(config.init.parent if oracle and config.init else None)
    rows = []
    for name, cases in read_datasets(data, config.datasets).items():
        network = networks.get(name)
        if network is None and build_model(config, 1) is not None:
            raise InputError(f"{checkpoint}: was not trained on '{name}', which {data} holds; train on this folder")
        for case in cases_to_score(cases, config.method == "unet", config.max_cases):
            rows.append({"case": case.name, **score(config, segment(config, network, case, where, stored), case)})

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    if stored.stacks and not oracle:
        stored.write(out)
    write_atomically(Path(out) / "metrics.csv", write)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw a test image of each data set: image, truth, each checkpoint's label map with the mask that M11 picks.

    Args:
        data: the data set.
        checkpoints: two columns each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test image.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cuts.baselines import to_picture
    from papers.cuts.data import cases_to_score, read_datasets
    from papers.cuts.scores import best_level_map, binarise
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [load_networks(path, where) for path in checkpoints]
    datasets = read_datasets(data, loaded[0][1].datasets)
    titles = ["image", *(config.variant for _, config in loaded)]
    figure, axes = plt.subplots(
        len(datasets),
        len(titles),
        figsize=(2.1 * len(titles), 2.2 * len(datasets) + 0.2),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, (name, cases) in zip(axes, datasets.items()):
        shown = cases_to_score(cases, supervised=True)
        item = shown[min(case, len(shown) - 1)]
        picture = to_picture(item.image)
        axes_row[0].imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes_row[0].contour(item.truth, [0.5], colors="lime", linewidths=0.8)
        axes_row[0].set_ylabel(item.name, fontsize=7)
        for axis, (networks, config) in zip(axes_row[1:], loaded):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            if name in config.datasets:
                found = segment(config, networks.get(name), item, where)
                if "mask" in found:
                    mask = found["mask"]
                else:
                    oracle = config.method == "cuts" and config.readout == "best"
                    labels = best_level_map(found["levels"], item.truth) if oracle else found["labels"]
                    draw_labels(axis, labels)
                    mask = binarise(labels, item.truth)
                axis.contour(item.truth, [0.5], colors="lime", linewidths=0.8)
                if mask.any() and not mask.all():
                    axis.contour(mask, [0.5], colors="red", linewidths=0.8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=8)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def draw_labels(axis, labels) -> None:
    """A label map in colours that differ from one segment to the next, whatever their numbers are."""
    import numpy as np

    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    axis.imshow(numbers * 7 % 20 + 0.5, cmap="tab20", vmin=0, vmax=20, interpolation="nearest")


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
        input: .png or .jpg, .nii or .nii.gz with a slice or a volume.
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

    from papers.cuts.model import embed
    from papers.cuts.spectral import spectral_kmeans
    from shared import nifti
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI label stack, its name must end in .nii or .nii.gz")
    image, affine = read_own_image(Path(input), slice)
    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    network = choose_network(networks, config, dataset, len(image), checkpoint)
    full = image.shape[1:]
    scale = size / max(full)
    shape = tuple(max(8, round(side * scale)) for side in full)
    small = F.interpolate(torch.from_numpy(image)[None], shape, mode="bilinear", antialias=True)[0].to(where)
    embedding = embed(network, small)
    hierarchy = condense_image(config, embedding)

    def to_full_size(labels) -> np.ndarray:
        rows, columns = ((np.arange(side) * small_side // side) for side, small_side in zip(full, shape))
        return labels.reshape(shape)[np.ix_(rows, columns)].astype(np.int16)

    levels = [to_full_size(labels) for labels in levels_of(config, hierarchy, shape)]
    single = {
        "persistent": to_full_size(persistent_map(config, hierarchy, shape)),
        "kmeans": to_full_size(
            spectral_kmeans(embedding, config.clusters, config.landmarks, config.diffusion_steps, config.seed)
        ),
    }
    if pixel is not None:
        x, y = pixel
        if not (0 <= x < full[1] and 0 <= y < full[0]):
            raise InputError(f"--pixel {x} {y} lies outside of {input}, which has {full[1]} x {full[0]} pixels")
        single["mask"] = (single["persistent"] == single["persistent"][y, x]).astype(np.int16)
    stem = output.name.removesuffix(".gz").removesuffix(".nii")
    for name, labels in single.items():
        nifti.save(output.with_name(f"{stem}_{name}{output.name[len(stem) :]}"), labels.T, affine=affine)
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


def read_own_image(path: Path, slice: int | None):
    """A user's image (C, H, W) float32 in [-1, 1], rows downwards, and the affine of its (x, y) pixels.

    A NIfTI slice is normalised as in training (99th percentile to 1); rows run along its second axis.

    Raises:
        InputError: missing, broken, of another format, or no such slice.
    """
    import numpy as np

    from papers.cuts.data import normalise_mri, read_photograph
    from shared import nifti

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected .png, .jpg, .nii or .nii.gz")
    if path.name.endswith((".nii", ".nii.gz")):
        volume = nifti.load(path, ndim={2, 3})
        voxels, affine = volume.data, volume.affine
        if voxels.ndim == 3:
            number = voxels.shape[2] // 2 if slice is None else slice
            if not 0 <= number < voxels.shape[2]:
                raise InputError(f"{path}: has no slice {number}, it has {voxels.shape[2]} of them")
            voxels, affine = voxels[..., number], affine.copy()
            affine[:3, 3] += number * affine[:3, 2]
        image = normalise_mri(voxels.T.astype(np.float32), zeros_to_one=False)[None]
        return np.ascontiguousarray(image), affine
    image = read_photograph(path)
    if np.allclose(image[0], image[1]) and np.allclose(image[0], image[2]):
        image = image[:1]  # a grey picture: the networks for MRI have one channel
    return image, np.diag([-1.0, -1.0, 1.0, 1.0])  # viewers then show the picture upright


def overview(image, levels: list, single: dict, out: Path) -> None:
    """A figure of the image, up to ten levels from fine to coarse, and the single label maps."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cuts.baselines import to_picture
    from shared.files import write_atomically

    shown = sorted({int(k) for k in np.linspace(0, len(levels) - 1, 10)})
    pictures = {f"{len(np.unique(levels[k]))} segments": levels[k] for k in shown} | single
    columns = 7
    rows = -(-(len(pictures) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.2 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(to_picture(image), cmap="gray", vmin=0, vmax=1)
    axes.flat[0].set_title("image", fontsize=9)
    for axis, (name, labels) in zip(axes.flat[1:], pictures.items()):
        draw_labels(axis, labels)
        axis.set_title(name, fontsize=9)
    figure.tight_layout(pad=0.3)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
