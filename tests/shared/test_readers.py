"""`shared.readers`: what is right is read exactly; what is wrong is one sentence that names the file."""

import doctest
import io
import json
import os
import resource
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from shared import readers, text_files
from shared.errors import InputError
from shared.readers import Array, read_hdf5, read_npy, read_npz
from shared.text_files import read_csv_rows, read_csv_table, read_json, read_names

IMAGE = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
LABEL = (IMAGE > 11).astype(np.uint8)
PAIR = {"image": Array(ndim=3, dtype="float32"), "label": Array(like="image", whole=True, least=0, most=1)}


def refused(call, *parts):
    """The call raises one sentence, and every part is in it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    for part in parts:
        assert part in message, f"expected {part!r} in: {message}"


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


WRITERS = [(write_h5, read_hdf5, "a.h5"), (write_npz, read_npz, "a.npz")]
both = pytest.mark.parametrize(("write", "read", "name"), WRITERS, ids=["hdf5", "npz"])


@pytest.fixture(autouse=True)
def little_memory():
    """A reader that believes a header would ask for more than this and fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if os.path.exists(
        "/proc/self/statm") else None  # fmt: skip
    if used is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --- arrays, in both formats -----------------------------------------------------------------------------


@both
def test_arrays_come_back_as_asked_for(write, read, name, tmp_path):
    found = read(write(tmp_path / name, image=IMAGE, label=LABEL, other=IMAGE), PAIR)
    assert list(found) == ["image", "label"]
    assert found["image"].dtype == np.float32 and found["label"].dtype == np.uint8
    np.testing.assert_array_equal(found["image"], IMAGE)
    np.testing.assert_array_equal(found["label"], LABEL)


@both
@pytest.mark.parametrize("dtype", [">f4", ">i2", "<u8", ">u4", "f2", "?", np.longdouble])
def test_every_real_type_in_any_byte_order_can_become_a_tensor(write, read, name, dtype, tmp_path):
    values = (IMAGE % 2).astype(dtype)
    found = read(write(tmp_path / name, x=np.asfortranarray(values)), {"x": Array()})["x"]
    torch.from_numpy(found)
    np.testing.assert_array_equal(found, IMAGE % 2)
    assert found.flags.c_contiguous and found.flags.writeable


@both
def test_whole_numbers_stored_as_floats(write, read, name, tmp_path):
    path = write(tmp_path / name, x=IMAGE)
    assert read(path, {"x": Array(whole=True)})["x"].dtype == np.int64
    assert read(path, {"x": Array(whole=True, dtype=np.uint8)})["x"].dtype == np.uint8


@both
def test_an_optional_array_may_be_absent(write, read, name, tmp_path):
    path = write(tmp_path / name, x=IMAGE)
    assert list(read(path, {"x": Array(), "y": Array(optional=True)})) == ["x"]


@both
@pytest.mark.parametrize(
    ("values", "wanted", "parts"),
    [
        (IMAGE, Array(ndim=2), ["'x'", "3 axes", "expected 2"]),
        (IMAGE, Array(ndim={2, 4}), ["expected 2 or 4"]),
        (IMAGE, Array(shape=(2, None, 5)), ["(2, 3, 4)", "(2, any, 5)"]),
        (np.zeros((0, 3)), Array(), ["empty", "(0, 3)"]),
        (IMAGE + 0j, Array(), ["complex128", "real numbers"]),
        (np.array([b"ab", b"c"]), Array(), ["real numbers"]),
        (IMAGE, Array(text=True), ["float64", "text"]),
        (np.where(IMAGE == 5, np.nan, IMAGE), Array(), ["NaN or infinite", "1 of 24"]),
        (np.where(IMAGE == 5, -np.inf, IMAGE), Array(), ["NaN or infinite"]),
        (np.where(IMAGE == 5, np.nan, IMAGE), Array(finite=False, whole=True), ["NaN"]),
        (IMAGE + 0.5, Array(whole=True), ["whole numbers", "0.5"]),
        (IMAGE * 1e30, Array(whole=True), ["too large"]),
        (IMAGE, Array(least=0, most=11), ["23", "from 0 to 11"]),
        (IMAGE - 1, Array(least=0), ["-1", "values from 0"]),
        (IMAGE, Array(most=3), ["23", "values to 3"]),
        (IMAGE > 5, Array(most=0), ["1", "from 0 to 0"]),
        (IMAGE * 1e300, Array(dtype=np.float32), ["2.3e+301", "float32"]),
        (IMAGE.astype(np.int64) * 100, Array(dtype=np.uint8), ["2300", "from 0 to 255"]),
        (IMAGE - 1, Array(dtype=np.uint8), ["-1", "from 0 to 255"]),
        (IMAGE + 0.5, Array(dtype=np.uint8), ["whole numbers", "0.5"]),
        (IMAGE, Array(dtype=bool), ["23", "from 0 to 1"]),
        (IMAGE, Array(dtype=np.uint8, most=1000, least=1), ["0", "from 1 to 255"]),
        (np.zeros(3, [("a", "f4")]), Array(), ["real numbers"]),
    ],
)
def test_what_an_array_may_not_be(write, read, name, values, wanted, parts, tmp_path):
    path = write(tmp_path / name, x=values)
    refused(lambda: read(path, {"x": wanted}), name, *parts)


