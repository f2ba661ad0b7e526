"""T_f and T_b of CDI-Net: forward and back projection with one sparse system matrix, and attenuation for ML-EM.

Tensors: images (B, 1, X, Y, Z); projections (B, 1, U, V, A), the angle last so that a 3D network can pool
over it.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.system_matrix import pinhole_matrix
from shared.errors import InputError

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # the tests check what we use of it


class _SparseProduct(torch.autograd.Function):
    """matrix @ vectors, (M, N) @ (N, B), whose gradient is transpose @ gradient with the stored transpose.

    Autograd of torch.sparse would build the transpose anew in every backward pass.
    """

    @staticmethod
    def forward(ctx, vectors: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrix, ctx.transpose = matrix, transpose
        if vectors.shape[1] == 1:  # matrix times vector is the faster kernel
            return (matrix @ vectors[:, 0]).unsqueeze(1)
        return matrix @ vectors

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _SparseProduct.apply(gradient, ctx.transpose, ctx.matrix), None, None


class Projector(nn.Module):
    """T_f and T_b: forward projection A·x and back projection Aᵀ·p, without attenuation (M2).

    Both are differentiable, and each is the other's gradient. They compute in float32, under autocast too.
    A and its transpose are buffers, so they follow `.to(device)`, but not part of the state_dict.

    Measured on 2 CPU cores at 28×28×16 voxels and 16×16×20 bins (2.2 M non-zeros), a forward and a backward
    pass take 2.2 ms; autograd through a torch.sparse COO or CSR matrix takes 180 to 200 ms.

    Args:
        matrix: (A*U*V, X*Y*Z) scipy sparse, rows over (angle, u, v), columns over (x, y, z).
        geometry: the scanner; its shapes must be those of the matrix.

    Raises:
        InputError: the matrix isn't of the geometry's shape.

    Example:
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> projector = Projector.from_geometry(geometry)
        >>> projections = projector.forward_project(torch.ones(2, 1, 12, 12, 8))
        >>> projections.shape, projector.back_project(projections).shape
        (torch.Size([2, 1, 8, 8, 20]), torch.Size([2, 1, 12, 12, 8]))
    """

    def __init__(self, matrix: scipy.sparse.spmatrix, geometry: PinholeGeometry):
        super().__init__()
        if matrix.shape != (geometry.angles * geometry.pixels, geometry.voxels):
            raise InputError(
                f"A system matrix {matrix.shape} doesn't fit projections {geometry.projection_shape} and "
                f"images {geometry.image_shape}."
            )
        self.geometry = geometry
        matrix = scipy.sparse.csr_matrix(matrix, dtype=np.float32)
        self._store("forward", matrix)
        self._store("back", matrix.T.tocsr())

    @classmethod
    def from_geometry(cls, geometry: PinholeGeometry) -> "Projector":
        return cls(pinhole_matrix(geometry), geometry)

    def _store(self, name: str, matrix: scipy.sparse.csr_matrix) -> None:
        # Three dense buffers instead of a sparse one: DDP, deepcopy and .to() all know what to do with them.
        # 32-bit indices halve the memory traffic, which is what a sparse product waits for.
        matrix.sort_indices()
        small = matrix.nnz < 2**31
        index = np.int32 if small else np.int64
        self.register_buffer(f"{name}_pointers", torch.from_numpy(matrix.indptr.astype(index)), persistent=False)
        self.register_buffer(f"{name}_indices", torch.from_numpy(matrix.indices.astype(index)), persistent=False)
        self.register_buffer(f"{name}_values", torch.from_numpy(matrix.data.copy()), persistent=False)

    def _matrices(self, forward_values: Tensor, back_values: Tensor) -> tuple[Tensor, Tensor]:
        """A and Aᵀ as torch CSR with the given values; costs nothing, they share the buffers."""
        rows, columns = self.geometry.angles * self.geometry.pixels, self.geometry.voxels
        matrix = _csr(self.forward_pointers, self.forward_indices, forward_values.float(), (rows, columns))
        transpose = _csr(self.back_pointers, self.back_indices, back_values.float(), (columns, rows))
        return matrix, transpose

    def forward_project(self, image: Tensor) -> Tensor:
        """T_f: (B, 1, X, Y, Z) photons emitted in each voxel -> (B, 1, U, V, A) expected counts, float32.

        Raises:
            InputError: the image isn't of the scanner's shape.
        """
        matrix, transpose = self._matrices(self.forward_values, self.back_values)
        vectors = _image_to_vectors(image, self.geometry)
        with torch.autocast(image.device.type, enabled=False):
            return _vectors_to_projections(_SparseProduct.apply(vectors, matrix, transpose), self.geometry)

    def back_project(self, projections: Tensor) -> Tensor:
        """T_b: (B, 1, U, V, A) -> (B, 1, X, Y, Z), float32.

        Raises:
            InputError: the projections aren't of the scanner's shape.
        """
        matrix, transpose = self._matrices(self.forward_values, self.back_values)
        vectors = _projections_to_vectors(projections, self.geometry)
        with torch.autocast(projections.device.type, enabled=False):
            return _vectors_to_image(_SparseProduct.apply(vectors, transpose, matrix), self.geometry)

    def with_attenuation(self, mu: Tensor, samples: int = 20) -> "AttenuatedProjector":
        """The same scanner around bodies with the attenuation maps `mu` (B, 1, X, Y, Z), cm^-1 (M10)."""
        return AttenuatedProjector(self, attenuation_factors(mu, self.geometry, samples))


class AttenuatedProjector:
    """Forward and back projection through B attenuating bodies, for ML-EM with attenuation correction (M10).

    Element (i, j) of the matrix is multiplied by the factor from voxel j to the pinhole of row i. A case's
    matrix is built once and then costs as much per projection as the one without attenuation.

    Args:
        projector: the scanner.
        factors: (B, A, X*Y*Z) of `attenuation_factors`.

    Example:
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> attenuated = Projector.from_geometry(geometry).with_attenuation(torch.full((1, 1, 12, 12, 8), 0.15))
        >>> attenuated.forward_project(torch.ones(1, 1, 12, 12, 8)).shape
        torch.Size([1, 1, 8, 8, 20])
    """

    def __init__(self, projector: Projector, factors: Tensor):
        self.geometry = projector.geometry
        pixels, voxels = self.geometry.pixels, self.geometry.voxels
        # The factor of every non-zero element, as an index into the flattened (A, X*Y*Z) factors.
        row = _row_of_element(projector.forward_pointers)
        element = torch.div(row, pixels, rounding_mode="floor") * voxels + projector.forward_indices
        row = _row_of_element(projector.back_pointers)
        back_element = torch.div(projector.back_indices.long(), pixels, rounding_mode="floor") * voxels + row
        self._cases = [
            projector._matrices(projector.forward_values * case[element], projector.back_values * case[back_element])
            for case in factors.to(projector.forward_values).flatten(1)
        ]

    def forward_project(self, image: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) -> (B, 1, U, V, A), case b through body b. Raises InputError on a wrong shape."""
        vectors = _image_to_vectors(image, self.geometry)
        columns = [_SparseProduct.apply(x, *case) for x, case in zip(self._split(vectors), self._cases, strict=True)]
        return _vectors_to_projections(torch.cat(columns, dim=1), self.geometry)

    def back_project(self, projections: Tensor) -> Tensor:
        """(B, 1, U, V, A) -> (B, 1, X, Y, Z), case b through body b. Raises InputError on a wrong shape."""
        vectors = _projections_to_vectors(projections, self.geometry)
        columns = [
            _SparseProduct.apply(p, *case[::-1]) for p, case in zip(self._split(vectors), self._cases, strict=True)
        ]
        return _vectors_to_image(torch.cat(columns, dim=1), self.geometry)

    def _split(self, vectors: Tensor) -> Iterator[Tensor]:
        if vectors.shape[1] != len(self._cases):
            raise InputError(f"{len(self._cases)} attenuation maps can't go with {vectors.shape[1]} cases.")
        return (vectors[:, case : case + 1] for case in range(len(self._cases)))


