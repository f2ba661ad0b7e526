"""Figures without a screen, written atomically."""

from pathlib import Path

from shared.files import write_atomically


def pyplot():
    """matplotlib.pyplot on a backend that needs no screen; imported here, since it takes half a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure, out: Path, dpi: int = 90) -> None:
    """As PNG, whatever the name of the file ends in; the figure is closed."""
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=dpi, format="png"))
    pyplot().close(figure)
