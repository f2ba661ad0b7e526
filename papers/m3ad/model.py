"""M3AD's modules: adapters, the modality-fusion adapter, and the M3AE backbone that they are put into.

    from papers.m3ad.model import inject_adapters
    inject_adapters(any_transformer, ("out_proj", "fc2"), bottleneck=64)

B is the batch, T text tokens, V image tokens (patches and a class token), D the width, A the number of answers.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaModel

PAD = 1  # token number of padding, as in RoBERTa
PLACES = ("vision", "language", "cross")
# Output projections of attentions and feed-forward parts: CLIP's ViT, RoBERTa, and CrossLayer below.
OUTPUT_PROJECTIONS = {
    "vision": r"self_attn\.out_proj|mlp\.fc2",
    "language": r"attention\.output\.dense|output\.dense",
    "cross": r"self_attention\.out|cross_attention\.out|feed_forward\.2",
}


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


# --- adapters --------------------------------------------------------------------------------------------


class GeneralAdapter(nn.Module):
    """The general adapter A(f) = W_up GELU(W_down f), eq. 1. W_up starts at zero, so that A is zero at first.

    Args:
        width: D_hidden.
        bottleneck: D_mid (paper: 64).

    Example:
        >>> GeneralAdapter(768, 64)(torch.rand(2, 10, 768)).abs().max().item()
        0.0
    """

    def __init__(self, width: int, bottleneck: int = 64):
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.up(F.gelu(self.down(features)))


class AdaptedLinear(nn.Linear):
    """A linear layer f = Wx + b with a general adapter behind it: f + A(f), the inner part of eq. 2 to 5.

    The names of weight and bias stay those of the plain layer, so a checkpoint of the plain model fits.
    """

    adapter: GeneralAdapter

    @classmethod
    def around(cls, linear: nn.Linear, bottleneck: int) -> "AdaptedLinear":
        """The adapted form of `linear`; the weights are the same tensors, not copies."""
        adapted = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        adapted.weight, adapted.bias = linear.weight, linear.bias
        adapted.adapter = GeneralAdapter(linear.out_features, bottleneck).to(linear.weight.device, linear.weight.dtype)
        return adapted

    def plain(self) -> nn.Linear:
        """The layer without its adapter, with the same tensors."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        return features + self.adapter(features)


def inject_adapters(model: nn.Module, pattern: str, bottleneck: int = 64) -> list[str]:
    """Put a general adapter behind every linear layer whose name ends in `pattern`.

    For any transformer: give the output projections of its attentions and its feed-forward parts, which the
    block's own residual connection and layer norm follow. The outputs of the model don't change at first.

    Args:
        model: changed in place.
        pattern: regular expression for the end of the names, such as "out_proj|fc2".
        bottleneck: D_mid.

    Returns:
        names of the layers.

    Raises:
        ValueError: no linear layer has such a name.

    Example:
        >>> block = nn.TransformerEncoderLayer(32, 4)
        >>> inject_adapters(block, "linear2", bottleneck=8)
        ['linear2']
    """
    ends = re.compile(rf"(?:^|\.)(?:{pattern})$")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ends.search(name)]
    if not names:
        raise ValueError(f"no linear layer's name ends in {pattern!r}")
    for name in names:
        parent, _, child = name.rpartition(".")
        parent = model.get_submodule(parent)
        setattr(parent, child, AdaptedLinear.around(getattr(parent, child), bottleneck))
    return names


