"""Dual-modal deep image prior: networks that are fitted to one pair of low-resolution T1w and T2w images.

Several pairs can be fitted at once, each by networks of its own: all convolutions have as many groups as there are
pairs, and batch norm is by channel anyway, so that nothing passes from one pair to another. Tensors are then
(B, P·C, H, W) with the C channels of a pair side by side. With P = 1 this is the paper's method as it stands. B is the
number of draws of the input's jitter per update, 1 in the paper.

    prior = DualModalDIP(channels=32, width=128, skip=4, common=2, blocks=6)
    pair = prior(torch.rand(1, 32, 192, 192) * 0.1)                   # (1, 1, 2, 192, 192): T1w, T2w
    loss = fidelity(pair, low, factor=2)                               # low (1, 1, 2, 96, 96)
    better = replace_centre(pair, low)                                 # from kspace.py, after each iteration
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.dmdip.kspace import downsample


def conv(inputs: int, outputs: int, kernel: int, pairs: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with `pairs` groups; borders are reflected, as in the released DIP."""
    padding = "reflect" if kernel > 1 else "zeros"
    return nn.Conv2d(
        inputs * pairs, outputs * pairs, kernel, stride, kernel // 2, groups=pairs, padding_mode=padding
    )  # fmt: skip


def norm(channels: int, pairs: int) -> nn.BatchNorm2d:
    """Batch norm that has no running statistics: what is trained on one image is also used with that image's own."""
    return nn.BatchNorm2d(channels * pairs, track_running_stats=False)


