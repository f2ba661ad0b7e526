"""Evaluate per volume, draw the panel, vary the time step, and apply to a user's own scan (section 3.2).

python -m papers.mddpm.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.mddpm.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.mddpm.eval sweep --data DATA --checkpoint RUN/checkpoint.pt --out sweep.png
python -m papers.mddpm.eval apply --checkpoint RUN/checkpoint.pt --input t2.nii.gz --output anomaly.nii.gz
"""

import csv
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

SLICES_AT_A_TIME = 16


class Detector:
    """A trained variant: volume in, pseudo-healthy volume and anomaly map out (M5, M6).

    Args:
        config: of the run.
        weights: of the network; unused for the intensity baseline.
        device: where to compute.
    """

    def __init__(self, config, weights: dict, device):
        self.config, self.weights, self.device = config, weights, device
        self._model, self._size = None, None

    @property
    def calls_per_slice(self) -> float:
        """Network calls for one slice; 0 where there is no network."""
        if self.config.method == "intensity":
            return 0.0
        return float(self.config.noise_draws * (self.config.grid**2 if self.config.method == "diffusion" else 1))

    def _model_for(self, height: int, width: int):
        from papers.mddpm.train import build_model

        if self._size != (height, width):
            self._model, self._size = build_model(self.config, height, width), (height, width)
            try:
                self._model.load_state_dict(self.weights)
            except RuntimeError as error:
                raise InputError(
                    f"the autoencoder was trained on slices of another size than {height} x {width}; set --crop"
                ) from error
            self._model.to(self.device).eval()
        return self._model

    def pseudo_healthy(self, image, t: int | None = None):
        """ẑ₀ of a prepared volume, float32 (X, Y, Z) in [0, 1]; the mean of `noise_draws` reconstructions.

        The noise depends on the run's seed and the number of the slice, so that a scan gives one result.

        Args:
            image: float32 (X, Y, Z) in [0, 1].
            t: time step, `t_test` by default.
        """
        import numpy as np
        import torch

        from papers.mddpm.noise import draw_noise

        config = self.config
        if config.method == "intensity":
            return np.zeros_like(image)
        height, width, depth = image.shape
        model, t = self._model_for(height, width), config.t_test if t is None else t
        slices = torch.from_numpy(image.transpose(2, 0, 1).copy())[:, None]
        total = torch.zeros_like(slices)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            for _ in range(config.noise_draws):
                for first in range(0, depth, SLICES_AT_A_TIME):
                    batch = slices[first : first + SLICES_AT_A_TIME].to(self.device)
                    if config.method == "vae":
                        found = model.reconstruct(batch)
                    else:
                        fields = [draw_noise(config.noise, height, width, config.wavelength) for _ in batch]
                        found = model.reconstruct(batch, torch.stack(fields)[:, None].to(self.device), t)
                    total[first : first + len(batch)] += found.cpu()
        return (total / config.noise_draws)[:, 0].numpy().transpose(1, 2, 0)

    def __call__(self, volume, t: int | None = None):
        """Pseudo-healthy volume, residual |z₀ - ẑ₀| and anomaly map A, float32 (X, Y, Z) each."""
        import numpy as np

        from papers.mddpm.detection import anomaly_map

        healthy = self.pseudo_healthy(volume.image, t)
        residual = np.abs(volume.image - healthy)
        return healthy, residual, anomaly_map(residual, volume.mask, self.config.erosions, self.config.median)


def load_detector(checkpoint: Path, device) -> Detector:
    """The best weights of a run, ready to use.

    Raises:
        InputError: no checkpoint of this paper, or one without weights.
    """
    from papers.mddpm.train import Config
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "mddpm")
    config = load_config(content, Config, checkpoint)
    best = content["objects"].get("best", {}).get("weights") or (content["models"][0] if content["models"] else {})
    if not best and config.method != "intensity":
        raise InputError(f"{checkpoint}: the checkpoint holds no weights; train first")
    return Detector(config, best, device)


def read_patients(data: Path, config, name: str, part: str) -> list:
    """The volumes of a test set that have a lesion in the field of view.

    Raises:
        InputError: see `data.read_volumes`; a volume without lesion mask; no volume with a lesion.
    """
    from papers.mddpm.data import read_volumes
    from papers.mddpm.train import preparation

    volumes = read_volumes(data, f"{name}_{part}", preparation(config))
    for volume in volumes:
        if volume.seg is None:
            raise InputError(f"{data}/splits/{name}_{part}.csv: {volume.name} has no lesion mask (seg_path)")
    sick = [volume for volume in volumes if volume.seg.any()]
    if not sick:
        raise InputError(f"{data}/splits/{name}_{part}.csv: no volume has a lesion; there is nothing to score")
    return sick


