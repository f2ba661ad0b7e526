"""Files of arrays that are read or refused: HDF5, .npy and .npz. Texts are in `shared.text_files`.

Whatever is wrong with a file, the caller gets one `InputError` that names the file, what was expected and what was
found. What is checked, everywhere:

- Sizes come from the header and are compared with `MOST_BYTES` before memory is taken.
- Nothing is unpickled, and no file is read but the one that was asked for: HDF5's external links, external storage and
  virtual data sets are refused.
- A file that is cut short, a checksum that is wrong, a name that comes twice: refused.
- NaN and infinity are refused unless the caller says that they may occur.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "slice.npz"
    >>> np.savez(path, image=np.zeros((4, 5)), label=np.full((4, 5), 7.0))
    >>> arrays = {"image": Array(ndim=2, dtype="float32"), "label": Array(like="image", whole=True, least=0, most=3)}
    >>> read_npz(path, arrays)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    shared.errors.InputError: ...slice.npz: 'label' holds 7, expected values from 0 to 3
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import InputError
from shared.files import refuse_duplicates

MOST_BYTES = 8 * 2**30
"""an array in memory; no published data set of these papers has a larger one"""
MOST_BLOCK_BYTES = 2**28
"""a block of a compressed HDF5 array that is smaller itself"""


@dataclass(frozen=True)
class Array:
    """What an array in a file must be. An array without elements is always refused."""

    ndim: int | Collection[int] | None = None
    """how many axes, or which numbers of them may be"""
    shape: tuple[int | None, ...] | None = None
    """length of each axis; None stands for any"""
    like: str | None = None
    """name of an array earlier in the list that must have the same shape"""
    dtype: str | np.dtype | None = None
    """type to convert to; values that it can't hold are refused"""
    whole: bool = False
    """whole numbers: stored as integers, or as floats that are whole, which become int64 without a `dtype`"""
    least: float | None = None
    """smallest value allowed"""
    most: float | None = None
    """largest value allowed"""
    finite: bool = True
    """refuse NaN and infinity"""
    text: bool = False
    """strings of a fixed length instead of numbers"""
    optional: bool = False
    """leave it out of the result where the file lacks it"""


# --- files and errors ------------------------------------------------------------------------------------


