"""V-Net as the left-atrium protocol uses it: plain convolutions, batch norm, skip connections that add.

It is the network of the released code of UA-MT (Yu et al., MICCAI 2019), 9.44 M parameters at 16 filters, not that
of Milletari et al. 2016; the poster's "V-Net" row comes from that protocol.
"""

import torch
from torch import Tensor, nn


def _stage(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


class VNet(nn.Module):
    """V-Net with five levels.

    Args:
        in_channels: channels of the volume.
        classes: K.
        filters: width of the first level; it doubles at each of the others (protocol: 16).
        dropout: probability at the bottom and before the last layer (UA-MT: 0.5; V-Net alone: 0).

    Example:
        >>> VNet(filters=4)(torch.rand(1, 1, 32, 32, 16)).shape
        torch.Size([1, 2, 32, 32, 16])
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, filters: int = 16, dropout: float = 0.0):
        super().__init__()
        widths = [filters * 2**level for level in range(5)]
        depths = [1, 2, 3, 3, 3]

        def block(depth: int, before: int, after: int) -> nn.Sequential:
            inputs = [before] + [after] * (depth - 1)
            return nn.Sequential(*[_stage(nn.Conv3d(width, after, 3, padding=1), after) for width in inputs])

        starts = [in_channels, *widths[1:]]
        self.encoder = nn.ModuleList(block(*arguments) for arguments in zip(depths, starts, widths))
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(_stage(nn.Conv3d(above, below, 2, stride=2), below) for above, below in pairs)
        self.up = nn.ModuleList(_stage(nn.ConvTranspose3d(below, above, 2, stride=2), above) for above, below in pairs)
        self.decoder = nn.ModuleList(block(depth, width, width) for depth, width in zip(depths[:4], widths))
        self.dropout = nn.Dropout3d(dropout)
        self.out = nn.Conv3d(filters, classes, 1)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, in_channels, W, H, D), sides divisible by 16 -> logits (B, K, W, H, D)."""
        x = self.encoder[0](volume)
        skips = []
        for down, encode in zip(self.down, self.encoder[1:]):
            skips.append(x)
            x = encode(down(x))
        x = self.dropout(x)
        for up, decode, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips)):
            x = decode(up(x) + skip)
        return self.out(self.dropout(x))


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats of the mean of several predictions, (T, B, K, *space) -> (B, *space): UA-MT's uncertainty."""
    mean = probabilities.mean(dim=0)
    return -(mean * torch.log(mean + 1e-6)).sum(dim=1)
