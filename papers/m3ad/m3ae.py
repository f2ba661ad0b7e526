"""M3AE, the backbone that M3AD adapts: CLIP's ViT, RoBERTa, and a cross-modal encoder of two streams (section 2.1).

B is the batch, T text tokens, V image tokens (patches and a class token), D the width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaModel

PAD = 1  # token number of padding, as in RoBERTa


@dataclass(frozen=True)
class Sizes:
    """Sizes of the backbone; the defaults are those of the released M3AE as it is fine-tuned."""

    image: int = 384
    patch: int = 16
    width: int = 768
    heads: int = 12
    vision_layers: int = 11
    language_layers: int = 12
    cross_layers: int = 6
    vocabulary: int = 50265
    positions: int = 514
    dropout: float = 0.1
    vision_eps: float = 1e-5
    language_eps: float = 1e-5


class BertLinear(nn.Linear):
    """A linear layer with BERT's initial weights: N(0, 0.02), and zero biases."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Attention(nn.Module):
    """Multi-head attention of `x` (B, N, D) over `keys` (B, M, D), without residual; `out` is its last projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.query, self.key, self.value = (BertLinear(width, width) for _ in range(3))
        self.out = BertLinear(width, width)
        self.heads, self.dropout = heads, dropout
        self.record, self.weights = False, None

    def forward(self, x: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """`key_mask` (B, M) is False at padding."""

        def split(values: Tensor) -> Tensor:
            return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)

        query, key, value = split(self.query(x)), split(self.key(keys)), split(self.value(keys))
        mask = None if key_mask is None else key_mask[:, None, None, :]
        if self.record:
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            self.weights = scores.softmax(-1).detach()
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).flatten(2))


class CrossLayer(nn.Module):
    """One stream of one block of the cross-modal encoder (section 2.1): self-attention, attention to the other
    stream, feed-forward; a residual and a layer norm after each."""

    def __init__(self, width: int, heads: int, dropout: float, eps: float = 1e-12):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_forward = nn.Sequential(BertLinear(width, 4 * width), nn.GELU(), BertLinear(4 * width, width))
        self.self_norm, self.cross_norm, self.output_norm = (nn.LayerNorm(width, eps) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None = None, other_mask: Tensor | None = None) -> Tensor:
        """`x` (B, N, D) with keys and values of the cross-attention from `other` (B, M, D)."""
        x = self.self_norm(x + self.dropout(self.self_attention(x, x, mask)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, other, other_mask)))
        return self.output_norm(x + self.dropout(self.feed_forward(x)))


class Pooler(nn.Module):
    """The first token through a linear layer and tanh."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = BertLinear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.dense(tokens[:, 0]))


class M3AE(nn.Module):
    """The backbone as it is fine-tuned: ViT, RoBERTa, and six blocks of two streams (section 2.1).

    Args:
        sizes: of all parts.

    Example:
        >>> small = Sizes(32, 8, 32, 4, 1, 1, 1, vocabulary=50, positions=20)
        >>> M3AE(small).eval()(torch.rand(2, 3, 32, 32), torch.full((2, 6), 5)).shape
        torch.Size([2, 64])
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        width, heads = sizes.width, sizes.heads
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=sizes.vision_layers,
                num_attention_heads=heads, image_size=sizes.image, patch_size=sizes.patch,
                layer_norm_eps=sizes.vision_eps, attn_implementation="sdpa",
            )
        )  # fmt: skip
        self.language = RobertaModel(
            RobertaConfig(
                vocab_size=sizes.vocabulary, hidden_size=width, intermediate_size=4 * width,
                num_hidden_layers=sizes.language_layers, num_attention_heads=heads, type_vocab_size=1,
                max_position_embeddings=sizes.positions, layer_norm_eps=sizes.language_eps, pad_token_id=PAD,
                hidden_dropout_prob=sizes.dropout, attention_probs_dropout_prob=sizes.dropout,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        self.text_projection, self.image_projection = BertLinear(width, width), BertLinear(width, width)
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        nn.init.normal_(self.type_embedding.weight, std=0.02)
        self.text_layers, self.image_layers = (
            nn.ModuleList(CrossLayer(width, heads, sizes.dropout) for _ in range(sizes.cross_layers)) for _ in range(2)
        )
        self.fusion = nn.ModuleList()  # modality-fusion adapters, if there are any: `model.add_fusion`
        self.text_pooler, self.image_pooler = Pooler(width), Pooler(width)

    def tokens(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of all tokens after the cross-modal encoder, (B, T, D) and (B, V, D)."""
        mask = tokens != PAD if mask is None else mask
        attended = mask[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        text = self.language(input_ids=tokens, attention_mask=attended).last_hidden_state
        vision = self.vision.post_layernorm(self.vision(pixel_values=image).last_hidden_state)
        text = self.text_projection(text) + self.type_embedding.weight[0]
        vision = self.image_projection(vision) + self.type_embedding.weight[1]
        for k, (text_layer, image_layer) in enumerate(zip(self.text_layers, self.image_layers)):
            # Both streams read the other one's previous features.
            text, vision = text_layer(text, vision, mask, None), image_layer(vision, text, None, mask)
            if self.fusion:
                text, vision = self.fusion[k](text, vision, mask)
        return text, vision

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled features of both streams.

        Args:
            image: (B, 3, H, W), normalised with CLIP's mean and deviation.
            tokens: (B, T) token numbers.
            mask: (B, T) bool, False at padding; None: where the token is padding.

        Returns:
            (B, 2D)
        """
        text, vision = self.tokens(image, tokens, mask)
        return torch.cat([self.text_pooler(text), self.image_pooler(vision)], dim=-1)
