"""The resolution-and-overlap model of SR4ZCT (section 2): sparse matrices that simulate thick, overlapping slices.

Everything is along one axis. A fine axis has `size` pixels of side r (`pixel`), the first from 0 to r. A coarse one has
rows of thickness r^z (`thickness`) that overlap by o^z, so that their centres lie at r^z / 2 + k d with the spacing
d = r^z - o^z. A negative overlap is a gap. All lengths are in mm and may be any real numbers: nothing is rounded.

Each operator is one sparse matrix, made once for each geometry and kept:

    F_down = downscale_matrix    linear interpolation at nine points spread over a row's thickness, averaged (figure 2)
    F_up   = upscale_matrix      linear interpolation from row centres to pixel centres
    degradation_matrix           F_up F_down, what turns an axial image into a training input
    convolution_matrix           what SMORE has in place of F_down: integer width, integer stride
    box_matrix                   the exact integral over a row, which the simulated acquisitions use, not the method
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from shared.errors import InputError

EDGE = 1e-6  # a row that ends this many pixels beyond the image still counts as inside: lengths are rounded decimals


@dataclass(frozen=True)
class SliceGeometry:
    """Slices of `thickness` r^z and `overlap` o^z over in-plane pixels of side `pixel` r^xy, all in mm.

    Raises:
        InputError: a length that isn't positive and finite, or slices that don't advance.

    Example:
        >>> SliceGeometry(pixel=1.0, thickness=5.0, overlap=2.5).spacing
        2.5
    """

    pixel: float
    thickness: float
    overlap: float

    def __post_init__(self):
        lengths = (self.pixel, self.thickness, self.spacing)
        if not all(math.isfinite(length) and length > 0 for length in lengths):
            raise InputError(
                f"slices of {self.thickness:g} mm with an overlap of {self.overlap:g} mm over pixels of "
                f"{self.pixel:g} mm: thickness, pixel and spacing (thickness minus overlap) must be positive"
            )

    @property
    def spacing(self) -> float:
        """Distance d between the centres of neighbouring slices, mm."""
        return self.thickness - self.overlap

    def rows(self, size: int) -> int:
        """How many whole rows lie within `size` pixels."""
        return math.floor((size * self.pixel - self.thickness) / self.spacing + EDGE) + 1

    def pixels(self, rows: int) -> int:
        """How many whole pixels lie within the extent of `rows` rows."""
        return math.floor(((rows - 1) * self.spacing + self.thickness) / self.pixel + EDGE)


def _sparse(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Tensor:
    index = torch.from_numpy(np.stack([rows.ravel(), columns.ravel()]))
    matrix = torch.sparse_coo_tensor(index, torch.from_numpy(values.ravel()), shape, check_invariants=False)
    return matrix.coalesce().float()


def _interpolate(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbour and weight of the right one, for positions in samples; linear extrapolation outside."""
    left = np.clip(np.floor(positions).astype(np.int64), 0, size - 2)
    return left, positions - left


def _check_rows(rows: int, size: int, geometry: SliceGeometry) -> None:
    if rows < 2:
        raise InputError(
            f"an axis of {size} pixels of {geometry.pixel:g} mm is too short for two slices of "
            f"{geometry.thickness:g} mm every {geometry.spacing:g} mm: use a larger image or thinner slices"
        )


@lru_cache(maxsize=128)
def downscale_matrix(size: int, geometry: SliceGeometry, samples: int = 9) -> Tensor:
    """F_down: sparse (K, size), from pixels of side r^xy to rows of thickness r^z and overlap o^z (M1, figure 2).

    Row k is the mean of `samples` linearly interpolated points, the centres of as many equal parts of its thickness.

    Raises:
        InputError: fewer than two rows fit.

    Example:
        >>> ramp = torch.arange(20.0)[:, None]
        >>> (downscale_matrix(20, SliceGeometry(1.0, 5.0, 2.5)) @ ramp)[:3, 0]  # pixel centres are at 0.5, 1.5, ...
        tensor([2.0000, 4.5000, 7.0000])
    """
    rows = geometry.rows(size)
    _check_rows(rows, size, geometry)
    centres = geometry.thickness / 2 + geometry.spacing * np.arange(rows)
    offsets = (np.arange(samples) - (samples - 1) / 2) * geometry.thickness / samples
    left, weight = _interpolate((centres[:, None] + offsets) / geometry.pixel - 0.5, size)
    number = np.broadcast_to(np.arange(rows)[:, None], left.shape)
    values = np.stack([1 - weight, weight]) / samples
    return _sparse(np.stack([number, number]), np.stack([left, left + 1]), values, (rows, size))


@lru_cache(maxsize=128)
def upscale_matrix(rows: int, size: int, geometry: SliceGeometry) -> Tensor:
    """F_up: sparse (size, K), from K rows to pixels of side r^xy without overlap, by linear interpolation (M2).

    Pixels beyond the first and the last row's centre are extrapolated linearly; `degrade` clips them.

    Raises:
        InputError: fewer than two rows.
    """
    _check_rows(rows, size, geometry)
    centres = (np.arange(size) + 0.5) * geometry.pixel
    left, weight = _interpolate((centres - geometry.thickness / 2) / geometry.spacing, rows)
    number = np.arange(size)
    values = np.stack([1 - weight, weight])
    return _sparse(np.stack([number, number]), np.stack([left, left + 1]), values, (size, rows))


