"""P from another method: a network trained on the Mumford-Shah functional (Kim & Ye, IEEE TIP 2020, the paper's [26]).

The U-Net divides the brain into soft segments u_k that are as constant in intensity and as short in boundary as
possible; no label and no mixture is involved. The segment that is taken for the lesion is chosen by the rule of the
Gaussian mixture (`proposal.lesion_component`).
"""

import numpy as np
import torch
from torch import Tensor

from papers.cgc.data import Case
from papers.cgc.proposal import ProposalRule, clean_up, features_of, lesion_component


def mumford_shah_loss(segments: Tensor, image: Tensor, brain: Tensor, length: float) -> Tensor:
    """Piecewise-constant Mumford-Shah functional of soft segments, per voxel of the brain.

    Σ_k ∫ u_k |I - c_k|² + λ Σ_k ∫ |∇u_k|, with c_k = ∫ u_k I / ∫ u_k over all regions of the batch together, so that
    a segment means the same tissue in all of them.

    Args:
        segments: u, (B, K, D, H, W), sums to 1 over K.
        image: I, (B, C, D, H, W).
        brain: (B, D, H, W), 1 inside.
        length: λ, in units of squared intensity times voxels.
    """
    segments, image = segments.float(), image.float()
    inside = segments * brain[:, None]
    mass = inside.sum((0, 2, 3, 4))  # (K,)
    means = torch.einsum("bkdhw,bcdhw->kc", inside, image) / mass.clamp(min=1e-6)[:, None]
    squared = (image[:, None] - means[None, :, :, None, None, None]).square().sum(2)  # (B, K, D, H, W)
    fit = (inside * squared).sum()
    return (fit + length * total_variation(inside)) / brain.sum().clamp(min=1)


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