@both
def test_shapes_that_must_agree_and_names_that_are_lacking(write, read, name, tmp_path):
    path = write(tmp_path / name, image=IMAGE, label=LABEL[0])
    refused(lambda: read(path, PAIR), name, "'label'", "(3, 4)", "'image' has (2, 3, 4)")
    path = write(tmp_path / name, img=IMAGE)
    refused(lambda: read(path, PAIR), name, "no array 'image'", "'img'")


@both
def test_nan_where_it_is_allowed(write, read, name, tmp_path):
    path = write(tmp_path / name, x=np.array([1.0, np.nan, np.inf]))
    np.testing.assert_array_equal(read(path, {"x": Array(finite=False)})["x"], [1, np.nan, np.inf])
    found = read(path, {"x": Array(finite=False, dtype="float32", least=0, most=2)})["x"]
    assert found.dtype == np.float32


@both
def test_files_that_are_not_there_or_something_else(write, read, name, tmp_path):
    refused(lambda: read(tmp_path / name, PAIR), name, "no such file")
    refused(lambda: read(tmp_path / ("x" * 300 + name), PAIR), "too long")
    (tmp_path / "folder.npz").mkdir()
    refused(lambda: read(tmp_path / "folder.npz", PAIR), "folder")
    os.mkfifo(tmp_path / "fifo")
    refused(lambda: read(tmp_path / "fifo", PAIR), "no ordinary file")
    for content in (
        b"",
        b"\0" * 4000,
        b"\x93NUMPY",
        b"\x89HDF\r\n\x1a\n",
        b"PK\x03\x04" + b"\xff" * 300,
        b"text, text",
    ):
        (tmp_path / name).write_bytes(content)
        refused(lambda: read(tmp_path / name, PAIR), name)


@both
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files(write, read, name, share, tmp_path):
    path = write(tmp_path / name, image=np.random.default_rng(0).random((9, 9, 9)), label=np.ones((9, 9, 9)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: read(path, PAIR), name)


@both
def test_every_flipped_byte_is_a_sentence_or_harmless(write, read, name, tmp_path):
    path = write(tmp_path / name, image=IMAGE, label=LABEL)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for place in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = read(path, PAIR)
        except InputError as error:
            refusals += 1
            assert name in str(error) and "\n" not in str(error)
        else:
            assert found["image"].shape == found["label"].shape and np.isfinite(found["image"]).all()
    assert refusals > 5


def test_a_changed_value_in_an_npz_is_noticed(tmp_path):
    path = write_npz(tmp_path / "a.npz", image=IMAGE, label=LABEL)
    content = path.read_bytes()
    place = content.index(np.float64(17).tobytes())
    path.write_bytes(content[:place] + np.float64(18).tobytes() + content[place + 8 :])
    refused(lambda: read_npz(path, PAIR), "a.npz", "CRC")


# --- HDF5 ------------------------------------------------------------------------------------------------


def test_hdf5_groups_attributes_and_links_within_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("outer/inner")
        group["x"] = IMAGE
        group.attrs["spacing"] = np.array([1.0, 2.0, 3.0])
        file.attrs["version"] = np.int32(7)
        file["soft"] = h5py.SoftLink("/outer/inner/x")
        file["outer/relative"] = h5py.SoftLink("./inner/x")
        file["group"] = h5py.SoftLink("outer/inner")
    names = ["outer/inner/x", "soft", "outer/relative", "group/x"]
    arrays = {name: Array(ndim=3) for name in names} | {
        "outer/inner@spacing": Array(shape=(3,), least=0),
        "@version": Array(ndim=0, whole=True),
        "@absent": Array(optional=True),
        "no/thing@absent": Array(optional=True),
    }
    found = read_hdf5(tmp_path / "a.h5", arrays)
    assert list(found) == [*names, "outer/inner@spacing", "@version"]
    assert found["outer/inner@spacing"].tolist() == [1, 2, 3] and found["@version"] == 7
    shapes = readers.read_hdf5_shapes(tmp_path / "a.h5", arrays)
    assert shapes["soft"] == (2, 3, 4) and shapes["@version"] == ()


def hdf5_with(tmp_path, fill):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file)
    return tmp_path / "a.h5"


