"""How long the shared metrics take, next to the libraries that people use for the same numbers.

    python -m benchmarks.speed.metrics

Two overlapping smooth masks of 128³ voxels of 2.5 x 0.8 x 0.8 mm, and the SSIM of two float32 volumes. All
libraries work on the same arrays in one process, taking turns, and the median of the rounds counts. The peak
memory is what a call adds to the size of the process, on Linux; elsewhere it's left out.

Ours uses the threads that torch has, and the others mostly one, so a machine that's busy with something else slows
ours down more. The load is printed for that reason.

The times of surface-distance are of its own surface elements, so they compare and its values don't.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from shared import metrics, similarity, surfaces

SIZE = 128
SPACING = (2.5, 0.8, 0.8)
ROUNDS = 5


def smooth_masks(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Two bool masks (size, size, size): ellipsoids with a smoothly irregular surface, a few voxels apart."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    grid = (np.indices((size,) * 3, dtype=np.float32) + 0.5) / size
    masks = []
    for centre, radii in (((0.50, 0.48, 0.52), (0.26, 0.31, 0.33)), ((0.51, 0.50, 0.49), (0.26, 0.32, 0.31))):
        noise = gaussian_filter(rng.standard_normal((size,) * 3), size / 20)
        radius = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii))
        masks.append(radius + 0.1 * noise / noise.std() < 1)
    return masks[0], masks[1]


def smooth_images(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 images (size, size, size) with the truth in [0, 1]; the first is the second with noise."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.standard_normal((size,) * 3), 2)
    truth = (truth - truth.min()) / (truth.max() - truth.min())
    noisy = truth + 0.05 * rng.standard_normal(truth.shape)
    return noisy.astype(np.float32), truth.astype(np.float32)


def tasks(size: int = SIZE) -> dict[str, dict[str, Callable[[], object]]]:
    """What's measured: for each metric, a function for ours and for each library that has it.

    A function raises ImportError if its library is missing.
    """
    p, t = smooth_masks(size)
    x, y = smooth_images(size)
    masks = torch.from_numpy(p)[None], torch.from_numpy(t)[None]
    images = torch.from_numpy(x)[None], torch.from_numpy(y)[None]

    def monai(name: str, **options):
        function = getattr(importlib.import_module("monai.metrics"), name)
        return function(*(m[None] for m in masks), include_background=True, **options)

    def medpy(name: str):
        return getattr(importlib.import_module("medpy.metric.binary"), name)(p, t, SPACING)

    def deepmind(name: str, *options):
        library = importlib.import_module("surface_distance.metrics")
        with contextlib.redirect_stdout(io.StringIO()):
            return getattr(library, name)(library.compute_surface_distances(t, p, SPACING), *options)

    def skimage(**options):
        library = importlib.import_module("skimage.metrics")
        return library.structural_similarity(x, y, data_range=1.0, **options)

    surface = {"spacing": SPACING}
    dice = {"monai": lambda: monai("compute_dice")}
    dice["medpy"] = lambda: importlib.import_module("medpy.metric.binary").dc(p, t)
    return {
        "Dice": {"ours": lambda: metrics.dice(*masks), **dice},
        "HD95": {
            "ours": lambda: surfaces.hd95(*masks, SPACING),
            "monai": lambda: monai("compute_hausdorff_distance", percentile=95, **surface),
            "medpy": lambda: medpy("hd95"),
            "surface-distance": lambda: deepmind("compute_robust_hausdorff", 95),
        },
        "ASSD": {
            "ours": lambda: surfaces.assd(*masks, SPACING),
            "monai": lambda: monai("compute_average_surface_distance", symmetric=True, **surface),
            "medpy": lambda: medpy("assd"),
            "surface-distance": lambda: deepmind("compute_average_surface_distance"),
        },
        "NSD at 1 mm": {
            "ours": lambda: surfaces.nsd(*masks, SPACING, tolerance=1.0),
            "monai": lambda: monai("compute_surface_dice", class_thresholds=[1.0], **surface),
            "surface-distance": lambda: deepmind("compute_surface_dice_at_tolerance", 1.0),
        },
        "HD95 + ASSD + NSD": {
            "ours": lambda: surfaces.surface_metrics(*masks, SPACING, nsd_tolerance=1.0),
        },
        "SSIM 3D, Gaussian": {
            "ours": lambda: similarity.ssim(*images, data_range=1.0),
            "skimage": lambda: skimage(gaussian_weights=True, use_sample_covariance=False),
        },
        "SSIM 3D, uniform": {
            "ours": lambda: similarity.ssim(*images, data_range=1.0, window="uniform"),
            "skimage": lambda: skimage(),
        },
    }


def measure(rounds: int = ROUNDS, size: int = SIZE, memory: bool = True) -> list[dict]:
    """Times every metric and library, and takes their peak memory.

    Returns:
        One dict for each metric and library: "metric", "library" ("ours" or its name), "ms" (the median), "ratio"
        (its time over ours), "peak_mib" (None without `memory`) and "note". For a library that can't be used, the
        numbers are None and the note says why.
    """
    rows = []
    for metric, functions in tasks(size).items():
        times: dict[str, list[float]] = {library: [] for library in functions}
        notes: dict[str, str] = {}
        for turn in range(rounds + 1):  # The first one warms up.
            for library, function in functions.items():
                if library in notes:
                    continue
                start = time.perf_counter()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        function()
                except ImportError:
                    notes[library] = "not installed"
                except Exception as error:  # An old library on a new NumPy is no reason to lose the rest.
                    notes[library] = f"failed: {type(error).__name__}: {error}"
                if turn:
                    times[library].append(1e3 * (time.perf_counter() - start))
        ours = statistics.median(times["ours"]) if "ours" not in notes else None
        for library in functions:
            note = notes.get(library, "")
            ms = None if note else statistics.median(times[library])
            rows.append(
                {
                    "metric": metric,
                    "library": library,
                    "ms": ms,
                    "ratio": ms / ours if ms and ours else None,
                    "peak_mib": _peak_mib(functions[library]) if memory and not note else None,
                    "note": note,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'metric':20}{'library':18}{'ms':>8}{'of ours':>10}{'peak MiB':>10}"]
    for row in rows:
        if row["note"]:
            lines.append(f"{row['metric']:20}{row['library']:18}  {row['note']}")
            continue
        ratio = "" if row["library"] == "ours" else f"{row['ratio']:.1f} x"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append(f"{row['metric']:20}{row['library']:18}{row['ms']:8.1f}{ratio:>10}{peak:>10}")
    return "\n".join(lines)


def _peak_mib(function: Callable[[], object]) -> float | None:
    """How far a call raises this process above its present size, in MiB; None where that can't be measured."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # Memory that earlier calls freed would hide what this one takes.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # The recorded peak starts afresh.
        before = _status_mib("VmRSS")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
        return _status_mib("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status_mib(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) / 1024 for line in file if line.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    print(f"{options.size}³ voxels of {SPACING} mm, median of {options.rounds}, {threads}, {load}")
    print(table(measure(options.rounds, options.size)))


if __name__ == "__main__":
    main()
