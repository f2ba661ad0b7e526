"""Panels and figures: scans with the outlines of what was found and of the truth, components of a mixture, cells."""

from pathlib import Path

import numpy as np
import torch

from papers.cgc.brightness import bright_channel
from papers.cgc.data import Case
from papers.cgc.proposal import Mixture, features_of
from shared.figures import Picture, grid_of_pictures, pyplot, save_figure

NAMES = {"gmm": "GMM (P)", "mumford_shah": "Mumford-Shah", "full": "CGC", "ae": "autoencoder"}


def slice_of(case: Case, z: int, found=None, truth=None, channel: int | None = None, title: str = "") -> Picture:
    """An axial slice of FLAIR or CT as radiologists see it: anterior up, the patient's right on the left."""
    values = case.image[bright_channel(case.modalities) if channel is None else channel][z].numpy()
    inside = values[values != 0]
    low, high = (float(v) for v in np.percentile(inside, (1, 99.5))) if inside.size else (0.0, 1.0)
    picture = np.where(values == 0, low, values)[::-1]
    outlines = {"found": None if found is None else found[z][::-1], "truth": None if truth is None else truth[z][::-1]}
    aspect = case.spacing[1] / case.spacing[2]
    return Picture(picture, window=(low, max(high, low + 1e-3)), title=title, aspect=aspect, **outlines)


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two bool arrays."""
    return 2 * (prediction & truth).sum() / max(prediction.sum() + truth.sum(), 1)


def draw_panel(case: Case, masks: list[tuple[str, np.ndarray]], truth: np.ndarray, out: Path) -> None:
    """Three slices of a volume: scan with the truth, and each method's lesion (name, mask) over it."""
    area = truth.sum((1, 2))
    marked = area.nonzero()[0]
    slices = [marked[len(marked) // 4], int(area.argmax()), marked[3 * len(marked) // 4]]
    rows = [[slice_of(case, z), *(slice_of(case, z, mask, truth) for _, mask in masks)] for z in slices]
    titles = ["scan"] + [f"{NAMES.get(name, name)}\nDice {dice(mask, truth):.2f}" for name, mask in masks]
    grid_of_pictures(rows, titles, out, heading=case.name)


def draw_result(case: Case, proposal: np.ndarray, mask: np.ndarray, variant: str, out: Path) -> None:
    """The slice where most was found: scan, P, and the lesion."""
    z = int((mask | proposal).sum((1, 2)).argmax())
    row = [slice_of(case, z), slice_of(case, z, proposal), slice_of(case, z, mask)]
    titles = ["scan", NAMES["gmm"], NAMES.get(variant, variant)]
    grid_of_pictures([row], titles, out, heading=f"{case.name}, slice {z}", inches=2.6)


def draw_components(case: Case, mixture: Mixture, mask: np.ndarray, out: Path) -> None:
    """All components of a mixture on the slice where P is largest, the chosen one marked; last the scan with P."""
    _, names = features_of(case)
    chosen = mask if mask.any() else mixture.posterior[mixture.lesion] > 0.5
    z, aspect = int(chosen.sum((1, 2)).argmax()), case.spacing[1] / case.spacing[2]
    row, titles = [slice_of(case, z)], [names[0]]
    for k in mixture.means[:, 0].argsort():
        means = ", ".join(f"{name} {value:+.1f}" for name, value in zip(names, mixture.means[k]))
        row.append(Picture(mixture.posterior[k][z][::-1], window=(0, 1), cmap="magma", aspect=aspect))
        titles.append(f"{k + 1}{' (lesion)' if k == mixture.lesion else ''}: {mixture.share[k]:.1%}\n{means}")
    grid_of_pictures([[*row, slice_of(case, z, mask)]], [*titles, "P"], out, heading=f"{case.name}, slice {z}")


def draw_cells(cells: torch.Tensor, classes: torch.Tensor, out: Path) -> None:
    """Embeddings (N, C) in their first two principal components, by class (N,)."""
    centred = cells - cells.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure = pyplot().figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.add_subplot()
    for value, name, colour in ((0, "normal cells", "tab:blue"), (1, "lesion cells", "tab:red")):
        of_class = points[classes == value]
        axis.scatter(of_class[:, 0], of_class[:, 1], s=4, alpha=0.5, c=colour, label=f"{name} ({len(of_class)})")
    axis.set_xlabel("first principal component of the unit vectors")
    axis.set_ylabel("second")
    axis.legend(fontsize=8)
    save_figure(figure, out)