def score_set(detector: Detector, valid: list, test: list, t: int | None = None) -> tuple[list[dict], list]:
    """Metrics of each test volume, and the anomaly maps.

    Two thresholds, each one number for the whole set: `dice_best` uses the one with the highest mean Dice on the
    test set (the text's protocol), `dice_val` the one with the highest pooled Dice on the patients for validation
    (the released code's).
    """
    from papers.mddpm import detection

    config = detector.config
    outputs = [detector(volume, t) for volume in test]
    maps, truths = [output[2] for output in outputs], [volume.seg for volume in test]
    chosen = detection.best_threshold([detector(v, t)[2] for v in valid], [v.seg for v in valid], pooled=True)
    best = detection.best_threshold(maps, truths, pooled=False)
    rows = []
    for volume, (_, residual, score) in zip(test, outputs):
        healthy_part = volume.mask & ~volume.seg
        lesion, healthy = float(residual[volume.seg].mean()), float(residual[healthy_part].mean())
        trivial = detection.anomaly_map(volume.image, volume.mask, config.erosions, config.median)
        rows.append(
            {
                "auprc_pct": 100 * detection.average_precision(score, volume.seg),
                "dice_best_pct": 100 * detection.dice(detection.binarise(score, best, config.smallest), volume.seg),
                "dice_val_pct": 100 * detection.dice(detection.binarise(score, chosen, config.smallest), volume.seg),
                "residual_ratio": lesion / max(healthy, 1e-6),
                "healthy_residual": healthy,
                "calls_per_slice": detector.calls_per_slice,
                "auprc_intensity_pct": 100 * detection.average_precision(trivial, volume.seg),
                "prevalence_pct": 100 * float(volume.seg.mean()),
                "threshold_best": best,
                "threshold_val": chosen,
            }
        )
    return rows, maps


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto", t: int | None = None) -> None:
    """Write metrics.csv: a row per patient, named <test set>/<patient>. Prints the trivial score's AUPRC beside.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        t: time step of the single pass; default: `t_test` of the run.
    """
    from shared.files import write_atomically
    from shared.gpu import choose_device

    detector = load_detector(checkpoint, choose_device(device))
    rows = []
    for name in detector.config.test_sets:
        valid = read_patients(data, detector.config, name, "val")
        test = read_patients(data, detector.config, name, "test")
        scored, _ = score_set(detector, valid, test, t)
        rows += [{"case": f"{name}/{volume.name}", **row} for volume, row in zip(test, scored)]

        def mean(key: str, of: list = scored) -> float:
            return sum(row[key] for row in of) / len(of)

        print(
            f"{name}: AUPRC {mean('auprc_pct'):.2f} % ({detector.config.variant}), "
            f"{mean('auprc_intensity_pct'):.2f} % (the intensity itself), "
            f"{mean('prevalence_pct'):.2f} % (chance); best Dice {mean('dice_best_pct'):.2f} %"
        )

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(Path(out) / "metrics.csv", write)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one patient of each test set, in the slice with most lesion: for each checkpoint the training input
    (masked by the mean ratio), the pseudo-healthy slice and the anomaly map; first the scan, the trivial score and the
    truth.

    Args:
        data: the data set.
        checkpoints: a pair of columns each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the patient in its test set.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    from papers.mddpm.detection import anomaly_map
    from papers.mddpm.masking import MaskingBlock
    from shared.files import write_atomically
    from shared.gpu import choose_device

    detectors = [load_detector(path, choose_device(device)) for path in checkpoints]
    config = detectors[0].config
    sets = [(name, read_patients(data, config, name, "test")) for name in config.test_sets]
    columns = 3 + 3 * len(detectors)
    figure, axes = plt.subplots(len(sets), columns, figsize=(1.7 * columns, 2.3 * len(sets)), squeeze=False)
    for row, (name, patients) in zip(axes, sets):
        if not 0 <= case < len(patients):
            raise InputError(f"{data}: {name} has no test patient number {case}, only 0 to {len(patients) - 1}")
        volume = patients[case]
        number = int(volume.seg.sum((0, 1)).argmax())
        trivial = anomaly_map(volume.image, volume.mask, config.erosions, config.median)
        pictures = [
            (f"{name}: scan", volume.image, "gray", 1.0),
            ("lesion", volume.seg.astype(np.float32), "gray", 1.0),
            ("intensity as score", trivial, "inferno", 1.0),
        ]
        for detector in detectors:
            healthy, _, score = detector(volume)
            of = detector.config
            middle = sum(of.ratio) / 2
            block = MaskingBlock(of.masking, (middle, middle), of.sides, of.frequency_sides)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(2)
                section = torch.from_numpy(volume.image[:, :, number].copy())
                masked = block(section, torch.from_numpy(volume.mask[:, :, number].copy())).numpy()
            top = max(float(np.quantile(score, 0.995)), 1e-3)
            pictures += [
                (f"{of.variant}: training input", masked[:, :, None], "gray", 1.0),
                ("pseudo-healthy", np.where(volume.mask, healthy, 0), "gray", 1.0),
                ("anomaly map", score, "inferno", top),
            ]
        for axis, (title, picture, colours, top) in zip(row, pictures):
            section = picture[:, :, min(number, picture.shape[2] - 1)]
            axis.imshow(section.T, cmap=colours, vmin=0, vmax=top, origin="lower")
            axis.set_title(title, fontsize=7)
            axis.axis("off")
    figure.tight_layout(pad=0.3)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=110, format="png"))
    plt.close(figure)


