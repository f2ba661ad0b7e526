"""P from another method: a network trained on the Mumford-Shah functional (Kim & Ye, IEEE TIP 2020, the paper's [26]).

The U-Net divides the brain into soft segments u_k that are as constant in intensity and as short in boundary as
possible; no label and no mixture is involved. The segment that is taken for the lesion is chosen by the rule of the
Gaussian mixture (`proposal.lesion_component`).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from papers.cgc.data import Case
from papers.cgc.model import UNet3d
from papers.cgc.proposal import ProposalRule, clean_up, features_of, lesion_component


class MumfordShahNet(nn.Module):
    """U-Net whose segments start as the pointwise assignment to the constants c: u = softmax(U-Net(I) - |I - c_k|²).

    The functional is linear in u, so a segment that is nowhere likely gets no gradient, and a U-Net that starts at
    random loses the small ones (the lesion) before it can tell them from the rest. The last layer starts at 0.

    Args:
        channels: of the image.
        piecewise: which of them the functional is about.
        segments, widths, norm: of the U-Net.

    Example:
        >>> net = MumfordShahNet(2, (0,), segments=3, widths=(4, 8))
        >>> net(torch.zeros(1, 2, 4, 4, 4)).shape
        torch.Size([1, 3, 4, 4, 4])
    """

    def __init__(
        self, channels: int, piecewise: tuple[int, ...], segments: int, widths: tuple[int, ...], norm: str = "instance"
    ):
        super().__init__()
        self.unet = UNet3d(channels, segments, widths, norm)
        self.register_buffer("means", torch.zeros(segments, len(piecewise)))
        self.register_buffer("piecewise", torch.tensor(piecewise))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last layer starts at 0."""
        nn.init.zeros_(self.unet.head.weight)
        nn.init.zeros_(self.unet.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> logits of the segments (B, K, D, H, W)."""
        return self.unet(image)[0] - squared_distances(image[:, self.piecewise], self.means)


def squared_distances(image: Tensor, means: Tensor) -> Tensor:
    """|I - c_k|² of image (B, C, D, H, W) and means (K, C): (B, K, D, H, W)."""
    return (image[:, None] - means[None, :, :, None, None, None]).square().sum(2)


def mumford_shah_loss(
    segments: Tensor,
    image: Tensor,
    brain: Tensor,
    length: float,
    means: Tensor | None = None,
) -> Tensor:
    """Piecewise-constant Mumford-Shah functional of soft segments, per voxel of the brain.

    Σ_k ∫ u_k |I - c_k|² + λ Σ_k ∫ |∇u_k|. The constants are given, or c_k = ∫ u_k I / ∫ u_k over all regions of the
    batch together; either way a segment means the same tissue in all of them.

    Args:
        segments: u, (B, K, D, H, W), sums to 1 over K.
        image: I, (B, C, D, H, W).
        brain: (B, D, H, W), 1 inside.
        length: λ, in units of squared intensity times voxels.
        means: c, (K, C), or None.
    """
    segments, image = segments.float(), image.float()
    inside = segments * brain[:, None]
    if means is None:
        mass = inside.sum((0, 2, 3, 4))  # (K,)
        means = torch.einsum("bkdhw,bcdhw->kc", inside, image) / mass.clamp(min=1e-6)[:, None]
    fit = (inside * squared_distances(image, means)).sum()
    return (fit + length * total_variation(inside)) / brain.sum().clamp(min=1)


def intensity_means(cases: Iterable[Case], segments: int, voxels: int, seed: int) -> Tensor:
    """The constants c, (K, C): k-means of the intensities inside all training brains together.

    Left free they end in local minima of the functional in which no segment is the lesion, which is a few per cent
    of the brain.

    Args:
        cases: training volumes.
        segments: K.
        voxels: random voxels per volume.
        seed: of the voxels and of k-means.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rng, values = np.random.default_rng(seed), []
    for case in cases:
        inside = features_of(case)[0][:, case.brain.numpy()].T
        values.append(inside[rng.permutation(len(inside))[:voxels]])
    with threadpool_limits(1):  # bit for bit the same on any number of cores
        found = KMeans(segments, n_init=5, random_state=seed).fit(np.concatenate(values).astype(np.float64))
    return torch.from_numpy(found.cluster_centers_).float()


def total_variation(u: Tensor) -> Tensor:
    """Sum of |∇u| by forward differences (anisotropic), u (B, K, D, H, W)."""
    return sum(u.diff(dim=dim).abs().sum() for dim in (2, 3, 4))


def mumford_shah_proposal(segments: Tensor, case: Case, rule: ProposalRule) -> Tensor:
    """P, bool (D, H, W), from the segments (K, D, H, W) of one volume.

    A voxel belongs to its largest segment; threshold and clean-up are those of the mixture otherwise.
    """
    image, _ = features_of(case)
    brain = case.brain.numpy()
    winner = segments.argmax(0).numpy()
    count = segments.shape[0]
    pixels = np.bincount(winner[brain], minlength=count)
    sums = np.bincount(winner[brain], image[0][brain], minlength=count)
    brightness = np.where(pixels > 0, sums / np.maximum(pixels, 1), -np.inf)
    lesion = lesion_component(brightness, pixels / pixels.sum(), rule.volume)
    return torch.from_numpy(clean_up((winner == lesion) & brain, brain, rule))
