"""CDI-Net: projection- and image-domain networks that exchange predictions over several iterations.

    P_L ─► Proj-Net_1 ─► P̂¹ ──────────► Proj-Net_2 ─► P̂² ─► ...      ──► CI-DC: all earlier outputs
                          │ T_b      ▲ T_f    │ T_b                  │▲  CD-RC: outputs of the other domain
    I_L ─► ·············► Img-Net_1 ─► mû¹ ─► Img-Net_2 ─► mû² ─► ...

Projections are (B, 1, U, V, A) in counts, images (B, 1, X, Y, Z), attenuation maps in cm^-1. All models, the
`baselines` too, map (P_L, I_L) to a list of predictions (P̂, mû), the last of which is the result, so that one
training loop and one evaluation serve them all.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.cdinet.backbones import build_backbone
from papers.cdinet.projector import Projector
from shared.errors import InputError

WATER_MU = 0.15  # cm^-1 at 140 keV: the networks see attenuation in units of water

Prediction = tuple[Tensor, Tensor | None]  # P̂ (B, 1, U, V, A) in counts, mû (B, 1, X, Y, Z) in cm^-1


# ------------------------------------------------------------------------------------ recalibration (M7)


class AdaptiveWeightRecalibrator(nn.Module):
    """AWR, section 2.4: one weight per input channel, from the channels' means (eqs. 9 and 10).

    α̂ = σ(FC(ReLU(FC(global average pool)))), output F·α̂ + F.

    Args:
        channels: C, the number of stacked emission and anatomical features.
        residual: add the input, as the text says; the released code doesn't.

    Example:
        >>> AdaptiveWeightRecalibrator(3)(torch.rand(2, 3, 8, 8, 4)).shape
        torch.Size([2, 3, 8, 8, 4])
    """

    def __init__(self, channels: int, residual: bool = True):
        super().__init__()
        self.hidden = nn.Linear(channels, 2 * channels)
        self.weight = nn.Linear(2 * channels, channels)
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the recalibrated features; α̂ (B, C) lies in 0..1."""
        embedding = features.mean(dim=(2, 3, 4))  # α_0
        weights = torch.sigmoid(self.weight(F.relu(self.hidden(embedding))))
        recalibrated = features * weights[:, :, None, None, None]
        return recalibrated + features if self.residual else recalibrated


def recalibrated_network(backbone: nn.Module, in_channels: int, use_awr: bool = True, residual: bool = True):
    """A backbone behind an AWR; a single input channel has nothing to be weighed against and gets none (eq. 2)."""
    awr = AdaptiveWeightRecalibrator(in_channels, residual) if use_awr and in_channels > 1 else nn.Identity()
    return nn.Sequential(OrderedDict(awr=awr, backbone=backbone))


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
        use_cidc, use_cdrc, use_awr: False for the ablations.
        awr_residual: the global residual connection of the AWR, in the text but not in the released code.

    Raises:
        InputError: settings out of range; (forward) tensors that don't fit the projector.

    Example:
        >>> from papers.cdinet.geometry import PinholeGeometry
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
        use_cidc: bool = True,
        use_cdrc: bool = True,
        use_awr: bool = True,
        awr_residual: bool = True,
    ):
        super().__init__()
        if iterations < 1:
            raise InputError(f"CDI-Net needs at least one iteration, got {iterations}.")
        self.projector, self.use_cidc, self.use_cdrc = projector, use_cidc, use_cdrc

        def network(in_channels: int, depth: int) -> nn.Module:
            backbone_network = build_backbone(backbone, in_channels, width, depth)
            return recalibrated_network(backbone_network, in_channels, use_awr, awr_residual)

        earlier = range(iterations)  # m - 1: how many outputs of each domain exist before iteration m
        self.projection_networks = nn.ModuleList(
            network(1 + use_cidc * n + use_cdrc * n, projection_depth) for n in earlier
        )
        self.image_networks = nn.ModuleList(
            network(1 + use_cidc * n + use_cdrc * (n + 1), image_depth) for n in earlier
        )

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """Predicts full-dose, full-angle projections and the attenuation map, once per iteration.

        Args:
            projections: P_L (B, 1, U, V, A), low-dose and limited-angle counts, 0 where not measured.
            image: I_L (B, 1, X, Y, Z), their ML-EM image.

        Returns:
            N pairs (P̂ in counts, mû in cm^-1).
        """
        check_inputs(self.projector, projections, image)
        count_unit = case_mean(projections)
        low_projections, low_image = projections / count_unit, normalise_mean(image)
        # What has been exchanged so far, at mean 1 (M8).
        projection_outputs, image_outputs, forward_projected, back_projected = [], [], [], []
        predictions = []
        for projection_network, image_network in zip(self.projection_networks, self.image_networks):
            features = [low_projections]  # eq. 4
            features += projection_outputs if self.use_cidc else []
            features += forward_projected if self.use_cdrc else []
            full_projections = projection_network(torch.cat(features, dim=1))  # eqs. 2 and 5
            projection_outputs.append(normalise_mean(full_projections))
            if self.use_cdrc:
                back_projected.append(normalise_mean(self.projector.back_project(full_projections)))

            features = [low_image]  # eq. 6
            features += image_outputs if self.use_cidc else []
            features += back_projected if self.use_cdrc else []
            mu = image_network(torch.cat(features, dim=1))  # eqs. 3 and 7
            image_outputs.append(normalise_mean(mu))
            if self.use_cdrc:
                forward_projected.append(normalise_mean(self.projector.forward_project(mu)))

            predictions.append((full_projections * count_unit, mu * WATER_MU))
        return predictions


def check_inputs(projector: Projector, projections: Tensor, image: Tensor) -> None:
    """Raises InputError unless both tensors fit the scanner and each other."""
    geometry = projector.geometry
    shapes = tuple(projections.shape[1:]), tuple(image.shape[1:])
    expected = (1, *geometry.projection_shape), (1, *geometry.image_shape)
    if shapes != expected or len(projections) != len(image):
        raise InputError(
            f"The model needs projections (B, {str(expected[0])[1:-1]}) and images (B, "
            f"{str(expected[1])[1:-1]}), got {tuple(projections.shape)} and {tuple(image.shape)}."
        )


# -------------------------------------------------------------------------------------- loss, inference


def cdi_loss(
    predictions: Sequence[Prediction],
    full_projections: Tensor,
    mu: Tensor,
    count_unit: Tensor | float = 1.0,
    projection_weight: float = 1.0,
    mu_weight: float = 1.0,
) -> Tensor:
    """Eq. 8: Σ_i (w_P ‖P̂ⁱ - P_F‖₁ + w_μ ‖mûⁱ - mu‖₁), the L1 norms as means.

    Projections are compared in units of `count_unit` and attenuation in units of water: w_P = w_μ = 1 can
    only be "balanced" where both are of order 1.

    Args:
        predictions: N pairs (P̂, mû), counts and cm^-1.
        full_projections: P_F (B, 1, U, V, A), counts.
        mu: (B, 1, X, Y, Z), cm^-1.
        count_unit: counts, a number or one per case; training passes `case_mean(P_L)`.

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
    return total


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
