"""The simple control: labels of the M patients, averaged at each height of the stack, copied to the test patient."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.pcl.augmentation import crop_or_pad
from papers.pcl.data import Stack
from papers.pcl.model import slice_positions


class Atlas(nn.Module):
    """Mean label maps at `heights` positions along the stack, about the middle of the slice; no weight is trained.

    Args:
        classes: with the background.
        size: side of the maps in pixels; beyond them everything is background.
        heights: number of positions.
    """

    def __init__(self, classes: int, size: int, heights: int = 20):
        super().__init__()
        self.register_buffer("maps", torch.zeros(heights, classes, size, size))

    def fill(self, stacks: Sequence[Stack]) -> None:
        """Average the labelled stacks: at each height the slice of each stack that is nearest to it."""
        heights, classes, size, _ = self.maps.shape
        self.maps.zero_()
        for stack in stacks:
            positions = slice_positions(len(stack.label))
            for number, height in enumerate(slice_positions(heights)):
                label = torch.from_numpy(stack.label[int((positions - height).abs().argmin())]).long()
                one_hot = F.one_hot(label, classes).permute(2, 0, 1).float()
                one_hot[0] -= 1  # 0 is then "background", and so is what lies beyond the slice
                self.maps[number] += crop_or_pad(one_hot, size) / len(stacks)

    def forward(self, image: Tensor, position: Tensor) -> Tensor:
        """(B, 1, H, W) and (B,) positions to logits (B, classes, H, W), whatever is to be seen in the image."""
        nearest = (position[:, None] - slice_positions(len(self.maps)).to(position)).abs().argmin(1)
        rows, columns = image.shape[-2:]
        side = max(rows, columns)
        maps = crop_or_pad(self.maps[nearest], side)
        top, left = (side - rows) // 2, (side - columns) // 2
        shares = maps[..., top : top + rows, left : left + columns].clone()
        shares[:, 0] += 1
        return (shares.clamp(min=0) + 1e-3).log()
