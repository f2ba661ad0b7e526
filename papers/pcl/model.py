"""Positional contrastive learning: the masks, the loss, and the 2D U-Net whose encoder it trains.

    from papers.pcl.model import Encoder, ProjectionHead, UNet, contrastive_loss, position_mask

The three methods differ in nothing but the mask of positive pairs: `position_mask` (PCL), `partition_mask`
(GCL) and `instance_mask` (SimCLR). Sizes and names in the text: f is the width, B the slices of a mini-batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("pcl", "gcl", "simclr")

# --- networks --------------------------------------------------------------------------------------------


def _level(inputs: int, outputs: int) -> nn.Sequential:
    """Two times 3x3 convolution, batch norm, LeakyReLU(0.01)."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """Kaiming-normal convolutions (negative slope 0.01) with zero bias (M4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Encoder of the 2D U-Net: four levels of width f, 2f, 4f, 8f and a centre of 16f without norm (M1).

    Args:
        in_channels: of the image.
        width: f; the released code has 32 for CT (CHD, MMWHS) and 48 for MR (ACDC, HVSMR).

    Example:
        >>> features = Encoder(width=8)(torch.zeros(2, 1, 64, 64))
        >>> [tuple(feature.shape[1:]) for feature in features]
        [(8, 64, 64), (16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    """

    def __init__(self, in_channels: int = 1, width: int = 48):
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.levels = nn.ModuleList(_level(a, b) for a, b in zip([in_channels, *widths], widths))
        self.centre = nn.Sequential(
            nn.Conv2d(8 * width, 16 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16 * width, 16 * width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.apply(initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, H, W) to features of five levels, the last (B, 16f, H/16, W/16).

        Raises:
            ValueError: H or W is no multiple of 16.
        """
        if image.shape[-1] % 16 or image.shape[-2] % 16:
            raise ValueError(f"the image must measure multiples of 16 pixels, got {tuple(image.shape[-2:])}")
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
            image = F.max_pool2d(image, 2)
        return [*features, self.centre(image)]


class ProjectionHead(nn.Module):
    """Embedding of a slice: global average pool, Linear 16f to 16f, ReLU, Linear 16f to 512 (M2)."""

    def __init__(self, width: int = 48, embedding: int = 512):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16 * width, 16 * width), nn.ReLU(), nn.Linear(16 * width, embedding))

    def forward(self, centre: Tensor) -> Tensor:
        """(B, 16f, h, w) to (B, embedding), not normalised."""
        return self.layers(centre.mean(dim=(2, 3)))


class ContrastiveNet(nn.Module):
    """What is pre-trained: the encoder and its projection head (M1, M2)."""

    def __init__(self, in_channels: int = 1, width: int = 48, embedding: int = 512):
        super().__init__()
        self.encoder = Encoder(in_channels, width)
        self.head = ProjectionHead(width, embedding)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to embeddings (B, embedding)."""
        return self.head(self.encoder(image)[-1])


class UNet(nn.Module):
    """2D U-Net: the encoder, and a decoder of 2x2 transposed convolutions and skip connections (M1, M3).

    Args:
        in_channels: of the image.
        classes: with the background.
        width: f.

    Example:
        >>> UNet(classes=4, width=4)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(self, in_channels: int = 1, classes: int = 4, width: int = 48):
        super().__init__()
        self.encoder = Encoder(in_channels, width)
        widths = [width * 2**level for level in (3, 2, 1, 0)]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths)
        self.levels = nn.ModuleList(_level(2 * w, w) for w in widths)
        self.head = nn.Conv2d(width, classes, 1, bias=False)
        for part in (self.ups, self.levels, self.head):
            part.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), multiples of 16 pixels, to logits (B, classes, H, W)."""
        *skips, features = self.encoder(image)
        for up, level, skip in zip(self.ups, self.levels, reversed(skips)):
            features = level(torch.cat([up(features), skip], dim=1))
        return self.head(features)


def copy_encoder(encoder: Encoder, target: nn.Module) -> list[str]:
    """Copy an encoder's weights into somebody else's 2D U-Net (M4).

    The convolutions and batch norms are matched one after the other in the order in which `target` registers
    them. That fits any U-Net that begins with two 3x3 convolutions per level; norms that `target` has in its
    centre are left as they are. Batch norms go with their running statistics.

    Returns:
        names of the layers of `target` that were set.

    Raises:
        ValueError: a layer of another shape, or too few layers; `target` is then unchanged.

    Example:
        >>> unet = UNet(width=4)
        >>> len(copy_encoder(Encoder(width=4), unet))
        18
    """
    pairs = []
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        ours = [(name, layer) for name, layer in encoder.named_modules() if isinstance(layer, kind)]
        theirs = [(name, layer) for name, layer in target.named_modules() if isinstance(layer, kind)]
        if len(theirs) < len(ours):
            raise ValueError(f"the encoder has {len(ours)} layers {kind.__name__}, the target only {len(theirs)}")
        for (our_name, ours_layer), (name, layer) in zip(ours, theirs):
            for key, value in ours_layer.state_dict().items():
                found = layer.state_dict().get(key)
                if found is None or found.shape != value.shape:
                    shape = None if found is None else tuple(found.shape)
                    raise ValueError(
                        f"{name}.{key} of the target has the shape {shape}, "
                        f"the encoder's {our_name}.{key} {tuple(value.shape)}"
                    )
            pairs.append((name, layer, ours_layer))
    for _, layer, ours_layer in pairs:
        layer.load_state_dict(ours_layer.state_dict(), strict=False)
    return [name for name, _, _ in pairs]


# --- positive pairs --------------------------------------------------------------------------------------


def slice_positions(slices: int) -> Tensor:
    """Position of every slice of a stack, (i + 1) / n for i = 0 ... n - 1, in (0, 1] (M5)."""
    return (torch.arange(slices, dtype=torch.float64) + 1) / slices


def slice_partitions(slices: int, partitions: int = 4) -> Tensor:
    """Number 0 ... partitions - 1 of the part of the stack that each slice lies in (GCL).

    The released code's parts are n / partitions slices long, rounded half up; what is left over goes to the last one.
    """
    length = max(1, math.floor(slices / partitions + 0.5))
    return (torch.arange(slices) // length).clamp(max=partitions - 1)


def position_mask(positions: Tensor, threshold: float) -> Tensor:
    """PCL: slices are a positive pair where their positions differ by less than t, across volumes (M7).

    Args:
        positions: (B,) of `slice_positions`.
        threshold: t in (0, 1]; 0.1 for CHD, 0.35 for ACDC in the released code.

    Returns:
        (B, B) bool, True on the diagonal: a slice and its own other view are always a positive pair.

    Raises:
        ValueError: a threshold that is not positive.
    """
    if threshold <= 0:
        raise ValueError(f"the threshold must be positive, got {threshold}")
    # Positions are fractions: 0.4 - 0.05 < 0.35 must not depend on how they are rounded.
    return (positions[:, None] - positions[None, :]).abs() < threshold - 1e-6


def partition_mask(partitions: Tensor) -> Tensor:
    """GCL: slices of the same partition are positive pairs; (B,) to (B, B) bool."""
    return partitions[:, None] == partitions[None, :]


def instance_mask(batch: int, device: torch.device | None = None) -> Tensor:
    """SimCLR: a slice's only positive is its own other view; (B, B) bool, the identity."""
    return torch.eye(batch, dtype=torch.bool, device=device)