def sweep(
    data: Path,
    checkpoint: Path,
    out: Path,
    times: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 700, 800),
    device: str = "auto",
) -> None:
    """Plot AUPRC and best Dice against the time step of the single pass; the numbers go into a .csv beside it.

    Args:
        data: the data set.
        checkpoint: of a diffusion variant.
        out: a .png file.
        times: time steps.
        device: auto, cpu, cuda, ...
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from shared.files import write_atomically
    from shared.gpu import choose_device

    detector = load_detector(checkpoint, choose_device(device))
    if detector.config.method != "diffusion" or not all(0 <= t < detector.config.timesteps for t in times):
        raise InputError(f"{checkpoint}: expected a diffusion variant and times from 0 to its T - 1, found {times}")
    rows = []
    for name in detector.config.test_sets:
        valid, test = (read_patients(data, detector.config, name, part) for part in ("val", "test"))
        for t in times:
            scored, _ = score_set(detector, valid, test, t)
            means = {key: sum(row[key] for row in scored) / len(scored) for key in ("auprc_pct", "dice_best_pct")}
            rows.append({"set": name, "t": t, **means})
    figure, axes = plt.subplots(1, len(detector.config.test_sets), figsize=(8, 3), squeeze=False)
    for axis, name in zip(axes[0], detector.config.test_sets):
        of = [row for row in rows if row["set"] == name]
        for key, label in (("auprc_pct", "AUPRC"), ("dice_best_pct", "best Dice")):
            axis.plot([row["t"] for row in of], [row[key] for row in of], marker="o", label=label)
        axis.set(title=name, xlabel="time step t", ylabel="%")
        axis.legend()
    figure.tight_layout()
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=100, format="png"))
    plt.close(figure)

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(Path(out).with_suffix(".csv"), write)


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
        input: .nii or .nii.gz, the brain without skull, prepared like the training data (orientation, atlas space).
        output: anomaly map, .nii or .nii.gz; the pseudo-healthy scan is written as <output>_healthy.
        mask: brain mask; default: Otsu's threshold and filled holes.
        threshold: writes <output>_mask too, where the map exceeds it (metrics.csv holds the thresholds).
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing or broken, or doesn't fit the network.
    """
    import numpy as np

    from papers.mddpm.data import prepare
    from papers.mddpm.detection import binarise
    from papers.mddpm.train import preparation
    from shared import nifti, resample
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    detector = load_detector(checkpoint, choose_device(device))
    scan = nifti.load(input, ndim=3)
    brain = nifti.make_image(otsu_mask(scan), scan.affine) if mask is None else nifti.load_labels(mask, 2, ndim=3)
    volume = prepare(scan, brain, None, preparation(detector.config))
    healthy, _, score = detector(volume)

    def native(data: np.ndarray):
        placed = nifti.make_image(data.astype(np.float32), volume.grid.affine)
        return resample.resample_to(placed, scan).data

    score = native(score)
    low, high = np.percentile(scan.data[brain.data > 0], (1, 99))
    healthy = np.where(volume.mask, healthy * (high - low) + low, 0)
    nifti.save(beside(output, "healthy"), native(healthy), like=scan)
    if threshold is not None:
        found = binarise(score, threshold, detector.config.smallest).astype(np.uint8)
        nifti.save(beside(output, "mask"), found, like=scan)
    nifti.save(output, score, like=scan)
    print(f"wrote {output} (|scan - pseudo-healthy| in units of the brain's intensity range) and its companions")


def otsu_mask(scan):
    """uint8 (X, Y, Z): above Otsu's threshold between background and brain, largest part, holes filled.

    Raises:
        InputError: the scan has one intensity.
    """
    import numpy as np
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    data = scan.data.astype(np.float32)
    if not data.max() > data.min():
        raise InputError(f"{scan.path}: the scan has one intensity only; is this the right file?")
    parts, count = ndimage.label(data > 0.5 * threshold_otsu(data.ravel()))
    largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:])
    return ndimage.binary_fill_holes(parts == largest).astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "sweep": sweep, "apply": apply}, argv)


if __name__ == "__main__":
    main()
