"""Coronal and sagittal images of a volume, where they are compared with the truth, and how (section 3)."""

import math

from torch import Tensor

from papers.sr4zct.data import ThinVolume, body_box
from papers.sr4zct.scaling import SliceGeometry, upscale
from shared.metrics import psnr
from shared.similarity import ssim

Box = tuple[slice, slice, slice]


def through_plane(volume: Tensor, view: str) -> Tensor:
    """Coronal (Y, Z, X) or sagittal (X, Z, Y) images of a volume (X, Y, Z)."""
    return volume.permute((1, 2, 0) if view == "cor" else (0, 2, 1))


def central_area(reference: Tensor, geometry: SliceGeometry, rows: int) -> Box:
    """Where the metrics are computed: the body's box in x and y; in z without ⌈r^z / r^xy⌉ rows at either end."""
    border = math.ceil(geometry.thickness / geometry.pixel)
    return (*body_box(reference), slice(border, rows - border))


def compared_volumes(volume: ThinVolume, geometry: SliceGeometry) -> tuple[Tensor, Tensor, Box]:
    """Interpolated thick slices of a volume and its reference, (X, Y, Z) each, and the central area."""
    blurred, reference = upscale(volume.acquire(geometry), geometry), volume.reference()
    height = min(blurred.shape[2], reference.shape[2])
    blurred, reference = blurred[..., :height], reference[..., :height]
    return blurred, reference, central_area(reference, geometry, height)


def positions_of(box: Box, view: str, step: int) -> list[int]:
    """Which coronal or sagittal images are evaluated: every `step`-th of the central area."""
    across = box[1] if view == "cor" else box[0]
    return list(range(across.start + step // 2, across.stop, step))


def measure(images: Tensor, truth: Tensor, data_range: float) -> list[dict[str, float]]:
    """PSNR in dB and SSIM of each image, (N, H, W) in HU."""
    images, truth = images.cpu(), truth.cpu()
    values = zip(
        psnr(images, truth, data_range=data_range).tolist(), ssim(images, truth, data_range=data_range).tolist()
    )
    return [{"psnr": decibels, "ssim": similarity} for decibels, similarity in values]
