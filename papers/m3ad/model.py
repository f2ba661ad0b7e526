"""M3AD's contribution: general adapters, the modality-fusion adapter, and what is trained beside a frozen backbone.

    from papers.m3ad.model import inject_adapters
    inject_adapters(any_transformer, "out_proj|fc2", bottleneck=64)

B is the batch, T text tokens, V image tokens (patches and a class token), D the width, A the number of answers.
The backbone is in `m3ae.py`.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.m3ad.m3ae import M3AE, BertLinear

PLACES = ("vision", "language", "cross")
# Output projections of attentions and feed-forward parts: CLIP's ViT, RoBERTa, and M3AE's CrossLayer.
OUTPUT_PROJECTIONS = {
    "vision": r"self_attn\.out_proj|mlp\.fc2",
    "language": r"attention\.output\.dense|output\.dense",
    "cross": r"self_attention\.out|cross_attention\.out|feed_forward\.2",
}


# --- adapters --------------------------------------------------------------------------------------------


class Down(nn.Linear):
    """Down-projection of an adapter; starts from N(0, 0.02)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class Up(nn.Linear):
    """Up-projection of an adapter; starts at zero, so that the adapter adds nothing at first."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


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
        self.down, self.up = Down(width, bottleneck), Up(bottleneck, width)

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
        self.down, self.up = Down(width, bottleneck), Up(bottleneck, width)
        self.attention = nn.MultiheadAttention(bottleneck, heads, batch_first=True)
        self.text_norm, self.image_norm = nn.LayerNorm(width), nn.LayerNorm(width)

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


def add_adapters(backbone: M3AE, places: tuple[str, ...] = PLACES, bottleneck: int = 64) -> list[str]:
    """General adapters in the given encoders (section 2.2); returns the names of the layers that got one."""
    names = []
    for place in places:
        parts = {"vision": ("vision",), "language": ("language",), "cross": ("text_layers", "image_layers")}[place]
        for part in parts:
            found = inject_adapters(getattr(backbone, part), OUTPUT_PROJECTIONS[place], bottleneck)
            names += [f"{part}.{name}" for name in found]
    return names


def add_fusion(backbone: M3AE, bottleneck: int = 64, heads: int = 8) -> None:
    """A modality-fusion adapter after every block of the cross-modal encoder (section 2.2)."""
    device = backbone.type_embedding.weight.device
    for text_layer, image_layer in zip(backbone.text_layers, backbone.image_layers):
        adapter = FusionAdapter(backbone.sizes.width, bottleneck, heads).to(device)
        adapter.copy_norms(text_layer.output_norm, image_layer.output_norm)
        backbone.fusion.append(adapter)


# --- the task --------------------------------------------------------------------------------------------


class M3AD(nn.Module):
    """Backbone, adapters and the head over a closed list of answers (or classes).

    Args:
        backbone: changed in place; `prepare_tuning` adds its adapters.
        answers: A.
    """

    def __init__(self, backbone: M3AE, answers: int):
        super().__init__()
        self.backbone = backbone
        width = 2 * backbone.sizes.width
        layers = (BertLinear(width, width), nn.LayerNorm(width), nn.GELU(), BertLinear(width, answers))
        self.head = nn.Sequential(*layers)

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
        add_adapters(backbone, places, bottleneck)
        if fusion:
            add_fusion(backbone, bottleneck, fusion_heads)
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
