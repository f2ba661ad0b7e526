"""The contribution: coarse- and fine-grained contrast between lesion and normal tissue, on any encoder's features.

`CGC(channels)(features, proposal)` needs a feature map of some regions and the proposal P of the same regions, and
gives the two losses. `UNet3d` is the backbone, `Segmenter` both together; after training only the backbone is used.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.distributed import gather

LESION, NORMAL, IGNORE = 1, 0, -1


# --- classes of regions and cells, from P alone ------------------------------------------------------------


def region_classes(proposal: Tensor, lesion_coverage: float = 0.02, normal_coverage: float = 0.001) -> Tensor:
    """One class per region (M4): int64 (B,), 1 lesion, 0 normal, -1 neither for sure.

    Args:
        proposal: P of each region, (B, D, H, W) in 0..1.
        lesion_coverage: a lesion region is covered by P at least this much.
        normal_coverage: a normal region at most this much.
    """
    coverage = proposal.float().flatten(1).mean(1)
    classes = torch.full_like(coverage, IGNORE, dtype=torch.long)
    classes[coverage >= lesion_coverage] = LESION
    classes[coverage <= normal_coverage] = NORMAL
    return classes


def cell_classes(proposal: Tensor, grid: tuple[int, int, int], lesion: float = 0.5, normal: float = 0.02) -> Tensor:
    """C(x̃_i) of each cell (M5): int64 (B, cells), 1 lesion, 0 normal, -1 for cells that P cuts through.

    Args:
        proposal: P of each region, (B, D, H, W) in 0..1.
        grid: cells along z, y, x; the paper's 6×6×4 (x, y, z) is (4, 6, 6).
        lesion: P covers more than this fraction of a lesion cell.
        normal: P covers less than this fraction of a normal cell.
    """
    coverage = F.adaptive_avg_pool3d(proposal.float()[:, None], grid).flatten(1)
    classes = torch.full_like(coverage, IGNORE, dtype=torch.long)
    classes[coverage > lesion] = LESION
    classes[coverage < normal] = NORMAL
    return classes


# --- the fine-grained loss (M6) ---------------------------------------------------------------------------


def similarity(x: Tensor, y: Tensor, kind: str = "cosine") -> Tensor:
    """sim of all pairs, (N, C) and (M, C) -> (N, M).

    "cosine" is x·y / (‖x‖ ‖y‖). "printed" is the poster's x·y / (‖x‖ + ‖y‖), which for unit vectors is half of it.
    """
    product = x @ y.T
    length_x, length_y = x.norm(dim=1)[:, None], y.norm(dim=1)[None, :]
    if kind == "cosine":
        return product / (length_x * length_y).clamp(min=1e-8)
    if kind == "printed":
        return product / (length_x + length_y).clamp(min=1e-8)
    raise ValueError(f"sim must be cosine or printed, got {kind!r}")


def pick(candidates: Tensor, most: int) -> Tensor:
    """At most `most` of the candidates, evenly spaced: the same in every process, without drawing."""
    if len(candidates) <= most:
        return candidates
    return candidates[torch.linspace(0, len(candidates) - 1, most, device=candidates.device).round().long()]


def fine_loss(
    embeddings: Tensor,
    classes: Tensor,
    temperature: float = 0.2,
    sim: str = "cosine",
    anchors: str = "lesion",
    most_lesion: int = 256,
    most_normal: int = 512,
) -> Tensor:
    """L_cl^fg over all cells of a batch: the formula of the poster, averaged over the anchors.

    For an anchor i, -1/|Ω⁺| Σ_{x⁺ ∈ Ω⁺} log( exp(sim(z̃_i, z̃_x⁺)/τ) / Σ_{x ∈ Ω'} exp(sim(z̃_i, z̃_x)/τ) ), where Ω⁺
    are the other cells of its class and Ω' all other cells. An anchor without a positive is left out; without any
    anchor the loss is 0 and has a gradient of 0.

    Args:
        embeddings: (N, C), z̃ of all cells.
        classes: (N,), 1 lesion, 0 normal, -1 not used.
        temperature: τ.
        sim: see `similarity`.
        anchors: "lesion" (the formula) or "both".
        most_lesion, most_normal: cells that are used at most.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> fine_loss(z, torch.tensor([1, 1, 0]), temperature=1.0)  # -log(e / (e + 1))
        tensor(0.3133)
    """
    if anchors not in ("lesion", "both"):
        raise ValueError(f"anchors must be lesion or both, got {anchors!r}")
    lesion = pick((classes == LESION).nonzero()[:, 0], most_lesion)
    normal = pick((classes == NORMAL).nonzero()[:, 0], most_normal)
    used = torch.cat([lesion, normal])
    is_lesion = torch.arange(len(used), device=used.device) < len(lesion)
    z = embeddings[used].float()
    logits = similarity(z, z, sim) / temperature
    itself = torch.eye(len(used), dtype=torch.bool, device=z.device)
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = (is_lesion[:, None] == is_lesion[None, :]) & ~itself
    anchor = positive.any(1) if anchors == "both" else positive.any(1) & is_lesion
    if not anchor.any():
        return embeddings.sum() * 0.0
    mean_over_positives = torch.where(positive, log_share, 0.0).sum(1) / positive.sum(1).clamp(min=1)
    return -mean_over_positives[anchor].mean()


class CGCLosses(NamedTuple):
    """What the two paths give; 0 for a path that is off."""

    coarse: Tensor
    fine: Tensor


class CGC(nn.Module):
    """Cross-grained contrast: the coarse (M4) and the fine path (M5, M6) on the features of lesion and normal regions.

    Coarse: mean of the feature map → Linear → ReLU → Linear to 2 classes, cross-entropy with the region's class.
    Fine: feature map averaged (or interpolated) to a grid of cells → 1³ conv → ReLU → 1³ conv → unit vectors, the
    contrastive loss above over the cells of the whole batch, of all processes.

    Args:
        channels: of the feature map.
        grid: cells along z, y, x.
        embedding: length of an embedding.
        temperature: τ.
        coarse, fine: which paths there are.
        sim, anchors: see `fine_loss`.
        coverage: P covers at least / at most this fraction of a lesion / normal region.
        cell_coverage: P covers more / less than this fraction of a lesion / normal cell.

    Example:
        >>> module = CGC(channels=16, grid=(2, 3, 3))
        >>> features = torch.rand(2, 16, 2, 3, 3, requires_grad=True)  # of any encoder
        >>> proposal = torch.zeros(2, 8, 12, 12)
        >>> proposal[0, :5, :7, :7] = 1.0  # the first region has a lesion, the second is normal
        >>> losses = module(features, proposal)
        >>> (losses.coarse + losses.fine).backward()
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int, int] = (4, 6, 6),
        embedding: int = 128,
        temperature: float = 0.2,
        coarse: bool = True,
        fine: bool = True,
        sim: str = "cosine",
        anchors: str = "lesion",
        coverage: tuple[float, float] = (0.02, 0.001),
        cell_coverage: tuple[float, float] = (0.5, 0.02),
    ):
        super().__init__()
        self.grid, self.temperature, self.sim, self.anchors = tuple(grid), temperature, sim, anchors
        self.coverage, self.cell_coverage = coverage, cell_coverage
        self.coarse = self.fine = None
        if coarse:
            self.coarse = nn.Sequential(nn.Linear(channels, embedding), nn.ReLU(), nn.Linear(embedding, 2))
        if fine:
            self.fine = nn.Sequential(nn.Conv3d(channels, channels, 1), nn.ReLU(), nn.Conv3d(channels, embedding, 1))

    def embed(self, features: Tensor) -> Tensor:
        """z̃ of every cell: (B, channels, d, h, w) -> (B, cells, embedding), unit vectors."""
        if any(have < cells for have, cells in zip(features.shape[2:], self.grid)):
            features = F.interpolate(features, self.grid, mode="trilinear", align_corners=False)
        cells = F.adaptive_avg_pool3d(features, self.grid)
        return F.normalize(self.fine(cells).flatten(2).transpose(1, 2).float(), dim=2)

    def forward(self, features: Tensor, proposal: Tensor) -> CGCLosses:
        """Losses of a batch of regions.

        Args:
            features: (B, channels, d, h, w) of any encoder.
            proposal: (B, D, H, W), P of the same regions in 0..1, at any resolution.
        """
        nothing = features.sum().float() * 0.0
        coarse = fine = nothing
        if self.coarse is not None:
            logits = gather(self.coarse(features.mean((2, 3, 4))).float())
            classes = gather(region_classes(proposal, *self.coverage))
            known = classes != IGNORE
            coarse = F.cross_entropy(logits[known], classes[known]) if known.any() else logits.sum() * 0.0
        if self.fine is not None:
            embeddings = gather(self.embed(features))
            classes = gather(cell_classes(proposal, self.grid, *self.cell_coverage))
            fine = fine_loss(embeddings.flatten(0, 1), classes.flatten(), self.temperature, self.sim, self.anchors)
        return CGCLosses(coarse, fine)