def test_hdf5_reads_no_other_file(tmp_path):
    secret = write_h5(tmp_path / "secret.h5", x=IMAGE)
    (tmp_path / "raw.bin").write_bytes(IMAGE.tobytes())

    def external(file):
        file["x"] = h5py.ExternalLink(str(secret), "/x")

    def group(file):
        file["g"] = h5py.ExternalLink(str(secret), "/")
        file["x"] = h5py.SoftLink("/g/x")

    def raw(file):
        file.create_dataset("x", (2, 3, 4), "f8", external=[(str(tmp_path / "raw.bin"), 0, 192)])

    def virtual(file):
        layout = h5py.VirtualLayout((2, 3, 4), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "x", (2, 3, 4))
        file.create_virtual_dataset("x", layout)

    for fill, part in (
        (external, "another file"),
        (group, "another file"),
        (raw, "other files"),
        (virtual, "other files"),
    ):
        refused(lambda fill=fill: read_hdf5(hdf5_with(tmp_path, fill), {"x": Array()}), "a.h5", "'x'", part)


def test_odd_hdf5(tmp_path):
    def circle(file):
        file["x"] = h5py.SoftLink("/y")
        file["y"] = h5py.SoftLink("/x")

    def dangling(file):
        file["x"] = h5py.SoftLink("/nowhere")

    def huge(file):
        file.create_dataset("x", (10**5, 10**5, 100), "f4", chunks=(1000, 1000, 1), compression="gzip")

    def block(file):
        file.create_dataset("x", (2, 2), "u1", chunks=(2**15, 2**15), maxshape=(None, None), compression="gzip")

    def text(file):
        file["x"] = ["a", "b"]

    def reference(file):
        file["y"] = 1
        file.create_dataset("x", data=np.array([file["y"].ref], h5py.ref_dtype))

    for fill, part in (
        (circle, "circle"),
        (dangling, "no array 'x'"),
        (huge, "GiB of memory"),
        (block, "blocks of"),
        (text, "objects or strings"),
        (reference, "objects"),
        (lambda file: file.create_group("x"), "group"),
        (lambda file: file.create_dataset("x", data=h5py.Empty("f4")), "empty"),
        (lambda file: file.create_dataset("x", data=np.ones(3)).attrs.create("a", "text"), "objects or strings"),
    ):
        wanted = {"x@a": Array()} if "attrs" in fill.__code__.co_names else {"x": Array()}
        refused(lambda fill=fill, wanted=wanted: read_hdf5(hdf5_with(tmp_path, fill), wanted), "a.h5", part)


