"""The autoencoder baseline: a convolutional variational autoencoder with a dense bottleneck (Baur et al. 2021)."""

import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """Compresses a slice to a vector and rebuilds it; what it has not learnt, it can't rebuild.

    Args:
        height, width: pixels, divisible by 2^len(widths).
        widths: channels of the strided convolutions.
        latent: length of the vector.

    Example:
        >>> mean, spread = VAE(48, 48, (8, 16)).encode(torch.rand(2, 1, 48, 48))
        >>> mean.shape
        torch.Size([2, 128])
    """

    calls_per_slice = 1

    def __init__(self, height: int, width: int, widths: tuple[int, ...] = (32, 64, 128, 128), latent: int = 128):
        super().__init__()
        factor = 2 ** len(widths)
        if height % factor or width % factor:
            raise ValueError(f"height and width must be divisible by {factor}, found {height} and {width}")
        self.small = (widths[-1], height // factor, width // factor)
        size = self.small[0] * self.small[1] * self.small[2]
        layers, before = [], 1
        for after in widths:
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.GroupNorm(4, after), nn.LeakyReLU(0.2)]
            before = after
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.to_mean, self.to_spread = nn.Linear(size, latent), nn.Linear(size, latent)
        self.from_latent = nn.Linear(latent, size)
        layers = []
        for after in (*reversed(widths[:-1]), widths[0]):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(4, after), nn.LeakyReLU(0.2)]
            before = after
        self.decoder = nn.Sequential(*layers, nn.Conv2d(before, 1, 5, padding=2))

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, both (B, latent), of (B, 1, H, W) in [0, 1]."""
        hidden = self.encoder(2 * z - 1)
        return self.to_mean(hidden), self.to_spread(hidden).clamp(-10, 10)

    def decode(self, code: Tensor) -> Tensor:
        """(B, latent) to (B, 1, H, W)."""
        return (self.decoder(self.from_latent(code).view(-1, *self.small)) + 1) / 2

    def forward(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction with a code drawn by `noise` (B, latent), and the code's mean and log variance."""
        mean, spread = self.encode(z)
        return self.decode(mean + (spread / 2).exp() * noise), mean, spread

    def reconstruct(self, z: Tensor) -> Tensor:
        """Reconstruction from the code's mean."""
        return self.decode(self.encode(z)[0])


def kl_divergence(mean: Tensor, spread: Tensor) -> Tensor:
    """KL(N(mean, e^spread) || N(0, 1)), averaged over slices and components of the code."""
    return 0.5 * torch.mean(mean**2 + spread.exp() - 1 - spread)