# --- the backbone (M2) ------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """L_seg(P) (M2): half cross-entropy, half soft Dice of the lesion, per region.

    Args:
        logits: (B, 2, D, H, W).
        mask: (B, D, H, W), 0 or 1.
    """
    logits = logits.float()
    cross_entropy = F.cross_entropy(logits, mask.long())
    lesion, mask = logits.softmax(1)[:, 1].flatten(1), mask.flatten(1).float()
    dice = (2 * (lesion * mask).sum(1) + 1) / (lesion.sum(1) + mask.sum(1) + 1)
    return 0.5 * cross_entropy + 0.5 * (1 - dice.mean())


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True) if kind == "instance" else nn.BatchNorm3d(channels)


def _conv(channels_in: int, channels_out: int, norm: str, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [conv, _norm(norm, channels_out), nn.LeakyReLU(0.01)]


class UNet3d(nn.Module):
    """3-D U-Net: two convolutions a level, strided convolutions down, transposed ones up.

    Args:
        channels: of the image.
        classes: of the output.
        widths: channels of each level, full resolution first; every level after the first halves the resolution.
        norm: "instance" or "batch".

    Example:
        >>> net = UNet3d(1, widths=(4, 8))
        >>> logits, features = net(torch.rand(1, 1, 4, 8, 8))
        >>> logits.shape, features[-1].shape
        (torch.Size([1, 2, 4, 8, 8]), torch.Size([1, 8, 2, 4, 4]))
    """

    def __init__(
        self,
        channels: int,
        classes: int = 2,
        widths: tuple[int, ...] = (32, 64, 128, 256, 320),
        norm: str = "instance",
    ):
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            before, stride = (channels, 1) if level == 0 else (widths[level - 1], 2)
            self.down.append(nn.Sequential(*_conv(before, width, norm, stride), *_conv(width, width, norm)))
        for width, below in reversed(list(zip(widths, widths[1:]))):
            self.up.append(nn.ConvTranspose3d(below, width, 2, stride=2))
            self.merge.append(nn.Sequential(*_conv(2 * width, width, norm), *_conv(width, width, norm)))
        self.head = nn.Conv3d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, channels, D, H, W), sizes divisible by `stride` -> logits (B, classes, D, H, W) and the encoder's
        feature maps, full resolution first."""
        features, x = [], image
        for block in self.down:
            x = block(x)
            features.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(features[:-1])):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x), features