def remove_adapters(model: nn.Module) -> int:
    """Take all general adapters out again, in place; returns how many there were."""
    found = [name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    for name in found:
        parent, _, child = name.rpartition(".")
        parent = model.get_submodule(parent)
        setattr(parent, child, getattr(parent, child).plain())
    return len(found)


class FusionAdapter(nn.Module):
    """The modality-fusion adapter, eq. 6 to 12: self-attention over the tokens of both modalities, in D_mid.

    W_up starts at zero and the two layer norms as copies of those that the streams have just passed. They stay
    frozen: the printed shares leave no room for them.

    Args:
        width: D_hidden.
        bottleneck: D_mid, also the width of the attention (paper: 64).
        heads: of the attention (paper: 8).

    Example:
        >>> text, image = FusionAdapter(32, 8, 2)(torch.rand(2, 5, 32), torch.rand(2, 9, 32))
        >>> text.shape, image.shape
        (torch.Size([2, 5, 32]), torch.Size([2, 9, 32]))
    """

    def __init__(self, width: int, bottleneck: int = 64, heads: int = 8):
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.attention = nn.MultiheadAttention(bottleneck, heads, batch_first=True)
        self.text_norm, self.image_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def copy_norms(self, text: nn.LayerNorm, image: nn.LayerNorm) -> None:
        """Start from the output norms of the preceding layers."""
        for own, given in ((self.text_norm, text), (self.image_norm, image)):
            own.load_state_dict(given.state_dict())
            own.eps = given.eps

    def forward(self, text: Tensor, image: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) and (B, V, D) to the same; `text_mask` (B, T) is True at tokens and False at padding."""
        both = self.down(torch.cat([text, image], dim=1))  # eq. 6, 7
        padding = None
        if text_mask is not None:
            padding = F.pad(~text_mask, (0, image.shape[1]), value=False)
        fused, _ = self.attention(both, both, both, key_padding_mask=padding, need_weights=False)  # eq. 8
        of_text, of_image = self.up(fused).split([text.shape[1], image.shape[1]], dim=1)  # eq. 9, 10
        return self.text_norm(of_text + text), self.image_norm(of_image + image)  # eq. 11, 12


# --- backbone --------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention of `x` (B, N, D) over `keys` (B, M, D), without residual; `out` is its last projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
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
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
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
        self.dense = nn.Linear(width, width)

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
        self.text_projection, self.image_projection = nn.Linear(width, width), nn.Linear(width, width)
        self.type_embedding = nn.Embedding(2, width)  # 0 text, 1 image
        self.text_layers, self.image_layers = (
            nn.ModuleList(CrossLayer(width, heads, sizes.dropout) for _ in range(sizes.cross_layers)) for _ in range(2)
        )
        self.fusion = nn.ModuleList()  # filled by `add_fusion`
        self.text_pooler, self.image_pooler = Pooler(width), Pooler(width)
        for part in (self.text_projection, self.image_projection, self.type_embedding, self.text_layers,
                     self.image_layers, self.text_pooler, self.image_pooler):  # fmt: skip
            part.apply(initialise)

    def add_fusion(self, bottleneck: int = 64, heads: int = 8) -> None:
        """A modality-fusion adapter after every block of the cross-modal encoder."""
        device = self.type_embedding.weight.device
        for text_layer, image_layer in zip(self.text_layers, self.image_layers):
            adapter = FusionAdapter(self.sizes.width, bottleneck, heads).to(device)
            adapter.copy_norms(text_layer.output_norm, image_layer.output_norm)
            self.fusion.append(adapter)

    def add_adapters(self, places: tuple[str, ...] = PLACES, bottleneck: int = 64) -> list[str]:
        """General adapters in the given encoders; returns the names of the layers that got one."""
        names = []
        for place in places:
            parts = {"vision": ("vision",), "language": ("language",), "cross": ("text_layers", "image_layers")}[place]
            for part in parts:
                found = inject_adapters(getattr(self, part), OUTPUT_PROJECTIONS[place], bottleneck)
                names += [f"{part}.{name}" for name in found]
        return names

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


def initialise(module: nn.Module) -> None:
    """BERT's initial weights: N(0, 0.02), zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class M3AD(nn.Module):
    """Backbone, adapters and the head over a closed list of answers (or classes).

    Args:
        backbone: changed in place; its adapters are added by `prepare_tuning`.
        answers: A.
    """

    def __init__(self, backbone: M3AE, answers: int):
        super().__init__()
        self.backbone = backbone
        width = 2 * backbone.sizes.width
        layers = (nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, answers))
        self.head = nn.Sequential(*layers).apply(initialise)

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, A); arguments as for `M3AE.forward`."""
        return self.head(self.backbone(image, tokens, mask))


def prepare_tuning(
    model: M3AD,
    tuning: str,
    fusion: bool = False,
    places: tuple[str, ...] = PLACES,
    bottleneck: int = 64,
    fusion_heads: int = 8,
    train_poolers: bool = True,
) -> list[str]:
    """Add adapters and choose what is trained (section 2; M9).

    Args:
        model: changed in place.
        tuning: "head" trains the head alone, "adapters" head and adapters, "full" everything and has no adapters.
        fusion: also modality-fusion adapters (M3AD-Fus).
        places: encoders that get general adapters.
        bottleneck: D_mid of both kinds.
        fusion_heads: of the modality-fusion adapter's attention.
        train_poolers: with adapters, train the two input projections and two poolers of the cross-modal encoder too.

    Returns:
        names of the trained parameters.

    Raises:
        ValueError: an unknown tuning.
    """
    if tuning not in ("head", "adapters", "full"):
        raise ValueError(f"unknown tuning {tuning!r}: expected head, adapters or full")
    backbone = model.backbone
    backbone.requires_grad_(tuning == "full")
    model.head.requires_grad_(True)
    if tuning == "adapters":
        before = {name for name, _ in backbone.named_parameters()}
        backbone.add_adapters(places, bottleneck)
        if fusion:
            backbone.add_fusion(bottleneck, fusion_heads)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name not in before and "_norm." not in name)
        if train_poolers:
            for part in ("text_projection", "image_projection", "text_pooler", "image_pooler"):
                getattr(backbone, part).requires_grad_(True)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def task_state(model: M3AD) -> dict[str, Tensor]:
    """What a task adds to the frozen backbone: trained tensors and the fusion adapters' norms."""
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict()
    return {name: state[name].detach().clone() for name in state if name in kept or "backbone.fusion." in name}


