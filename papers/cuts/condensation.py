"""Stage 2 of CUTS: diffusion condensation and its persistent structures (sections 3.2.1 and 3.2.2).

Condensation knows nothing about images: it takes points (N, d) and gives a hierarchy of partitions.

    hierarchy = condense(points)                 # exact, N up to a few thousand
    hierarchy = condense_pixels(embedding)       # any N: micro-clusters first
    for labels in hierarchy.levels(): ...        # from fine to coarse, each nested in the next

Two things make it quick without changing the definition. Points that have met move together ever after, so
they are one point with a mass. And an image's pixels are first gathered into a few thousand micro-clusters
with masses, as the paper's own library does with landmarks; this is the one approximation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass(frozen=True)
class Hierarchy:
    """What condensation leaves: one partition per iteration, each nested in the next."""

    partitions: np.ndarray
    """(T, M) int32: cluster of every micro-cluster after each iteration, numbered from 0 without gaps; row 0
    is the partition at the start"""
    members: np.ndarray
    """(N,) int32: micro-cluster of every point; 0..N-1 where condensation was exact"""
    masses: np.ndarray
    """(M,) number of points of every micro-cluster"""
    epsilons: np.ndarray
    """(T,) bandwidth that led to each row; NaN for row 0"""

    @property
    def segments(self) -> np.ndarray:
        """(T,) number of clusters of each row; it never increases."""
        return self.partitions.max(axis=1) + 1

    def labels(self, iteration: int) -> np.ndarray:
        """(N,) cluster of every point after an iteration."""
        return self.partitions[iteration][self.members]

    def level_iterations(self, most: int = 100, fewest: int = 2) -> list[int]:
        """First iteration of every distinct partition with `fewest` to `most` segments, fine to coarse."""
        counts = self.segments
        new = np.r_[True, np.diff(counts) != 0]  # nested partitions with equal counts are equal
        return [int(t) for t in np.flatnonzero(new & (counts >= fewest) & (counts <= most))]

    def levels(self, most: int = 100, fewest: int = 2) -> Iterator[np.ndarray]:
        """(N,) labels of every distinct partition with `fewest` to `most` segments, fine to coarse."""
        for iteration in self.level_iterations(most, fewest):
            yield self.labels(iteration)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(M, d), (L, d) -> (M, L) squared Euclidean distances, by one matrix product."""
    product = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2)
    return product.clamp_(min=0)


def initial_bandwidth(points: Tensor, neighbours: int = 10) -> float:
    """Median over the points of the squared distance to the k-th other point; where that is 0, the mean."""
    k = min(neighbours, len(points) - 1)
    if k == 0:
        return 1.0
    distances = squared_distances(points, points).kthvalue(k + 1, dim=1).values
    value = distances.median().item() or distances.mean().item()
    return value or 1.0


