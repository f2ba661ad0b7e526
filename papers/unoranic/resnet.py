"""The supervised baseline: ResNet-18 for small images, as in the MedMNIST v2 benchmark."""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 without the initial pooling: (B, C, H, W) in [0, 1] -> logits (B, classes).

    Args:
        channels: 1 or 3.
        classes: number of logits.
        width: channels of the first of four stages (MedMNIST: 64).
    """

    def __init__(self, channels: int, classes: int, width: int = 64):
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inside = width
        for stage in range(4):
            for block in range(2):
                outside = width * 2**stage
                layers.append(BasicBlock(inside, outside, 2 if stage and not block else 1))
                inside = outside
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(2 * images - 1).mean((2, 3)))


class Classifiers(nn.Module):
    """Two ResNets, trained apart as in table 3 and table 4: one for the disease, one for "corrupted or not"."""

    def __init__(self, channels: int, classes: int, width: int = 64):
        super().__init__()
        self.disease = ResNet18(channels, classes, width)
        self.corruption = ResNet18(channels, 2, width)

    def forward(self, images: Tensor, possibly_corrupted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the disease of `images` and of the corruption of `possibly_corrupted`."""
        return self.disease(images), self.corruption(possibly_corrupted)
