"""Spectral k-means on the embedding (section 4, [50, 51]; M10): diffusion coordinates, then k-means."""

import numpy as np
import torch
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(M, d), (L, d) -> (M, L) squared Euclidean distances, by one matrix product."""
    lengths = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_min_(0)


def diffusion_coordinates(
    points: Tensor, dimensions: int = 10, landmarks: int = 500, neighbours: int = 10, steps: int = 2, seed: int = 0
) -> Tensor:
    """Landmark diffusion map of points (N, d): coordinates (N, dimensions).

    A = exp(-|x - l|^2 / (s_x s_l)) between points and random landmarks, with the distance to the k-th landmark as
    local bandwidth s. The random walk point -> landmark -> point is similar to B B^T with B = D^-1/2 A E^-1/2 (D, E:
    row and column sums). Its first eigenvector D^1/2 1 says nothing and is taken out of B; the coordinates are the
    next left singular vectors times D^-1/2, weighted with the eigenvalues of `steps` steps of the walk.

    Args:
        dimensions: number of coordinates, without the constant one.
        landmarks: points that are landmarks, drawn without replacement.
        neighbours: k of the local bandwidth.
        steps: diffusion time t; details of low eigenvalue, noise among them, fade with it.
        seed: of the landmarks.
    """
    count = min(landmarks, len(points))
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = points[order.to(points.device)]
    distances = squared_distances(points, chosen)
    k = min(neighbours, count)
    floor = distances.mean().sqrt() * 1e-3 + 1e-12  # many equal pixels: a bandwidth of 0
    of_points = distances.kthvalue(k, dim=1).values.sqrt().clamp_min(floor)
    of_landmarks = of_points[order.to(points.device)]
    affinity = torch.exp_(-distances / (of_points[:, None] * of_landmarks)).double() + 1e-12
    rows, columns = affinity.sum(1), affinity.sum(0)
    root_rows, root_columns = rows.sqrt(), columns.sqrt()
    symmetric = affinity / root_rows[:, None] / root_columns
    symmetric -= root_rows[:, None] * (root_columns / rows.sum())  # without the constant one
    values, vectors = torch.linalg.eigh(symmetric.T @ symmetric)
    keep = min(dimensions, count)
    values, vectors = values.flip(0)[:keep].clamp_min(1e-12), vectors.flip(1)[:, :keep]
    left = symmetric @ vectors / values.sqrt()
    return (left / root_rows[:, None] * values**steps).to(points)


def kmeans(points: np.ndarray, clusters: int = 10, seed: int = 0) -> np.ndarray:
    """Labels (N,) int32 of k-means from one k-means++ start; fewer clusters if fewer points differ."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(min(clusters, len(points)), n_init=1, random_state=seed, max_iter=100)
        return model.fit_predict(points).astype(np.int32)


def spectral_kmeans(
    embedding: Tensor, clusters: int = 10, landmarks: int = 500, steps: int = 2, seed: int = 0
) -> np.ndarray:
    """M10: labels (N,) of k-means (k = 10 in the paper) on the diffusion coordinates of an embedding (N, d).

    Example:
        >>> x = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)]) + 0.01 * torch.rand(40, 2)
        >>> labels = spectral_kmeans(x, clusters=2)
        >>> len(set(labels[:20].tolist())), len(set(labels.tolist()))
        (1, 2)
    """
    coordinates = diffusion_coordinates(embedding, clusters, landmarks, steps=steps, seed=seed)
    return kmeans(coordinates.cpu().numpy(), clusters, seed)
