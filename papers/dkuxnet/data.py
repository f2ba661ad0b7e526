"""Reads the processed left-atrium scans of the UA-MT repository, and draws pairs of crops from them.

    DATA/train.list, DATA/test.list                         one scan's name a line
    DATA/2018LA_Seg_Training Set/<name>/mri_norm2.h5        image: z-scores float (W, H, D); label: integers

The scans may also lie as DATA/<name>/mri_norm2.h5. Labelled are the first lines of train.list.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared.errors import InputError

FOLDER, FILE = "2018LA_Seg_Training Set", "mri_norm2.h5"
UNLABELLED = -1
CACHE_BYTES = 3 * 2**30  # scans up to this much stay in memory


def find_scans(root: Path, split: str) -> list[Path]:
    """Files of the scans in `<split>.list`, in its order.

    Raises:
        InputError: no such folder or list, an empty list, or a scan that is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} doesn't exist; it should be a folder with train.list, test.list and '{FOLDER}/'")
    listing = root / f"{split}.list"
    try:
        names = [line.strip() for line in listing.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{listing} can't be read; {root} should hold train.list, test.list and '{FOLDER}/'"
        ) from error
    if not names:
        raise InputError(f"{listing} names no scan; expected one name a line")
    paths = []
    for name in names:
        found = [path for path in (root / FOLDER / name / FILE, root / name / FILE) if path.is_file()]
        if not found:
            raise InputError(f"{root / FOLDER / name / FILE} is missing, though {listing.name} names it")
        paths.append(found[0])
    return paths


def read_scan(path: Path, classes: int | None = 2) -> tuple[np.ndarray, np.ndarray | None]:
    """Image, float32 (W, H, D), and label, uint8 (W, H, D).

    Args:
        path: a `mri_norm2.h5`.
        classes: K; labels must be below. None reads no label.

    Raises:
        InputError: the file is missing, truncated, lacks an array, or holds NaN, another shape or another label.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected a mri_norm2.h5 with 'image' and 'label'")
    try:
        with h5py.File(path, "r") as file:
            image = file["image"][...].astype(np.float32)
            label = file["label"][...] if classes is not None else None
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} can't be read as HDF5 with 'image' and 'label': truncated or another file") from error
    if image.ndim != 3 or image.size == 0:
        raise InputError(f"{path}: 'image' must be a volume (W, H, D), found shape {image.shape}")
    if not np.isfinite(image).all():
        raise InputError(f"{path}: 'image' holds NaN or infinite values; expected z-scores")
    if label is None:
        return image, None
    if label.shape != image.shape:
        raise InputError(f"{path}: 'label' has shape {label.shape}, but 'image' has {image.shape}")
    if not np.isin(label, np.arange(classes)).all():
        raise InputError(f"{path}: 'label' must hold 0 to {classes - 1}, found {np.unique(label)[:8].tolist()}")
    return image, label.astype(np.uint8)


def two_views(image: Tensor) -> Tensor:
    """Two stochastic views of one crop, (W, H, D) -> (2, 1, W, H, D): intensities within 10 %, and noise.

    The noise is that of the UA-MT protocol, 0.1 N(0, 1) clipped to +-0.2. The geometry is the same, so voxel i of one
    view is voxel i of the other.
    """
    scale = 1 + 0.1 * (2 * torch.rand(2, 1, 1, 1, 1) - 1)
    noise = (0.1 * torch.randn(2, 1, *image.shape)).clamp(-0.2, 0.2)
    return scale * image + noise


def random_crop(image: Tensor, label: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A random crop of both, padded with zeros on both ends where the volume is smaller."""
    missing = [max(side - have, 0) for side, have in zip(size, image.shape)]
    if any(missing):
        padding = [amount for gap in missing[::-1] for amount in (gap // 2, gap - gap // 2)]
        image, label = F.pad(image, padding), F.pad(label, padding)
    place = []
    for side, have in zip(size, image.shape):
        start = int(torch.randint(0, have - side + 1, ()))
        place.append(slice(start, start + side))
    return image[tuple(place)], label[tuple(place)]


def random_rotation_and_flip(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """A turn by 0 to 3 right angles in the plane of x and y, then a flip of x or y (LA protocol)."""
    turns, axis = int(torch.randint(0, 4, ())), int(torch.randint(0, 2, ()))
    image, label = (torch.rot90(x, turns, (0, 1)).flip(axis) for x in (image, label))
    return image, label


class CropPairs(Dataset):
    """Pairs of crops: one of a labelled scan, one of an unlabelled scan (or of another labelled one).

    The length is the number of labelled scans. A batch of n therefore holds n labelled and n unlabelled crops.
    An item is {"views": (2, 2, 1, W, H, D), crop by view; "label": (2, W, H, D), int64, -1 throughout an unlabelled
    crop; "key": (2, W, H, D), uniform random numbers that decide which voxels the contrastive losses take}.

    Args:
        root: the data set.
        labelled_fraction: of the scans in train.list, rounded, at least one scan; the first lines.
        crop: sides in voxels.
        use_unlabelled: draw the second crop from the other scans. If there are none, it is labelled.
        rotate_and_flip: see `random_rotation_and_flip`.
        classes: K.

    Raises:
        InputError: see `find_scans`; (on access) see `read_scan`.
    """

    def __init__(
        self,
        root: Path,
        labelled_fraction: float,
        crop: Sequence[int],
        use_unlabelled: bool = True,
        rotate_and_flip: bool = True,
        classes: int = 2,
    ):
        scans = find_scans(root, "train")
        if not 0 < labelled_fraction <= 1:
            raise InputError(f"--labelled-fraction must be in (0, 1], found {labelled_fraction}")
        count = max(1, round(labelled_fraction * len(scans)))
        self.labelled = scans[:count]
        self.unlabelled = scans[count:] if use_unlabelled else []
        self.crop, self.rotate_and_flip, self.classes = tuple(crop), rotate_and_flip, classes
        self._cache: dict[Path, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.labelled)

    def _scan(self, path: Path) -> tuple[Tensor, Tensor]:
        if path in self._cache:
            return self._cache[path]
        image, label = read_scan(path, self.classes)
        scan = torch.from_numpy(image), torch.from_numpy(label)
        if self._cached_bytes + 5 * image.size <= CACHE_BYTES:
            self._cache[path] = scan
            self._cached_bytes += 5 * image.size
        return scan

    def _crop(self, path: Path, labelled: bool) -> dict[str, Tensor]:
        image, label = self._scan(path)
        if self.rotate_and_flip:  # before the crop, which need not be square
            image, label = random_rotation_and_flip(image, label)
        image, label = random_crop(image, label, self.crop)
        label = label.long() if labelled else torch.full(label.shape, UNLABELLED)
        return {"views": two_views(image), "label": label, "key": torch.rand(image.shape)}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        others = self.unlabelled or self.labelled
        second = others[int(torch.randint(0, len(others), ()))]
        crops = [self._crop(self.labelled[index], True), self._crop(second, not self.unlabelled)]
        return {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