# --- NumPy -----------------------------------------------------------------------------------------------


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGE))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", Array(ndim=3)), IMAGE)
    content = (tmp_path / "a.npy").read_bytes()
    for damaged in (content[:-1], content + b"\0", content[:60], content[:6], b""):
        (tmp_path / "a.npy").write_bytes(damaged)
        refused(lambda: read_npy(tmp_path / "a.npy", Array()), "a.npy")


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (header("(100000, 100000, 100)"), "GiB of memory"),
        (header("(99999999999999999999999, 9)"), "damaged"),
        (header("(-1, 5)"), "damaged"),
        (header("(2, 2)") + bytes(31), "31 bytes"),
        (header("(2, 2)", "'|O'"), "objects"),
        (header("(2, 2)", "'|V8'") + bytes(32), "real numbers"),
        (header("(2, 2)", "__import__('os')"), "can't be read"),
        (header("not a shape"), "can't be read"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version (9, 0)"),
    ],
)
def test_headers_of_npy_and_npz(content, part, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    refused(lambda: read_npy(tmp_path / "a.npy", Array()), "a.npy", part)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(lambda: read_npz(tmp_path / "a.npz", {"x": Array()}), "a.npz", part)


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object), allow_pickle=True)
    refused(lambda: read_npy(tmp_path / "a.npy", Array()), "objects")
    refused(lambda: read_npz(tmp_path / "a.npz", {"x": Array()}), "objects")
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_takes_no_memory(tmp_path):
    """A file of 10 MB that would be 10 GB."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as stream:
            stream.write(header("(1300000000,)"))
            stream.write(bytes(2**20))
    refused(lambda: read_npz(tmp_path / "a.npz", {"x": Array()}), "a.npz", "9.69 GiB", "limit")


def test_an_array_twice_in_an_npz(tmp_path):
    stream = io.BytesIO()
    np.save(stream, IMAGE)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
        archive.writestr("x", stream.getvalue())
    refused(lambda: read_npz(tmp_path / "a.npz", {"x": Array()}), "a.npz", "'x' comes 2 times")


def test_text_in_an_npz(tmp_path):
    path = write_npz(tmp_path / "a.npz", format=np.array(b"csr"))
    assert read_npz(path, {"format": Array(text=True)})["format"] == b"csr"


# --- JSON ------------------------------------------------------------------------------------------------


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"ä": [1, 2.5, null, true, "\\ud83d\\ude00"]}', "utf-8")
    assert read_json(path, "a test") == {"ä": [1, 2.5, None, True, "😀"]}
    path.write_text("[NaN, 1]")
    assert np.isnan(read_json(path, "a test", list, finite=False)[0])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "can't be read"),
        (b'{"a": [1, 2', "can't be read"),
        (b"[1, 2]", "found a list"),
        (b'"text"', "found str"),
        (b"null", "found NoneType"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "too large"),
        (b'{"a": 1, "a": 2}', "'a' comes 2 times"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" * 100 + b"]" * 100, "64 levels"),
        (b"[" * 200000 + b"]" * 200000, "can't be read"),
        ('{"ä": 1}'.encode("latin-1"), "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": 1}\0', "zero bytes"),
        (b'{"a": 1}{"b": 2}', "can't be read"),
    ],
)
def test_json_that_is_refused(content, part, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    refused(lambda: read_json(tmp_path / "a.json", "a test"), "a.json", part)


def test_json_of_another_kind_and_absent(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    refused(lambda: read_json(tmp_path / "a.json", "questions", list), "questions as a list", "an object")
    refused(lambda: read_json(tmp_path / "b.json", "questions", list), "b.json", "no such file; expected questions")


# --- lists and tables ------------------------------------------------------------------------------------


def test_names(tmp_path):
    (tmp_path / "a.list").write_bytes("\ufeffcase 1\r\n\n  größe \ncase\u20282\n".encode())
    assert read_names(tmp_path / "a.list", "scans") == ["case 1", "größe", "case\u20282"]
    for content, part in (("", "no scans"), ("\n \n", "no scans"), ("a\nb\na\n", "'a' comes 2 times"), ("a\0", "zero")):
        (tmp_path / "a.list").write_text(content)
        refused(lambda: read_names(tmp_path / "a.list", "scans"), "a.list", part)


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff id ,"note"\r\n1,"two\nlines, and a comma"\r\n\r\n2,\u2028\x0b\r\n'.encode())
    rows = read_csv_rows(path, ["note", "id"], unique="id")
    assert rows == [{"id": "1", "note": "two\nlines, and a comma"}, {"id": "2", "note": "\u2028\x0b"}]
    path.write_text("a;b\n1;2\n")
    assert read_csv_table(path, ["b"], delimiter=";") == (["a", "b"], [["1", "2"]])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no rows"),
        (b"id,age\n", "no rows"),
        (b"id,age\n1,2,3\n", "line 2 has 3 cells and the heading 2"),
        (b"id,age\n1,2\n3\n", "line 3 has 1 cells"),
        (b"id;age\n1;2\n", "separated by ';'"),
        (b"id\tage\n1\t2\n", "separated by tabulators"),
        (b"id,weight\n1,2\n", "no column 'age'; its columns are 'id', 'weight'"),
        (b"id,age,id\n1,2,3\n", "'id' comes 2 times"),
        (b"id,age\n1,2\n1,3\n", "values of 'id': '1' comes 2 times"),
        (b'id,age\n1,"2\n3,4\n', "can't be read as a table"),
        (b"id,age\n1,\xe4\n", "UTF-8"),
        ("id,age\n1,2\n".encode("utf-16"), "UTF-8"),
        (b"id,age\n1,2\0\n", "zero bytes"),
        (b"PK\x03\x04\x14\x00\x06\x00" + bytes(50), "zero bytes"),  # a workbook of Excel
        (b"id,age\n1," + b"9" * 200000 + b"\n", "can't be read as a table"),
    ],
)
def test_tables_that_are_refused(content, part, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    refused(lambda: read_csv_rows(tmp_path / "a.csv", ["id", "age"], unique="id"), "a.csv", part)


@pytest.mark.parametrize("text", ["", "a", "1_000", "0x10", "1,5", "１２", "--1", "nan", "inf", "1e999"])
def test_cells_that_are_no_numbers(text):
    refused(lambda: text_files.number(text, "a.csv: age of 7"), "a.csv: age of 7", repr(text))


def test_the_limit_of_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_TEXT_BYTES", 10)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2\n")
    refused(lambda: read_csv_rows(tmp_path / "a.csv"), "a.csv", "limit")


def test_the_examples_of_the_documentation():
    result = doctest.testmod(readers, verbose=False)
    assert result.attempted >= 5 and result.failed == 0
