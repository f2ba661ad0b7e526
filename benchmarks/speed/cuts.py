"""Diffusion condensation of CUTS, next to a straightforward dense implementation of its definition.

    python -m benchmarks.speed.cuts

Points are noisy features of a synthetic image, 32 per pixel. "dense" keeps all points of an iteration in one matrix. At
128 x 128 pixels it is run for one iteration only, and nothing is said about the others: their matrices get smaller. The
peak memory is what a call adds to the size of the process, on Linux.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from papers.cuts.condensation import condense, condense_pixels, diffused, first_bandwidth

SMALL = 40  # side of the image on which both run to the end
FULL = 128


def features(side: int, dimension: int = 32) -> np.ndarray:
    """(side^2, dimension) rows of length 1: eight smooth fields, sharpened to regions, and a little noise."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    fields = np.stack([gaussian_filter(rng.normal(size=(side, side)), side / 10) for _ in range(8)])
    shares = np.exp(2 * fields / fields.std()).reshape(8, -1)
    rows = (shares / shares.sum(0)).T @ rng.normal(size=(8, dimension))
    rows += 0.02 * rng.normal(size=rows.shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense(points: np.ndarray, iterations: int = 2000, growth: float = 1.025, steps: int = 13) -> np.ndarray:
    """Labels (T, N) by the definition, in a few lines."""
    epsilon = first_bandwidth(points)
    met, x, mass, current = 0.01 * epsilon, points, np.ones(len(points)), np.arange(len(points))
    labels = [current]
    for iteration in range(iterations):
        if iteration:
            epsilon *= growth
            kernel = np.exp(-(np.minimum(cdist(x, x) / epsilon, 2.0) ** 40))
            kernel = np.where(kernel < 1e-4, 0, kernel) * (mass[:, None] + mass) / 2
            x = np.linalg.matrix_power(kernel / kernel.sum(1, keepdims=True), steps) @ x
        count, group = connected_components(cdist(x, x) < met, directed=False)
        together = np.eye(count)[group].T
        x, mass, current = together @ x / together.sum(1, keepdims=True), together @ mass, group[current]
        labels.append(current)
        if count == 1:
            break
    return np.stack(labels)


def measure() -> list[dict]:
    """Times the implementations, and takes their peak memory.

    Returns:
        One dict each: "case", "implementation", "seconds", "peak_mib", "iterations" and "note".
    """
    rows = []

    def row(case: str, name: str, function: Callable[[], np.ndarray], note: Callable[[np.ndarray], str]) -> np.ndarray:
        start = time.perf_counter()
        labels = function()
        seconds = time.perf_counter() - start
        peak = _peak_mib(function)
        found = {"case": case, "implementation": name, "seconds": seconds, "peak_mib": peak}
        rows.append({**found, "iterations": len(labels) - 1, "note": note(labels)})
        return labels

    small, large = diffused(features(SMALL)), features(FULL)
    case = f"{SMALL} x {SMALL} pixels"
    reference = row(case, "dense", lambda: dense(small), lambda _: "the definition")
    same = lambda labels: f"{np.array_equal(labels.max(1), reference.max(1))}: as many segments throughout"  # noqa: E731
    row(case, "condense", lambda: condense(small).partitions, same)
    case = f"{FULL} x {FULL} pixels"
    row(case, "condense_pixels", lambda: condense_pixels(large).partitions, lambda _: "with the graph of neighbours")
    row(case, "dense", lambda: dense(diffused(large), 2), lambda _: "one iteration")
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
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table(measure()))
