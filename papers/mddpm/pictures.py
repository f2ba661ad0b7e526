"""What a reader looks at: the panel of a test set, and scores against the time step."""

from pathlib import Path

import numpy as np
import torch

from papers.mddpm.detection import anomaly_map
from papers.mddpm.masking import MaskingBlock
from shared.figures import Picture, grid_of_pictures, pyplot, save_figure


def radiological(section: np.ndarray) -> np.ndarray:
    """(X, Y) with R and A axes, as a radiologist sees it: the patient's right on the left, the front on top."""
    return section.T[::-1, ::-1]


def training_input(config, section: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """A slice as training would mask it, by the mean ratio."""
    middle = sum(config.ratio) / 2
    block = MaskingBlock(config.masking, (middle, middle), config.sides, config.frequency_sides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return block(torch.from_numpy(section.copy()), torch.from_numpy(foreground.copy())).numpy()


def draw_panel(detectors: list, patients: list, out: Path) -> None:
    """A row for each patient, in the slice with most lesion.

    The scan, its intensity as anomaly map, then for each detector the masked training input where it masks, the
    pseudo-healthy slice and the anomaly map; the maps of a row have one scale. The lesion is outlined.

    Args:
        detectors: of `detector.load_detector`.
        patients: (name, Volume) pairs.
        out: a .png file.
    """
    rows = []
    for _, volume in patients:
        number = int(volume.seg.sum((0, 1)).argmax())

        def section(data: np.ndarray, number: int = number) -> np.ndarray:
            return radiological(data[:, :, number])

        truth, config = section(volume.seg), detectors[0].config
        trivial = anomaly_map(volume.image, volume.mask, config.erosions, config.median)
        outputs = [detector(volume) for detector in detectors]
        top = max([1e-3, *(float(np.quantile(score[volume.mask], 0.995)) for _, _, score in outputs)])
        row = [
            Picture(section(volume.image), truth=truth, window=(0, 1)),
            Picture(section(trivial), truth=truth, window=(0, 1), cmap="inferno"),
        ]
        for detector, (healthy, _, score) in zip(detectors, outputs):
            if detector.config.masking != "none":
                masked = training_input(detector.config, volume.image[:, :, number], volume.mask[:, :, number])
                row.append(Picture(radiological(masked), window=(0, 1)))
            row.append(Picture(section(np.where(volume.mask, healthy, 0)), window=(0, 1)))
            row.append(Picture(section(score), truth=truth, window=(0, top), cmap="inferno"))
        rows.append(row)
    titles = ["scan", "intensity as score"]
    for detector in detectors:
        of = detector.config
        titles += [f"{of.variant}: training input"] if of.masking != "none" else []
        titles += [f"{of.variant}: pseudo-healthy", "anomaly map"]
    grid_of_pictures(rows, titles, out, row_labels=[name for name, _ in patients])


def plot_sweep(rows: list[dict], out: Path) -> None:
    """AUPRC and best Dice against the time step, a plot for each test set."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    figure, axes = pyplot().subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names):
        of = [row for row in rows if row["set"] == name]
        for key, label in (("auprc_pct", "AUPRC"), ("dice_best_pct", "best Dice")):
            axis.plot([row["t"] for row in of], [row[key] for row in of], marker="o", label=label)
        axis.set(title=name, xlabel="time step t", ylabel="%")
        axis.legend()
    save_figure(figure, out)
