"""The geometric system matrix of a pinhole scanner: made from its geometry, read from and written to MATLAB files.

The rows run over (angle, u, v) and the columns over (x, y, z), the last index fastest, so that the rows of one
angle are one block.
"""

import math
import os
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from einops import rearrange
from scipy.special import ndtr

from papers.cdinet.geometry import FWHM_PER_SIGMA, PinholeGeometry
from shared.errors import InputError
from shared.readers import Array, need_file, read_hdf5, reading

FOOTPRINT_CUTOFF = math.exp(-(3.0**2) / 2.0)  # elements below the 3-sigma level of a voxel's peak are dropped


def pinhole_block(geometry: PinholeGeometry, angle: int) -> scipy.sparse.csr_matrix:
    """The rows of one angle, (U*V, X*Y*Z): probability that a photon from a voxel is counted in a pixel.

    A pinhole of diameter d seen from depth h under the angle θ to its axis passes the fraction
    d² cos³θ / (16 h²) of the photons. They spread over the detector as a Gaussian, integrated over each
    pixel, whose variance is that of the aperture seen through the magnification m, (σ (1 + m))², plus that
    of the voxel itself, (m voxel)² / 12. The detector's image is not upside down, as scanners store it:
    u grows to the right and v towards the head when one looks along the pinhole's axis.
    """
    if not 0 <= angle < geometry.pinholes:
        raise ValueError(f"angle {angle} has no pinhole")
    axis = np.asarray(geometry.pinhole_axes[angle])
    towards_u = np.cross(axis, (0.0, 0.0, 1.0))
    towards_u /= np.linalg.norm(towards_u)
    frame = np.stack([axis, towards_u, np.cross(towards_u, axis)], axis=1).astype(np.float32)
    offset = geometry.voxel_centres() - np.asarray(geometry.pinhole_positions[angle], dtype=np.float32)
    depth, along_u, along_v = (offset @ frame).T  # mm, (X*Y*Z,) each

    # Voxels nearer than an aperture's width aren't in front of the pinhole in any useful sense.
    voxel = np.flatnonzero(depth > geometry.aperture_sigma_mm * FWHM_PER_SIGMA)
    depth, along_u, along_v = depth[voxel], along_u[voxel], along_v[voxel]
    cosine = depth / np.sqrt(depth**2 + along_u**2 + along_v**2)
    passed = (geometry.aperture_sigma_mm * FWHM_PER_SIGMA) ** 2 * cosine**3 / (16.0 * depth**2)
    magnification = geometry.focal_length_mm / depth
    sigma = (
        np.hypot(
            geometry.aperture_sigma_mm * (1.0 + magnification),
            geometry.voxel_mm * magnification / math.sqrt(12.0),
        )
        / geometry.pixel_mm
    )
    n_u, n_v = geometry.detector_shape
    centre_u = along_u * magnification / geometry.pixel_mm + (n_u - 1) / 2.0  # in pixels
    centre_v = along_v * magnification / geometry.pixel_mm + (n_v - 1) / 2.0

    reach = np.ceil(3.0 * sigma).astype(np.int32)  # half-width of the footprint, pixels
    hits = (np.abs(centre_u - (n_u - 1) / 2.0) < n_u / 2.0 + reach) & (
        np.abs(centre_v - (n_v - 1) / 2.0) < n_v / 2.0 + reach
    )
    rows, columns, values = [], [], []
    for half in np.unique(reach[hits]):  # voxels with footprints of one size go together
        group = np.flatnonzero(hits & (reach == half))
        window = np.arange(-half, half + 1)
        pixel_u, weight_u = _footprint(centre_u[group], sigma[group], window)  # (voxels, window)
        pixel_v, weight_v = _footprint(centre_v[group], sigma[group], window)
        weight = weight_u[:, :, None] * weight_v[:, None, :]
        peak = weight_u.max(axis=1) * weight_v.max(axis=1)
        keep = weight > FOOTPRINT_CUTOFF * peak[:, None, None]
        keep &= ((pixel_u >= 0) & (pixel_u < n_u))[:, :, None] & ((pixel_v >= 0) & (pixel_v < n_v))[:, None, :]
        row = pixel_u[:, :, None] * n_v + pixel_v[:, None, :]
        member = np.broadcast_to(np.arange(len(group))[:, None, None], keep.shape)[keep]
        rows.append(row[keep])
        columns.append(voxel[group][member].astype(np.int32))
        values.append((weight[keep] * passed[group][member]).astype(np.float32))
    shape = (geometry.pixels, geometry.voxels)
    if not rows:
        return scipy.sparse.csr_matrix(shape, dtype=np.float32)
    coordinates = (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.coo_matrix((np.concatenate(values), coordinates), shape=shape).tocsr()


def _footprint(centre: np.ndarray, sigma: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel indices (N, W) around `centre` and the Gaussian integrated over each of them (N, W)."""
    pixel = np.rint(centre).astype(np.int32)[:, None] + window.astype(np.int32)
    edges = np.concatenate([pixel - 0.5, pixel[:, -1:] + 0.5], axis=1).astype(np.float32)
    return pixel, np.diff(ndtr((edges - centre[:, None]) / sigma[:, None]), axis=1)


def pinhole_matrix(geometry: PinholeGeometry) -> scipy.sparse.csr_matrix:
    """The geometric system matrix A (A*U*V, X*Y*Z), float32, without attenuation. Padding rows are empty.

    `A @ x` are the expected counts when x holds the photons emitted in each voxel.
    """
    padding = scipy.sparse.csr_matrix((geometry.padding_angles * geometry.pixels, geometry.voxels), dtype=np.float32)
    blocks = [pinhole_block(geometry, angle) for angle in range(geometry.pinholes)]
    return scipy.sparse.vstack([*blocks, padding], format="csr")


def _matlab_order(geometry: PinholeGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Our row and column index of each row and column of the scanner's `sm` (first index fastest).

    Its columns run over the image with all three axes reversed: the released code turns every back projection
    by 180° about z and flips z before it meets the attenuation map.
    """
    u, v, a = geometry.projection_shape
    rows = rearrange(np.arange(a * u * v, dtype=np.int32).reshape(a, u, v), "a u v -> (a v u)")
    x, y, z = geometry.image_shape
    voxels = np.arange(x * y * z, dtype=np.int32).reshape(x, y, z)[::-1, ::-1, ::-1]
    return rows, rearrange(voxels, "x y z -> (z y x)")


def load_system_matrix(path: str | os.PathLike, geometry: PinholeGeometry) -> scipy.sparse.csr_matrix:
    """Reads a system matrix and returns it in this module's order.

    Args:
        path: `.mat` with the sparse variable `sm` (v5, or v7.3 which is HDF5), whose rows run over
            (u, v, angle) and columns over (x, y, z), the image's three axes reversed, in MATLAB's order, the
            first index fastest; or `.npz` of `scipy.sparse.save_npz`, already in this module's order.
        geometry: for the shapes.

    Returns:
        (A*U*V, X*Y*Z) CSR, float32.

    Raises:
        InputError: the file is missing or broken, has no sparse `sm`, or another shape.
    """
    path = need_file(path, "a system matrix: .mat with the sparse variable sm, or .npz of scipy.sparse.save_npz")
    if path.suffix not in (".mat", ".npz"):
        raise InputError(f"{path} must end in .mat or .npz to be read as a system matrix.")
    with reading(path, "a sparse system matrix"):
        matrix = scipy.sparse.load_npz(path) if path.suffix == ".npz" else _read_mat(path)
        if matrix.format in ("csc", "csr"):
            matrix.check_format(full_check=True)  # indices that point outside would crash the conversion
    expected = (geometry.angles * geometry.pixels, geometry.voxels)
    if matrix.shape != expected:
        raise InputError(
            f"{path} holds a matrix {matrix.shape}, but projections {geometry.projection_shape} and images "
            f"{geometry.image_shape} need {expected} (detector bins, voxels)."
        )
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise InputError(f"{path} holds negative or non-finite elements, which no system matrix has.")
    if path.suffix == ".mat":
        rows, columns = _matlab_order(geometry)
        matrix = matrix.tocoo()
        matrix = scipy.sparse.coo_matrix((matrix.data, (rows[matrix.row], columns[matrix.col])), shape=expected)
    return scipy.sparse.csr_matrix(matrix, dtype=np.float32)


def _read_mat(path: Path) -> scipy.sparse.spmatrix:
    """The variable `sm` of a MATLAB file, in MATLAB's order."""
    if h5py.is_hdf5(path):  # v7.3: compressed columns as jc, ir, data
        whole = Array(ndim=1, dtype="int64", least=0)
        wanted = {"sm/data": Array(ndim=1), "sm/ir": whole, "sm/jc": whole, "sm@MATLAB_sparse": Array(whole=True)}
        found = read_hdf5(path, wanted)
        rows, pointers = found["sm/ir"], found["sm/jc"]
        shape = (int(found["sm@MATLAB_sparse"].flat[0]), len(pointers) - 1)
        return scipy.sparse.csc_matrix((found["sm/data"], rows, pointers), shape)
    matrix = scipy.io.loadmat(path, variable_names=["sm"]).get("sm")
    if not scipy.sparse.issparse(matrix):
        raise InputError(f"{path} has no sparse variable sm, which must hold the system matrix.")
    return matrix


def save_system_matrix(path: str | os.PathLike, matrix: scipy.sparse.spmatrix, geometry: PinholeGeometry) -> None:
    """Writes the sparse variable `sm` in MATLAB's order, as HDF5 (v7.3), which has no limit on the size."""
    rows, columns = _matlab_order(geometry)
    to_matlab_row, to_matlab_column = np.argsort(rows), np.argsort(columns)
    matrix = scipy.sparse.coo_matrix(matrix)
    coordinates = (to_matlab_row[matrix.row], to_matlab_column[matrix.col])
    compressed = scipy.sparse.coo_matrix((matrix.data, coordinates), shape=matrix.shape).tocsc()
    with h5py.File(path, "w", userblock_size=512) as file:  # MATLAB keeps its header in the user block
        group = file.create_group("sm")
        group.attrs["MATLAB_class"] = np.bytes_("double")
        group.attrs["MATLAB_sparse"] = np.uint64(matrix.shape[0])
        group.create_dataset(
            "data",
            data=compressed.data.astype(np.float64),
            chunks=True,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        group.create_dataset(
            "ir",
            data=compressed.indices.astype(np.uint64),
            chunks=True,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        group.create_dataset("jc", data=compressed.indptr.astype(np.uint64))
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, sparse system matrix sm".ljust(124) + b"\x00\x02IM")