def condense(
    points: Tensor,
    masses: Tensor | None = None,
    *,
    epsilon: float | None = None,
    neighbours: int = 10,
    growth: float = 1.025,
    merge: float = 0.1,
    iterations: int = 600,
) -> Hierarchy:
    """Diffusion condensation (section 3.2.1, eqs. 1 to 4; M8).

    Repeat, until one point is left: K_mn = exp(-|x_m - x_n|^2 / epsilon), P = D^-1 K, X <- P X; points that
    have met become one, at their centre of mass; epsilon <- growth * epsilon. A point of mass w stands for w
    points at the same place, so the sums of P run over masses.

    Memory is M x M once; each iteration costs O(M^2 d), and M falls.

    Args:
        points: (M, d), float32 or float64, on any device.
        masses: (M,) positive; None is 1 each.
        epsilon: bandwidth of the first iteration; None is `initial_bandwidth(points, neighbours)`.
        neighbours: see `epsilon`.
        growth: factor on epsilon after each iteration.
        merge: points closer than merge * sqrt(first epsilon) have met.
        iterations: at most so many.

    Returns:
        the hierarchy, with `members` 0..M-1.

    Raises:
        ValueError: no points, values that are not finite, or masses that don't fit.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> hierarchy = condense(x, epsilon=0.05)
        >>> [labels.tolist() for labels in hierarchy.levels()][-1]
        [0, 0, 1, 1]
    """
    if points.ndim != 2 or len(points) == 0 or not bool(points.isfinite().all()):
        raise ValueError(f"expected finite points (M, d), found shape {tuple(points.shape)} or NaN")
    count = len(points)
    mass = points.new_ones(count) if masses is None else masses.to(points)
    if mass.shape != (count,) or not bool((mass > 0).all()):
        raise ValueError(f"expected {count} positive masses, found shape {tuple(mass.shape)}")
    first = initial_bandwidth(points, neighbours) if epsilon is None else epsilon
    sizes = mass.cpu().numpy().astype(np.float64)
    x = points - points.mean(0)  # distances keep more digits around the origin
    bandwidth, met = first, (merge * first**0.5) ** 2

    current = np.arange(count, dtype=np.int32)
    partitions, epsilons = [current], [np.nan]
    distances = squared_distances(x, x)
    while len(x) > 1 and len(partitions) <= iterations:
        affinity = torch.exp_(distances.mul_(-1 / bandwidth)).mul_(mass)  # eq. 1, a column per mass
        x = (affinity @ x) / affinity.sum(1, keepdim=True)  # eqs. 2 to 4
        distances = squared_distances(x, x)
        group = touching(distances, met)
        if group is not None:
            x, mass = gather_mass(x, mass, group)
            current = group[current]
            distances = squared_distances(x, x)
        partitions.append(current)
        epsilons.append(bandwidth)
        bandwidth *= growth
    members = np.arange(count, dtype=np.int32)
    return Hierarchy(np.stack(partitions), members, sizes, np.array(epsilons))


def touching(distances: Tensor, met: float) -> np.ndarray | None:
    """Connected components (M,) of the points with squared distance below `met`; None if all are apart."""
    pairs = (distances < met).triu_(1).nonzero().cpu().numpy()
    if len(pairs) == 0:
        return None
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), shape=distances.shape)
    return connected_components(graph, directed=False)[1].astype(np.int32)


def gather_mass(x: Tensor, mass: Tensor, group: np.ndarray) -> tuple[Tensor, Tensor]:
    """Centres of mass (G, d) and masses (G,) of the groups (M,) of points (M, d)."""
    index = torch.from_numpy(group).long().to(x.device)
    total = mass.new_zeros(int(group.max()) + 1).index_add_(0, index, mass)
    centre = x.new_zeros(len(total), x.shape[1]).index_add_(0, index, x * mass[:, None])
    return centre / total[:, None], total