def attenuation_factors(mu: Tensor, geometry: PinholeGeometry, samples: int = 20) -> Tensor:
    """exp(-∫ mu dl) along the ray from every voxel centre to every pinhole.

    The ray is marched by the midpoint rule with `samples` trilinear samples between the voxel and the point
    where the ray leaves the image; outside it is air. (Sampling anew is faster than a stored sparse ray
    matrix, which would have 160 elements for each of the A*X*Y*Z rays.)

    Args:
        mu: (B, 1, X, Y, Z) linear attenuation coefficient, cm^-1.

    Returns:
        (B, A, X*Y*Z) in (0, 1]; 1 for padding angles.

    Raises:
        InputError: mu isn't of the scanner's shape.
    """
    _check_shape(mu, geometry.image_shape, "attenuation map", "X, Y, Z")
    device = mu.device
    centres = torch.from_numpy(geometry.voxel_centres()).to(device)  # (X*Y*Z, 3) mm
    half_size = torch.tensor(geometry.image_shape, device=device) * geometry.voxel_mm / 2.0
    midpoints = (torch.arange(samples, device=device) + 0.5) / samples
    bodies = mu.float().transpose(0, 1)  # (1, B, X, Y, Z): as channels, all cases share the sample positions
    factors = torch.ones(len(mu), geometry.angles, geometry.voxels, device=device)
    for angle, position in enumerate(geometry.pinhole_positions):
        ray = torch.tensor(position, device=device) - centres
        distance = ray.norm(dim=1, keepdim=True).clamp_min(1e-6)
        direction = ray / distance
        to_face = (half_size * direction.sign() - centres) / direction  # mm along the ray, per axis
        to_face = torch.where(direction.abs() < 1e-9, torch.inf, to_face)
        length = torch.minimum(to_face.amin(dim=1, keepdim=True), distance)  # (X*Y*Z, 1) mm
        points = centres[:, None] + (length * direction)[:, None] * midpoints[:, None]  # (X*Y*Z, samples, 3)
        grid = (points / half_size).flip(-1)[None, :, :, None]  # grid_sample wants (z, y, x) in -1..1
        sampled = F.grid_sample(bodies, grid, padding_mode="border", align_corners=False)
        line_integral = sampled[0, :, :, :, 0].mean(dim=2) * length[:, 0] / 10.0  # (B, X*Y*Z); mm -> cm
        factors[:, angle] = torch.exp(-line_integral)
    return factors


