"""The simple control: gradient boosting of single voxels, trained on the same P, without a contrast or a network."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from papers.cgc.data import Case

MEANS = (3, 7)  # voxels along an axis over which the intensities are averaged, too
ROUNDS = 80


def features_around(case: Case) -> np.ndarray:
    """All channels and their means over 3³ and 7³ voxels, of each voxel of the brain: float32 (voxels, 3 C)."""
    image = case.image.numpy()
    maps = [*image, *(ndimage.uniform_filter(channel, n) for n in MEANS for channel in image)]
    return np.stack(maps, -1)[case.brain.numpy()]


class BoostedVoxels(nn.Module):
    """scikit-learn's gradient boosting of the voxels that it holds. It is fitted when it is first asked.

    The voxels are kept and not the trees, which scikit-learn writes as program code only; a fit takes seconds and
    gives the same trees each time.

    Args:
        channels: of the image.
        voxels: that it is fitted to.
    """

    def __init__(self, channels: int, voxels: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(voxels, (1 + len(MEANS)) * channels))
        self.register_buffer("inside", torch.zeros(voxels, dtype=torch.bool))
        self._fitted = None

    def remember(self, cases: Iterable[Case], proposals: list[Tensor], seed: int) -> None:
        """Draw the voxels at random, with replacement, from the brains of the training volumes; P is the target."""
        values, inside = [], []
        for case, proposal in zip(cases, proposals):
            values.append(features_around(case))
            inside.append(proposal[case.brain].numpy())
        every, targets = np.concatenate(values), np.concatenate(inside)
        drawn = np.random.default_rng(seed).integers(len(targets), size=len(self.inside))
        self.values.copy_(torch.from_numpy(every[drawn]))
        self.inside.copy_(torch.from_numpy(targets[drawn]))
        self._fitted = None

    def probability(self, case: Case) -> Tensor:
        """Probability of P, float32 (D, H, W), 0 outside the brain."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        found = torch.zeros(case.brain.shape)
        if not self.inside.any():  # P is empty in all of training
            return found
        with threadpool_limits(1):  # bit for bit the same on any number of cores
            if self._fitted is None:
                boosting = HistGradientBoostingClassifier(max_iter=ROUNDS, early_stopping=False, random_state=0)
                self._fitted = boosting.fit(self.values.cpu().numpy(), self.inside.cpu().numpy())
            found[case.brain] = torch.from_numpy(self._fitted.predict_proba(features_around(case))[:, -1]).float()
        return found