def need_file(path: str | Path, expected: str) -> Path:
    """The path, if an ordinary file is there.

    Args:
        path: of the file.
        expected: what it should be, for the message: "a table as .csv".

    Raises:
        InputError: nothing is there, or a folder or a device.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        found = "it is a folder" if path.is_dir() else "it is no ordinary file" if path.exists() else None
    except OSError as error:  # a name too long, a folder that can't be entered
        found = error.strerror
    raise InputError(f"{path}: {found or 'there is no such file'}; expected {expected}")


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a library raises about a broken file into one sentence."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into the memory of this machine") from error
    except Exception as error:  # h5py, zipfile and Pillow raise a dozen kinds for broken files
        lines = str(error).strip().splitlines()
        reason = f" ({lines[0][:160]})" if lines else ""
        raise InputError(
            f"{path}: can't be read as {expected}; it is truncated, damaged or of another format{reason}"
        ) from error


def check_size(path: Path, what: str, items: int, item_bytes: int) -> None:
    """Refuse what would take more than `MOST_BYTES` of memory; numbers from a header, so possibly absurd."""
    if items * item_bytes > MOST_BYTES:
        raise InputError(
            f"{path}: {what} would take {items * item_bytes / 2**30:.3g} GiB of memory, more than the limit of "
            f"{MOST_BYTES / 2**30:g} GiB; is this the right file?"
        )


# --- arrays ----------------------------------------------------------------------------------------------


def quoted(names: Collection[str], most: int = 8) -> str:
    """Names in quotes, the first ones of many."""
    listed = [repr(name) for name in list(names)[:most]]
    return ", ".join(listed + ["..."] * (len(names) > most)) or "nothing"


def _check_header(path: Path, name: str, wanted: Array, shape: tuple, dtype: np.dtype, shapes: Mapping) -> None:
    """All that can be said before the values are read."""
    if dtype.hasobject:
        raise InputError(f"{path}: '{name}' holds objects or strings of any length; expected an array of numbers")
    if wanted.text != (dtype.kind in "SU") or (not wanted.text and dtype.kind not in "biuf"):
        expected = "text of a fixed length" if wanted.text else "real numbers"
        raise InputError(f"{path}: '{name}' has the type {dtype}, expected {expected}")
    shape_text = f"the shape {tuple(shape)}"
    if any(not 0 <= n < 2**63 for n in shape):
        raise InputError(f"{path}: '{name}' has {shape_text}; the file is damaged")
    if math.prod(shape) == 0:
        raise InputError(f"{path}: '{name}' is empty, it has {shape_text}")
    if wanted.ndim is not None:
        allowed = [wanted.ndim] if isinstance(wanted.ndim, int) else sorted(wanted.ndim)
        if len(shape) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"{path}: '{name}' has {len(shape)} axes ({shape_text}), expected {expected}")
    if wanted.shape is not None:
        fits = len(shape) == len(wanted.shape) and all(b in (None, a) for a, b in zip(shape, wanted.shape))
        if not fits:
            expected = ", ".join("any" if n is None else str(n) for n in wanted.shape)
            raise InputError(f"{path}: '{name}' has {shape_text}, expected ({expected})")
    if wanted.like is not None and wanted.like in shapes and tuple(shapes[wanted.like]) != tuple(shape):
        other = tuple(shapes[wanted.like])
        raise InputError(f"{path}: '{name}' has {shape_text}, but '{wanted.like}' has {other}; they must agree")
    item_bytes = max(dtype.itemsize, np.dtype(wanted.dtype).itemsize if wanted.dtype is not None else 1)
    check_size(path, f"'{name}' of {shape_text}", math.prod(shape), item_bytes)


def _check_values(path: Path, name: str, wanted: Array, array: np.ndarray) -> np.ndarray:
    """The array in the type that was asked for, in the machine's byte order, contiguous and writable."""
    if wanted.text:
        return array
    what, floating = f"{path}: '{name}'", array.dtype.kind == "f"
    native = np.dtype(np.float64) if floating and array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    target = native if wanted.dtype is None else np.dtype(wanted.dtype)
    whole = wanted.whole or target.kind in "iub"
    finite = np.isfinite(array) if floating else np.True_
    if not finite.all() and (wanted.finite or whole):
        raise InputError(f"{what} holds NaN or infinite values ({np.count_nonzero(~finite)} of {array.size})")
    if whole and floating:
        if (odd := array != np.floor(array)).any():
            raise InputError(f"{what} must hold whole numbers, found {array[odd].flat[0]:g}")
        if np.abs(array).max() >= 2.0**63:
            raise InputError(f"{what} holds {np.abs(array).max():g}, too large for a whole number of 64 bits")
        array = array.astype(np.int64)
        target = array.dtype if wanted.dtype is None else target
    numbers = array if finite.all() else array[finite]
    if not numbers.size:
        numbers = np.zeros(1)
    low, high = numbers.min(), numbers.max()
    least, most = (
        (-math.inf if wanted.least is None else wanted.least),
        (math.inf if wanted.most is None else wanted.most),
    )
    if target.kind in "iub":
        limits = np.iinfo(target) if target.kind in "iu" else np.iinfo(np.uint8)
        least, most = max(least, limits.min), min(most, limits.max if target.kind in "iu" else 1)
    if not least <= low <= high <= most:
        ends = [f"from {least:g}"] * math.isfinite(least) + [f"to {most:g}"] * math.isfinite(most)
        value = float(low if low < least else high)
        raise InputError(f"{what} holds {value:g}, expected values {' '.join(ends)}")
    if target != array.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            converted = array.astype(target)
        if target.kind == "f" and not (np.isfinite(converted) | ~finite).all():
            raise InputError(f"{what} holds values of {np.abs(numbers).max():g}, too large for {target}")
        array = converted
    return np.require(array, requirements=("C", "W"))


def _lacking(path: Path, name: str, found: Collection[str]) -> InputError:
    return InputError(f"{path}: has no array '{name}'; it holds {quoted(sorted(found))}")


# --- HDF5 ------------------------------------------------------------------------------------------------


