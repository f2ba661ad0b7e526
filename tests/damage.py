"""Damage copies of data files, the way that disks, downloads and converters do."""

import re
from pathlib import Path

import numpy as np


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def put_nan(path: Path) -> bool:
    """Put a NaN into the first floating-point image of a file; False if its format can't hold one."""
    name = path.name
    if name.endswith((".h5", ".hdf5")):
        import h5py

        found = False
        with h5py.File(path, "r+") as file:
            for key in file:
                if file[key].dtype.kind == "f":
                    values = file[key][...]
                    values.flat[values.size // 2] = np.nan
                    file[key][...] = values
                    found = True
        return found
    if name.endswith((".nii", ".nii.gz")):
        import nibabel

        image = nibabel.load(path)
        values = np.asarray(image.dataobj).astype(np.float32)
        values.flat[values.size // 2] = np.nan
        header = image.header.copy()
        header.set_data_dtype(np.float32)
        nibabel.save(type(image)(values, image.affine, header), path)
        return True
    if name.endswith(".npy"):
        values = np.load(path)
        if values.dtype.kind != "f":
            return False
        values.flat[values.size // 2] = np.nan
        np.save(path, values)
        return True
    if name.endswith(".npz"):
        arrays = dict(np.load(path))
        floating = [key for key, values in arrays.items() if values.dtype.kind == "f"]
        for key in floating:
            arrays[key].flat[arrays[key].size // 2] = np.nan
        np.savez(path, **arrays)
        return bool(floating)
    if name.endswith(".csv"):
        # An empty cell or "nan" is how a table says that a value is missing; infinity has no meaning in any.
        text = path.read_text("utf-8")
        damaged = re.sub(r"(?<=,)-?\d+\.\d+(?=[,\r\n])", "inf", text)
        path.write_text(damaged, "utf-8")
        return damaged != text
    return False
