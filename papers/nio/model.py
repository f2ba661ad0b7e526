"""The registration network whose weights NIO adapts: a conditional Laplacian pyramid, and its loss.

                 ┌ level 1 (1/4 size) ┐      ┌ level 2 (1/2 size) ┐      ┌ level 3 (full size) ┐
    M, F ──────► │ conv, 5 blocks     │ u ─► │ M warped by u, F, u│ u ─► │ the same            │ ──► u
                 └────────────────────┘ ─e─► └────────────────────┘ ─e─► └─────────────────────┘

Images are (B, 1, X, Y, Z) in [0, 1]. A displacement field u is (B, 3, X, Y, Z): channel a is the displacement along
spatial axis a in *unit* coordinates, in which the volume reaches from the centre of its first voxel, -1, to that of
its last one, 1. What is at x in the fixed image is at x + u(x) in the moving one. A unit field may be resized without
being rescaled. `unit_to_voxel` turns it into voxels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nio.convolutions import Conv3d, UpConv3d

LEVELS = 3  # L, section 2.2


# ------------------------------------------------------------------------------------- the network (M1–M3)


class ConditionalInstanceNorm(nn.Module):
    """Instance norm, then (1 + γ) x + β with γ, β from a latent code (Mok & Chung, MICCAI 2021; here M2).

    Example:
        >>> ConditionalInstanceNorm(4, 8)(torch.rand(2, 4, 3, 3, 3), torch.rand(2, 8)).shape
        torch.Size([2, 4, 3, 3, 3])
    """

    def __init__(self, channels: int, latent: int = 64):
        super().__init__()
        self.style = nn.Linear(latent, 2 * channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.style.bias)  # the gain is about 1 at first (cLapIRN)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        gamma, beta = self.style(code)[:, :, None, None, None].chunk(2, dim=1)
        return (1 + gamma) * F.instance_norm(x) + beta


class ConditionalBlock(nn.Module):
    """Pre-activation residual block, conditioned on the weight λ of the regularisation.

    Args:
        channels: of input and output.
        latent: size of the code that the block makes of λ with four linear layers.

    Example:
        >>> ConditionalBlock(4)(torch.rand(1, 4, 4, 4, 4), torch.tensor([[0.4]])).shape
        torch.Size([1, 4, 4, 4, 4])
    """

    def __init__(self, channels: int, latent: int = 64):
        super().__init__()
        sizes = [1, latent, latent, latent, latent]
        self.mapping = nn.Sequential(
            *(layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2)))
        )
        self.norm1, self.norm2 = ConditionalInstanceNorm(channels, latent), ConditionalInstanceNorm(channels, latent)
        self.conv1, self.conv2 = Conv3d(channels, channels), Conv3d(channels, channels)

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        """(B, C, X, Y, Z) and λ (B, 1) -> (B, C, X, Y, Z)."""
        code = self.mapping(lam)
        out = self.conv1(F.leaky_relu(self.norm1(x, code), 0.2))
        return self.conv2(F.leaky_relu(self.norm2(out, code), 0.2)) + x


class Level(nn.Module):
    """One level of the pyramid, with the weights θ_i (M1).

    Args:
        in_channels: 2 (M, F) at the coarsest level, 5 (warped M, F, field so far) at the others.
        features: channels at the level's own size.
        hidden: channels of the blocks, at half the size.
        embedding: channels of what is passed on; the next level adds it to its hidden ones.
        blocks: conditional residual blocks.
        range_flow: largest displacement that a level adds, in unit coordinates.

    Example:
        >>> update, embedding = Level(2, 4, 6, 6, blocks=1)(torch.rand(1, 2, 8, 8, 8), torch.tensor([[0.4]]))
        >>> update.shape, embedding.shape
        (torch.Size([1, 3, 8, 8, 8]), torch.Size([1, 6, 8, 8, 8]))
    """

    def __init__(
        self, in_channels: int, features: int, hidden: int, embedding: int, blocks: int = 5, range_flow: float = 0.4
    ):
        super().__init__()
        self.features = nn.Sequential(
            Conv3d(in_channels, features), nn.LeakyReLU(0.2), Conv3d(features, features)
        )  # fmt: skip
        self.down = Conv3d(features, hidden, stride=2)
        self.blocks = nn.ModuleList(ConditionalBlock(hidden) for _ in range(blocks))
        self.up = UpConv3d(hidden, embedding)
        both = embedding + features
        self.flow = nn.Sequential(
            Conv3d(both, both // 2), nn.LeakyReLU(0.2), Conv3d(both // 2, 3), nn.Softsign()
        )  # fmt: skip
        self.range_flow = range_flow

    def forward(self, x: Tensor, lam: Tensor, coarser: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, in_channels, X, Y, Z), λ (B, 1), embedding (B, hidden, X/2, Y/2, Z/2) of the level before ->
        (B, 3, X, Y, Z) unit displacement to add, (B, embedding, X, Y, Z) for the next level."""
        features = self.features(x)
        hidden = self.down(features)
        if coarser is not None:
            hidden = hidden + coarser
        for block in self.blocks:
            hidden = F.leaky_relu(block(hidden, lam), 0.2)
        embedding = self.up(hidden)
        return self.range_flow * self.flow(torch.cat([embedding, features], dim=1)), embedding