def conv_norm(inputs: int, outputs: int, kernel: int, pairs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, LeakyReLU(0.2)."""
    return nn.Sequential(conv(inputs, outputs, kernel, pairs, stride), norm(outputs, pairs), nn.LeakyReLU(0.2))


def side_by_side(a: Tensor, b: Tensor, pairs: int) -> Tensor:
    """(B, P·C, H, W) and (B, P·D, H, W) -> (B, P·(C + D), H, W): the channels of each pair stay together."""
    return torch.cat([x.unflatten(1, (pairs, -1)) for x in (a, b)], dim=2).flatten(1, 2)


class Block(nn.Module):
    """One skip-connected downsampling-upsampling block of figure 1b; the next, deeper one acts between its halves.

    Skip branch: 1 x 1 convolution to few channels. Downsampling: 3 x 3 with stride 2, 3 x 3. Upsampling: bilinear,
    beside the skip branch, batch norm, 3 x 3, 1 x 1. Each convolution is followed by batch norm and LeakyReLU.
    """

    def __init__(self, inputs: int, width: int, skip: int, pairs: int):
        super().__init__()
        self.pairs = pairs
        self.skip = conv_norm(inputs, skip, 1, pairs)
        self.down = nn.Sequential(conv_norm(inputs, width, 3, pairs, stride=2), conv_norm(width, width, 3, pairs))
        self.norm = norm(skip + width, pairs)
        self.up = nn.Sequential(conv_norm(skip + width, width, 3, pairs), conv_norm(width, width, 1, pairs))

    def join(self, beside: Tensor, deep: Tensor) -> Tensor:
        """Skip branch (B, P·skip, H, W) and what comes from below (B, P·width, ⌈H/2⌉, ⌈W/2⌉) -> (B, P·width, H, W)."""
        height, width = beside.shape[-2:]
        deep = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
        return self.up(self.norm(side_by_side(beside, deep, self.pairs)))


class SkipNet(nn.Module):
    """The hourglass of the deep image prior with N blocks (M2, figure 1b).

    The paper's reference for the name is another network, with dynamic routing; what is meant is the one "used in the
    vanilla DIP".

    Args:
        inputs: channels per pair.
        outputs: channels per pair, through a 1 x 1 convolution and a sigmoid; 0: the last feature maps as they are,
            `width` channels (M3, the common trunk).
        width: channels at all scales (released DIP: 128).
        skip: channels of the skip branches (released DIP: 4).
        blocks: N.
        pairs: P, of images that are fitted at once.

    Example:
        >>> SkipNet(3, 1, width=8, skip=4, blocks=2)(torch.rand(1, 3, 20, 17)).shape
        torch.Size([1, 1, 20, 17])
    """

    def __init__(self, inputs: int, outputs: int, width: int, skip: int, blocks: int, pairs: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(inputs if number == 0 else width, width, skip, pairs) for number in range(blocks)
        )
        self.head = nn.Sequential(conv(width, outputs, 1, pairs), nn.Sigmoid()) if outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, P·inputs, H, W) -> (B, P·outputs, H, W); H and W at least 2^N + 1, or the mirrored borders don't fit."""
        beside = []
        for block in self.blocks:
            beside.append(block.skip(x))
            x = block.down(x)
        for block, skipped in zip(reversed(self.blocks), reversed(beside)):
            x = block.join(skipped, x)
        return self.head(x)


def as_pairs(images: list[Tensor]) -> Tensor:
    """Images of each contrast, (B, P, H, W), together: (B, P, contrasts, H, W)."""
    return torch.stack(images, dim=2)


class DIP(nn.Module):
    """The vanilla deep image prior (equation 1, M7): a network of its own for each contrast, x = f(z).

    Args:
        channels: of the noise z, per pair.
        width, skip, blocks, pairs: of `SkipNet`.
        contrasts: 2, T1w and T2w; 1 where there is no second image.
    """

    def __init__(self, channels: int, width: int, skip: int, blocks: int, pairs: int = 1, contrasts: int = 2):
        super().__init__()
        self.f = nn.ModuleList(SkipNet(channels, 1, width, skip, blocks, pairs) for _ in range(contrasts))

    def forward(self, z: Tensor) -> Tensor:
        """(B, P·channels, H, W) -> (B, P, contrasts, H, W) in [0, 1]."""
        return as_pairs([f(z) for f in self.f])


class DualModalDIP(nn.Module):
    """dmDIP (equation 2, figure 1a): maps f1(z) that both contrasts share (M3), and an arm for each (M4).

    T1w = f2(f1(z)), T2w = f3(f1(z)).

    Args:
        channels: of the noise z, per pair.
        width, skip, pairs: of all three `SkipNet`s.
        common: blocks of f1 (paper: 2).
        blocks: of f2 and f3 (paper: 6).
    """

    def __init__(self, channels: int, width: int, skip: int, common: int, blocks: int, pairs: int = 1):
        super().__init__()
        self.f1 = SkipNet(channels, 0, width, skip, common, pairs)
        self.f2 = SkipNet(width, 1, width, skip, blocks, pairs)
        self.f3 = SkipNet(width, 1, width, skip, blocks, pairs)

    def forward(self, z: Tensor) -> Tensor:
        """(B, P·channels, H, W) -> (B, P, 2, H, W) in [0, 1]."""
        shared = self.f1(z)
        return as_pairs([self.f2(shared), self.f3(shared)])


class Cascade(nn.Module):
    """dmDIP without sharing (a control that the paper lacks): each contrast has a trunk and an arm of its own.

    The networks of each contrast are as deep and wide as in `DualModalDIP`; only the trunk isn't shared.
    Arguments are those of `DualModalDIP`.
    """

    def __init__(self, channels: int, width: int, skip: int, common: int, blocks: int, pairs: int = 1):
        super().__init__()
        self.f = nn.ModuleList(
            nn.Sequential(
                SkipNet(channels, 0, width, skip, common, pairs), SkipNet(width, 1, width, skip, blocks, pairs)
            )
            for _ in range(2)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, P·channels, H, W) -> (B, P, 2, H, W) in [0, 1]."""
        return as_pairs([f(z) for f in self.f])


def fidelity(images: Tensor, low: Tensor, factor: int) -> Tensor:
    """‖x0 - d(f(z))‖ of all contrasts with equal weights (equations 1 and 2, M5), as mean squared errors.

    Args:
        images: (B, P, contrasts, r h, r w), what the networks give.
        low: (B, P, contrasts, h, w), x0.
        factor: r.

    Returns:
        the sum over pairs and contrasts: a pair's gradient doesn't depend on how many are fitted beside it.
    """
    return (downsample(images, factor) - low).square().mean(dim=(0, 3, 4)).sum()


def fixed_noise(channels: int, size: tuple[int, int], seed: int) -> Tensor:
    """z: (channels, H, W), uniform in [0, 0.1), the same for the same seed (released DIP)."""
    return 0.1 * torch.rand(channels, *size, generator=torch.Generator().manual_seed(seed))
