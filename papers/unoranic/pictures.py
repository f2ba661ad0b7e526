"""What `apply` writes: pictures, an overview of them, and arrays."""

from pathlib import Path

import numpy as np
from torch import Tensor

from shared.figures import Picture, grid_of_pictures
from shared.files import write_atomically


def write_png(path: Path, image: Tensor) -> None:
    """(C, H, W) in [0, 1] as an 8-bit PNG, values beyond clipped."""
    from PIL import Image

    levels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def save_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """A compressed .npz of tensors by name."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **{name: array.numpy() for name, array in arrays.items()})

    write_atomically(path, write)


def overview(images: Tensor, parts: dict[str, Tensor], path: Path) -> None:
    """The image and its parts side by side, enlarged."""
    shown = (images, parts["restored"], parts["reconstruction"], 0.5 + parts["residual"] / 2)
    titles = ["image S", "anatomy Î_A", "faithful Ŝ", "Ŝ - Î_A (grey: none)"]
    grid_of_pictures([[Picture(picture[0], window=(0, 1)) for picture in shown]], titles, path, inches=2.5)
