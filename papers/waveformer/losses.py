"""The training loss (M10; section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.distributed import gather


def dice_loss(logits: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - Dice of the softmax, mean over all classes with the background; sums over the batch, squared denominators.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W), 0 to K - 1.
        smooth: added to numerator and denominator.

    Example:
        >>> label = torch.randint(0, 3, (2, 8, 8))
        >>> bool(dice_loss(50 * F.one_hot(label, 3).permute(0, 3, 1, 2).float(), label) < 1e-4)
        True
    """
    classes = logits.shape[1]
    probability = logits.float().softmax(dim=1).flatten(2)
    truth = F.one_hot(label, classes).flatten(1, 2).transpose(1, 2).to(probability.dtype)
    sums = torch.stack(
        [(probability * truth).sum(2), probability.square().sum(2), truth.sum(2)], dim=1
    )  # (B, 3, K); a batch that several processes share is summed over all of them
    both, predicted, true = gather(sums).sum(0)
    return (1 - (2 * both + smooth) / (predicted + true + smooth)).mean()


def segmentation_loss(logits: Tensor, label: Tensor, dice_weight: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """0.6 Dice + 0.4 cross-entropy, and both parts."""
    dice = dice_loss(logits, label)
    cross_entropy = F.cross_entropy(logits.float(), label)
    return dice_weight * dice + (1 - dice_weight) * cross_entropy, dice, cross_entropy
