"""unORANIC: two encoders, two decoders, and the losses that drive anatomy and image characteristics apart.

    from papers.unoranic.model import UnOranic
    model = UnOranic(channels=3)
    found = model(torch.rand(4, 3, 28, 28))          # .anatomy, .characteristics, .restored, .reconstruction

Images are (B, C, H, W) in [0, 1], side 28 times a power of two. Network outputs are not clipped.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

SIDES = (28, 56, 112, 224)


class ResidualBlock(nn.Module):
    """x + twice (3x3 convolution, batch norm, LeakyReLU), channels unchanged (section 2.2)."""

    def __init__(self, channels: int):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(0.01),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def resampling_block(convolution: nn.Module, channels: int, linear: bool) -> nn.Sequential:
    """Strided (transposed) convolution, batch norm, LeakyReLU; `linear` leaves the LeakyReLU out."""
    activation = nn.Identity() if linear else nn.LeakyReLU(0.01)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), activation)


def stages(channels: int, width: int, latent: int, side: int) -> list[tuple[int, int, int]]:
    """(channels in, channels out, kernel) of each halving: 28 -> 14 -> 7 -> 3 -> 1 for the paper's 28 pixels.

    Larger images get more stages of `width` channels at the front.

    Raises:
        ValueError: a side that is none of `SIDES`.
    """
    if side not in SIDES:
        raise ValueError(f"images must have a side of {', '.join(map(str, SIDES))} pixels, not {side}")
    more = SIDES.index(side)
    planes = [channels, *[width] * (more + 1), 2 * width, 4 * width, latent]
    kernels = [4] * (more + 2) + [5, 5]
    return list(zip(planes, planes[1:], kernels))


class Encoder(nn.Module):
    """E_A and E_C (M1): residual block and strided convolution, four times; (B, C, 28, 28) -> (B, latent).

    Args:
        channels: 1 or 3.
        width: channels after the first stage (paper: 32), doubled at each further one.
        latent: length of the embedding (paper: 256).
        side: of the images, in pixels.
        linear: no activation after the strided convolutions, which is what the released code computes; False is the
            LeakyReLU of the text.
    """

    def __init__(self, channels: int, width: int = 32, latent: int = 256, side: int = 28, linear: bool = True):
        super().__init__()
        layers = []
        for inside, outside, kernel in stages(channels, width, latent, side):
            convolution = nn.Conv2d(inside, outside, kernel, stride=2, padding=1, bias=False)
            layers += [ResidualBlock(inside), resampling_block(convolution, outside, linear)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)


class Decoder(nn.Module):
    """D_A and D (M2): the encoder mirrored, (B, latent) -> (B, C, 28, 28), without an activation at the end.

    Arguments as for `Encoder`; `latent` is 256 for D_A and 512 for D, which sees both embeddings. With `grey_start`
    the untrained decoder gives images around mid-grey with a standard deviation of 0.2, instead of 0 and 1: batch
    norm's scale moves by the learning rate per update at most, which a short training can't afford.
    """

    def __init__(self, channels: int, width=32, latent=256, side=28, linear=True, grey_start: bool = False):
        super().__init__()
        layers = []
        for outside, inside, kernel in reversed(stages(channels, width, latent, side)):
            convolution = nn.ConvTranspose2d(inside, outside, kernel, stride=2, padding=1, bias=False)
            layers += [resampling_block(convolution, outside, linear), ResidualBlock(outside)]
        self.layers = nn.Sequential(*layers)
        self.grey_start = grey_start
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What differs from the layers' own initial weights."""
        if self.grey_start:
            nn.init.constant_(self.layers[-2][1].weight, 0.2)
            nn.init.constant_(self.layers[-2][1].bias, 0.5)
            nn.init.zeros_(self.layers[-1].layers[4].weight)  # the last residual block starts as the identity

    def forward(self, embedding: Tensor) -> Tensor:
        return self.layers(embedding[:, :, None, None])


class Orthogonalised(NamedTuple):
    """What unORANIC makes of a batch of (possibly corrupted) images S."""

    anatomy: Tensor
    """E_A(S), (B, latent); with variants (1 + V, B, latent), S first"""
    characteristics: Tensor
    """E_C(S), (B, latent)"""
    restored: Tensor
    """Î_A = D_A(E_A(S)), the image without corruption, (B, C, H, W)"""
    reconstruction: Tensor
    """Ŝ = D(E_A(S) ⊕ E_C(S)), the image as it came, (B, C, H, W)"""