def downsample(image: Tensor) -> Tensor:
    """Half the size, by a 3³ average pool of stride 2 (cLapIRN)."""
    return F.avg_pool3d(image, 3, stride=2, padding=1, count_include_pad=False)


class LapIRN(nn.Module):
    """The Laplacian pyramid network f_θ with θ = {θ_1, θ_2, θ_3} (section 2.2; M1, M3).

    Level i sees the images at 0.5^(3 - i) of their size. Its output is added to the upsampled field of the level
    before: û_i = up(û_{i-1}) + output.

    Args:
        widths: channels at a level's own size, of its blocks at half the size, and of the finest level's embedding.
            With 28, 28, 28 (cLapIRN) the levels have 0.41, 0.81 and 1.22 M parameters, cumulatively. The lite version
            of cLapIRN has 8, 16, 8.
        blocks: residual blocks of each level.
        range_flow: largest displacement that a level adds, in unit coordinates.

    Example:
        >>> fields = LapIRN((4, 4, 4), blocks=1)(torch.rand(1, 1, 16, 16, 24), torch.rand(1, 1, 16, 16, 24))
        >>> [tuple(field.shape[2:]) for field in fields]
        [(4, 4, 6), (8, 8, 12), (16, 16, 24)]
    """

    multiple = 2**LEVELS
    """sizes must be divisible by this: two poolings, and a stride inside the coarsest level"""

    def __init__(self, widths: Sequence[int] = (28, 28, 28), blocks: int = 5, range_flow: float = 0.4):
        super().__init__()
        features, hidden, last = widths
        self.levels = nn.ModuleList(
            Level(2 if number == 1 else 5, features, hidden, last if number == LEVELS else hidden, blocks, range_flow)
            for number in range(1, LEVELS + 1)
        )

    @classmethod
    def from_levels(cls, levels: Sequence[nn.Module]) -> "LapIRN":
        """The network made of given levels, which may be wrapped (for several processes, say)."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.levels = nn.ModuleList(levels)
        return network

    def forward(
        self, moving: Tensor, fixed: Tensor, levels: int = LEVELS, lam: float = 0.4, frozen: int = 0
    ) -> list[Tensor]:
        """Fields of the first levels.

        Args:
            moving, fixed: (B, 1, X, Y, Z) in [0, 1], sizes divisible by 8.
            levels: how many of the levels to run, from the coarsest.
            lam: weight λ of the regularisation that the network is told, in [0, 1].
            frozen: how many of them, from the coarsest, get no gradient.

        Returns:
            a unit field (B, 3, ...) for each level, each at the size of its level.

        Raises:
            ValueError: images of different shapes, or sizes that 8 does not divide.
        """
        if moving.shape != fixed.shape or any(size % self.multiple for size in moving.shape[2:]):
            raise ValueError(
                f"expected two images of one shape with sizes divisible by {self.multiple}, found "
                f"{tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        pyramid = [torch.cat([moving, fixed], dim=1)]
        for _ in range(LEVELS - 1):
            pyramid.insert(0, downsample(pyramid[0]))
        code = moving.new_full((moving.shape[0], 1), lam)
        fields, embedding = [], None
        for number in range(levels):
            images = pyramid[number]
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= frozen):
                if number == 0:
                    field, embedding = self.levels[0](images, code)
                else:
                    before = resize(fields[-1], images.shape[2:])
                    seen = torch.cat([warp(images[:, :1], before), images[:, 1:], before], dim=1)
                    update, embedding = self.levels[number](seen, code, embedding)
                    field = before + update
            fields.append(field)
        return fields


# --------------------------------------------------------------------------------------------------- fields


def resize(field: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear resizing of a unit field or an image to spatial `size`."""
    if tuple(field.shape[2:]) == tuple(size):
        return field
    return F.interpolate(field, size=tuple(size), mode="trilinear", align_corners=False)


