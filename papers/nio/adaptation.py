"""Instance optimisation for one pair of images: of the network's weights (NIO, NIO_m) or of the field itself (IO).

`optimise_weights` takes any registration network that maps (moving, fixed, levels) to a list of unit fields, coarse
to fine. It works on a copy: the network that is handed in, θ_0, stays as it is, so nothing leaks from pair to pair.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.nio.model import (
    diffusion,
    identity,
    lncc,
    registration_loss,
    resize,
    sample,
    spline_smooth,
    unit_to_voxel,
    voxel_to_unit,
)


@dataclass(frozen=True)
class Objective:
    """What is minimised for a pair: L_i of eq. 3, and the extras that the paper adds for lungs (M9)."""

    lam: float = 0.4
    """λ, weight of the regularisation"""
    window: int = 7
    """side of the cubes of LNCC [voxels]"""
    voxel_units: bool = False
    """see `model.diffusion`"""
    spline: bool = False
    """smooth every field as a B-spline (lung)"""
    affine_sd: float = 0.0
    """standard deviation of the entries of the random affine matrix of each step (lung: 0.03)"""
    seed: int = 0
    """of the random affine matrices"""
    patience: int = 0
    """end a level when its loss has not become lower by 1e-4 for so many iterations; 0: never"""

    def loss(self, moving: Tensor, fixed: Tensor, field: Tensor, mask: Tensor | None) -> Tensor:
        return registration_loss(moving, fixed, field, self.lam, self.window, mask, self.voxel_units)


@dataclass(frozen=True)
class Adapted:
    """Result for one pair."""

    field: Tensor
    """unit field (1, 3, X, Y, Z) at full size"""
    losses: list[float]
    """loss at each iteration; with random affine matrices it is that of the transformed pair"""


def random_affine(size: Sequence[int], sd: float, generator: torch.Generator, device) -> Tensor:
    """Unit coordinates (1, 3, X, Y, Z) under a random affine map about the centre: I + N(0, sd) in each entry."""
    matrix = torch.eye(3, 4) + sd * torch.randn(3, 4, generator=generator)
    points = identity(size, device)
    matrix = matrix.to(device)
    moved = torch.einsum("ab,nbxyz->naxyz", matrix[:, :3], points)
    return moved + matrix[:, 3].view(1, 3, 1, 1, 1)


class _Plateau:
    """Counts iterations without progress."""

    def __init__(self, patience: int):
        self.patience, self.best, self.waited = patience, float("inf"), 0

    def reached(self, loss: float) -> bool:
        self.waited = 0 if loss < self.best - 1e-4 else self.waited + 1
        self.best = min(self.best, loss)
        return bool(self.patience) and self.waited >= self.patience


def predict(network: nn.Module, moving: Tensor, fixed: Tensor, objective: Objective = Objective()) -> Tensor:
    """Unit field (B, 3, X, Y, Z) of one pass through the network: the LapIRN baseline."""
    with torch.no_grad():
        field = resize(network(moving, fixed, lam=objective.lam)[-1].float(), fixed.shape[2:])
        return spline_smooth(field) if objective.spline else field


def optimise_weights(
    network: nn.Module,
    moving: Tensor,
    fixed: Tensor,
    iterations: Sequence[int] = (100, 60, 30),
    lr: float = 1e-4,
    objective: Objective = Objective(),
    mask: Tensor | None = None,
) -> Adapted:
    """NIO_m (section 2.2): Adam on (θ_1 … θ_i) with L_i for η_i iterations, for i = 1 … L (M7, M8).

    `iterations = (0, 0, 50)` is NIO (eq. 2): all weights, on full-size images, from the start. Each level begins
    with a new Adam.

    Args:
        network: f_θ0; it is copied, not changed. Called as `network(moving, fixed, levels=i, lam=λ)`, it returns a
            list of unit fields whose last one is û_i.
        moving, fixed: (1, 1, X, Y, Z) in [0, 1].
        iterations: η_i for each level, coarse to fine.
        lr: learning rate of Adam.
        objective: λ, LNCC window and the extras for lungs.
        mask: (1, 1, X, Y, Z), region of the fixed image in which similarity counts.

    Example:
        >>> from papers.nio.model import LapIRN
        >>> pair = torch.rand(2, 1, 1, 16, 16, 16)
        >>> adapted = optimise_weights(LapIRN((4, 4, 4), blocks=1), pair[0], pair[1], iterations=(2, 1, 1))
        >>> adapted.field.shape, len(adapted.losses)
        (torch.Size([1, 3, 16, 16, 16]), 4)
    """
    network, losses = copy.deepcopy(network), []
    generator = torch.Generator().manual_seed(objective.seed)
    for levels, count in enumerate(iterations, 1):
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer, plateau = torch.optim.Adam(parameters, lr=lr, fused=True), _Plateau(objective.patience)
        for _ in range(count):
            now_moving, now_fixed, now_mask = moving, fixed, mask
            if objective.affine_sd:
                points = random_affine(fixed.shape[2:], objective.affine_sd, generator, fixed.device)
                now_moving, now_fixed = sample(moving, points), sample(fixed, points)
                now_mask = None if mask is None else sample(mask, points, "nearest")
            optimizer.zero_grad(set_to_none=True)
            field = resize(network(now_moving, now_fixed, levels=levels, lam=objective.lam)[-1], fixed.shape[2:])
            if objective.spline:
                field = spline_smooth(field)
            loss = objective.loss(now_moving, now_fixed, field, now_mask)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if plateau.reached(losses[-1]):
                break
    return Adapted(predict(network, moving, fixed, objective), losses)


def optimise_field(
    initial: Tensor,
    moving: Tensor,
    fixed: Tensor,
    iterations: int = 200,
    lr: float = 0.1,
    objective: Objective = Objective(),
    mask: Tensor | None = None,
) -> Adapted:
    """The baseline IO (eq. 1, M6): Adam on the displacement field itself, from the network's prediction.

    Args:
        initial: unit field (1, 3, X, Y, Z).
        moving, fixed, mask, objective: as in `optimise_weights`.
        iterations: η.
        lr: learning rate of Adam, in voxels.

    Example:
        >>> pair = torch.rand(2, 1, 1, 16, 16, 16)
        >>> optimise_field(torch.zeros(1, 3, 16, 16, 16), pair[0], pair[1], iterations=2).field.shape
        torch.Size([1, 3, 16, 16, 16])
    """
    voxels = unit_to_voxel(initial.detach().float()).requires_grad_(True)
    optimizer, plateau = torch.optim.Adam([voxels], lr=lr), _Plateau(objective.patience)
    generator, losses = torch.Generator().manual_seed(objective.seed), []

    def field() -> Tensor:
        unit = voxel_to_unit(voxels)
        return spline_smooth(unit) if objective.spline else unit

    for _ in range(iterations):
        if objective.affine_sd:
            # Fixed image, field and warped image at affinely moved points; the field's vectors are not turned.
            points = random_affine(fixed.shape[2:], objective.affine_sd, generator, fixed.device)
            seen = None if mask is None else sample(mask, points, "nearest")
            warped = sample(moving, points + sample(field(), points))
            similarity = lncc(sample(fixed, points), warped, objective.window, seen)
            loss = (1 - objective.lam) * similarity + objective.lam * diffusion(field(), objective.voxel_units)
        else:
            loss = objective.loss(moving, fixed, field(), mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if plateau.reached(losses[-1]):
            break
    return Adapted(field().detach(), losses)
