"""Stand-in for the left-atrium scans of DKUXNet, in the layout of the UA-MT repository.

Simulated late gadolinium-enhanced scans (`left_atrium`): `mri_norm2.h5` per scan, train.list and test.list.
"""

import json
from pathlib import Path
from typing import Literal

Size = Literal["smoke", "cpu", "study", "paper"]
FOLDER = "2018LA_Seg_Training Set"
# voxel size in mm, training scans, test scans
SETTINGS = {"smoke": (5.0, 3, 2), "cpu": (3.75, 40, 72), "study": (3.75, 40, 72), "paper": (0.625, 80, 20)}


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Write the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. A scan depends only on seed, split, its number and the voxel size.
        size: smoke (seconds), cpu and study (the same data) or paper (0.625 mm voxels).

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    import h5py
    import numpy as np

    from benchmarks.standins.left_atrium import simulate
    from shared.errors import InputError
    from shared.files import complete_or_absent

    out = Path(out)
    if size not in SETTINGS:
        raise InputError(f"there is no size '{size}': choose one of {', '.join(SETTINGS)}")
    voxel_mm, train, test = SETTINGS[size]
    with complete_or_absent(out) as unfinished:
        for part, (split, scans) in enumerate((("train", train), ("test", test))):
            names = [f"SIM{split.upper()}{number:03d}" for number in range(scans)]
            for number, name in enumerate(names):
                scan = simulate(np.random.default_rng([seed, part, number]), voxel_mm)
                folder = unfinished / FOLDER / name
                folder.mkdir(parents=True)
                with h5py.File(folder / "mri_norm2.h5", "w") as file:
                    file.create_dataset("image", data=scan.image, compression="gzip", compression_opts=1)
                    file.create_dataset("label", data=scan.label, compression="gzip", compression_opts=1)
            (unfinished / f"{split}.list").write_text("".join(f"{name}\n" for name in names))
        note = {
            "name": "Simulated late gadolinium-enhanced MR of the left atrium",
            "stands_in_for": "100 scans of the 2018 Atrial Segmentation Challenge",
            "seed": seed,
            "size": size,
            "voxel_mm": voxel_mm,
            "scans": {"train": train, "test": test},
            "cannot_show": ["the Dice of patients", "trabeculae and real vein anatomy"],
        }
        (unfinished / "standin.json").write_text(json.dumps(note, indent=1) + "\n")
    return out
