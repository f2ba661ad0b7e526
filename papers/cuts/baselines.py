"""The baselines of table 1 that need no pretrained network, and k-means on raw pixels as a control.

Each function takes an image (C, H, W) in [-1, 1] and gives a label map (H, W) int32; M11 comes after, for all
alike. `DFC` and the U-Net are trained by `train.py`.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn


def to_picture(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W) or (H, W, 3) in [0, 1], as scikit-image has it."""
    picture = (image.transpose(1, 2, 0).astype(np.float64) + 1) / 2
    return picture[..., 0] if picture.shape[2] == 1 else picture


def to_grey(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> luminance (H, W) in [0, 1]."""
    from skimage.color import rgb2gray

    picture = to_picture(image)
    return picture if picture.ndim == 2 else rgb2gray(picture)


def random_labels(image: np.ndarray, seed: int) -> np.ndarray:
    """Every pixel 0 or 1 by the toss of a coin."""
    return np.random.default_rng(seed).integers(0, 2, image.shape[1:], dtype=np.int32)


def otsu_watershed(image: np.ndarray, sure: float = 0.5) -> np.ndarray:
    """Otsu's threshold, cores by distance to the background, watershed between them [5, 6].

    Args:
        sure: pixels deeper than this share of the greatest depth are the core of an object.
    """
    from scipy import ndimage
    from skimage.filters import sobel, threshold_otsu
    from skimage.segmentation import watershed

    grey = to_grey(image)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, np.int32)
    bright = ndimage.binary_opening(grey > threshold_otsu(grey), iterations=2)
    depth = ndimage.distance_transform_edt(bright)
    cores = ndimage.label(depth > sure * depth.max())[0]
    background = ~ndimage.binary_dilation(bright, iterations=3)
    markers = np.where(background, 1, np.where(cores > 0, cores + 1, 0))
    if not markers.any():
        return bright.astype(np.int32)
    return watershed(sobel(grey), markers).astype(np.int32)


def felzenszwalb_labels(image: np.ndarray, scale: float = 1500) -> np.ndarray:
    """Felzenszwalb's graph-based segmentation [7]; the released code has a scale of 1500."""
    from skimage.segmentation import felzenszwalb

    picture = to_picture(image)
    return felzenszwalb(picture, scale=scale, channel_axis=None if picture.ndim == 2 else -1).astype(np.int32)


def slic_labels(image: np.ndarray, segments: int = 10) -> np.ndarray:
    """SLIC superpixels [17]."""
    from skimage.segmentation import slic

    picture = to_picture(image)
    return slic(picture, n_segments=segments, channel_axis=None if picture.ndim == 2 else -1).astype(np.int32)


def raw_kmeans(image: np.ndarray, clusters: int = 10, seed: int = 0) -> np.ndarray:
    """k-means on grey values or colours: what the embedding has to be better than."""
    from papers.cuts.spectral import kmeans

    return kmeans(image.reshape(len(image), -1).T, clusters, seed).reshape(image.shape[1:])


class DFC(nn.Module):
    """Differentiable feature clustering (Kim et al. 2020) [42], small: two [3x3, ReLU, BatchNorm], 1x1, BatchNorm.

    Example:
        >>> DFC(channels=3, clusters=10)(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 10, 16, 16])
    """

    def __init__(self, channels: int = 1, clusters: int = 10):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (channels, clusters):
            layers += [nn.Conv2d(before, clusters, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
            layers += [nn.BatchNorm2d(clusters)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(clusters, clusters, 1), nn.BatchNorm2d(clusters))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> responses (B, clusters, H, W); the largest one is the label."""
        return self.layers(image)


def dfc_loss(response: Tensor, continuity: float = 1.0) -> Tensor:
    """Feature similarity (cross-entropy with the network's own labels) plus spatial continuity (L1)."""
    response = response.float()
    similarity = F.cross_entropy(response, response.argmax(1))
    vertical, horizontal = response.diff(dim=2).abs().mean(), response.diff(dim=3).abs().mean()
    return similarity + continuity * (vertical + horizontal)


def unet(channels: int = 1, width: int = 32) -> nn.Module:
    """Supervised reference [18]: MONAI's basic U-Net with batch norm, five resolutions, one logit per pixel.

    Example:
        >>> unet(channels=3, width=4)(torch.rand(2, 3, 32, 40)).shape
        torch.Size([2, 1, 32, 40])
    """
    from monai.networks.nets import BasicUNet

    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    return BasicUNet(2, channels, 1, features, norm="batch")


def unet_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the batch."""
    logits = logits.float()
    probability = logits.sigmoid()
    overlap = 2 * (probability * mask).sum() / (probability.sum() + mask.sum()).clamp_min(1e-6)
    return F.binary_cross_entropy_with_logits(logits, mask) + 1 - overlap