def read_hdf5(path: str | Path, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Arrays of an HDF5 file by name.

    Args:
        path: of the file.
        arrays: name -> what it must be. "group/name" is a data set in a group, "group@name" an attribute of an
            object and "@name" one of the file.

    Raises:
        InputError: the file is missing, broken or no HDF5; an array is lacking, of another type, shape or size, holds
            values that it must not hold, or lies in another file.
    """
    return _hdf5(path, arrays, values=True)


def read_hdf5_shapes(path: str | Path, arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shapes of arrays, from the header alone; arguments and errors are those of `read_hdf5`."""
    return _hdf5(path, arrays, values=False)


def _hdf5(path: str | Path, arrays: Mapping[str, Array], values: bool) -> dict:
    import h5py

    path = need_file(path, "an HDF5 file")
    shapes, found = {}, {}
    with reading(path, f"HDF5 with {quoted(arrays)}"), h5py.File(path, "r") as file:
        for name, wanted in arrays.items():
            data = _hdf5_object(path, file, name)
            if data is None:
                if not wanted.optional:
                    raise _lacking(path, name, file.keys())
                continue
            if data.shape is None:
                raise InputError(f"{path}: '{name}' is empty")
            _check_header(path, name, wanted, data.shape, data.dtype, shapes)
            shapes[name] = tuple(data.shape)
            if values and isinstance(data, h5py.Dataset):
                block = math.prod(data.chunks or ()) * data.dtype.itemsize
                if block > max(data.nbytes, MOST_BLOCK_BYTES):
                    raise InputError(
                        f"{path}: '{name}' is stored in blocks of {block / 2**30:.3g} GiB, larger than itself"
                    )
                found[name] = _check_values(path, name, wanted, np.asarray(data[()]))
            elif values:
                buffer = np.empty(data.shape, data.dtype)
                data.read(buffer)
                found[name] = _check_values(path, name, wanted, buffer)
    return found if values else shapes


def _hdf5_object(path: Path, file, name: str):
    """The data set or attribute of a name, or None; links are followed by hand, and only inside the file."""
    import h5py

    where, at, attribute = name.partition("@")
    todo, node, steps = [part for part in where.split("/") if part], file, 0
    while todo:
        steps += 1
        if steps > 100:
            raise InputError(f"{path}: '{name}' is a link that leads in a circle")
        part = todo.pop(0)
        if not isinstance(node, h5py.Group) or part not in node.keys():
            return None
        link = node.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise InputError(
                f"{path}: '{name}' is a link to another file ({link.filename}); copy the data into this one"
            )
        if isinstance(link, h5py.SoftLink):
            target = [step for step in link.path.split("/") if step not in ("", ".")]
            node, todo = (file if link.path.startswith("/") else node), target + todo
        else:
            node = node[part]
    if at:
        # Low-level, because `attrs[name]` reads the value at once.
        return h5py.h5a.open(node.id, attribute.encode()) if attribute in node.attrs else None
    if not isinstance(node, h5py.Dataset):
        raise InputError(f"{path}: '{name}' is a {type(node).__name__.lower()}, expected an array")
    if node.external or node.is_virtual:
        raise InputError(f"{path}: the values of '{name}' lie in other files; copy them into this one")
    return node


# --- NumPy -----------------------------------------------------------------------------------------------


def read_npy(path: str | Path, wanted: Array) -> np.ndarray:
    """The array of an .npy file.

    Raises:
        InputError: as for `read_npz`.
    """
    path = need_file(path, "a NumPy file .npy")
    with reading(path, "a NumPy file .npy"), path.open("rb") as stream:
        return _npy(path, path.stem, wanted, stream, path.stat().st_size, {})


def read_npz(path: str | Path, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name; others that it holds are not looked at.

    Raises:
        InputError: the file is missing, broken or no .npz; an array is lacking, comes twice, is of another type, shape
            or size, or holds values that it must not hold.
    """
    path = need_file(path, f"a NumPy file .npz with {quoted(arrays)}")
    shapes, found = {}, {}
    with reading(path, f"a NumPy file .npz with {quoted(arrays)}"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        refuse_duplicates([member.filename.removesuffix(".npy") for member in members], f"{path}: arrays")
        members = {member.filename.removesuffix(".npy"): member for member in members}
        for name, wanted in arrays.items():
            if name in members:
                with archive.open(members[name]) as stream:
                    found[name] = _npy(path, name, wanted, stream, members[name].file_size, shapes)
            elif not wanted.optional:
                raise _lacking(path, name, members)
    return found


def _npy(path: Path, name: str, wanted: Array, stream, size: int, shapes: dict) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise InputError(f"{path}: '{name}' has the version {version} of NumPy's format, expected 1 or 2")
    shape, _, dtype = read_header[version](stream)
    _check_header(path, name, wanted, shape, dtype, shapes)
    held, needed = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if held != needed:
        raise InputError(f"{path}: '{name}' has {held} bytes of values, but its shape {shape} needs {needed}")
    shapes[name] = tuple(shape)
    stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    stream.read(1)  # at its end, a zip file compares the checksum
    return _check_values(path, name, wanted, array)
