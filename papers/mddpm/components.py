"""The simple control: principal components of healthy slices. What they can't express is abnormal."""

import torch
from torch import Tensor, nn


class PrincipalComponents(nn.Module):
    """Mean and leading principal components of slices; a reconstruction is the projection onto them.

    Args:
        height, width: pixels.
        number: components; those that the slices don't have are 0.

    Example:
        >>> model = PrincipalComponents(6, 4, number=3)
        >>> model.fit(torch.rand(20, 1, 6, 4))
        >>> model.reconstruct(torch.rand(2, 1, 6, 4)).shape
        torch.Size([2, 1, 6, 4])
    """

    calls_per_slice = 0

    def __init__(self, height: int, width: int, number: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(height * width))
        self.register_buffer("components", torch.zeros(number, height * width))

    def fit(self, slices: Tensor) -> None:
        """Mean and components of (N, 1, H, W)."""
        flat = slices.flatten(1)
        self.mean.copy_(flat.mean(0))
        found = torch.linalg.svd(flat - self.mean, full_matrices=False)[2][: len(self.components)]
        self.components[: len(found)] = found

    def reconstruct(self, z: Tensor) -> Tensor:
        """(B, 1, H, W) to the nearest slice that the components express."""
        codes = (z.flatten(1) - self.mean) @ self.components.T
        return (self.mean + codes @ self.components).view_as(z)
