"""WaveFormer: encoder, MSCE bridge and decoder, from frequency-enhanced attention blocks (figure 1).

    image (B, 3, H, W) in -1..1
      -> encoder: patch embedding 1/4, 1/8, 1/16 (, 1/32), two blocks and a layer norm each
      -> MSCE: what each stage sends over its skip connection is changed in the light of all others
      -> decoder: expand, concatenate, two blocks; the last one expands by 4
      -> logits (B, K, H, W)

`HaarDWT2d`, `BoundaryAttention`, `FET` and `MSCE` work alone, at any even size.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from papers.waveformer.attention import FET, EfficientAttention, StandardAttention
from papers.waveformer.wavelet import BoundaryAttention, HaarDWT2d

__all__ = [
    "FET", "MSCE", "BoundaryAttention", "Decoder", "EfficientAttention", "Encoder", "HaarDWT2d", "MixFFN",
    "PatchEmbedding", "PatchExpand", "StandardAttention", "TransformerBlock", "WaveFormer",
]  # fmt: skip


class MixFFN(nn.Module):
    """Feed-forward network with a depthwise convolution as a skip within it (M2; MISSFormer's variant of Mix-FFN).

    Args:
        channels: D; 4 D hidden.
        legacy_params: two layer norms that the released code builds and never calls.
    """

    def __init__(self, channels: int, legacy_params: bool = False):
        super().__init__()
        hidden = 4 * channels
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm, self.act = nn.LayerNorm(hidden), nn.GELU()
        self.contract = nn.Linear(hidden, channels)
        if legacy_params:
            self.unused = nn.ModuleList([nn.LayerNorm(hidden), nn.LayerNorm(hidden)])

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = self.expand(tokens)
        # the transposed map is channels-last already, which the depthwise convolution takes as it is
        local = self.depthwise(hidden.transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)
        return self.contract(self.act(self.norm(hidden + local)))


class TransformerBlock(nn.Module):
    """x + Attention(LN x), then x + MixFFN(LN x) (M2)."""

    def __init__(self, channels: int, attention: nn.Module, legacy_params: bool = False):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(channels), attention
        self.ffn_norm, self.ffn = nn.LayerNorm(channels), MixFFN(channels, legacy_params)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.attention(self.attention_norm(tokens), height, width)
        return tokens + self.ffn(self.ffn_norm(tokens), height, width)


class PatchEmbedding(nn.Module):
    """Overlapping patches by a strided convolution, and a layer norm (M1): (B, C, H, W) -> (B, N, D), height, width."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> tuple[Tensor, int, int]:
        maps = self.project(maps)
        return self.norm(maps.flatten(2).transpose(1, 2)), *maps.shape[2:]


def to_maps(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, D) -> (B, D, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class Encoder(nn.Module):
    """Stages of two blocks each at 1/4, 1/8, 1/16, ... of the resolution (M1).

    Args:
        make_block: called as make_block(stage, channels, heads) for each block.
    """

    def __init__(self, in_channels: int, dims: Sequence[int], heads: Sequence[int], make_block):
        super().__init__()
        before = [in_channels, *dims[:-1]]
        shapes = [(7, 4)] + [(3, 2)] * (len(dims) - 1)  # kernel, stride
        self.embeddings = nn.ModuleList(PatchEmbedding(a, b, *shape) for a, b, shape in zip(before, dims, shapes))
        self.blocks = nn.ModuleList(
            nn.ModuleList(make_block(stage, dim, head) for _ in range(2))
            for stage, (dim, head) in enumerate(zip(dims, heads))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, image: Tensor, look=None) -> list[tuple[Tensor, int, int]]:
        """(B, C, H, W) -> for each stage (B, N, D), height, width.

        Args:
            look: called as look(stage, maps) with (B, D, h, w): the input of each stage's first block, then what comes
                out of each block, before the stage's norm.
        """
        stages, maps = [], image
        for stage, (embed, blocks, norm) in enumerate(zip(self.embeddings, self.blocks, self.norms)):
            tokens, height, width = embed(maps)
            if look is not None:
                look(stage, to_maps(tokens, height, width))
            for block in blocks:
                tokens = block(tokens, height, width)
                if look is not None:
                    look(stage, to_maps(tokens, height, width))
            tokens = norm(tokens)
            stages.append((tokens, height, width))
            maps = to_maps(tokens, height, width)
        return stages


class MSCE(nn.Module):
    """Multi-scale context enhancement of the skip connections (M8; section 2.3, figure 2b).

    The tokens of all stages, cut to one number of channels and normalised, attend to each other (efficient attention),
    and the result is added to the normalised tokens. A squeeze-excitation of this sum is the *global query* of one
    attention per stage, FET as a rule, whose keys and values come from the sum behind a second norm.

    Args:
        dims: channels D_i of the stages; the common number of channels is dims[0].
        attentions: per stage, called as attention(tokens, height, width, query).
        legacy: the query of each stage is reshaped as in the released code, from channels first and without
            transposing.
        legacy_params: see `MixFFN`.

    Example:
        >>> stages = [(torch.rand(2, 64, 16), 8, 8), (torch.rand(2, 16, 32), 4, 4)]
        >>> bridge = MSCE((16, 32), [FET(16, 2, with_query=False), FET(32, 2, with_query=False)])
        >>> [tokens.shape for tokens, _, _ in bridge(stages)]
        [torch.Size([2, 64, 16]), torch.Size([2, 16, 32])]
    """

    def __init__(
        self, dims: Sequence[int], attentions: Sequence[nn.Module], legacy: bool = False, legacy_params: bool = False
    ):
        super().__init__()
        self.channels, self.legacy = dims[0], legacy
        common = dims[0]
        self.input_norm, self.context = nn.LayerNorm(common), EfficientAttention(common)
        self.output_norm = nn.LayerNorm(common)
        self.excite = nn.Sequential(nn.Linear(common, common), nn.GELU(), nn.Linear(common, common), nn.Sigmoid())
        self.attentions = nn.ModuleList(attentions)
        self.ffns = nn.ModuleList(MixFFN(dim, legacy_params) for dim in dims)

    def global_query(self, tokens: Tensor) -> Tensor:
        """Squeeze-excitation over the channels, (B, n, D_0) -> (B, n, D_0)."""
        return tokens * self.excite(tokens.mean(dim=1, keepdim=True))

    def forward(self, stages: Sequence[tuple[Tensor, int, int]]) -> list[tuple[Tensor, int, int]]:
        """For each stage (B, N_i, D_i), height, width -> the same shapes; N_i·D_i must be divisible by D_0."""
        batch, common = len(stages[0][0]), self.channels
        flat = [tokens.reshape(batch, -1, common) for tokens, _, _ in stages]
        lengths = [part.shape[1] for part in flat]
        tokens = self.input_norm(torch.cat(flat, dim=1))
        tokens = tokens + self.context(tokens)
        queries, attended = self.global_query(tokens).split(lengths, 1), self.output_norm(tokens).split(lengths, 1)
        enhanced = []
        for own, query, (shaped, height, width), attention, ffn in zip(
            attended, queries, stages, self.attentions, self.ffns
        ):
            if self.legacy:
                query = query.transpose(1, 2)
            own = attention(own.reshape(shaped.shape), height, width, query.reshape(shaped.shape))
            enhanced.append(ffn(own, height, width).reshape(batch, -1, common))
        tokens = tokens + torch.cat(enhanced, dim=1)
        return [(part.reshape(shaped.shape), h, w) for part, (shaped, h, w) in zip(tokens.split(lengths, 1), stages)]


class PatchExpand(nn.Module):
    """Linear layer and pixel shuffle, with a layer norm (M9): (B, N, D) -> (B, N·factor², out).

    Args:
        channels: D.
        factor: of the resolution.
        out_channels: D/2 where the factor is 2, D at the end of the decoder.
    """

    def __init__(self, channels: int, factor: int, out_channels: int):
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        f = self.factor
        x = self.project(tokens).unflatten(1, (height, width)).unflatten(-1, (f, f, -1))  # (B, H, W, f, f, out)
        return self.norm(x.transpose(2, 3).flatten(1, 4))  # rows (H, f), then columns (W, f)


class Decoder(nn.Module):
    """Expand, concatenate with the skip connection, two blocks, stage by stage (M9).

    Args:
        make_block: called as make_block(stage, channels, heads).
        legacy_params: the linear layer and the blocks of the deepest stage, which the released code never calls.
    """

    def __init__(self, dims: Sequence[int], heads: Sequence[int], classes: int, make_block, legacy_params: bool):
        super().__init__()
        deepest = len(dims) - 1
        self.expands = nn.ModuleList(PatchExpand(dims[s], 2, dims[s] // 2) for s in range(deepest, 0, -1))
        self.merges = nn.ModuleList(nn.Linear(dims[s + 1] // 2 + dims[s], dims[s]) for s in range(deepest - 1, -1, -1))
        self.blocks = nn.ModuleList(
            nn.ModuleList(make_block(s, dims[s], heads[s]) for _ in range(2)) for s in range(deepest - 1, -1, -1)
        )
        self.last_expand = PatchExpand(dims[0], 4, dims[0])
        self.classify = nn.Conv2d(dims[0], classes, 1)
        if legacy_params:
            blocks = [make_block(deepest - 1, dims[deepest], 1) for _ in range(2)]
            self.unused = nn.ModuleList([nn.Linear(2 * dims[deepest], dims[deepest]), *blocks])

    def forward(self, stages: Sequence[tuple[Tensor, int, int]]) -> Tensor:
        """Features of all stages, the finest first -> logits (B, K, H, W)."""
        tokens, height, width = stages[-1]
        for expand, merge, blocks, (skip, h, w) in zip(self.expands, self.merges, self.blocks, stages[-2::-1]):
            tokens = merge(torch.cat([expand(tokens, height, width), skip], dim=-1))
            height, width = h, w
            for block in blocks:
                tokens = block(tokens, height, width)
        tokens = self.last_expand(tokens, height, width)
        return self.classify(to_maps(tokens, 4 * height, 4 * width))


class WaveFormer(nn.Module):
    """The segmentation network (figure 1). Three stages are the released compact model, four the larger-scale one.

    Args:
        in_channels: of the image (paper: 3, grey images are repeated).
        classes: K with background (Synapse: 9).
        dims: channels of the stages, (128, 320, 512) or (64, 128, 320, 512), the first dividing N_i·D_i of all.
        heads: of the encoder's attention, per stage.
        decoder_heads: of the decoder's, the finest stage first; one less than `dims`.
        attention: fet is the paper's; efficient and standard put another attention on the same backbone.
        bridge: MSCE on the skip connections; without it they are plain.
        boundary: boundary attention within FET.
        levels: of the boundary pyramid.
        branch_norms: `compact` of `FET`; None is as released: yes with three stages, no with four.
        legacy: reproduce the slips of the released code, see `FET` and `MSCE`.
        legacy_params: build the layers that the released code never calls, so that the counts agree.

    Raises:
        ValueError: (forward) height or width not divisible by 32.

    Example:
        >>> net = WaveFormer(dims=(16, 32, 64), heads=(2, 2, 4), decoder_heads=(2, 2))
        >>> net(torch.rand(2, 3, 64, 32)).shape
        torch.Size([2, 9, 64, 32])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 9,
        dims: Sequence[int] = (128, 320, 512),
        heads: Sequence[int] = (4, 10, 16),
        decoder_heads: Sequence[int] = (8, 4),
        attention: Literal["fet", "efficient", "standard"] = "fet",
        bridge: bool = True,
        boundary: bool = True,
        levels: int = 1,
        branch_norms: bool | None = None,
        legacy: bool = False,
        legacy_params: bool = False,
    ):
        super().__init__()
        if not len(dims) == len(heads) == len(decoder_heads) + 1 or len(dims) not in (3, 4):
            raise ValueError("dims and heads must have 3 or 4 entries, decoder_heads one less")
        compact = len(dims) == 3 if branch_norms is None else branch_norms

        def fet(dim: int, head: int, with_query: bool = True) -> FET:
            return FET(dim, head, levels, boundary, compact, with_query, legacy)

        def block(stage: int, dim: int, head: int) -> TransformerBlock:
            # Maps at 1/32 can't be halved at 224 pixels: the four-stage model has standard attention there.
            if attention == "standard" or (attention == "fet" and stage == 3):
                layer = StandardAttention(dim, head)
            else:
                layer = fet(dim, head) if attention == "fet" else EfficientAttention(dim)
            return TransformerBlock(dim, layer, legacy_params)

        self.encoder = Encoder(in_channels, dims, heads, block)
        self.bridge = None
        if bridge:
            layers = [fet(dim, head, with_query=legacy_params) for dim, head in zip(dims[:3], heads[:3])]
            own = legacy or legacy_params
            layers += [StandardAttention(dim, head, own, keep_query=legacy) for dim, head in zip(dims[3:], heads[3:])]
            self.bridge = MSCE(dims, layers, legacy, legacy_params)
        self.decoder = Decoder(dims, decoder_heads, classes, block, legacy_params)
        self.apply(initialisation(self))

    def forward(self, image: Tensor, look=None) -> Tensor:
        """(B, in_channels, H, W) in -1..1 -> logits (B, K, H, W). For `look` see `Encoder`."""
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"the image has {height} x {width} pixels; both must be divisible by 32")
        stages = self.encoder(image, look)
        if self.bridge is not None:
            stages = self.bridge(stages)
        return self.decoder(stages)


def initialisation(network: WaveFormer) -> Callable[[nn.Module], None]:
    """The initial weights of the released code, for `network.apply`.

    Decoder: Xavier for all linear layers and 2-D convolutions. Attention of the encoder, and FET of the bridge: linear
    layers normal with 0.02 (cut at +-2, so never), 2-D convolutions normal with variance 2 / (k² C_out / groups). Their
    biases are zero. All else is PyTorch's default: embeddings and feed-forward networks of the encoder, the bridge's
    own layers, 3-D convolutions.
    """
    decoder = set(network.decoder.modules())
    attentions = [network.bridge.attentions] if network.bridge else []
    attentions += [block.attention for blocks in network.encoder.blocks for block in blocks]
    attention = {module for part in attentions for module in part.modules()}

    def initialise(module: nn.Module) -> None:
        if not isinstance(module, nn.Linear | nn.Conv2d) or not (module in decoder or module in attention):
            return
        if module in decoder:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        else:
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    return initialise
