"""Evaluate per scan, draw the panel, apply to a user's own scan.

python -m papers.dkuxnet.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.dkuxnet.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.dkuxnet.eval apply --checkpoint RUN/checkpoint.pt --input scan.nii.gz --output atrium.nii.gz
"""

from pathlib import Path
from typing import Literal

from shared.cli import commands
from shared.errors import InputError
from shared.files import refuse_duplicates, write_csv

CROP_MEAN, CROP_SD = 0.9, 0.9
"""Of the published volumes, z-scored over the whole scan and then cropped around the atrium (80 training scans: mean
0.89 +- 0.40, standard deviation 0.93 +- 0.28). A crop that is z-scored by itself has 0 and 1, which no network was
trained on."""


def load_network(checkpoint: Path, device):
    """The trained network of a checkpoint in evaluation mode, and its configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.dkuxnet.train import Config, build_model
    from shared.checkpoints import load_model

    return load_model(checkpoint, "dkuxnet", Config, build_model, device)


def predict(model, config, image, device, what: str, with_queries: bool = False):
    """Mask (W, H, D) uint8 of a z-scored volume (W, H, D), and the query with the largest response or None (M14).

    Args:
        model, config: of `load_network`.
        image: array, float32.
        device: where to compute.
        what: names the scan, for messages.
        with_queries: return the query map as well, where the network has queries.

    Raises:
        InputError: the prediction is not finite.
    """
    import torch

    from papers.dkuxnet.sliding_window import predict_volume
    from shared.finite import finite

    classes = len(config.query_groups)

    def probabilities_of(windows):
        output = model(windows)
        if config.network != "dkuxnet":
            return output.softmax(dim=1)
        probabilities = output.logits.softmax(dim=1)
        return torch.cat([probabilities, output.response], dim=1) if with_queries else probabilities

    if config.network == "mean_mask":
        mean = model.probabilities(image.shape)
    else:
        mean = predict_volume(probabilities_of, torch.from_numpy(image).to(device), config.crop, config.strides)
    mean = finite(mean, f"the segmentation of {what}").cpu()
    mask = mean[:classes].argmax(0).to(torch.uint8).numpy()
    queries = mean[classes:].argmax(0).to(torch.uint8).numpy() if len(mean) > classes else None
    return mask, queries


def measure(mask, label) -> dict[str, float]:
    """Dice and Jaccard in percent, 95HD and ASD in voxels, of two masks (W, H, D) (the LA protocol).

    95HD pools the distances of both surfaces, ASD is from the prediction to the truth, as medpy's `hd95` and `asd`
    do. An empty mask gets the diagonal of the volume; the protocol's own script counts it as zero. Since one such scan
    can decide a mean, "empty" says how many there were: 100 for an empty mask, else 0.
    """
    import math

    import torch

    from shared.metrics import dice, iou
    from shared.surfaces import asd_from_distances, hausdorff_from_distances, surface_distances

    prediction, truth = (torch.from_numpy(x > 0)[None] for x in (mask, label))
    distances = surface_distances(prediction, truth, spacing=(1.0, 1.0, 1.0))
    empty = {"both_empty": 0.0, "one_empty": math.dist((0, 0, 0), label.shape)}
    return {
        "dice": 100 * dice(prediction, truth, undefined=1.0).item(),
        "jaccard": 100 * iou(prediction, truth, undefined=1.0).item(),
        "hd95": hausdorff_from_distances(distances, 95.0, convention="pooled", **empty).item(),
        "asd": asd_from_distances(distances, **empty).item(),
        "empty": 100.0 * (not prediction.any()),
    }


def evaluate(
    data: Path, checkpoint: Path, out: Path, device: str = "auto", split: Literal["train", "test"] = "test"
) -> None:
    """Write metrics.csv: a row per scan: Dice and Jaccard in percent, 95HD and ASD in voxels, 100 for an empty mask.

    With more than two classes the masks compared are all foreground classes together.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        split: list of the data set to evaluate.
    """
    from papers.dkuxnet.data import find_scans, read_scan
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config = load_network(checkpoint, where)
    rows = []
    for path in find_scans(data, split):
        image, label = read_scan(path, len(config.query_groups), config.shrink)
        mask, _ = predict(model, config, image, where, path.parent.name)
        rows.append({"case": path.parent.name, **measure(mask, label)})
    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test scan: two axial and one coronal slice with the outlines of each checkpoint and of the truth,
    and the map of the strongest query.

    Args:
        data: the data set.
        checkpoints: one column each, say an ablation and the proposed method.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test scan.
    """
    import numpy as np

    from papers.dkuxnet.data import find_scans, read_scan
    from shared.figures import Picture, grid_of_pictures
    from shared.gpu import choose_device

    where = choose_device(device)
    scans = find_scans(data, "test")
    if not 0 <= case < len(scans):
        raise InputError(f"{data}: there is no test scan number {case}, test.list has {len(scans)}")
    networks = [load_network(path, where) for path in checkpoints]
    name = scans[case].parent.name
    image, label = read_scan(scans[case], len(networks[0][1].query_groups), networks[0][1].shrink)
    slices = np.flatnonzero(label.any(axis=(0, 1))) if label.any() else np.arange(label.shape[2])
    levels = [int(np.quantile(slices, q)) for q in (0.4, 0.75)]
    row = int(label.sum(axis=(0, 2)).argmax())
    views = {
        "axial": lambda x: x[:, :, levels[0]].T,
        "axial, higher": lambda x: x[:, :, levels[1]].T,
        "coronal": lambda x: x[:, row].T[::-1],
    }
    titles, maps = ["input"], [None]
    rows = [[Picture(view(image))] for view in views.values()]
    for model, config in networks:
        mask, queries = predict(model, config, image, where, name, with_queries=True)
        titles.append(f"{config.variant}\nDice {measure(mask, label)['dice']:.1f} %")
        maps.append(queries)
        for cells, view in zip(rows, views.values()):
            cells.append(Picture(view(image), truth=view(label) > 0, found=view(mask) > 0))
    labels = list(views)
    if any(queries is not None for queries in maps):
        colours = {"cmap": "tab20", "window": (0, 19)}
        rows.append([None if found is None else Picture(views["axial"](found), **colours) for found in maps])
        labels.append("strongest query")
    grid_of_pictures(rows, titles, out, row_labels=labels, heading=name)


