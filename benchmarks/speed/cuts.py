"""Diffusion condensation of CUTS, next to a straightforward dense implementation of its definition.

    python -m benchmarks.speed.cuts

Points are noisy features of a synthetic image, 32 per pixel. "dense" keeps all N points and an N x N kernel in every
iteration. At 128 x 128 pixels it is run for two iterations only, and its time for all of them is the mean of those
times the number that ours took: its cost per iteration is constant. The peak memory is what a call adds to the size
of the process, on Linux.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from papers.cuts.condensation import Hierarchy, condense, condense_pixels, initial_bandwidth

SETTINGS = {"growth": 1.025, "merge": 0.1}
EXACT = 32  # side of the image on which all three run to the end
FULL = 128


def features(side: int, dimension: int = 32) -> Tensor:
    """(side^2, dimension) rows of length 1: eight smooth regions, each with noise of its own."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    fields = np.stack([gaussian_filter(rng.normal(size=(side, side)), side / 10) for _ in range(8)])
    region = fields.argmax(0).ravel()
    rows = rng.normal(size=(8, dimension))[region] + 0.2 * rng.normal(size=(side * side, dimension))
    rows = torch.from_numpy(rows.astype(np.float32))
    return rows / rows.norm(dim=1, keepdim=True)


def dense(points: Tensor, iterations: int = 2000, growth: float = 1.025, merge: float = 0.1) -> np.ndarray:
    """Labels (T, N) by the definition, in a few lines: no masses, no micro-clusters."""
    bandwidth = initial_bandwidth(points)
    met, x = merge * bandwidth**0.5, points
    labels = [np.arange(len(x))]
    for _ in range(iterations):
        kernel = torch.exp(-(torch.cdist(x, x) ** 2) / bandwidth)
        x = (kernel / kernel.sum(1, keepdim=True)) @ x
        touching = (torch.cdist(x, x) < met).numpy()
        touching |= labels[-1][:, None] == labels[-1]
        count, group = connected_components(touching, directed=False)
        centres = torch.zeros(count, x.shape[1]).index_add_(0, torch.from_numpy(group).long(), x)
        x = (centres / torch.from_numpy(np.bincount(group))[:, None].float())[torch.from_numpy(group).long()]
        labels.append(group)
        bandwidth *= growth
        if count == 1:
            break
    return np.stack(labels)


def agreement(hierarchy: Hierarchy, reference: np.ndarray) -> float:
    """Mean adjusted Rand index of the levels with 2 to 30 segments and the nearest level of the reference."""
    from sklearn.metrics import adjusted_rand_score

    counts = reference.max(axis=1) + 1
    scores = []
    for labels in hierarchy.levels(30):
        nearest = np.abs(counts - (labels.max() + 1)).argmin()
        scores.append(adjusted_rand_score(reference[nearest], labels))
    return float(np.mean(scores))


def measure() -> list[dict]:
    """Times the three implementations, and takes their peak memory.

    Returns:
        One dict each: "case", "implementation", "seconds", "peak_mib", "iterations" and "note".
    """
    small, large = features(EXACT), features(FULL)
    rows = []

    def row(case: str, name: str, function: Callable, note: Callable[[object], str], scale: float = 1.0) -> object:
        start = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - start
        length = len(result.partitions if isinstance(result, Hierarchy) else result) - 1
        rows.append(
            {
                "case": case,
                "implementation": name,
                "seconds": seconds * scale,
                "peak_mib": _peak_mib(function),
                "iterations": round(length * scale),
                "note": note(result),
            }
        )
        return result

    case = f"{EXACT} x {EXACT} pixels"
    reference = row(case, "dense", lambda: dense(small, **SETTINGS), lambda _: "the definition")
    row(case, "condense", lambda: condense(small, **SETTINGS), lambda h: f"ARI {agreement(h, reference):.3f}")
    micro = {"micro": len(small) // 4, **SETTINGS}
    row(
        case,
        "condense_pixels, N / 4",
        lambda: condense_pixels(small, **micro),
        lambda h: f"ARI {agreement(h, reference):.3f}",
    )
    case = f"{FULL} x {FULL} pixels"
    found = row(case, "condense_pixels, 2000", lambda: condense_pixels(large, **SETTINGS), lambda _: "")
    scale = (len(found.partitions) - 1) / 2
    row(case, "dense", lambda: dense(large, 2, **SETTINGS), lambda _: "from 2 iterations", scale)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':18}{'implementation':24}{'s':>9}{'peak MiB':>10}{'iterations':>12}  note"]
    for row in rows:
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        start = f"{row['case']:18}{row['implementation']:24}{row['seconds']:9.2f}{peak:>10}"
        lines.append(f"{start}{row['iterations']:12d}  {row['note']}")
    return "\n".join(lines)


def _peak_mib(function: Callable[[], object]) -> float | None:
    """How far a call raises this process above its present size, in MiB; None where that can't be measured."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the recorded peak starts afresh
        before = _status_mib("VmRSS")
        function()
        return _status_mib("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status_mib(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) / 1024 for line in file if line.startswith(field + ":"))


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table(measure()))
