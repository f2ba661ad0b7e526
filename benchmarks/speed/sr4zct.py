"""SR4ZCT's dense network next to one with `torch.cat`, and its slice operator next to a loop and a dense matrix.

    python -m benchmarks.speed.sr4zct

The straightforward network is that of the definition: each layer pads, convolves and concatenates. Both have the same
weights; "differs by" is the largest difference of their gradients relative to the largest gradient. "kept" is the
memory that autograd holds for the backward pass. The loop takes one interpolated point after the other, vectorised
along image rows only. Times are the best of a few, taken in turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.sr4zct.model import MSD, pad_symmetric
from papers.sr4zct.scaling import SliceGeometry, degradation_matrix, degrade

NETWORKS = ((30, 64, 4), (100, 128, 1))  # layers, side of the image, images
GEOMETRY = SliceGeometry(1.0, 5.0, 2.5)
SIDE = 512


def concatenating(network: MSD, image: Tensor) -> Tensor:
    """The same network by its definition (for an image that needs no standardisation)."""
    features, start = image, 0
    for layer, dilation in enumerate(network.dilations, 1):
        taps = network.kernels[:, start : start + layer].reshape(3, 3, layer).permute(2, 0, 1)[None]
        start += layer
        padded = _Pad.apply(features, dilation)
        new = F.conv2d(padded, taps, network.biases[layer - 1 : layer], dilation=dilation).relu()
        features = torch.cat([features, new], dim=1)
    return F.conv2d(features, network.output_weights[None, :, None, None], network.output_bias)


class _Pad(torch.autograd.Function):
    """Symmetric padding with its gradient, in as many operations as ours."""

    @staticmethod
    def forward(ctx, x: Tensor, margin: int) -> Tensor:
        ctx.margin = margin
        return pad_symmetric(x, margin)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        from papers.sr4zct.model import _fold_border

        return _fold_border(gradient.clone(), ctx.margin), None


def loop(image: Tensor, geometry: SliceGeometry, samples: int = 9) -> Tensor:
    """F_up F_down along the rows of an image, one row and one interpolated point at a time."""
    size, r = image.shape[0], geometry.pixel
    rows = []
    for k in range(geometry.rows(size)):
        total = torch.zeros_like(image[0])
        for j in range(samples):
            position = (k * geometry.spacing + geometry.thickness * (j + 0.5) / samples) / r - 0.5
            left = min(max(math.floor(position), 0), size - 2)
            total += image[left] + (position - left) * (image[left + 1] - image[left])
        rows.append(total / samples)
    out = torch.empty_like(image)
    for i in range(size):
        position = ((i + 0.5) * r - geometry.thickness / 2) / geometry.spacing
        left = min(max(math.floor(position), 0), len(rows) - 2)
        out[i] = rows[left] + (position - left) * (rows[left + 1] - rows[left])
    return out.clamp_(image.min(), image.max())


def kept_mib(forward: Callable[[], Tensor]) -> float:
    """Memory that autograd holds after a forward pass, each storage counted once, MiB."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storages.values()) / 2**20


def best_of(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each function, the best of `repeats` runs taken in turns after one to warm up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(taken) for name, taken in times.items()}


def measure_network(depth: int, side: int, batch: int) -> list[dict]:
    """One training step of both networks with the same weights; rows as in `measure`."""
    torch.manual_seed(0)
    network = MSD(depth)
    torch.nn.init.normal_(network.output_weights, std=0.1)
    image, parameters = torch.randn(batch, 1, side, side), list(network.parameters())
    forwards = {"one buffer": lambda: network(image), "torch.cat": lambda: concatenating(network, image)}

    def step(name: str) -> list[Tensor]:
        return torch.autograd.grad(forwards[name]().square().mean(), parameters)

    ours, theirs = (torch.cat([gradient.flatten() for gradient in step(name)]) for name in forwards)
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    seconds = best_of({name: lambda name=name: step(name) for name in forwards}, 3)
    return [
        {
            "case": f"MS-D {depth} layers, {batch} x {side} x {side}",
            "implementation": name,
            "milliseconds": 1e3 * seconds[name],
            "kept_mib": kept_mib(forward),
            "note": "the definition" if name == "torch.cat" else f"differs by {difference:.0e}",
        }
        for name, forward in forwards.items()
    ]


def measure() -> list[dict]:
    """Times one training step of the networks, and one degradation of an axial image.

    Returns:
        One dict each: "case", "implementation", "milliseconds", "kept_mib" and "note".
    """
    rows = [row for sizes in NETWORKS for row in measure_network(*sizes)]
    image = torch.rand(SIDE, SIDE)
    dense = degradation_matrix(SIDE, GEOMETRY).to_dense()
    functions = {
        "sparse, cached": lambda: degrade(image, GEOMETRY, -2),
        "dense matrix": lambda: (dense @ image).clamp_(image.min(), image.max()),
        "loop": lambda: loop(image, GEOMETRY),
    }
    seconds = best_of(functions, 5)
    reference = loop(image, GEOMETRY)
    for name, function in functions.items():
        difference = (function() - reference).abs().max().item()
        note = "the definition" if name == "loop" else f"differs by {difference:.0e}"
        case = f"degrade, {SIDE} x {SIDE}, 5/2.5 mm"
        rows.append(
            {
                "case": case,
                "implementation": name,
                "milliseconds": 1e3 * seconds[name],
                "kept_mib": None,
                "note": note,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':34}{'implementation':18}{'ms':>10}{'kept MiB':>10}  note"]
    for row in rows:
        kept = "" if row["kept_mib"] is None else f"{row['kept_mib']:.0f}"
        start = f"{row['case']:34}{row['implementation']:18}{row['milliseconds']:10.1f}{kept:>10}"
        lines.append(f"{start}  {row['note']}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table(measure()))
