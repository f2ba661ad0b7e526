"""Attention on tokens of a map: standard, efficient, and the paper's frequency-enhanced one (sections 2.1 and 2.2).

Tokens are (B, N, D) in row-major order of an H x W map, N = H·W. All three have the same interface
`attention(tokens, height, width)`, so that a network can be built with any of them on an equal backbone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.waveformer.wavelet import BoundaryAttention, HaarDWT2d


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D/heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads·d)."""
    return tokens.transpose(1, 2).flatten(2)


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, softmax_context: bool = False, over_tokens: bool = False
) -> Tensor:
    """Equation 2: rho_q(Q) (rho_k(K)ᵀ V), linear in the number of tokens.

    rho_k is a softmax over the tokens of each key channel, rho_q one over the channels of each query. Equation 2 has no
    heads: all D channels share one D x D global context.

    Args:
        query: (..., N, D).
        key, value: (..., M, D).
        softmax_context: a softmax over the value channels of the global context (released compact model).
        over_tokens: rho_q over the tokens instead (released FET).

    Returns:
        (..., N, D).
    """
    context = key.softmax(dim=-2).transpose(-1, -2) @ value  # (..., D, D): the global context
    if softmax_context:
        context = context.softmax(dim=-1)
    return query.softmax(dim=-2 if over_tokens else -1) @ context


class StandardAttention(nn.Module):
    """Multi-head self-attention, equation 1.

    Args:
        channels: D.
        heads: must divide D.
        with_query: False builds no query layer; then `forward` must be given a query.
        keep_query: use the own query layer even where a query is given (slip of the released bridge, fourth stage).

    Example:
        >>> StandardAttention(16, 2)(torch.rand(2, 12, 16), 3, 4).shape
        torch.Size([2, 12, 16])
    """

    def __init__(self, channels: int, heads: int, with_query: bool = True, keep_query: bool = False):
        super().__init__()
        self.heads, self.keep_query = heads, keep_query
        self.query = nn.Linear(channels, channels) if with_query else None
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, height: int, width: int, query: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D). `query` replaces the linear layer's."""
        query = self.query(tokens) if query is None or self.keep_query else query
        query, key, value = (split_heads(x, self.heads) for x in (query, *self.key_value(tokens).chunk(2, dim=-1)))
        return self.output(merge_heads(F.scaled_dot_product_attention(query, key, value)))


class EfficientAttention(nn.Module):
    """Efficient attention on all tokens: the baseline's, and the one inside MSCE (section 2.1, equation 2).

    Args:
        channels: D.

    Example:
        >>> EfficientAttention(16)(torch.rand(2, 12, 16)).shape
        torch.Size([2, 12, 16])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, height: int = 0, width: int = 0) -> Tensor:
        """(B, N, D) -> (B, N, D); the size of the map plays no part."""
        return self.output(efficient_attention(*self.query_key_value(tokens).chunk(3, dim=-1)))


class FET(nn.Module):
    """Frequency-enhanced attention (M3 to M7; section 2.2, figure 2a).

    Queries come from all tokens; keys and values from the Haar bands at half the resolution, so there are N/4 of them.
    A spatial branch adds the boundary attention to the values, an efficient branch has a global context; both are
    concatenated and merged.

    Args:
        channels: D, divisible by 4.
        heads: must divide D.
        levels: of the boundary pyramid.
        boundary: False leaves the boundary attention out, B_att = 0.
        compact: layer norms on both branches, the concatenation and the output, and a softmax on the global
            context, as in the released three-stage model.
        with_query: False builds no query layer; then `forward` must be given a query.
        legacy: two slips of the released code in the efficient branch: queries, keys and values come split into heads
            and are flattened without moving that axis back, which mixes tokens and channels, and the queries' softmax
            runs over the tokens.

    Example:
        >>> FET(16, 2)(torch.rand(2, 24, 16), 4, 6).shape
        torch.Size([2, 24, 16])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        levels: int = 1,
        boundary: bool = True,
        compact: bool = True,
        with_query: bool = True,
        legacy: bool = False,
    ):
        super().__init__()
        if channels % 4 or channels % heads:
            raise ValueError(f"{channels} channels: expected a multiple of 4 and of the {heads} heads")
        self.heads, self.compact, self.legacy = heads, compact, legacy
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.BatchNorm2d(channels // 4), nn.ReLU(inplace=True)
        )
        self.dwt = HaarDWT2d()
        self.filter = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.query = nn.Linear(channels, channels) if with_query else None
        self.key_value = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels))
        self.boundary = BoundaryAttention(channels, levels) if boundary else None
        self.merge = nn.Linear(2 * channels, channels)
        if compact:
            self.spatial_norm, self.efficient_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.merge_norm, self.output_norm = nn.LayerNorm(2 * channels), nn.LayerNorm(channels)

    def bands(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Haar bands of the reduced map: (B, N, D) -> (B, 4, D/4, H/2, W/2) (M3)."""
        maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        return self.dwt(self.reduce(maps))

    def boundary_attention(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """B_att, (B, N, D) -> (B, D, H/2, W/2) in 0..1, for a look at it (M4)."""
        attention = self.boundary(self.bands(tokens, height, width)[:, 1:])
        return attention.transpose(1, 2).unflatten(2, (height // 2, width // 2))

    def forward(self, tokens: Tensor, height: int, width: int, query: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D). `query` (B, N, D) replaces the linear layer's, as in MSCE.

        Raises:
            ValueError: an odd height or width.
        """
        bands = self.bands(tokens, height, width)
        keys_and_values = self.key_value(self.filter(bands.flatten(1, 2)).flatten(2).transpose(1, 2))
        query = self.query(tokens) if query is None else query
        key, value = keys_and_values.chunk(2, dim=-1)
        spatial = self.spatial_branch(query, key, value, bands)
        if self.legacy:
            query, key, value = (split_heads(x, self.heads).reshape(x.shape) for x in (query, key, value))
        efficient = efficient_attention(query, key, value, self.compact, over_tokens=self.legacy)  # M6
        if not self.compact:
            return self.merge(torch.cat([spatial, efficient], dim=-1))  # M7
        both = torch.cat([self.spatial_norm(spatial), self.efficient_norm(efficient)], dim=-1)
        return self.output_norm(self.merge(self.merge_norm(both)))

    def spatial_branch(self, query: Tensor, key: Tensor, value: Tensor, bands: Tensor) -> Tensor:
        """Softmax attention, head by head, to V + B_att (M5): (B, N, D), 2 x (B, N/4, D) -> (B, N, D)."""
        if self.boundary is not None:
            value = value + self.boundary(bands[:, 1:])
        query, key, value = (split_heads(x, self.heads) for x in (query, key, value))
        return merge_heads(F.scaled_dot_product_attention(query, key, value))
