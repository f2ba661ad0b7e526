"""Stage 1 of CUTS: the pixel-centred patch encoder and its two losses (sections 3.1.1 to 3.1.3, appendix A)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """Convolutional encoder without pooling: one embedding per pixel (appendix A, table S1; M1).

    Four times [Conv 5x5, BatchNorm, LeakyReLU]. The embedding of a pixel sees the 17x17 patch around it.
    Borders are replicated: zero padding would make the frame of the image a cluster of its own.

    Args:
        channels: of the image: 1 (MRI) or 3 (photograph).
        widths: filters of the four layers; the last one is the dimension d of the embedding.

    Example:
        >>> encoder = Encoder(channels=3)
        >>> encoder(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 128, 32, 32])
        >>> sum(p.numel() for p in encoder.parameters())
        270720
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths):
            layers += [
                nn.Conv2d(before, after, 5, padding=2, padding_mode="replicate"),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, d, H, W)."""
        return self.layers(image)


class CUTS(nn.Module):
    """Encoder and patch reconstruction, which are trained together (sections 3.1.1 and 3.1.2).

    Args:
        channels, widths: see `Encoder`.
        patch: side p of the reconstructed patch in pixels.

    Example:
        >>> model = CUTS(channels=1, widths=(4, 8), patch=5)
        >>> pixels = torch.randint(2, 30, (2, 16, 2))
        >>> embeddings, reconstruction = model(torch.rand(2, 1, 32, 32), pixels)
        >>> embeddings.shape, reconstruction.shape
        (torch.Size([2, 16, 8]), torch.Size([2, 16, 25]))
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (16, 32, 64, 128), patch: int = 5):
        super().__init__()
        self.encoder = Encoder(channels, widths)
        self.reconstruct = nn.Linear(widths[-1], channels * patch**2)  # f_recon, M6

    def forward(self, image: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, S, d) of `pixels` and the patches (B, S, C p p) reconstructed from them.

        Args:
            image: (B, C, H, W) in [-1, 1].
            pixels: (B, S, 2), row and column.
        """
        embeddings = take_pixels(self.encoder(image), pixels)
        return embeddings, self.reconstruct(embeddings)


def take_pixels(maps: Tensor, pixels: Tensor) -> Tensor:
    """Values (B, S, C) of `maps` (B, C, H, W) at `pixels` (B, S, 2), row and column."""
    flat = (pixels[..., 0] * maps.shape[-1] + pixels[..., 1])[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, flat).transpose(1, 2)


def contrastive_loss(anchors: Tensor, positives: Tensor, temperature: float = 0.5) -> Tensor:
    """Intra-image contrastive loss (section 3.1.1; M4 and M5), mean over the images.

    Per image -log( sum_i exp(s(z_i, z_i+) / tau) / sum_{i != j} exp(s(z_i, z_j+) / tau) ) with the cosine s.
    The negatives of an anchor are the positives of the other anchors of the *same* image. The sums are taken
    before the logarithm, and the positive pairs are not in the denominator: the loss can be negative.

    Args:
        anchors, positives: (B, S, d) with S >= 2, not necessarily of length 1.
        temperature: tau.

    Example:
        >>> z = torch.eye(4)[None]  # S = 4: positives are alike, all others are orthogonal
        >>> round(contrastive_loss(z, z, temperature=0.5).item(), 4)  # -log(4 e^2 / 12)
        -0.9014
    """
    anchors, positives = F.normalize(anchors.float(), dim=-1), F.normalize(positives.float(), dim=-1)
    similarity = anchors @ positives.transpose(1, 2) / temperature  # (B, S, S)
    same = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    of_pairs = similarity.diagonal(dim1=1, dim2=2).logsumexp(1)
    of_others = similarity.masked_fill(same, -torch.inf).flatten(1).logsumexp(1)
    return (of_others - of_pairs).mean()


def reconstruction_loss(reconstruction: Tensor, patches: Tensor) -> Tensor:
    """Local patch reconstruction (section 3.1.2; M6): mean squared error over (B, S, C p p)."""
    return F.mse_loss(reconstruction.float(), patches.float())


def cuts_loss(contrastive: Tensor, reconstruction: Tensor, weight: float = 0.01) -> Tensor:
    """Section 3.1.3 (M7): weight * contrastive + (1 - weight) * reconstruction; the paper's lambda is 0.01."""
    return weight * contrastive + (1 - weight) * reconstruction


@torch.no_grad()
def embed(model: CUTS, image: Tensor) -> Tensor:
    """Embedding of every pixel, rows of length 1: (C, H, W) in [-1, 1] -> (H * W, d).

    The model must be in evaluation mode.

    Raises:
        ValueError: the model is in training mode, where batch norm would depend on this image.
    """
    if model.training:
        raise ValueError("call model.eval() first: batch norm must use its running statistics")
    embedding = model.encoder(image[None])[0].float()
    return F.normalize(embedding.flatten(1).T, dim=1).contiguous()
