"""What the networks are compared with beside other attentions: a U-Net, and a table of where and how bright organs are.

Both have the interface of `WaveFormer`: `forward(image, look)` gives logits; neither has stages for `look`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """MONAI's BasicUNet: five levels, instance norm, transposed convolutions.

    Args:
        classes: K.
        width: channels at full resolution; 2, 4 and 8 times as many further down, twice at the first halving.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        from monai.networks.nets import BasicUNet

        features = (width, width, 2 * width, 4 * width, 8 * width, width)
        self.network = BasicUNet(2, 3, classes, features)

    def forward(self, image: Tensor, look=None) -> Tensor:
        """(B, 3, H, W) -> logits (B, K, H, W)."""
        return self.network(image)


class PositionAndBrightness(nn.Module):
    """The class that is most probable by a pixel's place and by its grey value, each for itself (naive Bayes).

    What a segmentation has to beat: it knows where organs lie as a rule and how bright they are, and no shape.

    Args:
        classes: K.
        side: S of the images.
        bins: of the grey values -1 to 1.
    """

    def __init__(self, classes: int, side: int, bins: int = 32):
        super().__init__()
        self.register_buffer("log_place", torch.zeros(classes, side, side))
        self.register_buffer("log_brightness", torch.zeros(classes, bins))

    def bin_of(self, image: Tensor) -> Tensor:
        """(..., 3, H, W) in -1..1 -> (..., H, W), the number of the bin of the mean over the channels."""
        bins = self.log_brightness.shape[1]
        return ((image.mean(dim=-3) + 1) * bins / 2).long().clamp(0, bins - 1)

    def fit(self, samples: Iterable[dict[str, Tensor]]) -> None:
        """Count over {"image": (3, S, S), "label": (S, S)}; places are blurred over 5 x 5 pixels."""
        classes, bins = self.log_brightness.shape
        place, brightness = torch.zeros_like(self.log_place), torch.zeros(classes * bins)
        for sample in samples:
            label = sample["label"]
            place += F.one_hot(label, classes).permute(2, 0, 1)
            both = label * bins + self.bin_of(sample["image"])
            brightness += torch.bincount(both.flatten(), minlength=classes * bins)
        place = F.avg_pool2d(place, 5, stride=1, padding=2, count_include_pad=False) + 1e-3
        brightness = brightness.view(classes, bins) + 1
        self.log_place.copy_((place / place.sum(0)).log())
        self.log_brightness.copy_((brightness / brightness.sum(1, keepdim=True)).log())

    def forward(self, image: Tensor, look=None) -> Tensor:
        """(B, 3, S, S) -> log probabilities but for a constant, (B, K, S, S)."""
        return self.log_place + self.log_brightness[:, self.bin_of(image)].transpose(0, 1)
