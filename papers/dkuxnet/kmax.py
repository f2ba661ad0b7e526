"""The kMaX transformer decoder: queries as cluster centres that are updated by k-means over voxels (figures 2, 3).

The poster prints C <- C + argmax_N(Q K^T) V and leaves the layers to kMaX-DeepLab (Yu et al., ECCV 2022); widths, the
epsilon and momentum of the batch norms, initial weights and zero-initialised gains are those of the poster's released
code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.dkuxnet.uxnet import DepthwiseConv3d, PointwiseConv3d

NORM_EPSILON = 1e-3
"""of all batch norms between queries and voxels (released code; PyTorch's default is 1e-5)"""
NORM_MOMENTUM = 0.01
"""of the same batch norms (released code; PyTorch's default is 0.1)"""
LAST_VOXEL_STD = 0.01
"""initial weights of the voxels' last layer before the mask logits, before truncation (released code)"""


def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Normal numbers between -2 and 2 standard deviations; what is cut off makes theirs 0.88 `std`.

    Example:
        >>> weight = truncated_normal_(torch.empty(400, 400), 0.0625)
        >>> round(weight.std().item(), 3), weight.abs().max().item() <= 0.125
        (0.055, True)
    """
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def batch_norm(kind: type, channels: int) -> nn.Module:
    """`nn.BatchNorm1d`, 2d or 3d with epsilon and momentum of the released code."""
    return kind(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


class QueryLinear(nn.Sequential):
    """1x1 convolution and batch norm on queries, (B, in, N) -> (B, out, N), with GELU if `act`.

    Args:
        in_channels, out_channels: of the convolution.
        act: end with GELU.
        gain: initial weight of the batch norm: 0 makes a residual branch start as nothing.
        std: of the initial weights before truncation; by default sqrt(2 / in_channels).
    """

    norm = nn.BatchNorm1d

    def __init__(
        self, in_channels: int, out_channels: int, act: bool = False, gain: float = 1.0, std: float | None = None
    ):
        norm = batch_norm(self.norm, out_channels)
        super().__init__(self.convolution(in_channels, out_channels), norm, *([nn.GELU()] if act else []))
        self.gain, self.std = gain, math.sqrt(2 / in_channels) if std is None else std
        self.reset_parameters()

    @staticmethod
    def convolution(in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def reset_parameters(self) -> None:
        truncated_normal_(self[0].weight, self.std)
        nn.init.constant_(self[1].weight, self.gain)


class VoxelLinear(QueryLinear):
    """1x1x1 convolution and batch norm on voxels, (B, in, W, H, D) -> (B, out, W, H, D), with GELU if `act`."""

    norm = nn.BatchNorm3d

    @staticmethod
    def convolution(in_channels: int, out_channels: int) -> nn.Module:
        return PointwiseConv3d(in_channels, out_channels, bias=False)


def hard_assignment(mask_logits: Tensor) -> Tensor:
    """A = argmax_N: each voxel belongs to the one query with the largest logit.

    The maximum is over the *queries*, for each voxel; a softmax over voxels is what kMaX replaces. There is no
    gradient, as in k-means: the logits learn from the losses on them, not from the update.

    Args:
        mask_logits: (B, N, V).

    Returns:
        one-hot over N, (B, N, V), of the same type; the first query wins a tie.

    Example:
        >>> hard_assignment(torch.tensor([[[0.1, 2.0], [0.3, -1.0]]]))
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    with torch.no_grad():
        winner = mask_logits.argmax(dim=1, keepdim=True)
        return torch.zeros_like(mask_logits).scatter_(1, winner, 1.0)


def cluster_sums(assignment: Tensor, values: Tensor) -> Tensor:
    """The k-means update A^T V: for each query the sum of the values of its voxels, in float32.

    Args:
        assignment: one-hot, (B, N, V).
        values: (B, C, V); the gradient goes here.

    Returns:
        (B, C, N). A query without voxels gets zero.
    """
    with torch.autocast(values.device.type, enabled=False):
        return torch.einsum("bnv,bcv->bcn", assignment.float(), values.float())


class MaskPredictor(nn.Module):
    """Logits of every query at every voxel: inner products of query and voxel embeddings (M7).

    Args:
        pixel_channels: channels of the voxel features.
        query_channels: channels of the queries (kMaX: 256).
        embedding: length of the embeddings that are compared (kMaX: 128).
        gain: initial weight of the batch norm on the logits (kMaX: 0.1).
    """

    def __init__(self, pixel_channels: int, query_channels: int = 256, embedding: int = 128, gain: float = 0.1):
        super().__init__()
        self.pixel_head = nn.Sequential(
            DepthwiseConv3d(pixel_channels, 5, bias=False),
            batch_norm(nn.BatchNorm3d, pixel_channels),
            nn.GELU(),
            VoxelLinear(pixel_channels, query_channels, act=True),
            VoxelLinear(query_channels, embedding, std=LAST_VOXEL_STD),
        )
        self.query_head = QueryLinear(query_channels, embedding)
        self.norm, self.gain = batch_norm(nn.BatchNorm1d, 1), gain  # one gain and one offset for all logits
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.pixel_head[0].weight)
        nn.init.constant_(self.norm.weight, self.gain)

    def forward(self, pixels: Tensor, queries: Tensor) -> Tensor:
        """(B, pixel_channels, W, H, D), (B, query_channels, N) -> logits (B, N, W, H, D)."""
        embedded = self.pixel_head(pixels).flatten(2)
        logits = torch.einsum("bcv,bcn->bnv", embedded, self.query_head(queries))
        # the voxel's embedding has length 1; dividing the product is cheaper than dividing the embedding
        logits = logits * embedded.square().sum(dim=1, keepdim=True).clamp(min=1e-24).rsqrt()
        logits = self.norm(logits.flatten(1).unsqueeze(1))
        return logits.view(*logits.shape[:1], queries.shape[-1], *pixels.shape[2:])