class UnOranic(nn.Module):
    """The two branches (M3, figure 2). Arguments as for `Encoder` and `Decoder`.

    >>> model = UnOranic(channels=1, width=4, latent=8)
    >>> found = model(torch.rand(2, 1, 28, 28), torch.rand(3, 2, 1, 28, 28))
    >>> found.anatomy.shape, found.characteristics.shape, found.restored.shape
    (torch.Size([4, 2, 8]), torch.Size([2, 8]), torch.Size([2, 1, 28, 28]))
    """

    def __init__(self, channels: int, width=32, latent=256, side=28, linear=True, grey_start: bool = False):
        super().__init__()
        sizes = {"channels": channels, "width": width, "side": side, "linear": linear}
        self.anatomy_encoder = Encoder(latent=latent, **sizes)
        self.characteristic_encoder = Encoder(latent=latent, **sizes)
        self.anatomy_decoder = Decoder(latent=latent, grey_start=grey_start, **sizes)
        self.decoder = Decoder(latent=2 * latent, grey_start=grey_start, **sizes)

    def forward(self, images: Tensor, variants: Tensor | None = None) -> Orthogonalised:
        """`images` S (B, C, H, W); in training, `variants` (V, B, C, H, W) are other corruptions of the same.

        S and its variants go through E_A as one batch, so that batch norm treats them alike.
        """
        if variants is None:
            anatomy = embeddings = self.anatomy_encoder(images)
        else:
            embeddings = self.anatomy_encoder(torch.cat([images, variants.flatten(0, 1)]))
            embeddings = embeddings.unflatten(0, (1 + len(variants), len(images)))
            anatomy = embeddings[0]
        characteristics = self.characteristic_encoder(images)
        reconstruction = self.decoder(torch.cat([anatomy, characteristics], dim=1))
        return Orthogonalised(embeddings, characteristics, self.anatomy_decoder(anatomy), reconstruction)


class AutoEncoder(nn.Module):
    """The vanilla autoencoder (M7): layout (and, with the same seed, initial weights) of E_A and D_A, trained to give
    back its input."""

    def __init__(self, channels: int, width=32, latent=256, side=28, linear=True, grey_start: bool = False):
        super().__init__()
        self.anatomy_encoder = Encoder(channels, width, latent, side, linear)
        self.anatomy_decoder = Decoder(channels, width, latent, side, linear, grey_start)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(embedding (B, latent), reconstruction (B, C, H, W))."""
        embedding = self.anatomy_encoder(images)
        return embedding, self.anatomy_decoder(embedding)


def consistency_loss(embeddings: Tensor) -> Tensor:
    """L_C, eq. 1: mean over all pairs of variants of the squared distance of their embeddings.

    Args:
        embeddings: (V, B, latent), the embeddings of S and its variants. The squared distance is averaged over
            batch and latent (released code, 26349cb); the text prints a norm. 0 without variants.
    """
    pairs = list(combinations(range(len(embeddings)), 2))
    if not pairs:
        return embeddings.new_zeros(())
    first, second = (embeddings[list(index)] for index in zip(*pairs))
    return (first - second).square().mean()


def unoranic_loss(
    clean: Tensor, corrupted: Tensor, found: Orthogonalised, reconstruction_weight=1.0, consistency_weight=1.0
) -> dict[str, Tensor]:
    """Eq. 4: λ_r (L_RI + L_RS) + λ_c L_C, and its parts.

    Args:
        clean: I, (B, C, H, W).
        corrupted: S, the network's input.
        found: its output in training, with variants.

    Returns:
        "loss", and "restoration" L_RI (eq. 3), "reconstruction" L_RS (eq. 2), "consistency" L_C (eq. 1). E_C and D
        get a gradient from L_RS alone, because nothing else depends on them.
    """
    restoration = nn.functional.mse_loss(found.restored, clean)
    reconstruction = nn.functional.mse_loss(found.reconstruction, corrupted)
    consistency = consistency_loss(found.anatomy)
    loss = reconstruction_weight * (restoration + reconstruction) + consistency_weight * consistency
    return {
        "loss": loss,
        "restoration": restoration,
        "reconstruction": reconstruction,
        "consistency": consistency,
    }