class Output(NamedTuple):
    """Of `Segmenter.forward`."""

    logits: Tensor
    losses: CGCLosses | None


class Segmenter(nn.Module):
    """Backbone and CGC module together (M2-M6). The deepest feature map that has at least the grid's cells is used.

    Args:
        backbone: a `UNet3d`.
        patch: size of a region (z, y, x).
        cgc: arguments of `CGC` but the channels; None for the backbone alone.
    """

    def __init__(self, backbone: UNet3d, patch: tuple[int, int, int], cgc: dict | None = None):
        super().__init__()
        self.backbone = backbone
        self.level, self.cgc = 0, None
        if cgc is not None:
            widths = [block[0].out_channels for block in backbone.down]
            fits = [
                level
                for level in range(len(widths))
                if all(size // 2**level >= cells for size, cells in zip(patch, cgc["grid"]))
            ]
            self.level = fits[-1] if fits else 0
            self.cgc = CGC(widths[self.level], **cgc)

    def forward(self, image: Tensor, proposal: Tensor | None = None) -> Output:
        """(B, C, D, H, W) -> logits (B, 2, D, H, W); with P (B, D, H, W) also the two contrast losses."""
        logits, features = self.backbone(image)
        if self.cgc is None or proposal is None:
            return Output(logits, None)
        return Output(logits, self.cgc(features[self.level], proposal))