class QuerySelfAttention(nn.Module):
    """Multi-head attention between queries with batch norm on similarities and on what is retrieved (M6 c).

    Args:
        channels: of the queries.
        key_depth, value_depth: over all heads (kMaX: 128 and 256).
        heads: number of heads (kMaX: 8).
    """

    def __init__(self, channels: int = 256, key_depth: int = 128, value_depth: int = 256, heads: int = 8):
        super().__init__()
        self.depths, self.heads = (key_depth, key_depth, value_depth), heads
        self.qkv = QueryLinear(channels, sum(self.depths), std=channels**-0.5)
        self.norm_similarity = batch_norm(nn.BatchNorm2d, heads)
        self.norm_retrieved = batch_norm(nn.BatchNorm1d, value_depth)
        self.out = QueryLinear(value_depth, channels, gain=0.0)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, channels, N) -> residual of the same shape."""
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in self.qkv(queries).split(self.depths, dim=1))
        similarity = self.norm_similarity(torch.einsum("bhcn,bhcm->bhnm", q, k))
        retrieved = torch.einsum("bhnm,bhcm->bhcn", similarity.softmax(dim=-1), v)
        return self.out(F.gelu(self.norm_retrieved(retrieved.flatten(1, 2))))


class KMaXLayer(nn.Module):
    """One cluster update: hard assignment, k-means step, self-attention, feed-forward network (M6).

    Args:
        pixel_channels: channels of the voxel features of this scale.
        channels: of the queries (kMaX: 256).
        key_depth, value_depth, heads: see `QuerySelfAttention`.
        ffn: hidden channels of the feed-forward network (kMaX: 2048).
        embedding, gain: see `MaskPredictor`.

    Example:
        >>> layer = KMaXLayer(8, channels=16, key_depth=8, value_depth=16, heads=2, ffn=32, embedding=8)
        >>> queries, logits = layer(torch.rand(2, 8, 4, 4, 2), torch.rand(2, 16, 5))
        >>> queries.shape, logits.shape
        (torch.Size([2, 16, 5]), torch.Size([2, 5, 4, 4, 2]))
    """

    def __init__(
        self,
        pixel_channels: int,
        channels: int = 256,
        key_depth: int = 128,
        value_depth: int = 256,
        heads: int = 8,
        ffn: int = 2048,
        embedding: int = 128,
        gain: float = 0.1,
    ):
        super().__init__()
        self.pixel_space = VoxelLinear(pixel_channels, channels, act=True)
        self.query_space = QueryLinear(channels, channels, act=True)
        self.predictor = MaskPredictor(channels, channels, embedding, gain)
        self.values = VoxelLinear(channels, value_depth, std=channels**-0.5)
        self.norm_update = batch_norm(nn.BatchNorm1d, value_depth)
        self.update = QueryLinear(value_depth, channels, gain=0.0)
        self.attention = QuerySelfAttention(channels, key_depth, value_depth, heads)
        self.ffn = nn.Sequential(QueryLinear(channels, ffn, act=True), QueryLinear(ffn, channels, gain=0.0))

    def forward(self, pixels: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, pixel_channels, W, H, D), (B, channels, N) -> new queries, and the logits (B, N, W, H, D) behind them."""
        pixel_space = self.pixel_space(F.gelu(pixels))
        query_space = self.query_space(queries)
        mask_logits = self.predictor(pixel_space, query_space)
        assignment = hard_assignment(mask_logits.flatten(2))
        sums = cluster_sums(assignment, self.values(pixel_space).flatten(2))
        queries = queries + self.update(self.norm_update(sums))
        queries = F.gelu(queries + self.attention(query_space))
        queries = F.gelu(queries + self.ffn(queries))
        return queries, mask_logits


class KMaXDecoder(nn.Module):
    """Learnable queries (M5) that pass `layers` kMaX layers per scale, the coarsest scale first (M6).

    Args:
        pixel_channels: channels of the features of each scale, coarsest first.
        queries: N, the number of cluster centres.
        layers: kMaX layers per scale (released code: 2).
        channels: of the queries (kMaX: 256).
        **layer: further arguments of `KMaXLayer`.

    Example:
        >>> decoder = KMaXDecoder([8, 4], 6, channels=16, key_depth=8, value_depth=16, heads=2, ffn=32, embedding=8)
        >>> centres, logits = decoder([torch.rand(2, 8, 2, 2, 2), torch.rand(2, 4, 4, 4, 4)])
        >>> centres.shape, [tuple(l.shape[1:]) for l in logits]
        (torch.Size([2, 16, 6]), [(6, 2, 2, 2), (6, 2, 2, 2), (6, 4, 4, 4), (6, 4, 4, 4)])
    """

    def __init__(self, pixel_channels: list[int], queries: int, layers: int = 2, channels: int = 256, **layer):
        super().__init__()
        self.centres = nn.Parameter(torch.empty(channels, queries))
        self.reset_parameters()
        self.scales = nn.ModuleList(
            nn.ModuleList(KMaXLayer(width, channels, **layer) for _ in range(layers)) for width in pixel_channels
        )

    def reset_parameters(self) -> None:
        truncated_normal_(self.centres, 1.0)

    def forward(self, scales: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[(B, pixel_channels[s], W, H, D)] -> cluster centres (B, channels, N), mask logits of every layer."""
        queries = self.centres.expand(scales[0].shape[0], -1, -1)
        logits = []
        for pixels, layers in zip(scales, self.scales, strict=True):
            for layer in layers:
                queries, mask_logits = layer(pixels, queries)
                logits.append(mask_logits)
        return queries, logits
