"""For every voxel on the surface of a mask, how far the nearest voxel on the surface of another one is."""

import math

import numpy as np
import torch

SEARCHED_COLUMNS = 1024
"""columns around a voxel that the search looks into before a k-d tree takes over"""


def directed_distances(p: np.ndarray, t: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directed sets of surface distances of two masks in mm, in no given order.

    Args:
        p, t: bool (H, W) or (D, H, W); together the masks touch all sides of the array.
        spacing: in mm along each axis.

    Returns:
        for every surface voxel of `p` the distance to the nearest one of `t`, and the same the other way round; all
        infinite if the other mask is empty.
    """
    finest = int(np.argmin(spacing))
    order = [finest, *(k for k in range(p.ndim) if k != finest)]
    spacing = spacing[order]
    surfaces = [_surface(np.ascontiguousarray(x.transpose(order))) for x in (p, t)]
    if p.ndim == 2:
        surfaces = [x[:, :, None] for x in surfaces]
        spacing = np.append(spacing, 1.0)
    indices = [np.flatnonzero(x) for x in surfaces]
    if not all(len(x) for x in indices):
        return tuple(np.full(len(x), np.inf) for x in indices)
    voxels = [np.unravel_index(x, surfaces[0].shape) for x in indices]
    return (
        _nearest(voxels[0], voxels[1], surfaces[1], spacing),
        _nearest(voxels[1], voxels[0], surfaces[0], spacing),
    )


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of the mask with a face-connected neighbour that isn't in it; outside the array nothing is."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        x, m = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        x[0] = False
        x[-1] = False
        x[1:] &= m[:-1]
        x[:-1] &= m[1:]
    return mask ^ inner


def _nearest(points, targets, surface: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The distance in mm from each point to the nearest voxel of a surface.

    Args:
        points: three index arrays (N,) of voxels.
        targets: three index arrays (M,), M > 0: the voxels of the surface.
        surface: the surface as a bool array (n0, n1, n2).
        spacing: in mm along the three axes, the finest first.

    Every column along axis 0 holds, for every voxel, the distance to the nearest surface voxel of that
    column. The nearest surface voxel of a point is in one of the columns around it, of which none further
    away (in the plane of axes 1 and 2) than the best distance so far can improve on it.
    """
    n0, n1, n2 = surface.shape
    # The reach of the search in the plane, such that it covers about `SEARCHED_COLUMNS` columns.
    if n2 == 1:
        reach = SEARCHED_COLUMNS * spacing[1] / 2
    else:
        reach = math.sqrt(SEARCHED_COLUMNS * spacing[1] * spacing[2] / math.pi)
    r1, r2 = (min(n - 1, int(reach / mm)) for n, mm in zip((n1, n2), spacing[1:]))
    planar = np.add.outer((np.arange(-r1, r1 + 1) * spacing[1]) ** 2, (np.arange(-r2, r2 + 1) * spacing[2]) ** 2)
    complete = math.hypot((n1 - 1) * spacing[1], (n2 - 1) * spacing[2]) <= reach
    width = n2 + 2 * r2
    shift = np.add.outer(np.arange(-r1, r1 + 1) * width, np.arange(-r2, r2 + 1)).ravel()
    planar = planar.ravel()
    order = np.argsort(planar, kind="stable")
    order = order[: np.searchsorted(planar[order], reach * reach, side="right")]
    planar, shift = planar[order], shift[order]

    # Distances in voxels along the columns, n0 where a column is empty, with a margin of empty columns.
    dtype = np.int16 if n0 < 16000 else np.int32
    table = np.full((n0, n1 + 2 * r1, width), n0, dtype)
    along = table[:, r1 : r1 + n1, r2 : r2 + n2]
    along[surface] = 0
    step = np.empty(along.shape[1:], dtype)
    for k in range(1, n0):
        np.minimum(along[k], np.add(along[k - 1], 1, out=step), out=along[k])
    for k in range(n0 - 2, -1, -1):
        np.minimum(along[k], np.add(along[k + 1], 1, out=step), out=along[k])
    table = table.reshape(-1)
    squared = (np.arange(n0 + 1) * spacing[0]) ** 2
    squared[n0] = np.inf

    best = squared[table.take(_flat(points, n1 + 2 * r1, width, r1, r2))]
    active = np.flatnonzero(best > 0)
    base, least = _flat([x[active] for x in points], n1 + 2 * r1, width, r1, r2), best[active]
    start, size = 1, 4
    while start < len(shift) and len(active):
        block = slice(start, start + size)
        found = squared.take(table.take(shift[block, None] + base))
        found += planar[block, None]
        np.minimum(least, found.min(axis=0), out=least)
        start, size = start + size, min(2 * size, 16)
        if start < len(shift):
            keep = least > planar[start]
            if not keep.all():
                best[active] = least
                active, base, least = active[keep], base[keep], least[keep]
    best[active] = least
    distance = np.sqrt(best)
    if complete:
        return distance
    rest = np.flatnonzero(distance > reach)
    if len(rest):
        from scipy.spatial import cKDTree

        tree = cKDTree(np.stack(targets, axis=1) * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
        far = np.stack([x[rest] for x in points], axis=1) * spacing
        distance[rest] = tree.query(far, workers=torch.get_num_threads())[0]
    return distance


def _flat(voxels, height: int, width: int, margin1: int, margin2: int) -> np.ndarray:
    """Flat indices of voxels in an array (n0, height, width) that has margins along its last two axes."""
    return (voxels[0] * height + voxels[1] + margin1) * width + voxels[2] + margin2
