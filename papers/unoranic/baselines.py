"""What unORANIC is compared with beside the autoencoder: supervised ResNets, and two methods without any training.

The mean training image and principal components are the simple controls of the revision experiment: a restored image
that is no better than the former has kept nothing of its input.
"""

import torch
from torch import Tensor, nn


def resnet18(channels: int, classes: int, width: int = 64) -> nn.Module:
    """ResNet-18 for small images, as in the MedMNIST v2 benchmark: a 3x3 stem of stride 1 and no pooling.

    MONAI's, because its width can be chosen; with 64 it computes the same as torchvision's with such a stem.

    Args:
        channels: 1 or 3.
        classes: number of logits.
        width: channels of the first of four stages (MedMNIST: 64).
    """
    from monai.networks.nets import ResNet

    return ResNet(
        block="basic",
        layers=[2, 2, 2, 2],
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        num_classes=classes,
        bias_downsample=False,
    )


class Classifiers(nn.Module):
    """Two ResNets, trained apart as in table 3 and table 4: one for the disease, one for "corrupted or not"."""

    def __init__(self, channels: int, classes: int, width: int = 64):
        super().__init__()
        self.disease = resnet18(channels, classes, width)
        self.corruption = resnet18(channels, 2, width)

    def forward(self, images: Tensor, possibly_corrupted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the disease of `images` and of the corruption of `possibly_corrupted`; both in [0, 1]."""
        return self.disease(2 * images - 1), self.corruption(2 * possibly_corrupted - 1)


class MeanImage(nn.Module):
    """Answers every image with the mean of the training images: images (B, C, H, W) -> (embedding (B, 1), mean)."""

    def __init__(self, training: Tensor):
        super().__init__()
        self.register_buffer("mean", training.mean(0))

    def embed(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(images), self.mean.expand(len(images), -1, -1, -1)


class PrincipalComponents(nn.Module):
    """A linear autoencoder in closed form: projection on the first components of the clean training images.

    Args:
        training: (N, C, H, W).
        count: components, at most N - 1 and C H W.
    """

    def __init__(self, training: Tensor, count: int):
        super().__init__()
        flat = training.flatten(1).double()
        mean = flat.mean(0)
        count = min(count, len(flat) - 1, flat.shape[1])
        components = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:count]
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", components.float())

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, count)."""
        return (images.flatten(1) - self.mean) @ self.components.T

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(embedding (B, count), reconstruction (B, C, H, W))."""
        embedding = self.embed(images)
        return embedding, (self.mean + embedding @ self.components).reshape(images.shape)
