"""Stand-in for the data of WaveFormer: abdominal CT in TransUNet's layout, and dermoscopy in ISIC's.

Simulated scans (`abdomen_ct`) as Synapse/ and lists/, one of them as raw NIfTI too, and photographs (`skin_lesion`).
"""

import json
from pathlib import Path
from typing import Literal

Size = Literal["smoke", "cpu", "study", "paper"]
# pixels of a slice, slices, training and test volumes; height and width of photographs, their number
CT = {"smoke": (64, 4, 3, 2), "cpu": (128, 16, 16, 8), "study": (128, 16, 16, 8), "paper": (512, 48, 18, 12)}
PHOTOS = {"smoke": (48, 64, 10), "cpu": (96, 128, 100), "study": (96, 128, 100), "paper": (576, 768, 2594)}
CASE = {"train": 5, "test": 2}  # number of the first case; those for training are odd, those for tests even


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Write the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. A case depends only on seed, split, its number and the size.
        size: smoke, cpu and study (the same data), or paper.

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    from shared.errors import InputError
    from shared.files import complete_or_absent

    out = Path(out)
    if size not in CT:
        raise InputError(f"there is no size '{size}': choose one of {', '.join(CT)}")
    with complete_or_absent(out) as unfinished:
        write_synapse(unfinished, seed, *CT[size])
        write_isic(unfinished, seed, *PHOTOS[size])
        note = {
            "name": "Simulated abdominal CT with eight organs, and simulated dermoscopy",
            "stands_in_for": "Synapse (BTCV) multi-organ CT as prepared by TransUNet, and ISIC 2018 task 1",
            "seed": seed,
            "size": size,
            "ct": dict(zip(("pixels", "slices", "train", "test"), CT[size])),
            "photographs": PHOTOS[size][2],
            "cannot_show": ["the Dice of patients", "readers' doubt at the pancreas", "variants of anatomy"],
        }
        (unfinished / "standin.json").write_text(json.dumps(note, indent=1) + "\n", "utf-8")
    return out


def write_synapse(root: Path, seed: int, pixels: int, slices: int, train: int, test: int) -> None:
    """Synapse/train_npz, Synapse/test_vol_h5, lists/lists_Synapse, and the first test case as NIfTI."""
    import h5py
    import numpy as np

    from benchmarks.standins.abdomen_ct import abdomen_ct
    from shared import nifti

    folders = {"train": root / "Synapse" / "train_npz", "test": root / "Synapse" / "test_vol_h5"}
    lists = root / "lists" / "lists_Synapse"
    for folder in (*folders.values(), lists):
        folder.mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for part, (split, count) in enumerate((("train", train), ("test", test))):
        for number in range(count):
            scan = abdomen_ct(np.random.default_rng([seed, part, number]), pixels, slices)
            hu, labels = np.moveaxis(scan.hu, 2, 0), np.moveaxis(scan.labels, 2, 0)
            image = (np.clip(hu, -125, 275).astype(np.float32) + 125) / 400
            case = f"case{CASE[split] + 2 * number:04d}"
            if split == "train":
                for z in range(slices):
                    name = f"{case}_slice{z:03d}"
                    np.savez(folders[split] / f"{name}.npz", image=image[z], label=labels[z].astype(np.float32))
                    names[split].append(name)
                continue
            with h5py.File(folders[split] / f"{case}.npy.h5", "w") as file:
                file.create_dataset("image", data=image)
                file.create_dataset("label", data=labels.astype(np.float32))
                file.attrs["spacing"] = (scan.spacing[2], *scan.spacing[:2])
            names[split].append(case)
            if number == 0:
                affine = np.diag([-scan.spacing[0], -scan.spacing[1], scan.spacing[2], 1.0])  # LPS voxels
                nifti.save(root / "RawData" / "Training" / "img" / f"img{case[4:]}.nii.gz", scan.hu, affine=affine)
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in names["train"]), "utf-8")
    (lists / "test_vol.txt").write_text("".join(f"{name}\n" for name in names["test"]), "utf-8")


def write_isic(root: Path, seed: int, height: int, width: int, count: int) -> None:
    """ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth."""
    import numpy as np
    from PIL import Image

    from benchmarks.standins.skin_lesion import skin_lesion

    images, masks = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
    images.mkdir()
    masks.mkdir()
    for number in range(count):
        photo, mask = skin_lesion(np.random.default_rng([seed, 2, number]), height, width)
        Image.fromarray(photo).save(images / f"ISIC_{number:07d}.jpg", quality=92)
        Image.fromarray((255 * mask).astype(np.uint8)).save(masks / f"ISIC_{number:07d}_segmentation.png")
