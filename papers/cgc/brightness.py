"""The simplest control: lesion is what is bright on FLAIR or CT; and the threshold that needs no label."""

import numpy as np
import torch
from torch import nn

from papers.cgc.data import Case


class BrightnessThreshold(nn.Module):
    """Nothing but a threshold on the normalised intensity of FLAIR or CT."""

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))


def bright_channel(modalities: tuple[str, ...]) -> int:
    """Number of the channel that lesions are bright in: FLAIR, or CT."""
    return modalities.index("flair" if "flair" in modalities else "ct")


def brightness(case: Case) -> np.ndarray:
    """Normalised intensity on FLAIR or CT, float32 (D, H, W), 0 outside the brain."""
    return case.image[bright_channel(case.modalities)].numpy()


def threshold_without_labels(values: list[np.ndarray], brains: list[np.ndarray], fraction: float) -> float:
    """The threshold at which `values` of the training volumes mark `fraction` of their brains.

    The paper does not say how thresholds are set; the fraction that P has is what can be known without labels.
    """
    inside = np.concatenate([v[b] for v, b in zip(values, brains)])
    return float(np.quantile(inside, 1 - fraction))
