"""Stage 2 of CUTS: diffusion condensation and its persistent structures (sections 3.2.1 and 3.2.2).

Condensation knows nothing about images: it takes points (N, d) and gives a hierarchy of partitions.

    hierarchy = condense_pixels(embedding)       # what the paper does with an image: `diffused`, then `condense`
    for labels in hierarchy.levels(): ...        # from fine to coarse, each nested in the next

The paper refers to the library CATCH, which this module follows where the text leaves open how:

    1. space      X: the rows of length 1, on their first 50 principal components.
                  A_ij = exp(-(|x_i - x_j| / s_i)^40) with s_i the distance to the 100th neighbour, symmetrised;
                  P = D^-1 A and Y = P^t X: every pixel moves to where its neighbours are.
    2. condense   y <- Y. Points closer than `met` are one point from now on, with the mass of both. Repeat:
                  epsilon grows by 1.025; K_ij = (m_i + m_j) / 2 exp(-(|y_i - y_j| / epsilon)^40);
                  P = D^-1 K (eqs. 2 and 3); y <- P^t y (eq. 4); merge again; until one point is left.

The exponent 40 makes both kernels nearly a ball: 0.99 at nine tenths of its radius, below 1e-4 (and cut) at 1.06 of it.
So they are sparse, and all points of an image take part: no landmarks, no micro-clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

DECAY = 40
"""exponent of both kernels"""
CUT = 1e-4
"""smaller affinities are 0"""
REACH = (-np.log(CUT)) ** (1 / DECAY)
"""radius beyond which an affinity is cut, in bandwidths: 1.057"""
DENSE = 1500
"""up to so many points, matrices are dense"""


@dataclass(frozen=True)
class Hierarchy:
    """What condensation leaves: one partition per iteration, each nested in the next."""

    partitions: np.ndarray
    """(T, M) int32: cluster of every distinct point after each iteration, numbered from 0 without gaps; row 0
    is the partition at the start"""
    members: np.ndarray
    """(N,) int32: distinct point of every point"""
    masses: np.ndarray
    """(M,) number of points at every distinct point"""
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


def affinity(ratio: np.ndarray) -> np.ndarray:
    """exp(-ratio^40) of squared ratios of distance and bandwidth, cut below 1e-4."""
    values = np.exp(-(np.minimum(ratio, 3.0) ** (DECAY // 2)))
    values[values < CUT] = 0
    return values


def principal_components(points: np.ndarray, most: int = 50) -> np.ndarray:
    """Points (N, d) on their first `most` principal axes, centred: (N, min(most, d)) float64."""
    centred = points - points.mean(0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1]
    return centred @ axes[:, ::-1][:, :most]


def neighbour_affinities(points: np.ndarray, masses: np.ndarray, neighbours: int = 100) -> csr_matrix:
    """A of the first step, not yet symmetrised: (M, M) with a bandwidth per row.

    s_i is the distance to the `neighbours`-th other point, where a point of mass m counts as m points at the same
    place; it is above zero, however many points coincide.
    """
    count = len(points)
    tree = cKDTree(points)
    wanted = min(count, 1 + neighbours + neighbours // 2)
    distances, index = tree.query(points, k=np.arange(1, wanted + 1))
    within = masses[index].cumsum(1) > neighbours
    last = np.where(within.any(1), within.argmax(1), wanted - 1)
    radius = np.maximum(distances[np.arange(count), last], np.finfo(float).eps)
    values = affinity((distances / radius[:, None]) ** 2)
    # Where the last neighbour asked for is still within reach, there may be more of them.
    more = np.flatnonzero(distances[:, -1] < REACH * radius) if wanted < count else np.array([], int)
    values[more] = 0
    pairs = [(np.repeat(np.arange(count), wanted), index.ravel(), values.ravel())]
    for row in more:
        near = np.array(tree.query_ball_point(points[row], REACH * radius[row]))
        ratio = ((points[near] - points[row]) ** 2).sum(1) / radius[row] ** 2
        pairs.append((np.full(len(near), row), near, affinity(ratio)))
    rows, columns, values = (np.concatenate(part) for part in zip(*pairs))
    matrix = coo_matrix((values, (rows, columns)), shape=(count, count)).tocsr()
    matrix.eliminate_zeros()
    return matrix


def diffused(
    points: np.ndarray,
    masses: np.ndarray | None = None,
    neighbours: int = 100,
    steps: int = 13,
    components: int = 50,
) -> np.ndarray:
    """Step 1: Y = P^t X, the points (M, d) after `steps` steps of the walk on the graph of their neighbours.

    Args:
        points: (M, d), distinct.
        masses: (M,) number of points at each of them; None is 1 each.
        neighbours: whose distance is the bandwidth.
        steps: t.
        components: principal components to keep.

    Returns:
        (M, min(components, d)) float64.
    """
    x = principal_components(points, components)
    mass = np.ones(len(x)) if masses is None else np.asarray(masses, float)
    one_sided = neighbour_affinities(x, mass, min(neighbours, max(1, int(mass.sum()) - 2)))
    walk = rows_to_one(((one_sided + one_sided.T) / 2).tocsr(), mass)
    for _ in range(steps):
        x = walk @ x
    return x


def rows_to_one(matrix: csr_matrix, weights: np.ndarray) -> csr_matrix:
    """Columns times `weights`, then rows divided by their sums: P = D^-1 K (eqs. 2 and 3)."""
    matrix.data *= weights[matrix.indices]
    matrix.data /= np.repeat(np.asarray(matrix.sum(1)).ravel(), np.diff(matrix.indptr))
    return matrix


def transition(points: np.ndarray, masses: np.ndarray, epsilon: float) -> np.ndarray | csr_matrix:
    """P of one iteration (eqs. 1 to 3): dense up to `DENSE` points."""
    count = len(points)
    if count <= DENSE:
        kernel = affinity(squared_distances(points) / epsilon**2) * (masses[:, None] + masses) / 2
        return kernel / kernel.sum(1, keepdims=True)
    pairs = cKDTree(points).query_pairs(REACH * epsilon, output_type="ndarray")
    first, second = pairs.T.astype(np.int32)
    squares = np.empty(len(pairs))
    for start in range(0, len(pairs), 2**16):  # in blocks: there may be ten million pairs
        part = slice(start, start + 2**16)
        apart = points[first[part]]
        apart -= points[second[part]]
        np.einsum("pd,pd->p", apart, apart, out=squares[part])
    values = affinity(squares / epsilon**2) * (masses[first] + masses[second]) / 2
    itself = np.arange(count, dtype=np.int32)
    rows, columns = np.concatenate([first, second, itself]), np.concatenate([second, first, itself])
    kernel = coo_matrix((np.concatenate([values, values, masses]), (rows, columns)), shape=(count, count)).tocsr()
    return rows_to_one(kernel, np.ones(count))


def squared_distances(points: np.ndarray) -> np.ndarray:
    """(M, d) -> (M, M) squared Euclidean distances, by one matrix product."""
    lengths = np.square(points).sum(1)
    return np.maximum(lengths[:, None] + lengths - 2 * points @ points.T, 0)


def first_bandwidth(points: np.ndarray, share: float = 0.1) -> float:
    """epsilon_0 = share * (standard deviation of all coordinates) * N^(1/5)."""
    return float(share * points.std() * len(points) ** 0.2)


def entropy_knee(matrix: np.ndarray, most: int) -> int:
    """Number of steps t at the knee of the von Neumann entropy of P^1, ..., P^most, for `steps=None`.

    The entropy is that of the singular values to the power, as shares of their sum. At the knee, two straight lines,
    up to it and from the point before it, leave the least sum of absolute residuals.
    """
    if most < 3:
        return 1
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values[None] ** np.arange(1, most + 1)[:, None]
    shares = shares / shares.sum(1, keepdims=True) + np.finfo(float).eps
    entropy, t = -(shares * np.log(shares)).sum(1), np.arange(most)

    def residual(fitted: slice, judged: slice) -> float:
        line = np.polyfit(t[fitted], entropy[fitted], 1)
        return float(np.abs(np.polyval(line, t[judged]) - entropy[judged]).sum())

    left = [residual(slice(0, k + 1), slice(0, k + 1)) for k in range(1, most - 1)]
    right = [residual(slice(k - 1, most), slice(k, most)) for k in range(1, most - 1)]
    return 1 + int(np.argmin(np.add(left, right)))


def condense(
    points: np.ndarray,
    masses: np.ndarray | None = None,
    *,
    epsilon: float | None = None,
    met: float | None = None,
    steps: int = 13,
    knee: bool = False,
    growth: float = 1.025,
    iterations: int = 2000,
) -> Hierarchy:
    """Step 2: diffusion condensation (section 3.2.1, eqs. 1 to 4).

    Args:
        points: (M, d).
        masses: (M,) positive; None is 1 each.
        epsilon: bandwidth, which grows before the first iteration already; None is `first_bandwidth(points)`.
        met: points closer than this have met; so have those between which a chain of such steps leads. None is 1 % of
            epsilon.
        steps: t, powers of P per iteration.
        knee: take t at the knee of the entropy of P^1 to P^steps instead (`entropy_knee`), as CATCH does: a
            singular value decomposition per iteration.
        growth: factor on epsilon per iteration.
        iterations: at most so many.

    Returns:
        the hierarchy, with `members` 0..M-1. Row 0 is the start, row 1 what has met there, then a row per iteration.

    Raises:
        ValueError: no points, values that are not finite, or masses that don't fit.

    Example:
        >>> x = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> hierarchy = condense(x, epsilon=0.15)
        >>> [labels.tolist() for labels in hierarchy.levels()][-1]
        [0, 0, 1, 1]
    """
    x = np.array(points, float)
    if x.ndim != 2 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite points (M, d), found shape {x.shape} or NaN")
    mass = np.ones(len(x)) if masses is None else np.array(masses, float)
    if mass.shape != (len(x),) or not (mass > 0).all():
        raise ValueError(f"expected {len(x)} positive masses, found shape {mass.shape}")
    count, sizes = len(x), mass
    bandwidth = first_bandwidth(x) if epsilon is None else epsilon
    met = 0.01 * bandwidth if met is None else met
    x, mass, current = merge(x, mass, np.arange(count, dtype=np.int32), met)
    partitions, epsilons = [np.arange(count, dtype=np.int32), current], [np.nan, np.nan]
    while len(x) > 1 and len(partitions) <= iterations:
        bandwidth *= growth
        p = transition(x, mass, bandwidth)
        t = entropy_knee(p if isinstance(p, np.ndarray) else p.toarray(), steps) if knee else steps
        for _ in range(t):
            x = p @ x
        x, mass, current = merge(x, mass, current, met)
        partitions.append(current)
        epsilons.append(bandwidth)
    return Hierarchy(np.stack(partitions), np.arange(count, dtype=np.int32), sizes, np.array(epsilons))


def merge(x: np.ndarray, mass: np.ndarray, current: np.ndarray, met: float) -> tuple[np.ndarray, ...]:
    """Points that have met become one: its place is the mean of theirs, its mass the sum.

    Returns:
        points, masses, and the clusters `current` (N,) in the new numbering.
    """
    pairs = cKDTree(x).query_pairs(met, output_type="ndarray")
    if len(pairs) == 0:
        return x, mass, current
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), shape=(len(x), len(x)))
    count, group = connected_components(graph, directed=False)
    together = csr_matrix((np.ones(len(x)), (group, np.arange(len(x)))), shape=(count, len(x)))
    number = np.asarray(together.sum(1))
    return (together @ x) / number, together @ mass, group.astype(np.int32)[current]


def condense_pixels(
    embedding: np.ndarray, neighbours: int = 100, walk: int = 13, components: int = 50, met: float = 0.01, **settings
) -> Hierarchy:
    """What the paper does with the pixels of an image: `diffused`, then `condense`.

    Pixels with the same embedding (a masked background) are one point with their mass from the start.

    Args:
        embedding: (N, d), one row of length 1 per pixel.
        neighbours, components: of `diffused`.
        walk: `steps` of `diffused`.
        met: distance of points that have met, as a share of the first bandwidth.
        settings: of `condense`.

    Example:
        >>> hierarchy = condense_pixels(np.random.default_rng(0).random((500, 4)), neighbours=20)
        >>> hierarchy.labels(-1).shape
        (500,)
    """
    embedding = np.asarray(embedding)
    _, first, members, masses = np.unique(
        embedding.astype(np.float64).round(6), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == 1:  # a constant image
        return Hierarchy(np.zeros((1, 1), np.int32), members.ravel().astype(np.int32), masses, np.array([np.nan]))
    space = diffused(embedding[first], masses, neighbours, walk, components)
    bandwidth = first_bandwidth(space)
    found = condense(space, masses, epsilon=bandwidth, met=met * bandwidth, **settings)
    return Hierarchy(found.partitions, members.ravel().astype(np.int32), found.masses, found.epsilons)


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
