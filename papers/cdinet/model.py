"""CDI-Net: projection- and image-domain networks that exchange predictions over several iterations.

    P_L ─► Proj-Net_1 ─► P̂¹ ──────────► Proj-Net_2 ─► P̂² ─► ...      ──► CI-DC: all earlier outputs
                          │ T_b      ▲ T_f    │ T_b                  │▲  CD-RC: outputs of the other domain
    I_L ─► ·············► Img-Net_1 ─► mû¹ ─► Img-Net_2 ─► mû² ─► ...

Projections are (B, 1, U, V, A) in counts, images (B, 1, X, Y, Z), attenuation maps in cm^-1. All models map
(P_L, I_L) to a list of predictions (P̂, mû), the last of which is the result, so that one training loop and
one evaluation serve them all.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.cdinet.projector import Projector
from shared.errors import InputError

WATER_MU = 0.15  # cm^-1 at 140 keV: the networks see attenuation in units of water
BACKBONES = ("unet", "serdunet", "attention")
NORMS = ("batch", "instance")

Prediction = tuple[Tensor, Tensor | None]  # P̂ (B, 1, U, V, A) in counts, mû (B, 1, X, Y, Z) in cm^-1


# ----------------------------------------------------------------------------------- backbones (M3, M4)


class Conv3d(nn.Conv3d):
    """A conv 3³ with padding 1, as nn.Conv3d and with its parameters, but five times as fast for one case on a CPU.

    For a single small case PyTorch 2.15 leaves oneDNN for its slowest kernel (`_ConvBackend.Slow3d`). Cut
    into two halves that overlap by a halo of one slice, the case is a batch of two, and oneDNN takes it.

    Example:
        >>> Conv3d(2, 4)(torch.rand(1, 2, 16, 8, 8)).shape
        torch.Size([1, 4, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, slices = x.shape[0], x.shape[2]
        if x.is_cuda or batch != 1 or slices < 8:
            return super().forward(x)
        half = (slices + 1) // 2
        padded = F.pad(x[0], (0, 0, 0, 0, 1, 1))
        halves = torch.stack([padded[:, : half + 2], padded[:, slices - half :]])  # (2, C, half + 2, H, W)
        first, second = F.conv3d(halves, self.weight, self.bias, padding=(0, 1, 1))
        return torch.cat([first, second[:, 2 * half - slices :]], dim=1)[None]


def _norm(name: str, channels: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if name == "batch" else nn.InstanceNorm3d(channels, affine=True)


def _conv_norm_relu(in_channels: int, out_channels: int, norm: str) -> list[nn.Module]:
    conv = Conv3d(in_channels, out_channels, bias=False)
    return [conv, _norm(norm, out_channels), nn.ReLU(inplace=True)]


def _double_conv(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    first, second = (
        _conv_norm_relu(in_channels, out_channels, norm),
        _conv_norm_relu(out_channels, out_channels, norm),
    )
    return nn.Sequential(*first, *second)


def _check_pooling(x: Tensor, depth: int) -> None:
    factor = 2 ** (depth - 1)
    if any(size % factor for size in x.shape[2:]):
        raise InputError(
            f"A network of depth {depth} needs sizes divisible by {factor}, got {tuple(x.shape[2:])}; "
            "choose a smaller depth."
        )


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay et al., Attention U-Net, 2018): skip · σ(ψ(ReLU(W_x skip + W_g gate))).

    Args:
        channels: of the skip connection and of the gating signal, both at the skip's resolution.

    Example:
        >>> gate = AttentionGate(8)
        >>> gate(torch.rand(1, 8, 4, 4, 4), torch.rand(1, 8, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4, 4])
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 2, 1)
        self.from_skip = nn.Conv3d(channels, hidden, kernel_size=1)
        self.from_gate = nn.Conv3d(channels, hidden, kernel_size=1, bias=False)
        self.attention = nn.Conv3d(hidden, 1, kernel_size=1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        return skip * torch.sigmoid(self.attention(F.relu(self.from_skip(skip) + self.from_gate(gate))))


class UNet3d(nn.Module):
    """3D U-Net: at each of `depth` levels two conv 3³, and width, 2 width, 4 width, … channels.

    Args:
        in_channels: channels of the input; the output has one.
        width: channels of the first level.
        depth: resolution levels, so depth - 1 poolings by 2.
        norm: "batch" or "instance".
        attention: gate every skip connection, which makes it the Attention U-Net.

    Raises:
        InputError: (forward) a size isn't divisible by 2^(depth-1).

    Example:
        >>> UNet3d(2, width=4, depth=2)(torch.rand(1, 2, 8, 8, 4)).shape
        torch.Size([1, 1, 8, 8, 4])
    """

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4, norm: str = "batch", attention: bool = False):
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_double_conv(i, o, norm) for i, o in zip(inputs, widths))
        self.pool = nn.MaxPool3d(2)
        pairs = list(zip(widths[1:], widths))[::-1]  # (coarse, fine), the coarsest first
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2) for coarse, fine in pairs)
        self.gates = nn.ModuleList(AttentionGate(fine) if attention else nn.Identity() for _, fine in pairs)
        self.fuse = nn.ModuleList(_double_conv(2 * fine, fine, norm) for _, fine in pairs)
        self.out = nn.Conv3d(width, 1, kernel_size=1)
        self.depth, self.attention = depth, attention

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) -> (B, 1, D, H, W)."""
        _check_pooling(x, self.depth)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, gate, fuse in zip(self.up, self.gates, self.fuse):
            x, skip = up(x), skips.pop()
            skip = gate(skip, x) if self.attention else skip
            x = fuse(torch.cat([skip, x], dim=1))
        return self.out(x)


class AttentionUNet3d(UNet3d):
    """The baseline Separate-AttnUNet: `UNet3d` with an attention gate on every skip connection.

    Example:
        >>> AttentionUNet3d(2, width=4, depth=2)(torch.rand(1, 2, 8, 8, 4)).shape
        torch.Size([1, 1, 8, 8, 4])
    """

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4, norm: str = "batch"):
        super().__init__(in_channels, width, depth, norm, attention=True)


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
    """`layers` × (conv 3³ → norm → ReLU), each fed with all before it, then conv 1³, plus the input.

    Example:
        >>> ResidualDenseBlock(8)(torch.rand(1, 8, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4, 4])
    """

    def __init__(self, channels: int, layers: int = 6, norm: str = "batch"):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(channels * (1 + layer), channels, norm)) for layer in range(layers)
        )
        self.fuse = nn.Conv3d(channels * (1 + layers), channels, kernel_size=1)

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

    def __init__(self, in_channels: int, width: int = 32, depth: int = 4, norm: str = "batch"):
        super().__init__()

        def stage() -> nn.Sequential:
            return nn.Sequential(ResidualDenseBlock(width, norm=norm), SqueezeExcitation(width))

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


def build_backbone(name: str, in_channels: int, width: int, depth: int, norm: str = "batch") -> nn.Module:
    """One of BACKBONES with one output channel: "unet" (the text), "serdunet" (released code), "attention".

    Raises:
        InputError: an unknown name or norm, or a width or depth below 1.
    """
    if name not in BACKBONES:
        raise InputError(f"Unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}.")
    if norm not in NORMS:
        raise InputError(f"Unknown norm {norm!r}; choose one of {', '.join(NORMS)}.")
    if width < 2 or depth < 1:
        raise InputError(f"A network needs width >= 2 and depth >= 1, got width {width} and depth {depth}.")
    network = {"unet": UNet3d, "serdunet": SERDUNet, "attention": AttentionUNet3d}[name]
    return network(in_channels, width, depth, norm)


def init_gaussian(module: nn.Module, std: float = 0.02) -> None:
    """The released code's initialisation: weights N(0, std), norm weights N(1, std), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
        elif isinstance(layer, nn.BatchNorm3d | nn.InstanceNorm3d):
            nn.init.normal_(layer.weight, 1.0, std)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