@lru_cache(maxsize=128)
def convolution_matrix(size: int, width: int, stride: int) -> Tensor:
    """What SMORE simulates thick slices with: a box of `width` pixels every `stride` pixels, sparse (K, size) (M9).

    Raises:
        InputError: the box or the stride is not positive, or fewer than two rows fit.
    """
    if width < 1 or stride < 1 or size < width + stride:
        raise InputError(f"a box of {width} pixels with stride {stride} doesn't fit twice into {size} pixels")
    rows = (size - width) // stride + 1
    number = np.repeat(np.arange(rows)[:, None], width, axis=1)
    columns = stride * number + np.arange(width)
    return _sparse(number, columns, np.full(columns.shape, 1 / width), (rows, size))


@lru_cache(maxsize=128)
def degradation_matrix(size: int, geometry: SliceGeometry, samples: int = 9, smore_stride: int = 0) -> Tensor:
    """F_up F_down: sparse (size, size), of an axial image to its virtual through-plane counterpart (M1, M2).

    Args:
        size: pixels along the axis.
        geometry: of the through-plane images to be imitated.
        samples: points per row's thickness.
        smore_stride: with a stride, SMORE's convolution takes the place of F_down, its width being the thickness
            rounded to whole pixels.

    Example:
        >>> ramp = torch.arange(20.0)[:, None]
        >>> torch.allclose(degradation_matrix(20, SliceGeometry(1.0, 4.2, 1.3)) @ ramp, ramp, atol=1e-4)
        True
    """
    if smore_stride:
        width = max(1, round(geometry.thickness / geometry.pixel))
        down = convolution_matrix(size, width, smore_stride)
        pixel = geometry.pixel
        geometry = SliceGeometry(pixel, width * pixel, (width - smore_stride) * pixel)
    else:
        down = downscale_matrix(size, geometry, samples)
    up = upscale_matrix(down.shape[0], size, geometry)
    return torch.sparse.mm(up, down.to_dense()).to_sparse()  # torch multiplies two sparse ones only with a warning


@lru_cache(maxsize=128)
def box_matrix(size: int, geometry: SliceGeometry) -> Tensor:
    """Exact means over rows of thickness r^z of an image that is constant within its pixels: sparse (K, size).

    This is how thick slices, and 1 mm references, are made from thin ones for evaluation. It is not the method's own
    F_down, so that the method isn't tested on data of its own making.

    Raises:
        InputError: not one row fits.
    """
    rows = geometry.rows(size)
    if rows < 1:
        raise InputError(f"{size} pixels of {geometry.pixel:g} mm hold no slice of {geometry.thickness:g} mm")
    lower = geometry.spacing * np.arange(rows) / geometry.pixel
    width = geometry.thickness / geometry.pixel
    first = np.floor(lower + EDGE).astype(np.int64)
    columns = first[:, None] + np.arange(math.ceil(width) + 1)
    share = np.minimum(columns + 1, lower[:, None] + width) - np.maximum(columns, lower[:, None])
    keep = (share > EDGE) & (columns < size)
    number = np.broadcast_to(np.arange(rows)[:, None], columns.shape)
    values = share / np.where(keep, share, 0).sum(1, keepdims=True)
    return _sparse(number[keep], columns[keep], values[keep], (rows, size))


def multiply_along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Sparse `matrix` (K, N) along one axis of length N of `x`, which becomes K.

    Example:
        >>> multiply_along(convolution_matrix(8, 2, 2), torch.ones(3, 8, 5), 1).shape
        torch.Size([3, 4, 5])
    """
    moved = x.movedim(axis, 0)
    product = torch.sparse.mm(matrix.to(x.device), moved.reshape(moved.shape[0], -1))
    return product.reshape(matrix.shape[0], *moved.shape[1:]).movedim(0, axis)


def degrade(image: Tensor, geometry: SliceGeometry, axis: int, samples: int = 9, smore_stride: int = 0) -> Tensor:
    """F_up(F_down(image)) along `axis` of an image (H, W): -2 is F^ver, -1 is F^hor (M1-M3). Clipped to its range.

    Example:
        >>> image = torch.rand(40, 30)
        >>> degrade(image, SliceGeometry(1.0, 5.0, 2.5), axis=-2).shape
        torch.Size([40, 30])
    """
    matrix = degradation_matrix(image.shape[axis], geometry, samples, smore_stride)
    return multiply_along(matrix, image, axis).clamp_(image.min(), image.max())


def upscale(volume: Tensor, geometry: SliceGeometry, axis: int = -1) -> Tensor:
    """F_up of a whole volume: slices along `axis` become pixels of side r^xy, over the slices' full extent (M7).

    Returns:
        The volume with `geometry.pixels(slices)` pixels along `axis`, the first of which begins where the first
        slice begins, r^z / 2 before its centre. Clipped to the volume's range.
    """
    slices = volume.shape[axis]
    matrix = upscale_matrix(slices, geometry.pixels(slices), geometry)
    return multiply_along(matrix, volume, axis).clamp_(volume.min(), volume.max())