def identity(size: Sequence[int], device=None, dtype=None) -> Tensor:
    """Unit coordinates (1, 3, X, Y, Z) of the voxels."""
    axes = [torch.linspace(-1, 1, n, device=device, dtype=dtype) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(image: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of (B, C, X, Y, Z) at unit coordinates (B, 3, ...); outside, the border is repeated."""
    grid = coordinates.flip(1).permute(0, 2, 3, 4, 1)  # grid_sample counts axes from the last
    return F.grid_sample(image, grid.to(image.dtype), mode=mode, padding_mode="border", align_corners=True)


def warp(image: Tensor, field: Tensor, mode: str = "bilinear") -> Tensor:
    """M(Φ) with Φ = id + u: the moving image or (`mode="nearest"`) its labels, seen in the fixed image's space.

    Args:
        image: (B, C, X, Y, Z).
        field: unit field (B, 3, X, Y, Z).
    """
    return sample(image, identity(field.shape[2:], field.device, field.dtype) + field, mode)


def _voxels_per_unit(field: Tensor) -> Tensor:
    return torch.tensor([(n - 1) / 2 for n in field.shape[2:]], device=field.device).view(1, 3, 1, 1, 1)


def unit_to_voxel(field: Tensor) -> Tensor:
    """Unit field -> displacement in voxels."""
    return field * _voxels_per_unit(field)


def voxel_to_unit(field: Tensor) -> Tensor:
    """Displacement in voxels -> unit field."""
    return field / _voxels_per_unit(field)


def spline_smooth(field: Tensor) -> Tensor:
    """The field as a B-spline of its values: two 3³ average pools (section 3, after Siebert et al. 2021; M9)."""
    for _ in range(2):
        field = F.avg_pool3d(field, 3, stride=1, padding=1, count_include_pad=False)
    return field


# -------------------------------------------------------------------------------------------------- loss (M4)


def _window_mean(x: Tensor, window: int) -> Tensor:
    """Mean over a cube, zeros beyond the border: a product with a band matrix along one axis after the other.

    On a CPU, forward and backward take a quarter of the time of `F.avg_pool3d` with kernels along one axis.
    """
    for axis in (2, 3, 4):
        place = torch.arange(x.shape[axis], device=x.device)
        band = ((place[:, None] - place).abs() <= window // 2).to(x.dtype) / window
        x = (x.transpose(axis, -1) @ band).transpose(axis, -1)
    return x


def lncc(fixed: Tensor, warped: Tensor, window: int = 7, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """LNCC of eq. 3: minus the mean squared local correlation over cubes of `window`³ voxels, in [-1, 0].

    Args:
        fixed, warped: (B, 1, X, Y, Z).
        window: odd side of the cube; beyond the border are zeros.
        mask: (B, 1, X, Y, Z) in {0, 1}; average over these voxels only.
        eps: added to the product of the two sums of squared deviations, against division by zero in air.
    """
    products = torch.cat([fixed, warped, fixed * fixed, warped * warped, fixed * warped], dim=1)
    f, w, ff, ww, fw = _window_mean(products, window).split(1, dim=1)
    cross, fixed_variance, warped_variance = fw - f * w, ff - f * f, ww - w * w
    squared = cross * cross / (fixed_variance * warped_variance + eps / window**6)
    if mask is None:
        return -squared.mean()
    return -((squared * mask).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4)).clamp_min(1)).mean()


def diffusion(field: Tensor, voxel_units: bool = False) -> Tensor:
    """‖∇u‖ of eq. 3: mean squared forward difference, averaged over the three axes.

    Args:
        field: unit field (B, 3, X, Y, Z).
        voxel_units: differences in voxels. cLapIRN multiplies unit fields by (size - 1), which is twice that.
    """
    steps = unit_to_voxel(field) * (1 if voxel_units else 2)
    return sum(torch.diff(steps, dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def registration_loss(
    moving: Tensor,
    fixed: Tensor,
    field: Tensor,
    lam: float = 0.4,
    window: int = 7,
    mask: Tensor | None = None,
    voxel_units: bool = False,
) -> Tensor:
    """L_i of eq. 3: (1 - λ) LNCC(F, M(Φ̂_i)) + λ ‖∇û_i‖, the field first upsampled to the size of the images.

    Args:
        moving, fixed: (B, 1, X, Y, Z) at full size, whatever the level.
        field: unit field (B, 3, ...) of any level.
        lam: λ in [0, 1].
        window, mask: see `lncc`.
        voxel_units: see `diffusion`.
    """
    field = resize(field, fixed.shape[2:])
    similarity = lncc(fixed, warp(moving, field), window, mask)
    return (1 - lam) * similarity + lam * diffusion(field, voxel_units)
