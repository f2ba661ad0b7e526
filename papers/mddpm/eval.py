"""Evaluate per volume, draw the panel, vary the time step, and apply to a user's own scan (section 3.2).

python -m papers.mddpm.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.mddpm.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.mddpm.eval sweep --data DATA --checkpoint RUN/checkpoint.pt --out sweep.png
python -m papers.mddpm.eval apply --checkpoint RUN/checkpoint.pt --input t2.nii.gz --output anomaly.nii.gz
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError
from shared.files import refuse_overwriting_inputs, write_csv


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto", t: int | None = None) -> None:
    """Write metrics.csv: a row per patient, named <test set>/<patient>.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        t: time step of the single pass, counted from 0; default: `t_test` of the run.
    """
    from papers.mddpm.detector import load_detector, read_patients, score_set
    from shared.gpu import choose_device

    detector = load_detector(checkpoint, choose_device(device))
    check_times(detector.config, [] if t is None else [t])
    rows = []
    for name in detector.config.test_sets:
        valid = read_patients(data, detector.config, name, "val")
        test = read_patients(data, detector.config, name, "test")
        scored = score_set(detector, valid, test, t)
        rows += [{"case": f"{name}/{volume.name}", **row} for volume, row in zip(test, scored)]
        means = {key: sum(row[key] for row in scored) / len(scored) for key in scored[0]}
        print(
            f"{name}: AUPRC {means['auprc_pct']:.2f} % ({detector.config.variant}), "
            f"{means['prevalence_pct']:.2f} % (chance); best Dice {means['dice_best_pct']:.2f} %"
        )
    write_csv(Path(out) / "metrics.csv", rows)


def check_times(config, times) -> None:
    """Raises an InputError for a time step that the run does not have."""
    wrong = [t for t in times if not 0 <= t < config.timesteps]
    if wrong:
        raise InputError(f"there is no time step {wrong[0]}: expected 0 to {config.timesteps - 1}")


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one patient of each test set, in the slice with most lesion: the scan, its intensity as anomaly map, and
    for each checkpoint the training input (masked by the mean ratio), the pseudo-healthy slice and the anomaly map.

    Args:
        data: the data set.
        checkpoints: two or three columns each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the patient in its test set.
    """
    from papers.mddpm.detector import load_detector, read_patients
    from papers.mddpm.pictures import draw_panel
    from shared.gpu import choose_device

    detectors = [load_detector(path, choose_device(device)) for path in checkpoints]
    patients = []
    for name in detectors[0].config.test_sets:
        volumes = read_patients(data, detectors[0].config, name, "test")
        if not 0 <= case < len(volumes):
            raise InputError(f"{data}: {name} has no test patient number {case}, only 0 to {len(volumes) - 1}")
        patients.append((f"{name}: {volumes[case].name}", volumes[case]))
    draw_panel(detectors, patients, out)


def sweep(
    data: Path,
    checkpoint: Path,
    out: Path,
    times: tuple[int, ...] = (99, 199, 299, 399, 499, 599, 699, 799),
    device: str = "auto",
) -> None:
    """Plot AUPRC and best Dice against the time step of the single pass; the numbers go into a .csv beside it.

    Args:
        data: the data set.
        checkpoint: of a diffusion variant.
        out: a .png file.
        times: time steps, counted from 0.
        device: auto, cpu, cuda, ...
    """
    from papers.mddpm.detector import load_detector, read_patients, score_set
    from papers.mddpm.pictures import plot_sweep
    from shared.gpu import choose_device

    table = Path(out).with_suffix(".csv")
    refuse_overwriting_inputs(table, data, checkpoint)
    detector = load_detector(checkpoint, choose_device(device))
    if detector.config.method != "diffusion":
        raise InputError(f"{checkpoint}: its method is {detector.config.method}, which has no time steps")
    check_times(detector.config, times)
    rows = []
    for name in detector.config.test_sets:
        valid, test = (read_patients(data, detector.config, name, part) for part in ("val", "test"))
        for t in times:
            scored = score_set(detector, valid, test, t)
            means = {key: sum(row[key] for row in scored) / len(scored) for key in ("auprc_pct", "dice_best_pct")}
            rows.append({"set": name, "t": t, **means})
    plot_sweep(rows, out)
    write_csv(table, rows)


def beside(path: Path, suffix: str) -> Path:
    """`anomaly.nii.gz` to `anomaly_<suffix>.nii.gz`."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    return path.with_name(f"{stem}_{suffix}{path.name[len(stem) :]}")


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    mask: Path | None = None,
    threshold: float | None = None,
    device: str = "auto",
) -> None:
    """Anomaly map of a user's own scan, in its own grid; the pseudo-healthy scan goes beside it.

    Args:
        checkpoint: of any variant.
        input: .nii or .nii.gz, the brain without skull, prepared like the training data (atlas space, voxel size); its
            axes may have any order and direction. The noise is drawn by the name of the file.
        output: anomaly map, .nii or .nii.gz; the pseudo-healthy scan is written as <output>_healthy.
        mask: brain mask on the scan's voxels; default: Otsu's threshold and filled holes.
        threshold: writes <output>_mask too, where the map exceeds it (metrics.csv holds the thresholds).
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing or broken, or doesn't fit the network.
    """
    import numpy as np

    from papers.mddpm.data import prepare
    from papers.mddpm.detection import binarise
    from papers.mddpm.detector import load_detector
    from papers.mddpm.train import preparation
    from shared import nifti, resample
    from shared.finite import finite
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise InputError(f"--threshold {threshold}: expected a number from 0 on")
    paths = {"score": output, "healthy": beside(output, "healthy"), "mask": beside(output, "mask")}
    for path in paths.values():
        refuse_overwriting_inputs(path, input, mask, checkpoint)
    detector = load_detector(checkpoint, choose_device(device))
    scan = nifti.load(input, ndim=3)
    brain = nifti.make_image(otsu_mask(scan), scan.affine) if mask is None else nifti.load_labels(mask, 2, ndim=3)
    volume = prepare(scan, brain, None, preparation(detector.config))
    healthy, _, score = detector(volume)
    low, high = volume.window

    def native(data: np.ndarray) -> np.ndarray:
        placed = nifti.make_image(data.astype(np.float32), volume.grid.affine)
        return finite(resample.resample_to(placed, scan).data, f"the result for {input}")

    results = {"healthy": native(np.where(volume.mask, healthy * (high - low) + low, 0)), "score": native(score)}
    if threshold is not None:
        # On the detector's grid, where `smallest` counts voxels; a native voxel has another volume.
        found = binarise(score, threshold, detector.config.smallest).astype(np.uint8)
        placed = nifti.make_image(found, volume.grid.affine)
        results["mask"] = resample.resample_to(placed, scan, label=True).data
    for name, data in results.items():
        nifti.save(paths[name], data, like=scan)
    print(f"wrote {output} (|scan - pseudo-healthy| in units of the brain's intensity range) and its companions")


def otsu_mask(scan):
    """uint8 (X, Y, Z): above half of Otsu's threshold between background and brain, largest part, holes filled.

    Raises:
        InputError: the scan has one intensity.
    """
    import numpy as np
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    data = scan.data.astype(np.float64)
    data -= data.min()
    if not 0 < data.max() < np.inf:
        raise InputError(f"{scan.path}: the scan has one intensity only; is this the right file?")
    parts, count = ndimage.label(data > 0.5 * threshold_otsu(data.ravel()))
    largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:])
    return ndimage.binary_fill_holes(parts == largest).astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "sweep": sweep, "apply": apply}, argv)


if __name__ == "__main__":
    main()
