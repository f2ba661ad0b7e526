"""The masking block (section 2.3, M1): image patches, frequency patches, and frequency patches pasted into the image.

It stands before the diffusion process in training only. The network must give back the clean slice.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["none", "ipm", "fpm", "fpm_cm", "released"]
INSET = 5
"""pixels between the brain's bounding box and a patch, in the released code"""


def _integer(low: int, high: int) -> int:
    """Uniform in low..high, from torch's generator."""
    return int(torch.randint(low, max(high, low) + 1, ()))


def keep_mask(foreground: Tensor, ratio: float, sides: tuple[int, int]) -> Tensor:
    """M_p of eqs. 6 and 7: False inside rectangles at random places, True elsewhere.

    Rectangles are added until they cover at least `ratio` of the foreground. Each has sides drawn uniformly from
    `sides` and lies inside the foreground's bounding box as far as it fits.

    Args:
        foreground: bool (H, W); where masking counts.
        ratio: share of the foreground to cover, 0 to 1.
        sides: least and largest side in pixels.

    Returns:
        bool (H, W).
    """
    inside = foreground.numpy()
    keep, uncovered = np.ones_like(inside), inside.copy()
    left_to_cover = ratio * int(inside.sum())
    if left_to_cover <= 0:
        return torch.from_numpy(keep)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    least, most = sides
    while True:
        for height, width, row, column in torch.rand(32, 4).tolist():
            height, width = least + int(height * (most - least + 1)), least + int(width * (most - least + 1))
            row = rows[0] + int(row * (max(rows[-1] + 1 - height - rows[0], 0) + 1))
            column = columns[0] + int(column * (max(columns[-1] + 1 - width - columns[0], 0) + 1))
            window = (slice(row, row + height), slice(column, column + width))
            left_to_cover -= np.count_nonzero(uncovered[window])
            keep[window] = uncovered[window] = False
            if left_to_cover <= 0:
                return torch.from_numpy(keep)


def image_patch_masking(image: Tensor, keep: Tensor) -> Tensor:
    """IPM, eq. 6: z ⊙ M. Pixels inside the rectangles become 0, the intensity of the background."""
    return image * keep


def frequency_patch_masking(image: Tensor, keep: Tensor) -> Tensor:
    """FPM, eq. 7: the real part of IDFT(M ⊙ DFT(z)).

    Args:
        image: (H, W).
        keep: bool (H, W) over the shifted spectrum, frequency 0 at (H // 2, W // 2).
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(image))
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep)).real


def frequency_patch_cutmix(image: Tensor, filtered: Tensor, keep: Tensor) -> Tensor:
    """FPM-CM, eq. 8: z ⊙ M + z^F ⊙ ¬M, the filtered image inside the rectangles and the clean one outside."""
    return torch.where(keep, image, filtered)


def centred_filter(image: Tensor, half_width: int, low_pass: bool) -> Tensor:
    """Keeps (low-pass) or removes (high-pass) a centred square of the spectrum; the released code's filter."""
    keep = torch.zeros(image.shape, dtype=torch.bool)
    row, column = image.shape[0] // 2, image.shape[1] // 2
    keep[max(row - half_width, 0) : row + half_width, max(column - half_width, 0) : column + half_width] = True
    return frequency_patch_masking(image, keep if low_pass else ~keep)


class MaskingBlock:
    """Random masking of one slice, from torch's generator.

    Args:
        kind: "none"; "ipm", "fpm", "fpm_cm" as in the text; "released": 0 to 5 small rectangles from a low-pass or
            high-pass copy, which is what the released code calls FPM-CM.
        ratio: least and largest share that is masked, of the foreground (IPM, FPM-CM) and of the spectrum (FPM,
            FPM-CM).
        sides: least and largest side of a rectangle in the image, in pixels.
        frequency_sides: the same in the spectrum, in bins.

    Example:
        >>> block = MaskingBlock("fpm_cm")
        >>> slice_ = torch.rand(96, 96)
        >>> block(slice_, slice_ > 0.2).shape
        torch.Size([96, 96])
    """

    def __init__(
        self,
        kind: Kind = "fpm_cm",
        ratio: tuple[float, float] = (0.1, 0.9),
        sides: tuple[int, int] = (8, 32),
        frequency_sides: tuple[int, int] = (4, 24),
    ):
        self.kind, self.ratio = kind, tuple(ratio)
        self.sides, self.frequency_sides = tuple(sides), tuple(frequency_sides)

    def _ratio(self) -> float:
        low, high = self.ratio
        return low + (high - low) * float(torch.rand(()))

    def filtered(self, image: Tensor, foreground: Tensor) -> Tensor:
        """z^F: the slice without random patches of its spectrum; frequency 0 stays, the background too."""
        keep = keep_mask(torch.ones_like(foreground), self._ratio(), self.frequency_sides)
        keep[image.shape[0] // 2, image.shape[1] // 2] = True
        return torch.where(foreground, frequency_patch_masking(image, keep), image)

    def __call__(self, image: Tensor, foreground: Tensor) -> Tensor:
        """z_M from z: (H, W) in [0, 1] with background 0, and its foreground, bool (H, W). z^F may leave [0, 1]."""
        if self.kind == "none" or not foreground.any():
            return image
        if self.kind == "released":
            return self._released(image, foreground)
        if self.kind == "fpm":
            return self.filtered(image, foreground)
        keep = keep_mask(foreground, self._ratio(), self.sides) | ~foreground
        if self.kind == "ipm":
            return image_patch_masking(image, keep)
        return frequency_patch_cutmix(image, self.filtered(image, foreground), keep)

    def _released(self, image: Tensor, foreground: Tensor) -> Tensor:
        """Up to five patches of a low-pass or high-pass copy, sides 9 to 18 % of the brain's height.

        They lie inside the brain's bounding box, `INSET` pixels from its border. Where it has no room there is none.
        """
        boxes = [foreground.any(axis).nonzero()[:, 0] for axis in (1, 0)]  # rows and columns with brain
        longest = int(0.18 * len(boxes[0]))
        filtered = centred_filter(image, _integer(2, 10), bool(torch.rand(()) < 0.5))
        keep = torch.ones_like(foreground)
        for _ in range(_integer(0, 5)):
            height, width = _integer(longest // 2, longest), _integer(longest // 2, longest)
            (top, last_top), (left, last_left) = [
                (int(box[0]) + INSET, int(box[-1]) - INSET - longest) for box in boxes
            ]
            if last_top >= top and last_left >= left:
                row, column = _integer(top, last_top), _integer(left, last_left)
                keep[row : row + height, column : column + width] = False
        return frequency_patch_cutmix(image, filtered, keep | ~foreground)