def positive_mask(method: str, positions: Tensor, partitions: Tensor, threshold: float) -> Tensor:
    """(B, B) bool: the mask of one of METHODS."""
    if method == "pcl":
        return position_mask(positions, threshold)
    if method == "gcl":
        return partition_mask(partitions)
    if method == "simclr":
        return instance_mask(len(positions), positions.device)
    raise ValueError(f"there is no method {method!r}: choose one of {METHODS}")


def false_negative_rate(mask: Tensor, positions: Tensor, threshold: float) -> Tensor:
    """Share of the pairs of different slices with |difference| < t that `mask` calls negative, per slice (B,).

    NaN for a slice that has no such pair.
    """
    near = position_mask(positions, threshold).fill_diagonal_(False)
    return (near & ~mask).sum(1) / near.sum(1)


def contrastive_loss(
    first: Tensor, second: Tensor, mask: Tensor, temperature: float = 0.1, base_temperature: float = 0.07
) -> Tensor:
    """Contrastive loss with several positives per anchor (M8), in float32.

    L = (T / T0) mean_a [ -1/|P(a)| sum_{p in P(a)} log( exp(s_ap / T) / sum_{q != a} exp(s_aq / T) ) ], over
    the 2B anchors a = all first views, then all second views (M6). s is the cosine; both views of a positive
    slice are positive, and a itself is neither in P(a) nor in the sum. The least value is not 0: with k
    positives in perfect agreement and far from all others it is (T / T0) log k.

    Args:
        first, second: (B, D) embeddings of the two views, not normalised.
        mask: (B, B) bool, symmetric, True on the diagonal.
        temperature: T.
        base_temperature: T0.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> z = torch.randn(8, 16)
        >>> loss = contrastive_loss(z, z, position_mask(slice_positions(8), 0.35))
    """
    embeddings = F.normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    positive = mask.repeat(2, 2) & ~itself
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = logits.log_softmax(dim=1).masked_fill(itself, 0)
    per_anchor = -(log_probability * positive).sum(1) / positive.sum(1)
    return temperature / base_temperature * per_anchor.mean()
