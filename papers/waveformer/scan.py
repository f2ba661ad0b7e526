"""A user's CT as the network sees it, and results back on the scan's own grid."""

from pathlib import Path

import numpy as np
import torch

from papers.waveformer.data import WINDOW, read_volume, resize, to_input
from shared import nifti, resample
from shared.errors import InputError
from shared.finite import finite


def from_ras(volume: np.ndarray, back: bool = False) -> np.ndarray:
    """(R, A, S) voxels to the published (slice, x to the left, y to the back), or back."""
    if back:
        return np.ascontiguousarray(np.moveaxis(volume, 0, 2)[::-1, ::-1])
    return np.ascontiguousarray(np.moveaxis(volume[::-1, ::-1], 2, 0))


def read_scan(path: Path, spacing_mm: tuple[float, float, float]) -> tuple[nifti.Image, np.ndarray]:
    """A scan, and its slices (D, H, W) in 0..1.

    Args:
        path: .nii or .nii.gz in HU, or a test volume .npy.h5 of the data set.
        spacing_mm: (z, x, y), for volumes that don't say it.

    Raises:
        InputError: broken, or no CT.
    """
    if path.name.endswith(".h5"):
        case = read_volume(path)
        depth, height, width = case.spacing or spacing_mm
        affine = np.diag([-height, -width, depth, 1.0])
        return nifti.make_image(np.moveaxis(case.images, 0, 2), affine, path), case.images
    scan = nifti.load(path, ndim=3, dtype=np.float32)
    if scan.data.min() >= WINDOW[1] or scan.data.max() <= WINDOW[0] or scan.data.std() == 0:
        raise InputError(f"{path}: no voxel lies within {WINDOW[0]:g} to {WINDOW[1]:g}; expected a CT in HU")
    images = from_ras(resample.to_ras(scan).data)
    return scan, (np.clip(images, *WINDOW) - np.float32(WINDOW[0])) / np.float32(WINDOW[1] - WINDOW[0])


def boundary_map(model, config, images: np.ndarray, device, name: str) -> np.ndarray:
    """Mean over the channels of B_att in the encoder's first block, float32 (D, H, W) in 0..1."""
    found = []
    with torch.no_grad():
        for image in images:
            tokens, height, width = model.encoder.embeddings[0](to_input(image, config.image_size)[None].to(device))
            block = model.encoder.blocks[0][0]
            attention = block.attention.boundary_attention(block.attention_norm(tokens), height, width)
            attention = finite(attention[0].mean(dim=0).float().cpu().numpy(), f"{name}: the boundary attention")
            found.append(resize(attention, image.shape[:2], 1))
    return np.stack(found).astype(np.float32)


def save_on_scan(path: Path, found: np.ndarray, scan: nifti.Image) -> None:
    """Write (D, H, W) of a scan's slices with its grid, orientation and affine."""
    on_grid = nifti.make_image(from_ras(found, back=True), resample.to_ras(scan).affine, path)
    nifti.save(path, resample.restore_orientation(on_grid, scan).data, like=scan, dtype=found.dtype)
