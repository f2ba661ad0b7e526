"""Figures without a screen, written atomically; grids of pictures in one look.

rows = [
    [image, Picture(image, truth=mask), Picture(image, truth=mask, found=prediction)],
    [None, None, Picture(error, cmap="RdBu_r", window=(-1, 1))],
]
grid_of_pictures(rows, ["image", "truth", "found"], out, row_labels=["case 7", "its error"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.files import write_atomically

TRUTH = "#00d5ff"
"""outline of the truth: cyan, to be told from FOUND on grey by those who see no red or green, too"""
FOUND = "#ff8c1a"
"""outline of what was found: orange"""
LABELS = ("#e6550d", "#31a354", "#3182bd", "#dec52c", "#9467bd", "#17becf", "#e377c2", "#8c564b", "#7f7f7f", "#bcbd22")
"""colours of the labels 1, 2, ...; an eleventh begins again"""


@dataclass(frozen=True)
class Picture:
    """One cell of a grid. Arrays and tensors run downwards and to the right."""

    image: Any = None
    """(H, W), (H, W, 3) or (3, H, W); colours are in [0, 1], or uint8. None leaves the cell empty"""
    truth: Any = None
    """(H, W) mask, outlined in TRUTH"""
    found: Any = None
    """(H, W) mask, outlined in FOUND"""
    labels: Any = None
    """(H, W) whole numbers, 0 is transparent, laid over the image in LABELS"""
    window: tuple[float, float] | None = None
    """values that become black and white; None takes the row's"""
    cmap: str | None = None
    """colour map of (H, W); None takes the row's"""
    title: str = ""
    """above this cell, below the column's title"""
    aspect: float = 1.0
    """height of a pixel over its width, as in mm"""
    text: str = ""
    """in the middle of the cell, for instance instead of an image"""


class Grid(NamedTuple):
    """What `grid_of_pictures` has drawn."""

    figure: Any
    axes: Any
    """(rows, columns) array of matplotlib's axes"""
    room: Any
    """part of the figure that was left free for plots, or None"""


def pyplot():
    """matplotlib.pyplot on a backend that needs no screen; imported here, since it takes half a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure, out: Path, dpi: int = 90) -> None:
    """As PNG, whatever the name of the file ends in; the figure is closed."""
    try:
        write_atomically(Path(out), lambda path: figure.savefig(path, dpi=dpi, format="png"))
    finally:
        pyplot().close(figure)


def grid_of_pictures(
    rows: Sequence[Sequence[Any]],
    titles: Sequence[str],
    out: Path | None,
    *,
    row_labels: Sequence[str] | None = None,
    window: tuple[float, float] | Sequence[tuple[float, float] | None] | None = None,
    cmap: str | Sequence[str] = "gray",
    heading: str = "",
    label_names: Sequence[str] = (),
    inches: float = 2.0,
    room: tuple[str, float] | None = None,
) -> Grid:
    """Pictures in rows and columns, in the look of all panels of the repository.

    Args:
        rows: of cells; a cell is an image, a `Picture` or None. Rows may be shorter than the longest.
        titles: of the columns.
        out: a .png file; None leaves the figure open, to be added to and written by `save_figure`.
        row_labels: at the left of each row.
        window: values that become black and white: of all rows, or one for each. None is, for each row, the 1st to
            99.5th percentile of its grey images together, so that they can be compared.
        cmap: colour map of grey images: of all rows, or one for each.
        heading: above everything.
        label_names: of the labels 1, 2, ..., for the legend. Outlines are named in it by themselves.
        inches: width of a cell.
        room: ("below" or "right", inches), to be left free for plots: `subplots` of the result's `room`.

    Raises:
        ValueError: no cell, numbers of titles, labels or windows that don't fit, an image or mask of a wrong shape.
    """
    cells = [[cell if isinstance(cell, Picture) else Picture(cell) for cell in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    if not columns:
        raise ValueError("a grid needs at least one cell")
    cells = [row + [Picture()] * (columns - len(row)) for row in cells]
    windows = list(window) if window is not None and not _is_pair(window) else [window] * len(cells)
    cmaps = [cmap] * len(cells) if isinstance(cmap, str) else list(cmap)
    if len(titles) > columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    for name, values in (("row_labels", row_labels or cells), ("window", windows), ("cmap", cmaps)):
        if len(values) != len(cells):
            raise ValueError(f"{name} has {len(values)} entries for {len(cells)} rows")

    heights = [max([_height(cell) for cell in row], default=1.0) for row in cells]
    width, height = inches * columns + 0.3, inches * sum(heights) + 0.25 * len(cells) + 0.3
    figure, rest = pyplot().figure(layout="constrained"), None
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    if room is None:
        figure.set_size_inches(width, height)
        part = figure
    elif room[0] == "below":
        figure.set_size_inches(width, height + room[1])
        part, rest = figure.subfigures(2, 1, height_ratios=[height, room[1]])
    else:
        figure.set_size_inches(width + room[1], height)
        part, rest = figure.subfigures(1, 2, width_ratios=[width, room[1]])
    try:
        axes = part.subplots(len(cells), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, of_row, row_window, row_cmap in zip(cells, axes, windows, cmaps):
            row_window = row_window or _common_window(row)
            for cell, axis in zip(row, of_row):
                draw_picture(axis, cell, row_window, row_cmap)
        for column, title in enumerate(titles):
            below = cells[0][column].title
            axes[0, column].set_title(f"{title}\n{below}" if below else title, fontsize=9)
        for axis, label in zip(axes[:, 0], row_labels or ()):
            axis.set_ylabel(label, fontsize=8)
        if heading:
            part.suptitle(heading, fontsize=9)
        _legend(part, cells, label_names)
    except Exception:
        pyplot().close(figure)
        raise
    if out is not None:
        save_figure(figure, out)
    return Grid(figure, axes, rest)


def draw_picture(axis, picture: Picture, window: tuple[float, float] | None = None, cmap: str = "gray") -> None:
    """One `Picture` on one of matplotlib's axes; `window` and `cmap` are for where it has none of its own."""
    import numpy as np
    from matplotlib.colors import to_rgba

    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_frame_on(False)
    if picture.title:
        axis.set_title(picture.title, fontsize=9)
    if picture.text:
        axis.text(0.5, 0.5, picture.text, ha="center", va="center", transform=axis.transAxes, fontsize=8)
    if picture.image is None:
        return
    image = _image(picture.image)
    if image.ndim == 3:
        values = image if image.dtype == np.uint8 else image.astype(float).clip(0, 1)
        axis.imshow(values, aspect=picture.aspect, interpolation="nearest")
    else:
        low, high = picture.window or window or _window([image])
        axis.imshow(
            image, cmap=picture.cmap or cmap, vmin=low, vmax=high, aspect=picture.aspect, interpolation="nearest"
        )
    for name, mask, colour in (("truth", picture.truth, TRUTH), ("found", picture.found, FOUND)):
        if mask is None:
            continue
        mask = _overlay(mask, name, image) > 0
        if mask.any() and not mask.all():
            axis.contour(mask.astype(float), [0.5], colors=colour, linewidths=1.0)
    if picture.labels is not None:
        labels = _overlay(picture.labels, "labels", image).astype(int)
        colours = np.array([to_rgba(colour) for colour in LABELS])[(labels - 1) % len(LABELS)]
        colours[..., 3] = 0.55 * (labels > 0)
        axis.imshow(colours, aspect=picture.aspect, interpolation="nearest")


