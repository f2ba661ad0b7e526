"""The proposal P (M1): a Gaussian mixture of intensities, its lesion component, threshold and clean-up.

No label is involved. The rule for the lesion component is prior knowledge about the modality (lesions are bright on
FLAIR, blood is bright on CT) and about size.
"""

import contextlib
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from papers.cgc.data import Case, on_box
from shared import nifti
from shared.errors import InputError
from shared.files import write_atomically


@dataclass(frozen=True)
class ProposalRule:
    """How P is made; the paper leaves all of it open."""

    components: int | None = None
    """of the mixture; None is 5 for MRI and 4 for CT"""
    voxels: int = 50000
    """random voxels that the mixture is fitted to"""
    restarts: int = 5
    """fits, of which the likeliest is kept"""
    posterior: float = 0.9
    """P is where the lesion component's posterior is larger"""
    volume: tuple[float, float] = (0.003, 0.15)
    """fraction of the brain that the lesion component may have"""
    median: int = 3
    """voxels of the median filter, an odd number; 1 is none"""
    opening: int = 1
    """voxels of the opening; 0 is none"""
    smallest: float = 0.0005
    """pieces smaller than this fraction of the brain are dropped"""
    keep: int = 3
    """number of largest pieces that stay"""
    seed: int = 0
    """of the sampled voxels and the restarts, together with the name of the case; no training's own seed"""

    def __post_init__(self):
        if self.median < 1 or self.median % 2 == 0:
            raise InputError(f"--median {self.median}: expected an odd number of voxels; 1 is no median filter")

    @classmethod
    def of(cls, config) -> "ProposalRule":
        """That of a configuration."""
        return cls(
            config.gmm_components,
            config.gmm_voxels,
            config.gmm_restarts,
            config.posterior,
            config.lesion_volume,
            config.median,
            config.opening,
            config.smallest,
            config.keep,
            config.proposal_seed,
        )


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture on one volume."""

    posterior: np.ndarray
    """float32 (K, D, H, W), 0 outside the brain"""
    means: np.ndarray
    """(K, features), in units of the normalised intensities, FLAIR or CT first"""
    share: np.ndarray
    """(K,): fraction of the brain whose likeliest component it is"""
    lesion: int
    """the component that was taken for the lesion"""


def channels_of(modalities: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the channels that P is made from: FLAIR and T2 where there are both, or CT."""
    return tuple(modalities.index(name) for name in ("flair", "t2", "ct") if name in modalities)


def features_of(case: Case) -> tuple[np.ndarray, tuple[str, ...]]:
    """Intensities (channels, D, H, W) of `channels_of` for the mixture, and their names."""
    channels = channels_of(case.modalities)
    return case.image.numpy()[list(channels)], tuple(case.modalities[channel] for channel in channels)


def lesion_component(brightness: np.ndarray, share: np.ndarray, volume: tuple[float, float]) -> int:
    """The brightest of the components with a plausible share of the brain; if none has, the brightest of all.

    A component that is darker than the brain on average (0) is none: lesions are bright on FLAIR, blood on CT.

    Args:
        brightness: (K,) mean on FLAIR or CT, normalised.
        share: (K,) fraction of the brain.
        volume: smallest and largest plausible fraction.
    """
    plausible = (share >= volume[0]) & (share <= volume[1]) & (brightness > 0)
    candidates = plausible if plausible.any() else np.ones_like(plausible)
    return int(np.where(candidates, brightness, -np.inf).argmax())


def fit_mixture(case: Case, rule: ProposalRule) -> Mixture:
    """Gaussian mixture with full covariances on the intensities inside the brain."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    image, names = features_of(case)
    brain = case.brain.numpy()
    values = image[:, brain].T.astype(np.float64)
    components = rule.components or (4 if names == ("ct",) else 5)
    entropy = [rule.seed, zlib.crc32(case.name.encode())]
    rng = np.random.default_rng(entropy)
    sample = values[rng.permutation(len(values))[: rule.voxels]]
    mixture = GaussianMixture(
        components, n_init=rule.restarts, random_state=int(rng.integers(2**31)), reg_covar=1e-4, max_iter=200
    )
    with threadpool_limits(1):  # bit for bit the same on any number of cores
        mixture.fit(sample)
        posterior = mixture.predict_proba(values)
    share = np.bincount(posterior.argmax(1), minlength=components) / len(values)
    maps = np.zeros((components, *brain.shape), np.float32)
    maps[:, brain] = posterior.T
    return Mixture(maps, mixture.means_, share, lesion_component(mixture.means_[:, 0], share, rule.volume))


def clean_up(mask: np.ndarray, brain: np.ndarray, rule: ProposalRule) -> np.ndarray:
    """Median filter, opening, no small pieces, only the largest ones. Bool (D, H, W) in and out."""
    if rule.median > 1:  # the median of a mask
        mask = ndimage.uniform_filter(mask.astype(np.float32), rule.median, mode="constant") > 0.5
    if rule.opening:
        mask = ndimage.binary_opening(mask, iterations=rule.opening)
    pieces, count = ndimage.label(mask & brain)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = [n for n in np.argsort(-sizes, kind="stable")[: rule.keep] if sizes[n] >= rule.smallest * brain.sum()]
    return np.isin(pieces, [n for n in large if sizes[n] > 0])


def gmm_proposal(case: Case, rule: ProposalRule) -> Tensor:
    """P of one volume, bool (D, H, W) (M1; "GMM w/ threshold" in the paper's tables).

    It depends on the volume, its name and the rule alone, so it is the same for all trainings; what was made once is
    kept (`kept_masks`).
    """
    path = kept_masks() / f"{digest_of(case, rule)}.npy"
    shape = tuple(case.brain.shape)
    mask = read_mask(path, shape)
    if mask is None:
        mixture = fit_mixture(case, rule)
        mask = clean_up(mixture.posterior[mixture.lesion] > rule.posterior, case.brain.numpy(), rule)
        with contextlib.suppress(OSError):  # a disk that can't be written only costs the time to make P again
            write_atomically(path, lambda temporary: _write_bits(temporary, mask))
    return torch.from_numpy(mask)


def read_proposal(path: Path, case: Case) -> Tensor:
    """P of one volume that another method has made: a mask on the grid of the image, anything above 0 is P.

    Raises:
        InputError: the file is missing or broken, or its voxels are not those of the image.
    """
    return on_box(nifti.load(path, ndim=3), case)


# --- masks that were made before --------------------------------------------------------------------------


def kept_masks() -> Path:
    """Folder of the proposals that were made: `cgc-proposals` in $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cgc-proposals"


def digest_of(case: Case, rule: ProposalRule) -> str:
    """Of all that P depends on: volume, name, rule, this file, and the library that fits the mixture."""
    import sklearn

    image, names = features_of(case)
    digest = hashlib.sha256(repr((case.name, names, image.shape, rule, sklearn.__version__)).encode())
    for part in (Path(__file__).read_bytes(), image.tobytes(), case.brain.numpy().tobytes()):
        digest.update(part)
    return digest.hexdigest()


def _write_bits(path: Path, mask: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.packbits(mask))


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask that was kept, bool; None if there is none, or none of this size."""
    try:
        bits = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    count = int(np.prod(shape))
    if bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
        return None
    return np.unpackbits(bits, count=count).astype(bool).reshape(shape)