def _csr(pointers: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(pointers, indices, values, shape, check_invariants=False)


def _row_of_element(pointers: Tensor) -> Tensor:
    """The row of each stored element of a CSR matrix, int64."""
    counts = pointers.diff().long()
    return torch.repeat_interleave(torch.arange(len(counts), device=pointers.device), counts)


def _check_shape(tensor: Tensor, shape: tuple[int, ...], what: str, axes: str) -> None:
    if tensor.ndim != 5 or tuple(tensor.shape[1:]) != (1, *shape):
        raise InputError(
            f"The {what} must have the shape (B, 1, {axes}) = (B, 1, {', '.join(map(str, shape))}) of the "
            f"scanner, got {tuple(tensor.shape)}."
        )


def _image_to_vectors(image: Tensor, geometry: PinholeGeometry) -> Tensor:
    _check_shape(image, geometry.image_shape, "image", "X, Y, Z")
    return rearrange(image.float(), "b 1 x y z -> (x y z) b").contiguous()


def _projections_to_vectors(projections: Tensor, geometry: PinholeGeometry) -> Tensor:
    _check_shape(projections, geometry.projection_shape, "projections", "U, V, A")
    return rearrange(projections.float(), "b 1 u v a -> (a u v) b").contiguous()


def _vectors_to_image(vectors: Tensor, geometry: PinholeGeometry) -> Tensor:
    x, y, z = geometry.image_shape
    return rearrange(vectors, "(x y z) b -> b 1 x y z", x=x, y=y, z=z).contiguous()


def _vectors_to_projections(vectors: Tensor, geometry: PinholeGeometry) -> Tensor:
    u, v, a = geometry.projection_shape
    return rearrange(vectors, "(a u v) b -> b 1 u v a", a=a, u=u, v=v).contiguous()