def _is_pair(window) -> bool:
    return len(window) == 2 and all(
        isinstance(value, int | float) or getattr(value, "ndim", 1) == 0 for value in window
    )


def _array(values):
    """A tensor or array as a NumPy array."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    return np.asarray(values)


def _image(values):
    """(H, W) or (H, W, 3)."""
    image = _array(values)
    if image.ndim == 3 and image.shape[-1] not in (3, 4) and image.shape[0] in (1, 3):
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise ValueError(f"an image must be (H, W), (H, W, 3) or (3, H, W), got {image.shape}")
    return image


def _overlay(values, name: str, image):
    overlay = _array(values)
    if overlay.shape != image.shape[:2]:
        raise ValueError(f"{name} has the shape {overlay.shape} and its image {image.shape[:2]}")
    return overlay


def _height(cell: Picture) -> float:
    """Height of a cell in units of its width."""
    if cell.image is None:
        return 0.5
    rows, columns = _image(cell.image).shape[:2]
    return min(max(cell.aspect * rows / columns, 0.3), 3.0)


def _window(images) -> tuple[float, float]:
    """1st to 99.5th percentile of the finite values."""
    import numpy as np

    values = np.concatenate([image.astype(float).ravel() for image in images])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _common_window(row: Sequence[Picture]) -> tuple[float, float] | None:
    images = [_image(cell.image) for cell in row if cell.image is not None and cell.window is None]
    images = [image for image in images if image.ndim == 2]
    return _window(images) if images else None


def _legend(figure, cells: Sequence[Sequence[Picture]], label_names: Sequence[str]) -> None:
    """What the colours of outlines and labels mean, below the pictures."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    every = [cell for row in cells for cell in row]
    handles = [Patch(color=LABELS[k % len(LABELS)], alpha=0.55, label=name) for k, name in enumerate(label_names)]
    for name, colour in (("truth", TRUTH), ("found", FOUND)):
        if any(getattr(cell, name) is not None for cell in every):
            handles.append(Line2D([], [], color=colour, label=name))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8, frameon=False
        )
