"""The two convolutions of the base network, as fast for a single small case on a CPU as they can be."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """A conv 3³ with padding 1 and without bias, as nn.Conv3d, but several times as fast for one case on a CPU.

    Test-time optimisation works on one pair at a time. For a single small case PyTorch 2.15 leaves oneDNN for its
    slowest kernel (`_ConvBackend.Slow3d`). Cut into two halves that overlap by a halo, the case is a batch of two,
    and oneDNN takes it.

    Example:
        >>> Conv3d(2, 4, stride=2)(torch.rand(1, 2, 16, 8, 8)).shape
        torch.Size([1, 4, 8, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[0] != 1 or x.shape[2] < 8:
            return super().forward(x)
        stride = self.stride[0]
        outputs = (x.shape[2] - 1) // stride + 1
        half = (outputs + 1) // 2
        length, start = (half - 1) * stride + 3, (outputs - half) * stride
        padded = F.pad(x[0], (0, 0, 0, 0, 1, 1))
        halves = torch.stack([padded[:, :length], padded[:, start : start + length]])
        first, second = F.conv3d(halves, self.weight, None, self.stride, (0, 1, 1))
        return torch.cat([first, second[:, 2 * half - outputs :]], dim=1)[None]


class UpConv3d(nn.ConvTranspose3d):
    """A transposed conv 2³ of stride 2 without bias, written as the matrix product that it is.

    Example:
        >>> UpConv3d(4, 2)(torch.rand(1, 4, 2, 3, 4)).shape
        torch.Size([1, 2, 4, 6, 8])
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        batch, channels, *size = x.shape
        product = self.weight.reshape(channels, -1).t() @ x.reshape(batch, channels, -1)  # (B, C·8, X·Y·Z)
        product = product.reshape(batch, self.out_channels, 2, 2, 2, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return product.reshape(batch, self.out_channels, *(2 * n for n in size))
