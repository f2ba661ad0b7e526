"""Faults of data sets, as disks, downloads, converters and people make them: what damages a file of any format.

`damage_variants(path)` gives the faults that a file of that format can have, `relations(root)` those of lists that
belong together. A `Damage` with `must` has to be refused wherever the file is read at all; one without may be harmless
(a big-endian array, a dark picture), and then the result must be finite. Everything is deterministic.
"""

import gzip
import json
import re
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Damage(NamedTuple):
    """One fault of one file."""

    name: str
    apply: Callable[[Path], None]
    """damages the file at a path"""
    must: bool
    """has to be refused where the file is read"""


def damage_variants(path: Path) -> Iterator[Damage]:
    """The faults that can happen to a file, by its name and content."""
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    text = suffix in (".csv", ".json", ".txt", ".list", ".cfg")
    yield from _any_file(text, headerless=suffix == ".img")
    if suffix in (".h5", ".hdf5"):
        yield from _arrays(path, _read_h5, _write_h5)
        yield from _hdf5()
    elif suffix == ".npz":
        yield from _arrays(path, _read_npz, lambda path, arrays: np.savez(path, **arrays))
        yield from _npz()
    elif suffix == ".npy":
        yield from _arrays(path, lambda path: {"": np.load(path)}, lambda path, arrays: np.save(path, arrays[""]))
    elif suffix == ".nii.gz":
        yield from _nifti()
    elif suffix in (".png", ".jpg", ".jpeg"):
        yield from _pictures(suffix)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix == ".csv":
        yield from _csv()
    elif text:
        yield from _lines(path)


