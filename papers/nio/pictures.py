"""Slices, overlays and bent grids of a registration."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papers.nio.data import Pair
from papers.nio.measures import jacobian_determinant
from papers.nio.model import unit_to_voxel, warp
from shared.figures import pyplot, save_figure


def slice_of(volume: np.ndarray, axis: int) -> np.ndarray:
    """The middle slice across an axis."""
    return volume.take(volume.shape[axis] // 2, axis=axis)


def overlay(warped: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(rows, columns, 3): the warped image in red, the fixed one in green and blue."""
    return np.stack([warped.T, fixed.T, fixed.T], axis=-1).clip(0, 1)


def draw_grid(axis_of_plot, field: Tensor, across: int, step: int = 1) -> None:
    """The lines of the voxel grid, bent by Φ, in the middle slice across an axis."""
    voxels = unit_to_voxel(field)[0].numpy()
    first, second = [a for a in range(3) if a != across]
    u, v = slice_of(voxels[first], across), slice_of(voxels[second], across)
    x, y = np.meshgrid(np.arange(u.shape[0]), np.arange(u.shape[1]), indexing="ij")
    axis_of_plot.plot((x + u)[::step].T, (y + v)[::step].T, color="black", linewidth=0.35)
    axis_of_plot.plot((x + u)[:, ::step], (y + v)[:, ::step], color="black", linewidth=0.35)
    axis_of_plot.set_aspect("equal")
    axis_of_plot.set_xlim(-0.5, u.shape[0] - 0.5)
    axis_of_plot.set_ylim(-0.5, u.shape[1] - 0.5)


def draw_pair(moving: np.ndarray, fixed: np.ndarray, field: Tensor, losses: list[float], out: Path) -> None:
    """A figure of one registration: images, overlays before and after, grid, |J|, loss at each iteration."""
    plt = pyplot()
    warped = warp(torch.from_numpy(moving)[None, None], field)[0, 0].numpy()
    determinant = jacobian_determinant(field)[0].numpy()
    figure, axes = plt.subplots(2, 4, figsize=(11, 6))
    m, f, w = (slice_of(volume, 2) for volume in (moving, fixed, warped))
    for axis, title, picture in zip(axes[0], ("fixed", "moving", "warped"), (f, m, w)):
        axis.imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        axis.set_title(title, fontsize=9)
    axes[1, 0].imshow(overlay(m, f), origin="lower")
    axes[1, 0].set_title("before: moving red, fixed cyan", fontsize=9)
    axes[1, 1].imshow(overlay(w, f), origin="lower")
    axes[1, 1].set_title("after", fontsize=9)
    draw_grid(axes[1, 2], field, 2, step=max(1, max(f.shape) // 40))
    axes[1, 2].set_title("deformed grid", fontsize=9)
    shown = axes[0, 3].imshow(slice_of(determinant, 2).T, cmap="RdBu_r", vmin=0, vmax=2, origin="lower")
    axes[0, 3].set_title("|J|", fontsize=9)
    figure.colorbar(shown, ax=axes[0, 3], fraction=0.05)
    for axis in axes.flat[:7]:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[1, 3].plot(range(1, len(losses) + 1), losses, linewidth=1)
    axes[1, 3].set_title("loss at each iteration", fontsize=9)
    figure.tight_layout(pad=0.5)
    save_figure(figure, out)


def draw_panel(rows: list[tuple[Pair, list[Tensor], int]], names: list[str], out: Path) -> None:
    """Two rows of pictures a pair: fixed, moving and overlays of each warped image; before, and the bent grids.

    Red is the warped image, cyan the fixed one, so that what agrees is grey.

    Args:
        rows: a pair, the field (1, 3, X, Y, Z) of each method, and the axis that the slice is across.
        names: of the methods.
        out: a .png file.
    """
    plt = pyplot()
    titles, height = ["fixed", "moving", *names], 2 * len(rows)
    figure, axes = plt.subplots(height, len(titles), figsize=(1.6 * len(titles), 1.75 * height), squeeze=False)
    for number, (pair, fields, axis) in enumerate(rows):
        upper, lower = axes[2 * number], axes[2 * number + 1]
        fixed, moving = slice_of(pair.fixed.image, axis), slice_of(pair.moving.image, axis)
        for a, picture in zip(upper, (fixed, moving)):
            a.imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        lower[0].imshow(overlay(moving, fixed), origin="lower")
        lower[0].set_title("before", fontsize=7)
        upper[0].set_ylabel(pair.name, fontsize=6)
        image = torch.from_numpy(pair.moving.image)[None, None]
        for column, field in enumerate(fields, 2):
            warped = slice_of(warp(image, field)[0, 0].numpy(), axis)
            upper[column].imshow(overlay(warped, fixed), origin="lower")
            draw_grid(lower[column], field, axis)
    for a in axes.flat:
        a.set_xticks([])
        a.set_yticks([])
        a.set_frame_on(False)
    for a, title in zip(axes[0], titles):
        a.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    save_figure(figure, out, dpi=100)
