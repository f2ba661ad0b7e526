"""From BTCV as it is downloaded to the slices and volumes that TransUNet prepared."""

from pathlib import Path

import h5py
import numpy as np

from papers.waveformer.data import WINDOW
from shared import nifti, resample
from shared.errors import InputError
from shared.files import complete_or_absent

FOLDERS = ("Synapse/train_npz", "Synapse/test_vol_h5")
TEST_CASES = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
# BTCV's number of an organ -> ours; all others become background
ORGAN_OF = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}


def prepare_btcv(raw: Path, out: Path) -> tuple[int, int]:
    """Convert every pair img/imgNNNN.nii.gz, label/labelNNNN.nii.gz; test cases are those of TransUNet.

    Arrays run to the left, to the back and, slice by slice, to the head, whatever the orientation of the file. Volumes
    get an attribute `spacing` (z, x, y) in mm, which TransUNet's own files lack.

    Returns:
        numbers of training slices and of test volumes.

    Raises:
        InputError: no pair, a broken file, labels that don't lie on their image, or `out` already holds something.
    """
    images = sorted((raw / "img").glob("img*.nii.gz"))
    if not images:
        raise InputError(f"{raw}: found no img/img*.nii.gz; expected the folder RawData/Training of BTCV")
    for path in images:
        if not path.name[3:-7].isdecimal():
            raise InputError(f"{path}: expected a name such as img0001.nii.gz, with the number of the case")
    for path in sorted((raw / "label").glob("label*.nii.gz")):
        if not (raw / "img" / path.name.replace("label", "img", 1)).is_file():
            raise InputError(f"{path}: its scan img/{path.name.replace('label', 'img', 1)} is missing")
    names: dict[str, list[str]] = {"train": [], "test_vol": []}
    with complete_or_absent(out) as unfinished:
        train, test, lists = (unfinished / name for name in (*FOLDERS, "lists/lists_Synapse"))
        for folder in (train, test, lists):
            folder.mkdir(parents=True)
        for path in images:
            number = path.name[3:-7]
            image, label, spacing = read_pair(path, raw / "label" / f"label{number}.nii.gz")
            if int(number) in TEST_CASES:
                with h5py.File(test / f"case{number}.npy.h5", "w") as file:
                    file["image"], file["label"] = image, label
                    file.attrs["spacing"] = spacing
                names["test_vol"].append(f"case{number}")
                continue
            for z in range(len(image)):
                names["train"].append(f"case{number}_slice{z:03d}")
                np.savez(train / f"{names['train'][-1]}.npz", image=image[z], label=label[z])
        for name, lines in names.items():
            if not lines:  # a list must not be empty; without one, the folder counts
                continue
            (lists / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return len(names["train"]), len(names["test_vol"])


def read_pair(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image in 0..1 and label 0 to 8, both float32 (z, x to the left, y to the back), and the spacing in mm.

    Raises:
        InputError: a broken file, or labels that don't lie on the image.
    """
    scan = nifti.load(image_path, ndim=3, dtype=np.float32)
    labels = resample.on_grid_of(nifti.load_labels(label_path, 14, ndim=3), scan)
    scan, labels = resample.to_ras(scan), resample.to_ras(labels)
    remap = np.zeros(14, np.float32)
    for theirs, ours in ORGAN_OF.items():
        remap[theirs] = ours
    image = (np.clip(scan.data, *WINDOW) - np.float32(WINDOW[0])) / np.float32(WINDOW[1] - WINDOW[0])
    arrays = (np.ascontiguousarray(np.moveaxis(a[::-1, ::-1], 2, 0)) for a in (image, remap[labels.data]))
    return *arrays, (scan.spacing[2], *scan.spacing[:2])
