"""DKUXNet: a 3D UX-Net whose voxels are assigned to k-means queries, and what a query says about classes.

volume (B, 1, W, H, D) -> backbone d3, d2, d1, d0 -> kMaX layers on d3, d2 move the cluster centres C
-> mask logits of d0 against C -> R, softmax over the N queries of each voxel (query response)
-> logits_k = sum_n W_nk R_n (segmentation) and Q_g = sum of R over the queries of group g (query distribution)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from papers.dkuxnet.kmax import NORM_MOMENTUM, KMaXDecoder, MaskPredictor, QueryLinear
from papers.dkuxnet.uxnet import UXNetBackbone


class Output(NamedTuple):
    """What DKUXNet says about a batch of B volumes with K classes, N queries and G groups of queries."""

    logits: Tensor
    """class logits (B, K, W, H, D)"""
    response: Tensor
    """query response R (B, N, W, H, D), sums to 1 over the queries of each voxel"""
    distribution: Tensor
    """query distribution Q (B, G, W, H, D), sums to 1 over the groups of each voxel"""
    layer_distributions: list[Tensor]
    """the same of every kMaX layer at its own resolution, (B, G, w, h, d)"""


class QueryClassifier(nn.Module):
    """Class weights of every query, W (B, N, K), from all cluster centres together (M9).

    Args:
        channels: of a query.
        queries: N.
        classes: K.
        hidden: units between (released code: 64).
    """

    def __init__(self, channels: int, queries: int, classes: int, hidden: int = 64):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(queries * channels, hidden), nn.ReLU(), nn.Linear(hidden, queries * classes))
        self.shape = (queries, classes)

    def forward(self, centres: Tensor) -> Tensor:
        """(B, channels, N) -> (B, N, K)."""
        return self.mlp(centres.transpose(1, 2).flatten(1)).unflatten(1, self.shape)


def query_response(mask_logits: Tensor) -> Tensor:
    """R: softmax over the *queries* of each voxel, (B, N, *space) -> the same shape (M8), in float32."""
    return mask_logits.float().softmax(dim=1)


def query_distribution(response: Tensor, groups: Sequence[int]) -> Tensor:
    """Q: the response summed over fixed groups of queries, (B, N, *space) -> (B, G, *space) (M10).

    Args:
        response: R, see `query_response`.
        groups: how many queries stand for background, organ, (tumour), ...; they sum to N.

    Example:
        >>> query_distribution(torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1), (1, 3)).flatten()
        tensor([0.1000, 0.9000])
    """
    return torch.stack([part.sum(dim=1) for part in response.split(list(groups), dim=1)], dim=1)


class DKUXNet(nn.Module):
    """Dual-KMax UX-Net (figures 1 to 3).

    Args:
        in_channels: channels of the volume.
        query_groups: queries per class; their number is K, their sum N. (16, 4, 12) are background, organ and
            tumour of the released code; for the left atrium there is no tumour.
        dims, hidden, depths, layer_scale: see `uxnet.UXNetBackbone`.
        kmax_scales: scales that update the queries: 2 is d3 and d2 (released code), 3 adds d1.
        kmax_layers: layers per scale.
        query_channels, key_depth, value_depth, heads, ffn, embedding, mask_gain: see `kmax.KMaXLayer`.
        norm_momentum: of the batch norms' running statistics (released code: 0.01).

    Raises:
        ValueError: (forward) a side that 16 does not divide.

    Example:
        >>> small = dict(dims=(4, 8, 16, 32), hidden=64, depths=(1, 1, 1, 1), query_channels=16, key_depth=8,
        ...              value_depth=16, heads=2, ffn=32, embedding=8)
        >>> net = DKUXNet(query_groups=(4, 4), **small)
        >>> out = net(torch.rand(2, 1, 32, 32, 16))
        >>> out.logits.shape, out.response.shape, out.distribution.shape
        (torch.Size([2, 2, 32, 32, 16]), torch.Size([2, 8, 32, 32, 16]), torch.Size([2, 2, 32, 32, 16]))
    """

    def __init__(
        self,
        in_channels: int = 1,
        query_groups: Sequence[int] = (16, 16),
        dims: Sequence[int] = (48, 96, 192, 384),
        hidden: int = 768,
        depths: Sequence[int] = (2, 2, 2, 2),
        layer_scale: float = 1e-6,
        kmax_scales: int = 2,
        kmax_layers: int = 2,
        query_channels: int = 256,
        key_depth: int = 128,
        value_depth: int = 256,
        heads: int = 8,
        ffn: int = 2048,
        embedding: int = 128,
        mask_gain: float = 0.1,
        norm_momentum: float = NORM_MOMENTUM,
    ):
        super().__init__()
        self.query_groups, self.kmax_scales = tuple(query_groups), kmax_scales
        queries, classes = sum(query_groups), len(query_groups)
        self.backbone = UXNetBackbone(in_channels, dims, hidden, depths, layer_scale)
        *coarse, finest = self.backbone.out_channels
        self.decoder = KMaXDecoder(
            coarse[:kmax_scales], queries, kmax_layers, query_channels, key_depth=key_depth,
            value_depth=value_depth, heads=heads, ffn=ffn, embedding=embedding, gain=mask_gain,
        )  # fmt: skip
        self.query_projection = QueryLinear(query_channels, query_channels, act=True)
        self.predictor = MaskPredictor(finest, query_channels, embedding, mask_gain)
        self.classifier = QueryClassifier(query_channels, queries, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.momentum = norm_momentum

    def forward(self, volume: Tensor) -> Output:
        """(B, in_channels, W, H, D) z-scores, sides divisible by 16 -> `Output`."""
        *coarse, finest = self.backbone(volume)
        centres, layer_logits = self.decoder(coarse[: self.kmax_scales])
        mask_logits = self.predictor(finest, self.query_projection(centres))
        response = query_response(mask_logits)
        with torch.autocast(volume.device.type, enabled=False):
            class_weights = self.classifier(centres.float())
            logits = torch.einsum("bnk,bn...->bk...", class_weights, response)
        layers = [query_distribution(query_response(layer), self.query_groups) for layer in layer_logits]
        return Output(logits, response, query_distribution(response, self.query_groups), layers)