def micro_clusters(points: Tensor, count: int, seed: int = 0, rounds: int = 8, refinements: int = 1):
    """Gather points into micro-clusters: k-means with seeds drawn far from the earlier ones (k-means||).

    Sparse regions, a small lesion say, get as many of them as their spread asks for, not their share of
    pixels.

    Args:
        points: (N, d).
        count: at most so many.
        seed: of the draws, which are made on the CPU.
        rounds: in which the seeds are drawn.
        refinements: Lloyd iterations.

    Returns:
        centres (M, d), members (N,) int64 in 0..M-1, every micro-cluster with a member, M <= count.
    """
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (1,), generator=generator))
    centres = points[first : first + 1]
    nearest = squared_distances(points, centres)[:, 0]
    for left in range(rounds, 0, -1):
        wanted = min((count - len(centres)) // left, int((nearest > 0).sum()))
        if wanted < 1:
            continue
        weights = nearest.double().cpu()
        drawn = torch.multinomial(weights / weights.sum(), wanted, generator=generator).to(points.device)
        centres = torch.cat([centres, points[drawn]])
        nearest = torch.minimum(nearest, squared_distances(points, points[drawn]).amin(1))
    members = nearest_centre(points, centres)
    for _ in range(refinements):
        members, centres = centres_of(points, members)
        members = nearest_centre(points, centres)
    members, centres = centres_of(points, members)
    return centres, members


def nearest_centre(points: Tensor, centres: Tensor, rows: int = 4096) -> Tensor:
    """(N,) number of the centre nearest to each point, in blocks of rows. |x|^2 is the same for all centres."""
    lengths = centres.square().sum(1)[None]
    return torch.cat([torch.addmm(lengths, block, centres.T, alpha=-2).argmin(1) for block in points.split(rows)])


def centres_of(points: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Members numbered without gaps, and the mean point of each number."""
    members = members.unique(return_inverse=True)[1]
    sizes = torch.bincount(members).to(points)
    sums = points.new_zeros(len(sizes), points.shape[1]).index_add_(0, members, points)
    return members, sums / sizes[:, None]


def condense_pixels(embedding: Tensor, micro: int = 2000, seed: int = 0, **settings) -> Hierarchy:
    """`condense` for any number of points: by way of at most `micro` micro-clusters, if there are more.

    Args:
        embedding: (N, d), one row per pixel.
        micro: largest number of points to condense.
        seed: of the micro-clusters.
        settings: of `condense`.

    Example:
        >>> condense_pixels(torch.rand(5000, 4), micro=300).labels(-1).shape
        (5000,)
    """
    if len(embedding) <= micro:
        return condense(embedding, **settings)
    centres, members = micro_clusters(embedding, micro, seed)
    masses = torch.bincount(members)
    hierarchy = condense(centres, masses, **settings)
    return Hierarchy(hierarchy.partitions, members.cpu().numpy().astype(np.int32), hierarchy.masses, hierarchy.epsilons)


@dataclass(frozen=True)
class Segment:
    """A cluster that stays intact over some iterations."""

    iteration: int
    """the last one in which it was intact"""
    cluster: int
    """its number in that row of `Hierarchy.partitions`"""
    persistence: int
    """number of consecutive iterations in which it stayed intact"""
    area: float
    """points"""


def segments_by_persistence(hierarchy: Hierarchy, change: float = 0.01, smallest: float = 0.005) -> list[Segment]:
    """All segments of a hierarchy with their persistence, increasing (section 3.2.2).

    A segment stays intact from one iteration to the next if what it takes up is at most `change` of its area;
    the smaller partner of such a merger ends. The whole image is no segment.

    Args:
        change: share of the area by which a segment may grow per iteration and still be the same.
        smallest: segments below this share of all points are left out.
    """
    masses, total = hierarchy.masses, hierarchy.masses.sum()
    found: list[Segment] = []
    rows = [row for row in hierarchy.partitions if row.max() > 0]
    if not rows:
        return found

    def end(iteration: int, clusters: np.ndarray, area: np.ndarray, age: np.ndarray) -> None:
        for cluster in clusters:
            if area[cluster] >= smallest * total:
                found.append(Segment(iteration, int(cluster), int(age[cluster]), float(area[cluster])))

    area, age = np.bincount(rows[0], masses), np.ones(rows[0].max() + 1, int)
    for iteration, (before, now) in enumerate(zip(rows, rows[1:])):
        if now.max() == before.max():
            age = age + 1
            continue
        parent = np.zeros(before.max() + 1, int)
        parent[before] = now
        new_area = np.bincount(now, masses)
        intact = new_area[parent] - area <= change * new_area[parent]
        end(iteration, np.flatnonzero(~intact), area, age)
        new_age = np.ones(now.max() + 1, int)
        new_age[parent[intact]] = age[intact] + 1
        area, age = new_area, new_age
    end(len(rows) - 1, np.arange(len(area)), area, age)
    # Equal persistence: the larger one first, so that the finer one stays visible.
    return sorted(found, key=lambda segment: (segment.persistence, -segment.area))


def persistent_structures(hierarchy: Hierarchy, change: float = 0.01, smallest: float = 0.005) -> np.ndarray:
    """The single label map of section 3.2.2 (M9): segments stacked in order of increasing persistence.

    Returns:
        (N,) int32, numbered without gaps from 0; more persistent segments override less persistent ones.
    """
    painted = np.zeros(hierarchy.partitions.shape[1], np.int32)
    for number, segment in enumerate(segments_by_persistence(hierarchy, change, smallest), 1):
        painted[hierarchy.partitions[segment.iteration] == segment.cluster] = number
    return np.unique(painted, return_inverse=True)[1].astype(np.int32)[hierarchy.members]
