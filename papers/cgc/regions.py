"""A lesion and a normal region per volume, told apart by P alone (M3)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from papers.cgc.data import Volumes


@dataclass(frozen=True)
class RegionRule:
    """Size of a region and what makes it a lesion or a normal one."""

    size: tuple[int, int, int]
    """voxels (z, y, x)"""
    lesion_coverage: float = 0.02
    """P covers at least this fraction of a lesion region"""
    normal_coverage: float = 0.001
    """P covers at most this fraction of a normal region"""
    brain_coverage: float = 0.6
    """the brain covers at least this fraction of a normal region"""
    tries: int = 20
    """positions that are looked at"""

    @classmethod
    def of(cls, config) -> "RegionRule":
        """That of a configuration."""
        return cls(config.patch, config.lesion_coverage, config.normal_coverage, config.brain_coverage)


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))


def _start_around(centre: Tensor, size, shape) -> tuple[int, ...]:
    return tuple(min(max(int(c) - n // 2, 0), whole - n) for c, n, whole in zip(centre, size, shape))


def _cut(start, size) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size))


def lesion_region(mask: Tensor, brain: Tensor, rule: RegionRule, size: tuple[int, ...]) -> tuple[int, ...]:
    """Start (z, y, x) of a region around a random voxel of the mask, moved by up to a quarter of its size.

    The first of `rule.tries` positions that the mask covers enough; else the one that it covers most. Without any
    lesion, a position in the brain.
    """
    inside = mask if mask.any() else brain
    flat = inside.flatten().nonzero()[:, 0]
    best, best_coverage = None, -1.0
    for _ in range(rule.tries):
        centre = torch.tensor(np.unravel_index(int(flat[_draw(len(flat))]), mask.shape))
        shift = torch.tensor([_draw(2 * (n // 4) + 1) - n // 4 for n in size])
        start = _start_around(centre + shift, size, mask.shape)
        coverage = float(mask[_cut(start, size)].float().mean())
        if coverage > best_coverage:
            best, best_coverage = start, coverage
        if coverage >= rule.lesion_coverage:
            break
    return best


def normal_region(
    mask: Tensor, brain: Tensor, rule: RegionRule, size: tuple[int, ...], lesion_start: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Start (z, y, x) of a region without lesion: if possible the mirror image of the lesion region.

    Else a random position; if none of `rule.tries` is free of the mask and enough inside the brain, the one that is
    least off. (x runs from left to right, so the mirror plane is the middle of the brain, without the padding.)
    """
    flat = brain.flatten().nonzero()[:, 0]
    candidates = []
    if lesion_start is not None:
        across = brain.any(0).any(0).nonzero()
        mirrored = int(across[0] + across[-1]) + 1 - lesion_start[2] - size[2]
        candidates.append((*lesion_start[:2], min(max(mirrored, 0), mask.shape[2] - size[2])))
    best, least_off = None, float("inf")
    for attempt in range(rule.tries):
        if attempt < len(candidates):
            start = candidates[attempt]
        else:
            centre = np.unravel_index(int(flat[_draw(len(flat))]), mask.shape)
            start = _start_around(centre, size, mask.shape)
        place = _cut(start, size)
        too_much = max(0.0, float(mask[place].float().mean()) - rule.normal_coverage)
        too_little = max(0.0, rule.brain_coverage - float(brain[place].float().mean()))
        off = 10 * too_much + too_little
        if off < least_off:
            best, least_off = start, off
        if off == 0:
            break
    return best