def intensities(volume, whole: bool):
    """Intensities like those of the training volumes: the z-scores of a whole scan, or, for a crop, numbers with the
    mean and standard deviation that the published crops have.

    Args:
        volume: array, not constant.
        whole: it shows the whole chest.
    """
    z_scores = (volume - volume.mean()) / volume.std()
    return z_scores if whole else CROP_MEAN + CROP_SD * z_scores


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    query_output: Path | None = None,
    whole: bool = False,
    device: str = "auto",
) -> None:
    """Segment the atrium of a user's own scan.

    A NIfTI scan is resampled to the training voxel size, and its intensities are brought to those of the training
    volumes, see `intensities`; the mask has the scan's own grid and affine. A mri_norm2.h5 is taken as it is.

    Args:
        checkpoint: of any variant.
        input: .nii or .nii.gz, late gadolinium-enhanced and axial; or a mri_norm2.h5.
        output: the mask, .nii or .nii.gz.
        query_output: .nii or .nii.gz for the map of the strongest query, if wanted.
        whole: a NIfTI scan shows the whole chest. Without it, it is taken to be cropped around the atrium.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing, broken or without contrast, or a checkpoint without queries.
    """
    import numpy as np

    from papers.dkuxnet.data import read_scan
    from shared import nifti, resample
    from shared.gpu import choose_device

    outputs = [path for path in (output, query_output) if path is not None]
    for path in outputs:
        if not str(path).endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    refuse_duplicates([Path(path).resolve() for path in outputs], "outputs")
    where = choose_device(device)
    model, config = load_network(checkpoint, where)
    if query_output is not None and config.network != "dkuxnet":
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no queries; leave out --query-output")
    voxel_mm = config.voxel_mm
    if Path(input).suffix == ".h5":
        image, _ = read_scan(input, classes=None, shrink=config.shrink)
        # the published volumes run to the left, to posterior and to superior
        affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
        maps = predict(model, config, image, where, str(input), query_output is not None)
        for path, found in zip(outputs, maps):
            nifti.save(path, found, affine=affine)
        return
    scan = nifti.load(input, ndim=3, dtype=np.float32)
    if scan.data.std() == 0:
        raise InputError(f"{input}: all voxels have the same value; expected a scan")
    grid = resample.resample_to_spacing(resample.to_ras(scan), voxel_mm)
    image = intensities(grid.data, whole)
    image = np.ascontiguousarray(image[::-1, ::-1], np.float32)  # RAS to the axes of the published volumes
    maps = predict(model, config, image, where, str(input), query_output is not None)
    for path, found in zip(outputs, maps):
        on_grid = nifti.make_image(np.ascontiguousarray(found[::-1, ::-1]), grid.affine, path)
        nifti.save(path, resample.resample_to(on_grid, scan, label=True).data, like=scan, dtype=np.uint8)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