# --- any file --------------------------------------------------------------------------------------------


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _any_file(text: bool, headerless: bool) -> Iterator[Damage]:
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    page = b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n"

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    yield Damage("garbage", _rewrite(lambda content: noise), True)
    yield Damage("empty", _rewrite(lambda content: b""), True)
    yield Damage("half", _rewrite(lambda content: content[: len(content) // 2]), not text)
    yield Damage("eight bytes short", _rewrite(lambda content: content[:-8]), headerless)
    yield Damage("a web page instead", _rewrite(lambda content: page), not text)
    yield Damage("a folder instead", folder, False)  # a search for files may pass by a folder
    yield Damage("gone", lambda path: path.unlink(), False)
    if text:
        yield Damage("UTF-16", _rewrite(lambda content: content.decode("utf-8-sig").encode("utf-16")), True)
        yield Damage("zero bytes", _rewrite(lambda content: content + bytes(64)), True)
        yield Damage("byte order mark", _rewrite(lambda content: b"\xef\xbb\xbf" + content), False)
        yield Damage("lines of Windows", _rewrite(lambda content: content.replace(b"\n", b"\r\n")), False)


# --- arrays ----------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def _write_h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path) as file:
        attributes = dict(file.attrs)
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, values in arrays.items():
            file[name] = values


def _changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[array.size // 2] = value
    return array


def _arrays(path: Path, read: Callable, write: Callable) -> Iterator[Damage]:
    """Faults of the largest array of numbers, and of the labels where there are some."""
    arrays = read(path)
    of_kind = {
        kind: [name for name, array in arrays.items() if array.dtype.kind in kind and array.ndim]
        for kind in ("f", "iub")
    }
    largest = max((name for name in arrays if arrays[name].ndim), key=lambda name: (arrays[name].size, name))
    floating = max(of_kind["f"], key=lambda name: (arrays[name].size, name), default=None)
    labels = min(of_kind["iub"], key=lambda name: ("label" not in name, name), default=None)

    def change(name: str, function: Callable) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            found = read(path)
            found[name] = function(found[name])
            write(path, found)

        return apply

    single = len(arrays) == 1 and path.suffix != ".npy"
    yield Damage("an axis more", change(largest, lambda a: a[None]), True)
    yield Damage("an axis less", change(largest, lambda a: a[0]), arrays[largest].ndim > 1)
    yield Damage("one plane less", change(largest, lambda a: a[:-1]), not single)
    yield Damage("without elements", change(largest, lambda a: a[:0]), True)
    yield Damage("one number", change(largest, lambda a: a.flat[0]), True)
    yield Damage("complex numbers", change(largest, lambda a: a + 1j), True)
    yield Damage("text", change(largest, lambda a: np.full(a.shape, b"ab")), True)
    yield Damage("all zero", change(largest, lambda a: 0 * a), False)
    if path.suffix in (".npz", ".npy") and arrays[largest].ndim > 1:
        yield Damage("columns first", change(largest, lambda a: np.asfortranarray(a)), False)
    if floating is not None:
        yield Damage("NaN", change(floating, lambda a: _changed(a, np.nan)), True)
        yield Damage("infinity", change(floating, lambda a: _changed(a, -np.inf)), True)
        yield Damage("1e300", change(floating, lambda a: _changed(a.astype(np.float64), 1e300)), False)
        yield Damage("1e30", change(floating, lambda a: _changed(a, 1e30) if a.itemsize > 2 else a), False)
        yield Damage("half precision", change(floating, lambda a: a.astype(np.float16)), False)
    if labels is not None:
        yield Damage("label 250", change(labels, lambda a: _changed(a.astype(np.int64), 250)), False)
        yield Damage("label -1", change(labels, lambda a: _changed(a.astype(np.int64), -1)), True)
        yield Damage("label 0.5", change(labels, lambda a: _changed(a.astype(np.float32), 0.5)), True)
        yield Damage("labels as floats", change(labels, lambda a: a.astype(np.float64)), False)
        yield Damage("labels all 0", change(labels, lambda a: 0 * a), False)

    def other_byte_order(path: Path) -> None:
        write(path, {name: array.astype(array.dtype.newbyteorder()) for name, array in read(path).items()})

    if any(array.dtype.itemsize > 1 for array in arrays.values()):
        yield Damage("another byte order", other_byte_order, False)

    def lacking(path: Path) -> None:
        found = read(path)
        del found[sorted(found)[0]]
        write(path, found)

    def others(path: Path) -> None:
        write(path, {f"other_{name}": array for name, array in read(path).items()})

    if path.suffix != ".npy":
        yield Damage("an array is lacking", lacking, False)
        yield Damage("other names", others, True)


def _npz() -> Iterator[Damage]:
    def with_first(replace: Callable[[str, bytes], list[tuple[str, bytes]]]) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            with zipfile.ZipFile(path) as archive:
                members = [(item.filename, archive.read(item)) for item in archive.infolist()]
            largest = max(range(len(members)), key=lambda k: len(members[k][1]))
            with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the name that comes twice
                for number, member in enumerate(members):
                    for name, content in replace(*member) if number == largest else [member]:
                        archive.writestr(name, content)

        return apply

    def objects(path: Path) -> None:
        arrays = _read_npz(path)
        largest = max(arrays, key=lambda name: arrays[name].size)
        arrays[largest] = arrays[largest].astype(object)
        np.savez(path, **arrays, allow_pickle=True)

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000, 10), }\n"
    bomb = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    yield Damage("an array twice", with_first(lambda name, content: [(name, content), (name, content)]), True)
    yield Damage("a header of 8 TB", with_first(lambda name, content: [(name, bomb)]), True)
    yield Damage("pickled objects", objects, True)


def _hdf5() -> Iterator[Damage]:
    import h5py

    def replaced(write: Callable) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            arrays = _read_h5(path)
            name = max(arrays, key=lambda name: (arrays[name].size, name))
            other = path.with_name(f".{path.name}.other")
            shutil.copy(path, other)
            with h5py.File(path, "r+") as file:
                del file[name]
                write(file, name, arrays[name], other)

        return apply

    def huge(file, name, array, other) -> None:
        shape = (10**6,) * array.ndim
        file.create_dataset(name, shape, array.dtype, chunks=(1,) * array.ndim, compression="gzip")

    def raw(file, name, array, other) -> None:
        other.write_bytes(array.tobytes())
        file.create_dataset(name, array.shape, array.dtype, external=[(str(other), 0, array.nbytes)])

    def external(file, name, array, other) -> None:
        file[name] = h5py.ExternalLink(str(other), name)

    def circle(file, name, array, other) -> None:
        file[name] = h5py.SoftLink(f"/{name}")

    yield Damage("a header of 8 EB", replaced(huge), True)
    yield Damage("values in another file", replaced(raw), True)
    yield Damage("a link to another file", replaced(external), True)
    yield Damage("a link to itself", replaced(circle), True)
    yield Damage("a group instead", replaced(lambda file, name, array, other: file.create_group(name)), True)


# --- volumes ---------------------------------------------------------------------------------------------


def _nifti() -> Iterator[Damage]:
    import nibabel

    def changed(function: Callable) -> Callable[[Path], None]:
        """`function` takes voxels and affine and gives them back."""

        def apply(path: Path) -> None:
            image = nibabel.load(path)
            voxels, affine = function(np.asarray(image.dataobj), image.affine.copy())
            with np.errstate(all="ignore"):
                nibabel.save(nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype), path)

        return apply

    def header(place: int, value: bytes) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            content = gzip.decompress(path.read_bytes())
            path.write_bytes(gzip.compress(content[:place] + value + content[place + len(value) :], 1, mtime=0))

        return apply

    def small(voxels: np.ndarray) -> np.ndarray:
        return voxels.astype(np.float32)

    flip, shift = np.diag([-1.0, 1, 1, 1]), np.outer([1, 1, 1, 0], [0, 0, 0, 100.0])

    def other_way_round(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same volume in the same place, with its first axis stored in the other direction."""
        back = flip.copy()
        back[0, 3] = len(voxels) - 1
        return voxels[::-1], affine @ back

    yield Damage("NaN", changed(lambda v, a: (_changed(small(v), np.nan), a)), True)
    yield Damage("infinity", changed(lambda v, a: (_changed(small(v), np.inf), a)), True)
    yield Damage("1e30", changed(lambda v, a: (_changed(small(v), 1e30), a)), False)
    yield Damage("all zero", changed(lambda v, a: (0 * v, a)), False)
    yield Damage("label 0.5", changed(lambda v, a: (_changed(small(v), 0.5), a)), False)
    yield Damage("label -1", changed(lambda v, a: (_changed(v.astype(np.int16), -1), a)), False)
    yield Damage("an axis more", changed(lambda v, a: (np.stack([v] * 3, -1), a)), False)
    yield Damage("an axis less", changed(lambda v, a: (v[..., 0], a)), True)
    yield Damage("one plane less", changed(lambda v, a: (v[:-1], a)), False)  # must be, where another file says so
    yield Damage("stored the other way round", changed(other_way_round), False)
    yield Damage("mirrored affine", changed(lambda v, a: (v, a @ flip)), False)
    yield Damage("moved by 10 cm", changed(lambda v, a: (v, a + shift)), False)
    yield Damage("complex numbers", changed(lambda v, a: (v.astype(np.complex64), a)), True)
    yield Damage("NaN in the affine", header(280, struct.pack("<f", np.nan)), False)
    yield Damage("an affine of zeros", header(280, bytes(48)), False)
    yield Damage("a header of 200 TB", header(42, struct.pack("<3h", 30000, 30000, 30000)), True)
    yield Damage("a negative size", header(42, struct.pack("<h", -5)), True)
    yield Damage("sizes in metres", header(123, b"\x01"), False)
    yield Damage("RGB", header(70, struct.pack("<2h", 128, 24)), True)
    yield Damage("the stream cut short", _rewrite(lambda content: content[:-8]), True)
    yield Damage(
        "a flipped bit", _rewrite(lambda c: c[: len(c) // 2] + bytes([c[len(c) // 2] ^ 4]) + c[len(c) // 2 + 1 :]), True
    )


# --- pictures --------------------------------------------------------------------------------------------


def _pictures(suffix: str) -> Iterator[Damage]:
    from PIL import Image

    def changed(function: Callable, **options) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            with Image.open(path) as picture:
                picture.load()
            found = function(picture)
            kind = "PNG" if found.mode in ("RGBA", "I;16", "P", "1", "LA") else picture.format
            found.save(path, format=kind, **options)

        return apply

    def huge(path: Path) -> None:
        Image.new("L", (4, 4)).save(path, format="PNG")
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 50000, 50000)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
        path.write_bytes(content)

    def transparent(picture):
        picture = picture.convert("RGBA")
        picture.putalpha(100)
        return picture

    def animated(path: Path) -> None:
        with Image.open(path) as picture:
            frames = [picture.convert("L"), picture.convert("L").point(lambda v: 255 - v)]
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])

    def dark(picture):
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 4)

    turned = Image.Exif()
    turned[0x0112] = 6
    yield Damage("2.5 billion pixels", huge, True)
    yield Damage("12 bits in 16", changed(dark), False)
    yield Damage("transparent", changed(transparent), True)
    yield Damage("animated", animated, True)
    yield Damage("a pixel wider", changed(lambda p: p.resize((p.width + 1, p.height))), False)
    yield Damage("one pixel", changed(lambda p: p.resize((1, 1))), False)
    yield Damage("black", changed(lambda p: p.point(lambda v: 0)), False)
    yield Damage("a palette", changed(lambda p: p.convert("RGB").quantize(8)), False)
    yield Damage("1 bit", changed(lambda p: p.convert("1")), False)
    yield Damage("grey", changed(lambda p: p.convert("L")), False)
    yield Damage("0 and 1", changed(lambda p: p.convert("L").point(lambda v: int(v > 127))), False)
    if suffix != ".png":
        yield Damage("CMYK", changed(lambda p: p.convert("CMYK")), False)
        yield Damage("turned by EXIF", changed(lambda p: p, exif=turned.tobytes()), False)


# --- text ------------------------------------------------------------------------------------------------


def _json(path: Path) -> Iterator[Damage]:
    content = json.loads(path.read_text("utf-8-sig"))

    def changed(function: Callable) -> Callable[[Path], None]:
        return lambda path: path.write_text(json.dumps(function(json.loads(path.read_text("utf-8-sig")))), "utf-8")

    def every(value, of_kind: type, new):
        """All values of a type, at any depth, replaced."""
        if isinstance(value, dict):
            return {key: every(item, of_kind, new) for key, item in value.items()}
        if isinstance(value, list):
            return [every(item, of_kind, new) for item in value]
        return new if isinstance(value, of_kind) and not isinstance(value, bool) else value

    def first_key(value, new):
        """The first key of the outermost object, or of the first one in the list."""
        entry = value[0] if isinstance(value, list) else value
        key = next(iter(entry))
        entry.pop(key)
        return (
            value
            if new is None
            else (value[:1] + [{**entry, key: new}] if isinstance(value, list) else {**entry, key: new})
        )

    yield Damage("a list for an object", changed(lambda v: [v] if isinstance(v, dict) else {"a": v}), True)
    yield Damage("a number", changed(lambda v: 5), True)
    yield Damage("null", changed(lambda v: None), True)
    yield Damage("nothing in it", changed(lambda v: type(v)()), False)
    yield Damage("numbers are NaN", changed(lambda v: every(v, (int, float), float("nan"))), _has_number(content))
    yield Damage("numbers are 1e300", changed(lambda v: every(v, (int, float), 1e300)), False)
    yield Damage("numbers are -1", changed(lambda v: every(v, (int, float), -1)), False)
    yield Damage("numbers are text", changed(lambda v: every(v, (int, float), "7 mm")), False)
    yield Damage("text is a list", changed(lambda v: every(v, str, [1])), False)
    yield Damage("text is null", changed(lambda v: every(v, str, None)), False)
    yield Damage("text leads elsewhere", changed(lambda v: every(v, str, "../../../etc/passwd")), False)
    yield Damage("text has half a character", changed(lambda v: every(v, str, "\ud800")), False)
    yield Damage("a field is lacking", changed(lambda v: first_key(v, None)), False)
    yield Damage("a field is an object", changed(lambda v: first_key(v, {"a": []})), False)
    yield Damage("nested deeply", lambda path: path.write_text("[" * 5000 + "]" * 5000), True)
    if isinstance(content, dict) and content:
        key = json.dumps(next(iter(content)))
        yield Damage("a key twice", _rewrite(lambda c: c.replace(b"{", b"{" + key.encode() + b": 1, ", 1)), True)
    if isinstance(content, list):
        yield Damage("an entry is null", changed(lambda v: [None, *v]), True)
        yield Damage("an entry is a list", changed(lambda v: [[1], *v]), True)


def _has_number(value) -> bool:
    if isinstance(value, dict):
        return any(_has_number(item) for item in value.values())
    return any(map(_has_number, value)) if isinstance(value, list) else isinstance(value, int | float)


def _csv() -> Iterator[Damage]:
    def changed(function: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
        """`function` takes and gives lines."""

        def apply(path: Path) -> None:
            lines = path.read_text("utf-8-sig").splitlines()
            path.write_text("\n".join(function(lines)) + "\n", "utf-8")

        return apply

    def cells(line: str, function: Callable) -> str:
        return ",".join(function(line.split(",")))

    def rows(function: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
        return changed(lambda lines: [lines[0]] + [cells(line, function) for line in lines[1:]])

    def numbers(new: str) -> Callable[[Path], None]:
        return rows(lambda row: [new if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", cell) else cell for cell in row])

    yield Damage("only a heading", changed(lambda lines: lines[:1]), True)
    yield Damage("no heading", changed(lambda lines: lines[1:]), True)
    yield Damage("semicolons", _rewrite(lambda content: content.replace(b",", b";")), True)
    yield Damage("first column lacking", changed(lambda lines: [cells(line, lambda c: c[1:]) for line in lines]), True)
    yield Damage("a column twice", changed(lambda lines: [cells(line, lambda c: c[:1] + c) for line in lines]), True)
    yield Damage("a cell less", changed(lambda lines: lines[:-1] + [lines[-1].rsplit(",", 1)[0]]), True)
    yield Damage("a cell more", changed(lambda lines: lines[:-1] + [lines[-1] + ",1"]), True)
    yield Damage("a quotation without end", changed(lambda lines: [*lines[:-1], '"' + lines[-1]]), True)
    yield Damage("the last row twice", changed(lambda lines: lines + lines[-1:]), False)
    yield Damage("numbers are words", numbers("abc"), False)
    yield Damage("numbers are infinite", numbers("inf"), False)
    yield Damage("numbers are 1e300", numbers("1e300"), False)
    yield Damage("numbers are empty", numbers(""), False)
    yield Damage("numbers with a comma", numbers('"1,5"'), False)
    yield Damage("first cells empty", rows(lambda row: ["", *row[1:]]), True)
    yield Damage("cells lead elsewhere", rows(lambda row: [re.sub(r"^.*/", "../../", cell) for cell in row]), False)


def _lines(path: Path) -> Iterator[Damage]:
    """Faults of lists of names; other text has none of its own."""
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    if not lines or any(re.search(r"[|:]|\s", line.strip()) for line in lines):
        return

    def written(*changed: str) -> Callable[[Path], None]:
        return lambda path: path.write_text("\n".join(changed) + "\n", "utf-8")

    yield Damage("a name twice", written(*lines, lines[0]), True)
    yield Damage("an unknown name", written("no_such_case", *lines), True)
    yield Damage("a name that leads elsewhere", written(*lines, f"../{lines[0]}"), True)
    yield Damage("an absolute name", written(*lines, f"/{lines[0]}"), True)
    yield Damage("blank lines", written("", *lines, " ", ""), False)


# --- lists that belong together --------------------------------------------------------------------------


def relations(root: Path) -> Iterator[tuple[Path, Damage]]:
    """A case of the test list also in the training list: (the training list, the damage)."""
    for train in sorted(root.rglob("*train*")):
        if train.suffix not in (".list", ".txt", ".csv", ".json"):
            continue
        for test in sorted(train.parent.glob(f"*test*{train.suffix}")):

            def apply(path: Path, test: Path = test) -> None:
                if path.suffix == ".json":
                    entries = json.loads(path.read_text("utf-8-sig")) + json.loads(test.read_text("utf-8-sig"))[:1]
                    path.write_text(json.dumps(entries), "utf-8")
                    return
                rows = test.read_text("utf-8").splitlines()
                row = rows[1] if path.suffix == ".csv" else rows[0]
                path.write_text(path.read_text("utf-8").rstrip("\n") + f"\n{row}\n", "utf-8")

            yield train, Damage(f"a case of {test.name} in the training list", apply, True)
