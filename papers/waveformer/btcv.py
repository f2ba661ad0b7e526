"""From BTCV as it is downloaded to the slices and volumes that TransUNet prepared."""

from pathlib import Path

import h5py
import numpy as np

from papers.waveformer.data import WINDOW
from shared import nifti, resample
from shared.errors import InputError

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
        InputError: no pair, a broken file, or a label of another shape.
    """
    images = sorted((raw / "img").glob("img*.nii.gz"))
    if not images:
        raise InputError(f"{raw}: found no img/img*.nii.gz; expected the folder RawData/Training of BTCV")
    remap = np.zeros(14, np.uint8)
    for theirs, ours in ORGAN_OF.items():
        remap[theirs] = ours
    folders = [out / "Synapse" / "train_npz", out / "Synapse" / "test_vol_h5", out / "lists" / "lists_Synapse"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    train, test = [], []
    for path in images:
        number = path.name.removeprefix("img").removesuffix(".nii.gz")
        scan = resample.to_ras(nifti.load(path, ndim=3, dtype=np.float32))
        label = resample.to_ras(nifti.load_labels(raw / "label" / f"label{number}.nii.gz", 14, ndim=3))
        if label.shape != scan.shape:
            raise InputError(f"{label.path} has the shape {label.shape}, but {path.name} has {scan.shape}")
        image = (np.clip(scan.data, *WINDOW) - np.float32(WINDOW[0])) / np.float32(WINDOW[1] - WINDOW[0])
        arrays = {"image": image, "label": remap[label.data].astype(np.float32)}
        arrays = {key: np.ascontiguousarray(np.moveaxis(a[::-1, ::-1], 2, 0), np.float32) for key, a in arrays.items()}
        if int(number) in TEST_CASES:
            with h5py.File(folders[1] / f"case{number}.npy.h5", "w") as file:
                for key, array in arrays.items():
                    file.create_dataset(key, data=array)
                file.attrs["spacing"] = (scan.spacing[2], *scan.spacing[:2])
            test.append(f"case{number}")
            continue
        for z, (slice_image, slice_label) in enumerate(zip(arrays["image"], arrays["label"])):
            train.append(f"case{number}_slice{z:03d}")
            np.savez(folders[0] / f"{train[-1]}.npz", image=slice_image, label=slice_label)
    for name, lines in (("train.txt", train), ("test_vol.txt", test)):
        (folders[2] / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return len(train), len(test)
