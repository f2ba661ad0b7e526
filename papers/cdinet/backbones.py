"""The networks of one domain, (B, C, D, H, W) -> (B, 1, D, H, W): Proj-Net and Img-Net (M3, M4), and the baselines'."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import InputError

BACKBONES = ("unet", "serdunet", "attention")


class Conv3d(nn.Conv3d):
    """A conv 3³ with padding 1, as nn.Conv3d and with its parameters, but faster for one case on a CPU.

    For a single small case PyTorch 2.15 leaves oneDNN for its slowest kernel (`_ConvBackend.Slow3d`). Cut
    into two halves that overlap by a halo of one slice, the case is a batch of two, and oneDNN takes it: three to
    four times as fast at 24×24×12 voxels, as fast below six slices.

    Example:
        >>> Conv3d(2, 4)(torch.rand(1, 2, 16, 8, 8)).shape
        torch.Size([1, 4, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, slices = x.shape[0], x.shape[2]
        if x.is_cuda or batch != 1 or slices < 6:
            return super().forward(x)
        half = (slices + 1) // 2
        padded = F.pad(x[0], (0, 0, 0, 0, 1, 1))
        halves = torch.stack([padded[:, : half + 2], padded[:, slices - half :]])  # (2, C, half + 2, H, W)
        first, second = F.conv3d(halves, self.weight, self.bias, padding=(0, 1, 1))
        return torch.cat([first, second[:, 2 * half - slices :]], dim=1)[None]


def _conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [Conv3d(in_channels, out_channels, bias=False), nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)]


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(*_conv_norm_relu(in_channels, out_channels), *_conv_norm_relu(out_channels, out_channels))


def _check_pooling(x: Tensor, depth: int) -> None:
    factor = 2 ** (depth - 1)
    if any(size % factor for size in x.shape[2:]):
        raise InputError(
            f"A network of depth {depth} needs sizes divisible by {factor}, got {tuple(x.shape[2:])}; "
            "choose a smaller depth."
        )


class UNet3d(nn.Module):
    """3D U-Net: at each of `depth` levels two conv 3³, and width, 2 width, 4 width, … channels.

    Args:
        in_channels: channels of the input; the output has one.
        width: channels of the first level.
        depth: resolution levels, so depth - 1 poolings by 2.

    Raises:
        InputError: (forward) a size isn't divisible by 2^(depth-1).

    Example:
        >>> UNet3d(2, width=4, depth=2)(torch.rand(1, 2, 8, 8, 4)).shape
        torch.Size([1, 1, 8, 8, 4])
    """

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4):
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_double_conv(i, o) for i, o in zip(inputs, widths))
        self.pool = nn.MaxPool3d(2)
        pairs = list(zip(widths[1:], widths))[::-1]  # (coarse, fine), the coarsest first
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2) for coarse, fine in pairs)
        self.fuse = nn.ModuleList(_double_conv(2 * fine, fine) for _, fine in pairs)
        self.out = nn.Conv3d(width, 1, kernel_size=1)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) -> (B, 1, D, H, W)."""
        _check_pooling(x, self.depth)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, fuse in zip(self.up, self.fuse):
            x = fuse(torch.cat([skips.pop(), up(x)], dim=1))
        return self.out(x)


class AttentionUNet3d(nn.Module):
    """MONAI's Attention U-Net (Oktay et al., 2018), for the baseline Separate-AttnUNet.

    Args and errors: as `UNet3d`; depth at least 2.

    Example:
        >>> AttentionUNet3d(2, width=4, depth=2)(torch.rand(1, 2, 8, 8, 4)).shape
        torch.Size([1, 1, 8, 8, 4])
    """

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4):
        super().__init__()
        from monai.networks.nets import AttentionUnet  # takes seconds to import, and few runs need it

        channels = [width * 2**level for level in range(depth)]
        self.network = AttentionUnet(3, in_channels, 1, channels, strides=[2] * (depth - 1))
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) -> (B, 1, D, H, W)."""
        _check_pooling(x, self.depth)
        return self.network(x)


class SqueezeExcitation(nn.Module):
    """Concurrent spatial and channel squeeze-and-excitation; the two recalibrated tensors are added.

    Args:
        channels: of the input and the output.
        reduction: of the hidden layer of the channel branch.

    Example:
        >>> SqueezeExcitation(8)(torch.rand(1, 8, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4, 4])
    """

    def __init__(self, channels: int, reduction: int = 2):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)
        self.spatial = nn.Conv3d(channels, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        channel = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3, 4))))))  # (B, C)
        return x * channel[:, :, None, None, None] + x * torch.sigmoid(self.spatial(x))


class ResidualDenseBlock(nn.Module):
    """`layers` × (conv 3³ → batch norm → ReLU), each fed with all before it, then conv 1³, plus the input.

    Example:
        >>> ResidualDenseBlock(8)(torch.rand(1, 8, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4, 4])
    """

    def __init__(self, channels: int, layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(channels * (1 + layer), channels)) for layer in range(layers)
        )
        self.fuse = nn.Conv3d(channels * (1 + layers), channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for layer in self.layers:
            features = torch.cat([features, layer(features)], dim=1)
        return x + self.fuse(features)


class SERDUNet(nn.Module):
    """The network of the released code: residual dense blocks with squeeze-and-excitation in a U shape.

    `width` channels, which is also the growth rate, at every level. At width 32, depth 3 (Proj-Net) it has
    3.07 to 3.08 M parameters, at depth 4 (Img-Net) 4.32 M.

    Args and errors: as `UNet3d`.

    Example:
        >>> SERDUNet(2, width=4, depth=2)(torch.rand(1, 2, 8, 8, 4)).shape
        torch.Size([1, 1, 8, 8, 4])
    """

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4):
        super().__init__()

        def stage() -> nn.Sequential:
            return nn.Sequential(ResidualDenseBlock(width), SqueezeExcitation(width))

        self.head = Conv3d(in_channels, width)
        self.down = nn.ModuleList(stage() for _ in range(depth))
        self.pool = nn.AvgPool3d(2)
        self.up = nn.ModuleList(nn.ConvTranspose3d(width, width, kernel_size=2, stride=2) for _ in range(depth - 1))
        self.fuse = nn.ModuleList(Conv3d(2 * width, width) for _ in range(depth - 1))
        self.after_fuse = nn.ModuleList(stage() for _ in range(depth - 1))
        self.out = nn.Conv3d(width, 1, kernel_size=1)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) -> (B, 1, D, H, W)."""
        _check_pooling(x, self.depth)
        x = self.head(x)
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, fuse, stage in zip(self.up, self.fuse, self.after_fuse):
            x = stage(fuse(torch.cat([skips.pop(), up(x)], dim=1)))
        return self.out(x)


def build_backbone(name: str, in_channels: int, width: int, depth: int) -> nn.Module:
    """One of BACKBONES with one output channel: "unet" (the text), "serdunet" (released code), "attention".

    Raises:
        InputError: an unknown name, or a width or depth that is too small.
    """
    if name not in BACKBONES:
        raise InputError(f"Unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}.")
    least = 2 if name == "attention" else 1
    if width < 2 or depth < least:
        raise InputError(f"A {name} needs width >= 2 and depth >= {least}, got width {width} and depth {depth}.")
    return {"unet": UNet3d, "serdunet": SERDUNet, "attention": AttentionUNet3d}[name](in_channels, width, depth)


def init_gaussian(layer: nn.Module, std: float = 0.02) -> None:
    """The released code's initial weights of one layer, N(0, std) for convolutions and linear maps.

    Biases and batch norm keep PyTorch's: the released function touches neither.
    """
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, std)
