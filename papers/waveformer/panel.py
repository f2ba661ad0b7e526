"""What the panel shows: which slices, which part of them, which way round, and the spectra along the encoder."""

from collections.abc import Mapping, Sequence

import numpy as np

from papers.waveformer.data import Case
from shared.figures import Picture


def views(case: Case, columns: Mapping[str, np.ndarray], labels: int) -> dict[str, list[Picture]]:
    """Rows of the panel: of a CT the slice with most kinds of organs, the one with most pancreas, the latter close up;
    of a photograph all of it and the lesion.

    Args:
        case: of the test set.
        columns: name -> label maps (D, H, W).
        labels: number of them.
    """
    is_ct = case.images.ndim == 3

    def upright(array: np.ndarray) -> np.ndarray:
        """A CT's rows run to the left: turned, it is seen from below with the front above."""
        return array.T if is_ct else array

    sizes = np.stack([(case.label == label).sum(axis=(1, 2)) for label in range(1, labels + 1)])
    focus = 6 if is_ct else 1  # pancreas or lesion
    middle, whole = int(sizes[focus - 1].argmax()), (slice(None), slice(None))
    boxes = {f"slice {middle}" if is_ct else "photograph": (middle, whole)}
    boxes["close-up"] = (middle, close_up(upright(case.label[middle] == focus)))
    if is_ct:
        other = int((sizes[[1, 2, 3, 7]] > 0).sum(axis=0).argmax())  # gallbladder, kidneys and stomach
        boxes = {f"slice {other}": (other, whole), **boxes}
    rows = {}
    for name, (z, box) in boxes.items():
        image = upright(case.images[z])[box]
        rows[name] = [picture(image, upright(maps[z])[box], column, is_ct) for column, maps in columns.items()]
    return rows


def picture(image: np.ndarray, label: np.ndarray, column: str, is_ct: bool) -> Picture:
    """Organs are coloured, a lesion is outlined, for a colour on skin says little."""
    if is_ct:
        return Picture(image, labels=label, window=(0, 1))
    return Picture(image, truth=label) if column == "truth" else Picture(image, found=label)


def close_up(mask: np.ndarray) -> tuple[slice, slice]:
    """The slices of an array that show a mask with a margin, at least a quarter of its sides; all if it is empty."""
    box = []
    for axis, side in enumerate(mask.shape):
        where = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(where):
            return slice(None), slice(None)
        middle, half = (where[0] + where[-1]) // 2, max((where[-1] - where[0]) * 2 // 3, side // 8)
        box.append(slice(max(0, middle - half), min(side, middle + half + 1)))
    return tuple(box)


def draw_spectra(axis, spectra: Mapping[str, Sequence[float]]) -> None:
    """Share of energy above half the Nyquist frequency [%] at the input of each stage and after each of its blocks."""
    for name, values in spectra.items():
        axis.plot(values, marker=".", label=name)
    count = len(next(iter(spectra.values()), ()))
    ticks = [f"{k // 3 + 1}.{k % 3}" if k % 3 else f"stage {k // 3 + 1}" for k in range(count)]
    axis.set_xticks(range(count), ticks, fontsize=7)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("energy above\nhalf Nyquist [%]", fontsize=8)
    if spectra:
        axis.legend(fontsize=7)
