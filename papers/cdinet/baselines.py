"""What CDI-Net is compared with (section 2.5). The interface is that of `model.CDINet`."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.cdinet.backbones import build_backbone
from papers.cdinet.model import WATER_MU, Prediction, case_mean, check_inputs, normalise_mean
from papers.cdinet.projector import Projector


class SeparateNets(nn.Module):
    """Separate-UNet and Separate-AttnUNet: P_L → P_F and I_L → mu by two networks that share nothing.

    CDI-Net has N networks per domain. For an equally large baseline, take a U-Net √N times as wide (or a
    `serdunet`, whose parameters also grow with the square of the width).

    Args and errors: as `CDINet`.

    Example:
        >>> from papers.cdinet.geometry import PinholeGeometry
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
    ):
        super().__init__()
        self.projector = projector
        self.projection_network = build_backbone(backbone, 1, width, projection_depth)
        self.image_network = build_backbone(backbone, 1, width, image_depth)

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """As `CDINet.forward`, with one pair."""
        check_inputs(self.projector, projections, image)
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
        >>> from papers.cdinet.geometry import PinholeGeometry
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
    ):
        super().__init__()
        self.projector = projector
        self.emission_network = build_backbone(backbone, 1, width, image_depth)
        self.projection_network = build_backbone(backbone, 2, width, projection_depth)
        self.attenuation_network = build_backbone(backbone, 1, width, image_depth)

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """As `CDINet.forward`, with two pairs: the prior and the result, both with the same mû."""
        check_inputs(self.projector, projections, image)
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


class ReprojectedImage(nn.Module):
    """A control without a network: T_f of the smoothed ML-EM image for P̂, the mean map of the training set for mû.

    Reprojection fills in the missing angles and smoothing removes noise: what a physicist would try before
    training anything. `fit` chooses the width of the Gaussian.

    Args:
        projector: T_f.

    Example:
        >>> from papers.cdinet.geometry import PinholeGeometry
        >>> geometry = PinholeGeometry.ge570c(image_shape=(12, 12, 8), voxel_mm=24.0, detector_shape=(8, 8))
        >>> control = ReprojectedImage(Projector.from_geometry(geometry))
        >>> projections, mu = control(torch.rand(1, 1, 8, 8, 20), torch.rand(1, 1, 12, 12, 8))[-1]
        >>> projections.shape, mu.shape
        (torch.Size([1, 1, 8, 8, 20]), torch.Size([1, 1, 12, 12, 8]))
    """

    SIGMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # voxels

    def __init__(self, projector: Projector):
        super().__init__()
        self.projector = projector
        self.register_buffer("mean_mu", torch.zeros(1, 1, *projector.geometry.image_shape))
        self.register_buffer("sigma", torch.zeros(()))

    @torch.no_grad()
    def fit(self, studies: Iterable[dict]) -> None:
        """Takes the mean map, and the width with the lowest mean NMSE of the projections.

        Args:
            studies: items of `data.CardiacSpectDataset`.
        """
        studies = list(studies)
        self.mean_mu.copy_(torch.stack([study["mu"] for study in studies]).mean(dim=0, keepdim=True))
        image = torch.stack([study["image_low"] for study in studies])
        truth = torch.stack([study["projections_full"] for study in studies])
        errors = []
        for sigma in self.SIGMAS:
            error = self.projector.forward_project(smooth(image, sigma)) - truth
            errors.append((error.square().sum((1, 2, 3, 4)) / truth.square().sum((1, 2, 3, 4))).mean().item())
        self.sigma.fill_(self.SIGMAS[errors.index(min(errors))])

    def forward(self, projections: Tensor, image: Tensor) -> list[Prediction]:
        """As `CDINet.forward`, with one pair."""
        check_inputs(self.projector, projections, image)
        reprojected = self.projector.forward_project(smooth(image, self.sigma.item()))
        return [(reprojected, self.mean_mu.expand_as(image))]


def smooth(image: Tensor, sigma: float) -> Tensor:
    """(B, 1, X, Y, Z) convolved with a Gaussian of `sigma` voxels, cut off at 3 sigma; the edge is repeated."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / max(sigma, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        turned = image.transpose(2 + axis, 4)
        padded = F.pad(turned, (reach, reach, 0, 0, 0, 0), mode="replicate")
        image = F.conv3d(padded, kernel.view(1, 1, 1, 1, -1)).transpose(2 + axis, 4)
    return image
