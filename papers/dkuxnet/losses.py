"""The losses: segmentation (labelled voxels) and the two contrastive consistencies between views of a crop.

L = L_seg + w(t) (L_qdc + L_segc). L_qdc compares query responses, L_segc segmentation outputs, by one formula
(section "Methods", Loss):

    - 1/HWD sum_i log [ exp(sim(x_i, x_j) / tau) / sum_{k != i} exp(sim(x_i, x_k) / tau) ]

The poster does not say what i, j and k are. Here j is the same voxel in the other view of the crop, and k runs over
j and over voxels of *another* class in the other view. Labels are -1 where a crop is not labelled.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_dice_loss(logits: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - soft Dice of every foreground class, with squared terms in the denominator, mean over classes and crops.

    Args:
        logits: (B, K, *space).
        label: (B, *space), 0 to K - 1.
        smooth: added to numerator and denominator.
    """
    probabilities = logits.float().softmax(dim=1)[:, 1:].flatten(2)
    target = F.one_hot(label, logits.shape[1]).movedim(-1, 1)[:, 1:].flatten(2).to(probabilities.dtype)
    overlap = (probabilities * target).sum(-1)
    sizes = probabilities.square().sum(-1) + target.sum(-1)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean()


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_seg: half the sum of cross-entropy and soft Dice over the labelled crops (M11).

    Args:
        logits: (B, K, *space).
        label: (B, *space); a crop that is not labelled holds -1 everywhere and is left out.

    Example:
        >>> label = torch.zeros(1, 2, 2, 2, dtype=torch.long); label[..., 0] = 1
        >>> logits = 50.0 * torch.stack([1 - label, label], dim=1)
        >>> round(segmentation_loss(logits, label).item(), 4)
        0.0
    """
    labelled = label.flatten(1).amin(dim=1) >= 0
    logits, label = logits[labelled], label[labelled]
    return 0.5 * (F.cross_entropy(logits.float(), label) + soft_dice_loss(logits, label))


def distribution_loss(distribution: Tensor, label: Tensor) -> Tensor:
    """- log Q of the labelled class, mean over the labelled voxels: this gives the query groups their meaning (M10).

    Args:
        distribution: Q, (B, G, w, h, d), possibly coarser than the labels, which are then subsampled.
        label: (B, W, H, D), -1 where not labelled.
    """
    label = F.interpolate(label[:, None].float(), distribution.shape[2:], mode="nearest-exact")[:, 0].long()
    return F.nll_loss(distribution.clamp(min=1e-6).log(), label, ignore_index=-1)


@torch.no_grad()
def pseudo_classes(probabilities: tuple[Tensor, Tensor], label: Tensor, confidence: float) -> Tensor:
    """Class of every voxel: its label, or the argmax of the mean of both views where that is confident, or -1.

    Args:
        probabilities: two of (B, K, *space).
        label: (B, *space), -1 where not labelled.
        confidence: smallest mean probability of a pseudo-class, in [0, 1].

    Returns:
        (B, V), int64, for the V voxels.
    """
    mean = 0.5 * (probabilities[0] + probabilities[1])
    best, pseudo = mean.flatten(2).max(dim=1)
    label = label.flatten(1)
    return torch.where(label >= 0, label, torch.where(best >= confidence, pseudo, -1))


@torch.no_grad()
def sample_voxels(classes: Tensor, key: Tensor, count: int, number_of_classes: int) -> tuple[Tensor, Tensor]:
    """Per crop `count` random voxels without repetition, the same number of every class.

    Args:
        classes: (B, V), -1 for voxels that must not be drawn.
        key: (B, V), uniform in [0, 1): of a class those with the largest keys are drawn.
        count: M.
        number_of_classes: K.

    Returns:
        index (B, M') and whether it holds (B, M'), M' = K floor(M / K); false where a class has too few voxels.
    """
    each = min(count // number_of_classes, classes.shape[1])
    picks = [torch.where(classes == k, key, -1.0).topk(each, dim=1) for k in range(number_of_classes)]
    return torch.cat([pick.indices for pick in picks], 1), torch.cat([pick.values >= 0 for pick in picks], 1)


def gather_voxels(maps: Tensor, index: Tensor) -> Tensor:
    """Vectors of the indexed voxels: (B, C, *space), (B, M) -> (B, M, C)."""
    maps = maps.flatten(2)
    return maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def info_nce(first: Tensor, second: Tensor, classes: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """The contrastive loss between two views of P voxels, symmetrised (L_qdc and L_segc).

    For the anchor i of one view, the positive is i in the other view, and the negatives are the voxels of the
    other view with another class. Cosine similarities. The memory is P x P, whatever the size of the volumes.

    Args:
        first, second: vectors (P, C) of the same voxels in the two views.
        classes: (P,).
        valid: (P,) bool; the others are neither anchors nor negatives.
        temperature: tau.

    Returns:
        mean over the valid anchors; zero, with a gradient of zero, if there is none.

    Example:
        >>> x = torch.eye(2)
        >>> info_nce(x, x, torch.tensor([0, 1]), torch.tensor([True, True]), 1.0)  # log(1 + exp(-1))
        tensor(0.3133)
    """
    first, second = (F.normalize(x.float(), dim=1) for x in (first, second))
    similarity = first @ second.T / temperature
    candidate = (classes[:, None] != classes[None, :]) & valid[None, :]
    candidate |= torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    total = 0.0
    for scores in (similarity, similarity.T):
        each = torch.logsumexp(scores.masked_fill(~candidate, -torch.inf), dim=1) - scores.diagonal()
        total = total + torch.where(valid, each, 0.0).sum()
    return total / (2 * valid.sum().clamp(min=1))


def rampup(step: int, ramp_steps: float) -> float:
    """exp(-5 (1 - t/T)^2) up to T = `ramp_steps`, then 1: the weight's factor w(t) in the UA-MT protocol.

    Example:
        >>> round(rampup(0, 10), 4), rampup(10, 10), rampup(99, 10)
        (0.0067, 1.0, 1.0)
    """
    if ramp_steps <= 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(step / ramp_steps, 1.0)) ** 2)


def uncertainty_masked_mse(student: Tensor, teacher: Tensor, entropy: Tensor, threshold: float) -> Tensor:
    """UA-MT's consistency: squared difference of probabilities where the teacher's entropy is below a threshold.

    Args:
        student, teacher: logits (B, K, *space).
        entropy: (B, *space), nats.
        threshold: nats.
    """
    difference = (student.float().softmax(1) - teacher.float().softmax(1)).square()
    mask = (entropy < threshold).float()[:, None]
    return (mask * difference).sum() / (student.shape[1] * mask.sum() + 1e-16)
