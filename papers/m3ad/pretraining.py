"""Objectives of the stand-in backbone, which is pre-trained where the released weights are not at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.m3ad.m3ae import M3AE, BertLinear


class Pretraining(nn.Module):
    """Two of M3AE's objectives: masked words, and whether image and text match. Its masked image patches are left out.

    The output for the masked words is tied to the word embedding, but not for words that no caption holds: these are
    never right, and a tied output would push all of them to one vector, so that questions made of them were the same
    to the frozen backbone.

    Args:
        backbone: trained in place.
        absent: first and last (excluded) number of the tokens that no caption holds.
    """

    def __init__(self, backbone: M3AE, absent: tuple[int, int] = (0, 0)):
        super().__init__()
        self.backbone, self.absent = backbone, absent
        width = backbone.sizes.width
        self.transform = nn.Sequential(BertLinear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(backbone.sizes.vocabulary))
        self.matching = BertLinear(2 * width, 2)

    @property
    def embedding(self) -> nn.Embedding:
        """Of the words."""
        return self.backbone.language.embeddings.word_embeddings

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the words (B, T, vocabulary) and, out of the pooled features, of "matches" (B, 2)."""
        text, vision = self.backbone.tokens(image, tokens)
        first, last = self.absent
        table = self.embedding.weight
        table = torch.cat([table[:first], table[first:last].detach(), table[last:]])
        words = F.linear(self.transform(text), table, self.word_bias)
        pooled = torch.cat([self.backbone.text_pooler(text), self.backbone.image_pooler(vision)], dim=-1)
        return words, self.matching(pooled)


def pretraining_loss(words: Tensor, matching: Tensor, labels: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the masked words of matching pairs, and of matching itself.

    Args:
        words: (B, T, vocabulary) logits.
        matching: (B, 2) logits.
        labels: (B, T) true token where it was masked, -100 elsewhere.
        matches: (B,) 1 where image and text belong together.
    """
    labels = torch.where(matches[:, None] == 1, labels, -100)
    chosen = labels != -100
    # A sum over a count that is at least 1: a batch may have no masked word in a matching pair.
    words = F.cross_entropy(words[chosen], labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)
    return words, F.cross_entropy(matching, matches)
