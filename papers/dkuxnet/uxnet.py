"""3D UX-Net: the large-kernel depthwise encoder, the skip encoders and the pixel decoder ("Methods", figures 1-3).

The poster says "four 3D UX-Net blocks and four downsampling blocks"; widths, norms and kernel sizes are those of
the released code, which are the ones of 3D UX-Net (Lee et al., ICLR 2023).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3d_in_slices(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """`F.conv3d` with padding k // 2 as a 2-D convolution whose channels are the slices of the third axis.

    The sum over the third axis becomes a product with a banded matrix. For short axes and few channels, or one filter
    per channel, that is several times as fast on a CPU, where PyTorch 2.15 has no fast kernels for them.

    Args:
        x: (B, C, W, H, D).
        weight: (O, C / groups, k, k, k), k odd.
        bias: (O,) or None.
        groups: of channels.

    Example:
        >>> x, weight = torch.rand(2, 4, 6, 6, 5), torch.rand(8, 2, 3, 3, 3)
        >>> torch.allclose(conv3d_in_slices(x, weight, None, 2), F.conv3d(x, weight, padding=1, groups=2), atol=1e-4)
        True
    """
    batch, _, width, height, depth = x.shape
    out_channels, reach = len(weight), weight.shape[-1] // 2
    beyond = max(depth - 1 - reach, 0)
    taps = F.pad(weight, (beyond, beyond))  # (O, C / groups, k, k, taps), zeros beyond the kernel
    slices = torch.arange(depth, device=x.device)
    banded = taps[..., slices - slices[:, None] + reach + beyond]  # (O, C / groups, k, k, slice out, slice in)
    matrix = banded.permute(0, 4, 1, 5, 2, 3).flatten(2, 3).flatten(0, 1)
    bias = None if bias is None else bias.repeat_interleave(depth)
    as_channels = x.permute(0, 1, 4, 2, 3).reshape(batch, -1, width, height)
    y = F.conv2d(as_channels, matrix, bias, padding=reach, groups=groups)
    return y.view(batch, out_channels, depth, width, height).permute(0, 1, 3, 4, 2).contiguous()


class DepthwiseConv3d(nn.Conv3d):
    """One k x k x k filter per channel, as nn.Conv3d and with its parameters, see `conv3d_in_slices`.

    Args:
        channels: C.
        kernel: k, odd.
        bias: add one number per channel.

    Example:
        >>> DepthwiseConv3d(4, 7)(torch.rand(2, 4, 6, 6, 4)).shape
        torch.Size([2, 4, 6, 6, 4])
    """

    def __init__(self, channels: int, kernel: int, bias: bool = True):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[-1] > 32:
            return super().forward(x)
        return conv3d_in_slices(x, self.weight, self.bias, self.groups)


class Conv3x3x3(nn.Conv3d):
    """3 x 3 x 3 convolution without bias, as nn.Conv3d and with its parameters; narrow ones see `conv3d_in_slices`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[-1] > 32 or min(self.in_channels, self.out_channels) >= 8:
            return super().forward(x)
        return conv3d_in_slices(x, self.weight, None, 1)