def load_task_state(model: M3AD, state: dict[str, Tensor]) -> None:
    """Swap the task: put `task_state` of another run into a model of the same backbone and settings.

    Raises:
        ValueError: the tensors are those of other adapters, another head or other trained parts.
    """
    own = task_state(model)
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ValueError("the task's tensors are not those of this model's adapters, head and trained parts")
    model.load_state_dict(state, strict=False)


# --- losses ----------------------------------------------------------------------------------------------


def answer_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Binary cross-entropy with one-hot answers, mean over the batch and sum over the answers (M10).

    Args:
        logits: (B, A).
        answer: (B,) number of the right one.

    Example:
        >>> round(answer_loss(torch.zeros(3, 10), torch.tensor([0, 4, 9])).item(), 4)  # 10 ln 2
        6.9315
    """
    target = F.one_hot(answer, logits.shape[-1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target) * logits.shape[-1]


class Pretraining(nn.Module):
    """The stand-in backbone's objectives: masked words and whether image and text match, as M3AE's, and the words of
    the caption out of the pooled features, which otherwise take far longer to hold anything.

    Args:
        backbone: trained in place.
    """

    def __init__(self, backbone: M3AE):
        super().__init__()
        self.backbone = backbone
        width = backbone.sizes.width
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)).apply(initialise)
        self.word_bias = nn.Parameter(torch.zeros(backbone.sizes.vocabulary))
        self.matching = nn.Linear(2 * width, 2).apply(initialise)
        self.content = nn.Linear(2 * width, backbone.sizes.vocabulary).apply(initialise)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the words (B, T, vocabulary), tied to the word embedding, of "matches" (B, 2), and of the
        caption's words out of the pooled features (B, vocabulary)."""
        text, vision = self.backbone.tokens(image, tokens)
        words = F.linear(self.transform(text), self.backbone.language.embeddings.word_embeddings.weight, self.word_bias)
        pooled = torch.cat([self.backbone.text_pooler(text), self.backbone.image_pooler(vision)], dim=-1)
        return words, self.matching(pooled), self.content(pooled)


def pretraining_loss(
    words: Tensor, matching: Tensor, content: Tensor, labels: Tensor, matches: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the masked words of matching pairs, of matching itself, and of the words that a caption has.

    Args:
        words: (B, T, vocabulary) logits.
        matching: (B, 2) logits.
        content: (B, vocabulary) logits.
        labels: (B, T) true token where it was masked, -100 elsewhere.
        matches: (B,) 1 where image and text belong together.
        present: (B, vocabulary) 1 for the words of the caption that the image belongs to.
    """
    labels = torch.where(matches[:, None] == 1, labels, -100)
    chosen = labels != -100
    # A sum over a count that is at least 1: a batch may have no masked word in a matching pair.
    words = F.cross_entropy(words[chosen], labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)
    content = F.binary_cross_entropy_with_logits(content, present, reduction="none")[:, 3:].mean(-1)
    return words, F.cross_entropy(matching, matches), 10 * (content * matches).sum() / matches.sum().clamp(min=1)