def least_size(config) -> tuple[int, ...]:
    """Volumes are padded to this size (z, y, x), so that the largest zoomed region of a configuration fits."""
    return tuple(round(n * (1 + config.scale)) + 1 for n in config.patch)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a region; 0 or False turns one off."""

    scale: float = 0.0
    """zoom by up to this fraction"""
    gamma: float = 0.0
    """exponent of the intensities within exp(± this)"""
    brightness: float = 0.0
    """gain and offset of the intensities by up to this much"""
    flip: bool = False
    """mirror along each axis with probability 1/2"""

    @classmethod
    def of(cls, config) -> "Augmentation":
        """That of a configuration."""
        return cls(config.scale, config.gamma, config.brightness, config.flip)

    def draw_size(self, rule: RegionRule, shape) -> tuple[int, ...]:
        """Voxels (z, y, x) that are cut out of a volume and zoomed to the size of a region."""
        factor = 1 + self.scale * (2 * float(torch.rand(())) - 1)
        return tuple(min(round(n * factor), whole) for n, whole in zip(rule.size, shape))

    def apply(self, image: Tensor, masks: Tensor, brain: Tensor, place: tuple[slice, ...], size) -> tuple[Tensor, ...]:
        """The region at `place` of image (C, ...), masks (M, ...) and brain (...), changed: (C, *size), ..."""
        image, masks = image[(slice(None), *place)], torch.cat([masks, brain[None]])[(slice(None), *place)].float()
        if tuple(masks.shape[1:]) != tuple(size):
            image = F.interpolate(image[None], size, mode="trilinear", align_corners=False)[0]
            masks = F.interpolate(masks[None], size, mode="nearest-exact")[0]
        if self.flip:
            axes = [axis for axis in (-3, -2, -1) if torch.rand(()) < 0.5]
            image, masks = image.flip(axes), masks.flip(axes)
        if self.gamma:
            exponent = float(torch.exp(self.gamma * (2 * torch.rand(()) - 1)))
            low = image.amin((1, 2, 3), keepdim=True)
            span = (image.amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-6)
            image = ((image - low) / span) ** exponent * span + low
        if self.brightness:
            gain, shift = (self.brightness * (2 * torch.rand(2) - 1)).tolist()
            image = image * (1 + gain) + shift
        masks, brain = masks[:-1].contiguous(), masks[-1].contiguous()
        return image * brain, masks, brain


class RegionPairs(Dataset):
    """A lesion region and a normal region of a volume, augmented (M3).

    An item is a dict of float32 "image" (2, C, *size), "mask" and "brain" (2, *size), lesion region first.

    Args:
        volumes: the training cases.
        proposals: P of each, bool (D, H, W), which decides where the regions are.
        rule: size and coverage of the regions.
        augmentation: random changes.
        targets: masks that the network is trained on instead of P: the truth, for the supervised upper bound, which
            thus sees the same regions.
    """

    def __init__(
        self,
        volumes: Volumes,
        proposals: list[Tensor],
        rule: RegionRule,
        augmentation: Augmentation = Augmentation(),
        targets: list[Tensor] | None = None,
    ):
        self.volumes, self.proposals, self.rule, self.augmentation = volumes, proposals, rule, augmentation
        self.targets = proposals if targets is None else targets

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict:
        case, proposal = self.volumes[index], self.proposals[index]
        size = self.augmentation.draw_size(self.rule, case.brain.shape)
        first = lesion_region(proposal, case.brain, self.rule, size)
        starts = [first, normal_region(proposal, case.brain, self.rule, size, first)]
        images, masks, brains = [], [], []
        for start in starts:
            target = self.targets[index][None]
            image, mask, brain = self.augmentation.apply(
                case.image, target, case.brain, _cut(start, size), self.rule.size
            )
            images.append(image)
            masks.append(mask[0])
            brains.append(brain)
        return {"image": torch.stack(images), "mask": torch.stack(masks), "brain": torch.stack(brains)}


class SingleRegions(Dataset):
    """Two regions of a volume for networks that are not trained on P, augmented.

    An item is a dict of float32 "region" (2, C, *size) and "inside" (2, *size), which is 1 in the brain.

    Args:
        volumes: the training cases.
        proposals: P of each: the regions have none of it, as far as possible. None: anywhere in the brain.
        rule: size and coverage of the regions.
        augmentation: random changes.
    """

    def __init__(self, volumes: Volumes, proposals: list[Tensor] | None, rule: RegionRule, augmentation: Augmentation):
        self.volumes, self.proposals, self.rule, self.augmentation = volumes, proposals, rule, augmentation

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict:
        case, nothing = self.volumes[index], torch.zeros(0, *self.volumes[index].brain.shape)
        size = self.augmentation.draw_size(self.rule, case.brain.shape)
        regions = []
        for _ in range(2):
            if self.proposals is None:
                start = lesion_region(torch.zeros_like(case.brain), case.brain, self.rule, size)
            else:
                start = normal_region(self.proposals[index], case.brain, self.rule, size, None)
            regions.append(self.augmentation.apply(case.image, nothing, case.brain, _cut(start, size), self.rule.size))
        images, _, brains = zip(*regions)
        return {"region": torch.stack(images), "inside": torch.stack(brains)}
