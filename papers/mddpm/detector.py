"""A trained variant at work: from a volume to an anomaly map (sections 2.2 and 3.2), and to scores."""

from pathlib import Path

import numpy as np
import torch

from papers.mddpm import detection
from papers.mddpm.data import Volume, read_volumes, refuse_shared_cases
from papers.mddpm.noise import draw_noise
from papers.mddpm.train import Config, build_model, preparation, split_tables
from shared.checkpoints import fitting, load_checkpoint, load_config, load_weights
from shared.errors import InputError
from shared.finite import finite
from shared.gpu import stable_seed

SLICES_AT_A_TIME = 32


class Detector:
    """Volume in, pseudo-healthy volume and anomaly map out (M5, M6).

    Args:
        config: of the run.
        model: the trained network; None where the intensity is the score.
        size: (X, Y) of the slices that it was trained on.
        device: where to compute.
    """

    def __init__(self, config: Config, model, size: tuple[int, int], device):
        self.config, self.model, self.size, self.device = config, model, size, device

    @property
    def calls_per_slice(self) -> float:
        """Network calls for one slice; 0 where there is no network."""
        return 0.0 if self.model is None else float(self.config.noise_draws * self.model.calls_per_slice)

    def pseudo_healthy(self, volume: Volume, t: int | None = None) -> np.ndarray:
        """ẑ₀ of a prepared volume, float32 (X, Y, Z) in [0, 1]; the mean of `noise_draws` reconstructions.

        The noise depends on the run's seed and the volume's name, so that a scan gives one result.

        Args:
            volume: of `data.prepare`.
            t: time step, `t_test` by default.
        """
        config, image = self.config, volume.image
        if self.model is None:
            return np.zeros_like(image)
        height, width, depth = image.shape
        self.check_size(volume)
        if config.method == "mean":
            healthy = finite(self.model.reconstruct(depth).cpu(), f"the mean healthy scan for {volume.name}")
            return healthy[:, 0].numpy().transpose(1, 2, 0)
        t = config.t_test if t is None else t
        slices = torch.from_numpy(image.transpose(2, 0, 1).copy())[:, None]
        total = torch.zeros_like(slices)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stable_seed(config.seed, "noise at test", volume.name))
            for _ in range(config.noise_draws):
                noise = draw_noise(config.noise, depth, height, width, config.wavelength)
                for first in range(0, depth, SLICES_AT_A_TIME):
                    part = slice(first, first + SLICES_AT_A_TIME)
                    batch = slices[part].to(self.device)
                    if config.method == "diffusion":
                        found = self.model.reconstruct(batch, noise[part].to(self.device), t)
                    else:
                        found = self.model.reconstruct(batch)
                    total[part] += found.cpu()
        healthy = finite(total / config.noise_draws, f"the pseudo-healthy scan of {volume.name}")
        return healthy[:, 0].numpy().transpose(1, 2, 0)

    def check_size(self, volume: Volume) -> None:
        """Raises an InputError if the network can't take slices of that size."""
        height, width = volume.image.shape[:2]
        if self.config.method != "diffusion":
            if (height, width) != self.size:
                raise InputError(
                    f"{volume.name}: its slices are {height} x {width} pixels, and this model "
                    f"({self.config.method}) was trained on {self.size[0]} x {self.size[1]}; "
                    "bring the scan to the size of the training data"
                )
            return
        divisor = self.model.network.divisor
        if height % divisor or width % divisor:
            raise InputError(
                f"{volume.name}: its slices are {height} x {width} pixels, expected multiples of {divisor}; "
                "crop or pad the scan"
            )

    def __call__(self, volume: Volume, t: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pseudo-healthy volume, residual |z₀ - ẑ₀| and anomaly map A, float32 (X, Y, Z) each."""
        healthy = self.pseudo_healthy(volume, t)
        residual = np.abs(volume.image - healthy)
        score = detection.anomaly_map(residual, volume.mask, self.config.erosions, self.config.median)
        return healthy, residual, score


def load_detector(checkpoint: Path, device) -> Detector:
    """The best weights of a run, ready to use.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version.
    """
    content = load_checkpoint(checkpoint, "mddpm")
    config = load_config(content, Config, checkpoint)
    if config.method == "intensity":
        return Detector(config, None, (0, 0), device)
    with fitting(checkpoint):
        best = content["objects"]["best"]
        height, width = map(int, best["size"])
        weights = best["weights"] or content["models"][0]
        model = build_model(config, height, width, len(weights["mean"]) if config.method == "mean" else 1)
    return Detector(config, load_weights(model, weights, checkpoint).to(device).eval(), (height, width), device)


def read_patients(data: Path, config: Config, name: str, part: str) -> list[Volume]:
    """The volumes of a test set.

    Raises:
        InputError: see `data.read_volumes`; a subject that is in another table, too; a volume without a lesion mask,
            or without a lesion in it, whose AUPRC is not defined.
    """
    refuse_shared_cases(data, *split_tables(config))
    volumes = read_volumes(data, f"{name}_{part}", preparation(config))
    table = f"{data}/splits/{name}_{part}.csv"
    for volume in volumes:
        if volume.seg is None:
            raise InputError(f"{table}: {volume.name} has no lesion mask (seg_path)")
        if not volume.seg.any():
            raise InputError(
                f"{table}: the lesion mask of {volume.name} is empty after cropping and downsampling; there is nothing "
                "to find, so take it out of the table"
            )
        if not (volume.mask & ~volume.seg).any():
            raise InputError(f"{table}: all of the brain of {volume.name} is lesion; correct its lesion mask")
    return volumes


def score_set(detector: Detector, valid: list[Volume], test: list[Volume], t: int | None = None) -> list[dict]:
    """Metrics of each test volume.

    Two thresholds, each one number for the whole set: `dice_best` uses the one with the highest mean Dice on the
    test set (the text's protocol), `dice_val` the one with the highest pooled Dice on the patients for validation
    (the released code's).
    """
    config = detector.config
    outputs = [detector(volume, t) for volume in test]
    maps, truths = [output[2] for output in outputs], [volume.seg for volume in test]
    chosen = detection.best_threshold([detector(v, t)[2] for v in valid], [v.seg for v in valid], pooled=True)
    best = detection.best_threshold(maps, truths, pooled=False)
    rows = []
    for volume, (_, residual, score) in zip(test, outputs):
        lesion, healthy = residual[volume.seg].mean(), residual[volume.mask & ~volume.seg].mean()
        rows.append(
            {
                "auprc_pct": 100 * detection.average_precision(score, volume.seg),
                "dice_best_pct": 100 * detection.dice(detection.binarise(score, best, config.smallest), volume.seg),
                "dice_val_pct": 100 * detection.dice(detection.binarise(score, chosen, config.smallest), volume.seg),
                "residual_ratio": float(lesion) / max(float(healthy), 1e-6),
                "healthy_residual": float(healthy),
                "calls_per_slice": detector.calls_per_slice,
                "prevalence_pct": 100 * float(volume.seg.mean()),
                "threshold_best": best,
                "threshold_val": chosen,
            }
        )
    return rows
