"""`shared.photo`: every kind of picture that a camera, a scanner or a program writes is right or one sentence."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from shared import photo
from shared.errors import InputError
from shared.photo import read_mask, read_photo

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, GREY.T.reshape(6, 8), 255 - GREY], axis=-1)
SIXTEEN = (GREY.astype(np.uint16) << 8) + GREY[::-1]  # up to 60395
MASK = GREY > 100


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, f"expected {part!r} in: {message}"


def saved(path, array, mode=None, **options):
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def png(path, array, colour_type):
    """A 16-bit PNG (H, W, channels) written by hand: Pillow can't."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    size = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


# --- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "ppm", "jp2"])
def test_lossless_formats_are_exact(suffix, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    found = read_photo(saved(tmp_path / f"a.{suffix}", COLOUR, **options))
    assert found.dtype == np.float32 and found.shape == (6, 8, 3)
    np.testing.assert_array_equal(np.round(found * 255), COLOUR)
    assert found.min() >= 0 and found.max() <= 1


def test_colour_and_grey(tmp_path):
    grey, colour = saved(tmp_path / "g.png", GREY), saved(tmp_path / "c.png", COLOUR)
    np.testing.assert_array_equal(read_photo(grey), np.repeat(read_photo(grey, colour=False)[..., None], 3, 2))
    assert read_photo(grey, colour=None).shape == (6, 8)
    assert read_photo(colour, colour=None).shape == (6, 8, 3)
    grey_in_rgb = saved(tmp_path / "r.png", GREY, "RGB")
    for wanted in (False, None):
        np.testing.assert_array_equal(read_photo(grey_in_rgb, colour=wanted), GREY.astype(np.float32) / 255)
    luma = read_photo(colour, colour=False)
    reference = np.asarray(Image.open(colour).convert("L"), dtype=float)
    assert np.abs(255 * luma - reference).max() <= 1


def test_one_bit_palette_cmyk_and_ycbcr(tmp_path):
    np.testing.assert_array_equal(read_photo(saved(tmp_path / "1.png", MASK), colour=False), MASK)
    few = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(few.convert("RGB")).astype(np.float32) / 255
    np.testing.assert_array_equal(read_photo(saved(tmp_path / "p.png", few)), expected)
    np.testing.assert_array_equal(read_photo(saved(tmp_path / "p.gif", few)), expected)
    cmyk = read_photo(saved(tmp_path / "k.tif", COLOUR, "CMYK"))
    np.testing.assert_allclose(cmyk * 255, COLOUR, atol=1)
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    for mode in ("CMYK", "YCbCr", "L"):
        found = read_photo(saved(tmp_path / "k.jpg", smooth, mode, quality=100, subsampling=0))
        np.testing.assert_allclose(found[..., 1] * 255, smooth, atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation(orientation, suffix, tmp_path):
    """What the tag means, by hand: 1 to 8 of the EXIF standard."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # bright at the upper left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", np.ascontiguousarray(undo(upright)), exif=exif.tobytes())
    np.testing.assert_allclose(read_photo(path, colour=False) * 255, upright, atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2"])
def test_sixteen_bits_are_scaled_exactly(suffix, tmp_path):
    path = saved(tmp_path / f"a.{suffix}", SIXTEEN)
    np.testing.assert_array_equal(read_photo(path, colour=False), SIXTEEN.astype(np.float32) / 65535)
    dark = saved(tmp_path / f"b.{suffix}", SIXTEEN >> 4)  # 12 bits
    refused(lambda: read_photo(dark), f"b.{suffix}", "16 bits", str((SIXTEEN >> 4).max()))
    assert not read_photo(saved(tmp_path / f"c.{suffix}", 0 * SIXTEEN)).any()


def test_sixteen_bits_in_colour_and_with_alpha(tmp_path):
    rgb = np.stack([SIXTEEN, SIXTEEN[::-1], SIXTEEN.T.reshape(6, 8)], -1)
    found = read_photo(png(tmp_path / "c.png", rgb, 2))
    np.testing.assert_array_equal(found, (rgb >> 8).astype(np.float32) / 255)
    refused(lambda: read_photo(png(tmp_path / "d.png", rgb >> 4, 2)), "d.png", "16 bits")
    opaque = np.stack([SIXTEEN, np.full_like(SIXTEEN, 65535)], -1)
    np.testing.assert_allclose(read_photo(png(tmp_path / "e.png", opaque, 4))[..., 0], SIXTEEN / 65535, atol=1 / 255)


def test_sixteen_bits_of_pgm(tmp_path):
    """Its header says what the largest value is, so that 12 bits are no question."""
    (tmp_path / "a.pgm").write_bytes(b"P5 8 6 4095\n" + (SIXTEEN >> 4).astype(">u2").tobytes())
    np.testing.assert_allclose(read_photo(tmp_path / "a.pgm", colour=False), (SIXTEEN >> 4) / 4095, atol=1e-4)


def test_floating_point_and_32_bits(tmp_path):
    values = (GREY / 255).astype(np.float32)
    np.testing.assert_array_equal(read_photo(saved(tmp_path / "f.tif", values), colour=False), values)
    for name, array, part in (
        ("hu", values * 2000 - 1000, "-1000 to"),
        ("nan", np.where(values > 0.5, np.nan, values), "NaN"),
        ("inf", np.where(values > 0.5, np.inf, values), "infinite"),
        ("int", GREY.astype(np.int32), "32-bit"),
    ):
        refused(lambda a=array, n=name: read_photo(saved(tmp_path / f"{n}.tif", a)), f"{name}.tif", part)


def test_transparency(tmp_path):
    alpha = np.full((6, 8), 255, np.uint8)
    opaque = np.dstack([COLOUR, alpha])
    np.testing.assert_array_equal(np.round(255 * read_photo(saved(tmp_path / "a.png", opaque))), COLOUR)
    la = saved(tmp_path / "la.png", np.dstack([GREY, alpha]))
    np.testing.assert_array_equal(np.round(255 * read_photo(la, colour=False)), GREY)
    alpha[0, :3] = 7
    refused(
        lambda: read_photo(saved(tmp_path / "b.png", np.dstack([COLOUR, alpha]))), "b.png", "3 of 48", "transparent"
    )
    refused(lambda: read_photo(saved(tmp_path / "c.png", np.dstack([GREY, alpha]))), "transparent")
    few = Image.fromarray(COLOUR).quantize(4)
    refused(lambda: read_photo(saved(tmp_path / "p.gif", few, transparency=1)), "transparent")
    refused(lambda: read_photo(saved(tmp_path / "t.png", COLOUR, transparency=tuple(COLOUR[2, 3].tolist()))), "1 of 48")


def test_several_pictures_in_a_file(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused(lambda name=name: read_photo(tmp_path / name), name, "2 pictures")
        refused(lambda name=name: read_mask(tmp_path / name), name, "2 pictures")
    frames[0].convert("RGB").save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=frames[1:], quality=100)
    (tmp_path / "a.mpo").rename(tmp_path / "phone.jpg")
    np.testing.assert_allclose(255 * read_photo(tmp_path / "phone.jpg", colour=False), GREY, atol=12)


def test_too_many_pixels_by_the_header(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", GREY)
    content = bytearray(path.read_bytes())
    for side in (10_000, 60_000):  # ours, then Pillow's own limit
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own
            refused(lambda: read_photo(path), "a.png", "pixels", "limit")
    monkeypatch.setattr(photo, "MOST_PIXELS", 47)
    refused(lambda: read_photo(saved(tmp_path / "b.png", GREY)), "8 x 6 pixels", "limit")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp", "jp2"])
def test_damaged_pictures(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    path = saved(tmp_path / f"a.{suffix}", noise)
    content = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.8):
        path.write_bytes(content[: int(share * len(content))])
        refused(lambda: read_photo(path), f"a.{suffix}")
        refused(lambda: read_mask(path), f"a.{suffix}")
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 30, replace=False):
        path.write_bytes(content[:place] + bytes([content[place] ^ 85]) + content[place + 1 :])
        try:
            found = read_photo(path)
        except InputError as error:
            assert f"a.{suffix}" in str(error) and "\n" not in str(error)
        else:
            assert np.isfinite(found).all() and suffix != "png"  # which has checksums


def test_what_is_no_picture(tmp_path):
    refused(lambda: read_photo(tmp_path / "a.png"), "a.png", "no such file")
    (tmp_path / "f.png").mkdir()
    refused(lambda: read_photo(tmp_path / "f.png"), "f.png", "folder")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for content in (b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", postscript, bytes(999)):
        (tmp_path / "a.png").write_bytes(content)
        refused(lambda: read_photo(tmp_path / "a.png"), "a.png", "picture")


# --- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes",
    [
        MASK,
        MASK.astype(np.uint8),
        MASK * np.uint8(255),
        MASK * np.uint8(7),
        MASK * np.uint16(65535),
        MASK * np.uint16(1),
    ],
    ids=["1 bit", "0/1", "0/255", "0/7", "16 bit", "16 bit, 0/1"],
)
def test_masks_of_every_code(codes, tmp_path):
    for suffix in ("png", "tif"):
        found = read_mask(saved(tmp_path / f"m.{suffix}", codes), shape=(6, 8))
        assert found.dtype == bool
        np.testing.assert_array_equal(found, MASK)


def test_masks_of_other_kinds(tmp_path):
    codes = MASK.astype(np.uint8)
    for name, array in (("i.tif", codes.astype(np.int32) * 5), ("f.tif", codes.astype(np.float32)),
                        ("rgb.png", np.dstack([255 * codes] * 3)),
                        ("rgba.png", np.dstack([255 * codes] * 3 + [np.full_like(codes, 255)]))):  # fmt: skip
        np.testing.assert_array_equal(read_mask(saved(tmp_path / name, array)), MASK)
    palette = Image.fromarray(codes, "L").convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "p.png", palette)), MASK)
    palette.putpalette([255, 255, 255, 0, 0, 0])
    refused(lambda: read_mask(saved(tmp_path / "q.png", palette)), "q.png", "index 0")
    full = read_mask(saved(tmp_path / "full.png", np.full((6, 8), 255, np.uint8)))
    assert full.all()


def test_masks_that_are_refused(tmp_path):
    codes = 255 * MASK.astype(np.uint8)
    smooth = codes.copy()
    smooth[0, 0] = 128
    for name, array, part in (
        ("smooth.png", smooth, "3 values"),
        ("labels.png", GREY // 60, "4 values"),
        ("inverse.tif", MASK.astype(np.int32) - 1, "-1 to 0"),
        ("no_zero.png", codes // 2 + 1, "1 to 128"),
        ("colour.png", COLOUR, "coloured"),
        ("nan.tif", np.where(MASK, np.nan, 0).astype(np.float32), "NaN"),
        ("empty.png", 0 * codes, "empty"),
        ("clear.png", np.dstack([codes, codes]), "transparent"),
    ):
        refused(lambda a=array, n=name: read_mask(saved(tmp_path / n, a)), name, part)
    refused(lambda: read_mask(saved(tmp_path / "a.jpg", codes)), "a.jpg", "lossy")
    refused(lambda: read_mask(saved(tmp_path / "k.tif", COLOUR, "CMYK")), "k.tif", "CMYK")
    assert not read_mask(tmp_path / "empty.png", allow_empty=True).any()


def test_a_mask_has_the_shape_of_its_upright_picture(tmp_path):
    mask = saved(tmp_path / "m.png", MASK)
    refused(lambda: read_mask(mask, shape=(6, 9)), "m.png", "6 rows and 8 columns", "6 and 9")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_photo(saved(tmp_path / "a.jpg", GREY, exif=exif.tobytes()))
    assert picture.shape == (8, 6, 3)
    refused(lambda: read_mask(mask, shape=picture.shape[:2]), "m.png", "EXIF")