class PointwiseConv3d(nn.Conv3d):
    """A 1 x 1 x 1 convolution, as nn.Conv3d and with its parameters, on a CPU as the matrix product that it is."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        y = torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        return y if self.bias is None else y + self.bias.view(-1, 1, 1, 1)


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of each voxel, (B, C, *space) -> the same shape."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1).contiguous()


class UXBlock(nn.Module):
    """Depthwise 7x7x7 convolution, layer norm, *grouped* pointwise expansion to 4C and back, residual (M2).

    Unlike ConvNeXt's, the pointwise convolutions have one group per channel: channels are mixed by the
    downsampling convolutions only.

    Args:
        channels: C.
        layer_scale: initial factor of the residual branch, per channel (released code: 1e-6).

    Example:
        >>> UXBlock(8)(torch.rand(1, 8, 6, 6, 4)).shape
        torch.Size([1, 8, 6, 6, 4])
    """

    def __init__(self, channels: int, layer_scale: float = 1e-6):
        super().__init__()
        self.depthwise = DepthwiseConv3d(channels, 7)
        self.norm = ChannelLayerNorm(channels)
        self.expand = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.contract = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1, 1), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.contract(F.gelu(self.expand(self.norm(self.depthwise(x)))))
        return x + self.gamma * branch


class UXNetEncoder(nn.Module):
    """Stem and stages of 3D UX-Net (M1, M2): features at 1/2, 1/4, 1/8, ... of the resolution.

    Args:
        in_channels: channels of the volume.
        dims: width of each stage (released code: 48, 96, 192, 384).
        depths: blocks of each stage (released code: 2, 2, 2, 2).
        layer_scale: see `UXBlock`.

    Example:
        >>> encoder = UXNetEncoder(1, dims=(4, 8, 16, 32), depths=(1, 1, 1, 1))
        >>> [tuple(o.shape[1:]) for o in encoder(torch.rand(1, 1, 32, 32, 16))]
        [(4, 16, 16, 8), (8, 8, 8, 4), (16, 4, 4, 2), (32, 2, 2, 1)]
    """

    def __init__(
        self,
        in_channels: int = 1,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        layer_scale: float = 1e-6,
    ):
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(in_channels, dims[0], 7, stride=2, padding=3), ChannelLayerNorm(dims[0]))
        downs = [
            nn.Sequential(ChannelLayerNorm(before), nn.Conv3d(before, after, 2, stride=2))
            for before, after in zip(dims, dims[1:])
        ]
        self.downsample = nn.ModuleList([stem, *downs])
        self.stages = nn.ModuleList(
            nn.Sequential(*[UXBlock(width, layer_scale) for _ in range(depth)]) for width, depth in zip(dims, depths)
        )
        self.norms = nn.ModuleList(ChannelLayerNorm(width) for width in dims)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """(B, in_channels, W, H, D) -> [(B, dims[s], W / 2^(s+1), H / 2^(s+1), D / 2^(s+1)) for every stage s]."""
        x, outputs = volume, []
        for downsample, stage, norm in zip(self.downsample, self.stages, self.norms):
            x = stage(downsample(x))
            outputs.append(norm(x))
        return outputs


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm and a shortcut, which is 1x1x1 where the width changes (M3).

    It computes what MONAI's `UnetResBlock` does.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = Conv3x3x3(in_channels, out_channels)
        self.conv2 = Conv3x3x3(out_channels, out_channels)
        self.norm = nn.InstanceNorm3d(out_channels)  # without weights, so one serves all three places
        self.shortcut = PointwiseConv3d(in_channels, out_channels, bias=False) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.norm(self.shortcut(x))
        x = F.leaky_relu(self.norm(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm(self.conv2(x)) + residual, 0.01)


class UpBlock(nn.Module):
    """Transposed 2x2x2 convolution, concatenation with the skip connection, residual block (M4)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False)
        self.block = ResidualBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.up(x), skip], dim=1))


class UXNetBackbone(nn.Module):
    """Encoder (M1, M2), skip encoders e1 to e5 (M3) and pixel decoder d3 to d0 (M4).

    Args:
        in_channels: channels of the volume.
        dims: widths of the four stages (released code: 48, 96, 192, 384).
        hidden: width at the bottom, 1/16 of the resolution (released code: 768).
        depths: blocks of each stage (released code: 2, 2, 2, 2).
        layer_scale: see `UXBlock`.

    Example:
        >>> backbone = UXNetBackbone(1, (4, 8, 16, 32), 64, (1, 1, 1, 1))
        >>> [tuple(d.shape[1:]) for d in backbone(torch.rand(1, 1, 32, 32, 16))]
        [(32, 4, 4, 2), (16, 8, 8, 4), (8, 16, 16, 8), (4, 32, 32, 16)]
    """

    def __init__(
        self,
        in_channels: int = 1,
        dims: Sequence[int] = (48, 96, 192, 384),
        hidden: int = 768,
        depths: Sequence[int] = (2, 2, 2, 2),
        layer_scale: float = 1e-6,
    ):
        super().__init__()
        self.encoder = UXNetEncoder(in_channels, dims, depths, layer_scale)
        # e1 keeps the width of the first stage at full resolution; each further one doubles its input's width
        widths = [dims[0], *dims[1:], hidden]
        self.skips = nn.ModuleList(
            ResidualBlock(before, after) for before, after in zip([in_channels, *dims], widths, strict=True)
        )
        self.decoder = nn.ModuleList(UpBlock(below, above) for below, above in zip(widths[:0:-1], widths[-2::-1]))
        self.out_channels = widths[-2::-1]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """(B, in_channels, W, H, D), sides divisible by 16 -> [d3, d2, d1, d0] at 1/8, 1/4, 1/2, 1/1.

        Raises:
            ValueError: a side that is not divisible by 2 to the number of stages.
        """
        factor = 2 ** len(self.encoder.stages)
        if any(side % factor for side in volume.shape[2:]):
            raise ValueError(f"sides must be divisible by {factor}, found {tuple(volume.shape[2:])}")
        features = [skip(x) for skip, x in zip(self.skips, [volume, *self.encoder(volume)])]
        x, outputs = features[-1], []
        for up, skip in zip(self.decoder, features[-2::-1]):
            x = up(x, skip)
            outputs.append(x)
        return outputs
