"""Corruptions of unORANIC on a whole batch, next to the same functions called image by image.

    python -m benchmarks.speed.unoranic

A batch is what one update of the paper needs: 64 images with S and three variants. "batched" makes each corruption for
all images at once; "per image" calls the same functions on batches of one, as a data set's `__getitem__` would. Both
use the same random numbers and give the same images. The time is the smallest of several, taking turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from papers.unoranic.corruptions import Draws, corrupt, draw

IMAGES = 256
REPEATS = 5


def per_image(images: Tensor, draws: Draws) -> Tensor:
    """`corrupt`, one image after the other."""
    parts = zip(images.split(1), *(field.split(1) for field in draws))
    return torch.cat([corrupt(image, Draws(*fields)) for image, *fields in parts])


def smallest(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each function: the smallest of `REPEATS`, in turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(REPEATS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure() -> list[dict]:
    """Times both on grey and on colour images.

    Returns:
        One dict each: "case", "implementation", "seconds", "images_per_second" and "largest_difference".
    """
    rows = []
    for channels in (1, 3):
        random = torch.Generator().manual_seed(0)
        images = torch.rand(IMAGES, channels, 28, 28, generator=random)
        draws = draw(IMAGES, (channels, 28, 28), generator=random)
        difference = (corrupt(images, draws) - per_image(images, draws)).abs().max().item()
        functions = {
            "batched": lambda images=images, draws=draws: corrupt(images, draws),
            "per image": lambda images=images, draws=draws: per_image(images, draws),
        }
        for name, seconds in smallest(functions).items():
            rows.append(
                {
                    "case": f"{IMAGES} x {channels} x 28 x 28",
                    "implementation": name,
                    "seconds": seconds,
                    "images_per_second": IMAGES / seconds,
                    "largest_difference": difference,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':20}{'implementation':16}{'ms':>9}{'images/s':>11}{'difference':>13}"]
    for row in rows:
        start = f"{row['case']:20}{row['implementation']:16}{1000 * row['seconds']:9.1f}"
        lines.append(f"{start}{row['images_per_second']:11.0f}{row['largest_difference']:13.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table(measure()))
