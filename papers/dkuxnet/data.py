"""Reads the processed left-atrium scans of the UA-MT repository, and draws pairs of crops from them.

    DATA/train.list, DATA/test.list                         one scan's name a line
    DATA/2018LA_Seg_Training Set/<name>/mri_norm2.h5        image: z-scores (W, H, D); label: whole numbers

The scans may also lie as DATA/<name>/mri_norm2.h5. Labelled are the first lines of train.list. An image that is stored
as grey levels has the attributes `scale` and `offset`: the z-score is scale * grey + offset.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from shared.errors import InputError
from shared.files import inside, refuse_duplicates, refuse_overlap
from shared.readers import Array, need_file, read_hdf5
from shared.text_files import read_names

FOLDER, FILE = "2018LA_Seg_Training Set", "mri_norm2.h5"
UNLABELLED = -1
CACHE_BYTES = 3 * 2**30  # scans up to this much stay in memory
MOST_MEAN, SPREAD = 5.0, (0.1, 10.0)
"""Mean and standard deviation beyond which numbers can't be z-scores of a scan that was cropped afterwards"""


def find_scans(root: Path, split: str) -> list[Path]:
    """Files of the scans in `<split>.list`, in its order.

    Args:
        root: the data set.
        split: train or test.

    Raises:
        InputError: no such folder or list, an empty list, a name that comes twice or leads out of the folder, a scan
            that is not there, or one of train.list that is in test.list, too.
    """
    root = Path(root)
    expected = f"it should be a folder with train.list, test.list and '{FOLDER}/'"
    if not root.is_dir():
        raise InputError(f"{root} {'is a file' if root.exists() else 'does not exist'}; {expected}")
    listing, held_out = root / f"{split}.list", root / "test.list"
    names = read_names(listing, "scans")
    cases = [inside(root, name).name for name in names]
    refuse_duplicates(cases, f"{listing}: scans")
    if split == "train" and held_out.is_file():
        tested = [inside(root, name).name for name in read_names(held_out, "scans")]
        refuse_overlap(cases, tested, f"{root}: scans of train.list and test.list")
    paths = []
    for name in names:
        places = [inside(root / FOLDER, name) / FILE, inside(root, name) / FILE]
        found = [path for path in places if path.exists()]
        paths.append(need_file((found or places)[0], f"the scan that {listing.name} names"))
    return paths


def read_scan(path: Path, classes: int | None = 2, shrink: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    """Image, float32 (W, H, D), and label, uint8 (W, H, D).

    Args:
        path: a `mri_norm2.h5`.
        classes: K; labels must be below. None reads no label.
        shrink: blocks of so many voxels along each axis become one, the mean of the image and the commonest label.
            What is left over at the far ends is cut off.

    Raises:
        InputError: the file is missing, broken, lacks an array, or holds NaN, another shape, another label, numbers
            that are no z-scores, or fewer voxels than a block.
    """
    arrays = {"image": Array(ndim=3, dtype="float32")}
    if classes is not None:
        arrays["label"] = Array(like="image", whole=True, least=0, most=classes - 1, dtype="uint8")
    scaling = {name: Array(ndim=0, dtype="float64", optional=True) for name in ("image@scale", "image@offset")}
    found = read_hdf5(path, arrays | scaling)
    image, label = found["image"], found.get("label")
    if found.keys() >= scaling.keys():
        image = image * np.float32(found["image@scale"]) + np.float32(found["image@offset"])
    check_z_scores(image, path)
    if shrink > 1:
        if min(image.shape) < shrink:
            raise InputError(f"{path}: {image.shape} voxels, fewer than --shrink {shrink} along an axis")
        image = in_blocks(image, shrink).mean(axis=(1, 3, 5))
        if label is not None:
            shares = [in_blocks(label == k, shrink).mean(axis=(1, 3, 5)) for k in range(classes)]
            label = np.argmax(shares, axis=0).astype(np.uint8)
    return image, label


def check_z_scores(image: np.ndarray, path: Path) -> None:
    """
    Raises:
        InputError: the numbers can't be z-scores: grey levels, Hounsfield units, one value everywhere.
    """
    mean, spread = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
    if not (abs(mean) <= MOST_MEAN and SPREAD[0] <= spread <= SPREAD[1]):
        raise InputError(
            f"{path}: 'image' has the mean {mean:.3g} and the standard deviation {spread:.3g}; expected z-scores over "
            "the whole scan, or grey levels with the attributes 'scale' and 'offset'"
        )


def in_blocks(volume: np.ndarray, side: int) -> np.ndarray:
    """(W, H, D) -> (w, side, h, side, d, side), without what is left over."""
    counts = [n // side for n in volume.shape]
    return volume[tuple(slice(n * side) for n in counts)].reshape([n for count in counts for n in (count, side)])


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
    An item is {"views": (2, 1, W, H, D), a labelled crop by view; "label": (W, H, D), int64; "key": (W, H, D), uniform
    random numbers that decide which voxels the contrastive losses take} and the same of the second crop as
    "second_views", "second_label" (-1 throughout an unlabelled crop), "second_key". `together` joins them.

    Args:
        root: the data set.
        labelled_fraction: of the scans in train.list, rounded, at least one scan; the first lines.
        crop: sides in voxels.
        use_unlabelled: draw the second crop from the other scans. If there are none, it is labelled.
        rotate_and_flip: see `random_rotation_and_flip`.
        classes: K.
        shrink: see `read_scan`.

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
        shrink: int = 1,
    ):
        scans = find_scans(root, "train")
        if not 0 < labelled_fraction <= 1:
            raise InputError(f"--labelled-fraction must be in (0, 1], found {labelled_fraction}")
        count = max(1, round(labelled_fraction * len(scans)))
        self.labelled = scans[:count]
        self.unlabelled = scans[count:] if use_unlabelled else []
        self.crop, self.rotate_and_flip, self.classes, self.shrink = tuple(crop), rotate_and_flip, classes, shrink
        self._cache: dict[Path, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.labelled)

    def scan(self, path: Path) -> tuple[Tensor, Tensor]:
        """Image and label, both (W, H, D)."""
        if path in self._cache:
            return self._cache[path]
        image, label = read_scan(path, self.classes, self.shrink)
        scan = torch.from_numpy(image), torch.from_numpy(label)
        if self._cached_bytes + 5 * image.size <= CACHE_BYTES:
            self._cache[path] = scan
            self._cached_bytes += 5 * image.size
        return scan

    def _crop(self, path: Path, labelled: bool) -> dict[str, Tensor]:
        image, label = self.scan(path)
        if self.rotate_and_flip:  # before the crop, which need not be square
            image, label = random_rotation_and_flip(image, label)
        image, label = random_crop(image, label, self.crop)
        label = label.long() if labelled else torch.full(label.shape, UNLABELLED)
        return {"views": two_views(image), "label": label, "key": torch.rand(image.shape)}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        others = self.unlabelled or self.labelled
        second = others[int(torch.randint(0, len(others), ()))]
        first, second = self._crop(self.labelled[index], True), self._crop(second, not self.unlabelled)
        return first | {f"second_{name}": value for name, value in second.items()}


def together(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both crops of every item one after another: "views" (2 B, 2, 1, W, H, D), "label" and "key" (2 B, W, H, D)."""
    pairs = {name: (batch[name], batch[f"second_{name}"]) for name in ("views", "label", "key")}
    return {name: torch.stack(pair, dim=1).flatten(0, 1) for name, pair in pairs.items()}