# ------------------------------------------------------------------------------------ recalibration (M7)


class AdaptiveWeightRecalibrator(nn.Module):
    """AWR, section 2.4: one weight per input channel, from the channels' means (eqs. 9 and 10).

    α̂ = σ(FC(ReLU(FC(global average pool)))), output F·α̂ + F.

    Args:
        channels: C, the number of stacked emission and anatomical features.
        residual: add the input, as the text says; the released code doesn't.

    Example:
        >>> features = torch.rand(2, 3, 8, 8, 4)
        >>> recalibrated, weights = AdaptiveWeightRecalibrator(3)(features)
        >>> recalibrated.shape, weights.shape
        (torch.Size([2, 3, 8, 8, 4]), torch.Size([2, 3]))
    """

    def __init__(self, channels: int, residual: bool = True):
        super().__init__()
        self.hidden = nn.Linear(channels, 2 * channels)
        self.weight = nn.Linear(2 * channels, channels)
        self.residual = residual

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, D, H, W) -> the recalibrated features, and their weights α̂ (B, C) in 0..1."""
        embedding = features.mean(dim=(2, 3, 4))  # α_0
        weights = torch.sigmoid(self.weight(F.relu(self.hidden(embedding))))
        recalibrated = features * weights[:, :, None, None, None]
        return recalibrated + features if self.residual else recalibrated, weights


class RecalibratedNetwork(nn.Module):
    """A backbone behind an AWR; a single input channel has nothing to be weighed against and gets none.

    Example:
        >>> network = RecalibratedNetwork(UNet3d(2, width=4, depth=2), 2)
        >>> output, weights = network([torch.rand(1, 1, 8, 8, 4), torch.rand(1, 1, 8, 8, 4)])
        >>> output.shape, weights.shape
        (torch.Size([1, 1, 8, 8, 4]), torch.Size([1, 2]))
    """

    def __init__(self, backbone: nn.Module, in_channels: int, use_awr: bool = True, residual: bool = True):
        super().__init__()
        self.backbone = backbone
        self.awr = AdaptiveWeightRecalibrator(in_channels, residual) if use_awr and in_channels > 1 else None

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        stacked, weights = torch.cat(list(features), dim=1), None
        if self.awr is not None:
            stacked, weights = self.awr(stacked)
        return self.backbone(stacked), weights


# ------------------------------------------------------------------------------------- units of features


def case_mean(tensor: Tensor) -> Tensor:
    """(B, C, ...) -> (B, 1, 1, 1, 1): the mean of each case, at least a tiny positive number."""
    return tensor.float().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-12)


def normalise_mean(feature: Tensor) -> Tensor:
    """Rescales each case of an exchanged feature to mean 1, the divisor detached (M8).

    The networks work on P_L / mean(P_L), so that "to the mean of P_L" and "to mean 1" are the same.
    The divisor is the mean of |feature|: the same for projections and attenuation maps, which aren't
    negative, and safe for the first steps of training, whose outputs have a mean of about 0.
    """
    divisor = feature.detach().float().abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return feature / divisor.clamp_min(1e-12)


# ---------------------------------------------------------------------------------------------- CDI-Net


class CDINet(nn.Module):
    """The cross-domain iterative network (section 2.3), each iteration with weights of its own.

    The input channels of iteration m, by ablation:

    =============  ============================================  ============================================
    variant        Proj-Net_m (eq. 4)                            Img-Net_m (eq. 6)
    =============  ============================================  ============================================
    proposed       P_L, P̂^(j<m), T_f(mû^(j<m))        [2m-1]   I_L, mû^(j<m), T_b(P̂^(j≤m))            [2m]
    w/o CI-DC      P_L, T_f(mû^(j<m))                     [m]   I_L, T_b(P̂^(j≤m))                      [m+1]
    w/o CD-RC      P_L, P̂^(j<m)                          [m]   I_L, mû^(j<m)                           [m]
    w/o AWR        as proposed, without recalibration           as proposed, without recalibration
    =============  ============================================  ============================================

    Without CD-RC the two domains are two separate chains. The text counts the cross-domain features of all
    earlier iterations as CD-RC ("the FP of mû^j (j < m) are also added through CD-RC"), so they stay when
    CI-DC goes.

    Args:
        projector: T_f and T_b.
        iterations: N, 5 in the paper.
        backbone: "serdunet" (released code), "unet" (the text) or "attention".
        width: channels of the networks' first level.
        projection_depth, image_depth: resolution levels of the Proj-Nets and Img-Nets.
        norm: "batch" (released code) or "instance".
        use_cidc, use_cdrc, use_awr: False for the ablations.
        awr_residual: the global residual connection of the AWR, in the text but not in the released code.
        gaussian_std: of `init_gaussian`, 0.02 in the released code; None keeps PyTorch's initialisation.

    Raises:
        InputError: settings out of range; (forward) tensors that don't fit the projector.

    Example:
        >>> from papers.cdinet.projector import PinholeGeometry
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> model = CDINet(Projector.from_geometry(geometry), 2, "unet", 4, projection_depth=2, image_depth=2)
        >>> predictions = model(torch.rand(1, 1, 8, 8, 20), torch.rand(1, 1, 12, 12, 8))
        >>> len(predictions), predictions[-1][0].shape, predictions[-1][1].shape
        (2, torch.Size([1, 1, 8, 8, 20]), torch.Size([1, 1, 12, 12, 8]))
    """

    def __init__(
        self,
        projector: Projector,
        iterations: int = 5,
        backbone: str = "serdunet",
        width: int = 32,
        projection_depth: int = 3,
        image_depth: int = 4,
        norm: str = "batch",
        use_cidc: bool = True,
        use_cdrc: bool = True,
        use_awr: bool = True,
        awr_residual: bool = True,
        gaussian_std: float | None = None,
    ):
        super().__init__()
        if iterations < 1:
            raise InputError(f"CDI-Net needs at least one iteration, got {iterations}.")
        self.projector, self.use_cidc, self.use_cdrc = projector, use_cidc, use_cdrc

        def network(in_channels: int, depth: int) -> RecalibratedNetwork:
            return RecalibratedNetwork(
                build_backbone(backbone, in_channels, width, depth, norm), in_channels, use_awr, awr_residual
            )

        earlier = range(iterations)  # m - 1: how many outputs of each domain exist before iteration m
        self.projection_networks = nn.ModuleList(
            network(1 + use_cidc * n + use_cdrc * n, projection_depth) for n in earlier
        )
        self.image_networks = nn.ModuleList(
            network(1 + use_cidc * n + use_cdrc * (n + 1), image_depth) for n in earlier
        )
        if gaussian_std is not None:
            init_gaussian(self, gaussian_std)

    def forward(
        self, projections: Tensor, image: Tensor, return_weights: bool = False
    ) -> list[Prediction] | tuple[list[Prediction], dict[str, list[Tensor | None]]]:
        """Predicts full-dose, full-angle projections and the attenuation map, once per iteration.

        Args:
            projections: P_L (B, 1, U, V, A), low-dose and limited-angle counts, 0 where not measured.
            image: I_L (B, 1, X, Y, Z), their ML-EM image.
            return_weights: also return the recalibration weights α̂, e.g. for a heat-map.

        Returns:
            N pairs (P̂ in counts, mû in cm^-1); with `return_weights` also
            {"projection": N × (B, C) or None, "image": N × (B, C) or None}, None where there is no AWR.
        """
        _check_inputs(self.projector, projections, image)
        count_unit = case_mean(projections)
        low_projections, low_image = projections / count_unit, normalise_mean(image)
        # What has been exchanged so far, at mean 1 (M8).
        projection_outputs, image_outputs, forward_projected, back_projected = [], [], [], []
        predictions = []
        weights = {"projection": [], "image": []}
        for projection_network, image_network in zip(self.projection_networks, self.image_networks):
            features = [low_projections]  # eq. 4
            features += projection_outputs if self.use_cidc else []
            features += forward_projected if self.use_cdrc else []
            full_projections, projection_weights = projection_network(features)  # eqs. 2 and 5
            projection_outputs.append(normalise_mean(full_projections))
            if self.use_cdrc:
                back_projected.append(normalise_mean(self.projector.back_project(full_projections)))

            features = [low_image]  # eq. 6
            features += image_outputs if self.use_cidc else []
            features += back_projected if self.use_cdrc else []
            mu, image_weights = image_network(features)  # eqs. 3 and 7
            image_outputs.append(normalise_mean(mu))
            if self.use_cdrc:
                forward_projected.append(normalise_mean(self.projector.forward_project(mu)))

            predictions.append((full_projections * count_unit, mu * WATER_MU))
            weights["projection"].append(projection_weights)
            weights["image"].append(image_weights)
        return (predictions, weights) if return_weights else predictions


def _check_inputs(projector: Projector, projections: Tensor, image: Tensor) -> None:
    geometry = projector.geometry
    shapes = tuple(projections.shape[1:]), tuple(image.shape[1:])
    expected = (1, *geometry.projection_shape), (1, *geometry.image_shape)
    if shapes != expected or len(projections) != len(image):
        raise InputError(
            f"The model needs projections (B, {str(expected[0])[1:-1]}) and images (B, "
            f"{str(expected[1])[1:-1]}), got {tuple(projections.shape)} and {tuple(image.shape)}."
        )


# -------------------------------------------------------------------------------------------- baselines


class SeparateNets(nn.Module):
    """Separate-UNet and Separate-AttnUNet: P_L → P_F and I_L → mu by two networks that share nothing.

    CDI-Net has N networks per domain. For an equally large baseline, take a U-Net √N times as wide (or a
    `serdunet`, whose parameters also grow with the square of the width).

    Args and errors: as `CDINet`.

    Example:
        >>> from papers.cdinet.projector import PinholeGeometry
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> model = SeparateNets(Projector.from_geometry(geometry), "unet", 4, projection_depth=2, image_depth=2)
        >>> len(model(torch.rand(1, 1, 8, 8, 20), torch.rand(1, 1, 12, 12, 8)))
        1
    """

    def __init__(
        self,
        projector: Projector,
        backbone: str = "unet",
        width: int = 32,
        projection_depth: int = 3,
        image_depth: int = 4,
        norm: str = "batch",
        gaussian_std: float | None = None,
    ):
        super().__init__()
        self.projector = projector
        self.projection_network = build_backbone(backbone, 1, width, projection_depth, norm)
        self.image_network = build_backbone(backbone, 1, width, image_depth, norm)
        if gaussian_std is not None:
            init_gaussian(self, gaussian_std)

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """As `CDINet.forward`, with one pair."""
        _check_inputs(self.projector, projections, image)
        count_unit = case_mean(projections)
        full_projections = self.projection_network(projections / count_unit) * count_unit
        return [(full_projections, self.image_network(normalise_mean(image)) * WATER_MU)]


class DuDoSS(nn.Module):
    """Separate-DuDoSS: an image-domain network first, whose forward projection is a prior for a second one.

    I_L → Î (full-dose, full-angle image, not attenuation-corrected) → T_f(Î), then {P_L, T_f(Î)} → P̂. The
    attenuation map comes from a network of its own on I_L, so that this row, too, has an AC image.

    T_f(Î) is the first of the two returned predictions: eq. 8 then supervises the image-domain network with
    P_F, and no further label is needed.

    Args and errors: as `CDINet`.

    Example:
        >>> from papers.cdinet.projector import PinholeGeometry
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> model = DuDoSS(Projector.from_geometry(geometry), "unet", 4, projection_depth=2, image_depth=2)
        >>> len(model(torch.rand(1, 1, 8, 8, 20), torch.rand(1, 1, 12, 12, 8)))
        2
    """

    def __init__(
        self,
        projector: Projector,
        backbone: str = "unet",
        width: int = 32,
        projection_depth: int = 3,
        image_depth: int = 4,
        norm: str = "batch",
        gaussian_std: float | None = None,
    ):
        super().__init__()
        self.projector = projector
        self.emission_network = build_backbone(backbone, 1, width, image_depth, norm)
        self.projection_network = build_backbone(backbone, 2, width, projection_depth, norm)
        self.attenuation_network = build_backbone(backbone, 1, width, image_depth, norm)
        if gaussian_std is not None:
            init_gaussian(self, gaussian_std)

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """As `CDINet.forward`, with two pairs: the prior and the result, both with the same mû."""
        _check_inputs(self.projector, projections, image)
        count_unit, emission_unit = case_mean(projections), case_mean(image)
        low_image = image / emission_unit
        mu = self.attenuation_network(low_image) * WATER_MU
        emission = self.emission_network(low_image) * emission_unit  # photons per voxel
        prior = self.projector.forward_project(emission)  # counts
        full_projections = self.projection_network(torch.cat([projections, prior], dim=1) / count_unit)
        return [(prior, mu), (full_projections * count_unit, mu)]


class Passthrough(nn.Module):
    """Baseline LD & LA: the measured projections as they are. No parameters, and no attenuation map.

    The paper gives this baseline a row for the AC image but none for the map, so its AC image must come
    from the true map. mû is None here, and the evaluation takes the true one and only the measured angles.

    Example:
        >>> projections, mu = Passthrough()(torch.rand(1, 1, 8, 8, 20), torch.rand(1, 1, 12, 12, 8))[-1]
        >>> projections.shape, mu
        (torch.Size([1, 1, 8, 8, 20]), None)
    """

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        return [(projections, None)]


# -------------------------------------------------------------------------------------- loss, inference


def cdi_loss(
    predictions: Sequence[Prediction],
    full_projections: Tensor,
    mu: Tensor,
    count_unit: Tensor | float = 1.0,
    projection_weight: float = 1.0,
    mu_weight: float = 1.0,
    mean_over_terms: bool = False,
) -> Tensor:
    """Eq. 8: Σ_i (w_P ‖P̂ⁱ - P_F‖₁ + w_μ ‖mûⁱ - mu‖₁), the L1 norms as means.

    Projections are compared in units of `count_unit` and attenuation in units of water: w_P = w_μ = 1 can
    only be "balanced" where both are of order 1.

    Args:
        predictions: N pairs (P̂, mû), counts and cm^-1.
        full_projections: P_F (B, 1, U, V, A), counts.
        mu: (B, 1, X, Y, Z), cm^-1.
        count_unit: counts, a number or one per case; training passes `case_mean(P_L)`.
        mean_over_terms: divide by 2N, which is the released code's division by 10 at N = 5.

    Raises:
        ValueError: no predictions, or one without an attenuation map.
    """
    if not predictions or any(predicted_mu is None for _, predicted_mu in predictions):
        raise ValueError("eq. 8 needs at least one prediction, each with an attenuation map")
    total = full_projections.new_zeros(())
    for predicted_projections, predicted_mu in predictions:
        projection_error = (predicted_projections - full_projections) / count_unit
        mu_error = (predicted_mu - mu) / WATER_MU
        total = total + projection_weight * projection_error.abs().mean() + mu_weight * mu_error.abs().mean()
    return total / (2 * len(predictions)) if mean_over_terms else total


@torch.no_grad()
def predict(model: nn.Module, projections: Tensor, image: Tensor) -> Prediction:
    """The last iteration's P̂ in counts and mû in cm^-1, negative values set to 0, in evaluation mode (M10).

    `ml_em(projector, *clamped)` with mu=mû then gives the attenuation-corrected image.
    """
    was_training = model.training
    model.eval()
    try:
        full_projections, mu = model(projections, image)[-1]
    finally:
        model.train(was_training)
    return full_projections.float().clamp_min(0.0), None if mu is None else mu.float().clamp_min(0.0)
