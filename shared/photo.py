"""Pictures and masks in ordinary image formats: PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, JPEG 2000.

`read_photo` gives intensities in [0, 1], `read_mask` a bool mask. What a file can mean in more than one way is refused
with one sentence rather than guessed:

- **Orientation.** A picture that a camera marked as turned (EXIF) is turned upright. So must its mask be: masks are
  compared with the upright picture.
- **16 bits** per channel: divided by 65535. A 16-bit picture whose brightest value is below 2^14 may hold 10, 12 or 14
  bits in reality, and is refused unless it is black. (Pillow reads 16-bit *colour* to 8 bits.)
- **Floating point** is taken as it is where it lies in [0, 1], else refused.
- **Transparency.** Alpha that is opaque throughout is dropped; a picture with transparent pixels is refused, as its
  look depends on the background.
- **Palette, CMYK, YCbCr, 1 bit** become RGB or grey as Pillow converts them, without colour profiles.
- **Several pictures** in a file (animations, TIFF pages) are refused. Of a phone's multi-picture JPEG (MPO) the first
  is read; the others are previews.
- More than `MOST_PIXELS` pixels, by the header, are refused before they are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared.errors import InputError
from shared.readers import need_file, reading

MOST_PIXELS = 80_000_000
"""of a picture; a camera's have 10 to 50 million"""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
"""that are read; Pillow has others that start programs"""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""weights of red, green and blue in ITU-R BT.601"""


def read_photo(path: str | Path, colour: bool | None = True) -> np.ndarray:
    """A picture as float32 in [0, 1], rows downwards, upright.

    Args:
        path: of the file.
        colour: True gives (H, W, 3), grey pictures repeated; False gives (H, W), the luma of colour pictures; None
            gives (H, W) where all pixels are grey and (H, W, 3) otherwise.

    Raises:
        InputError: missing, truncated, no picture, or one that this module's description says is refused.
    """
    path = need_file(path, "a picture such as .png, .jpg or .tif")
    with _opened(path) as (picture, sixteen_bits):
        pixels = _intensities(path, picture, sixteen_bits)
    grey = pixels.ndim == 2 or bool((pixels[..., :1] == pixels).all())
    if colour or (colour is None and not grey):
        return (
            np.ascontiguousarray(np.broadcast_to(pixels[..., None], (*pixels.shape, 3))) if pixels.ndim == 2 else pixels
        )
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., 0]) if grey else pixels @ LUMA


def read_mask(path: str | Path, shape: tuple[int, int] | None = None, allow_empty: bool = False) -> np.ndarray:
    """A mask as bool (H, W): 0 is outside, the one other value inside.

    The other value may be 1, 255 or any positive one, of 1, 8, 16 or 32 bits; a palette's index (index 0 must be
    black); or grey in RGB. Three values or more are refused: a picture with smooth or compressed edges is no mask, and
    of several structures nobody says which.

    Args:
        path: of the file.
        shape: (H, W) of the upright picture that it belongs to; None is any.
        allow_empty: take a mask that is 0 everywhere.

    Raises:
        InputError: missing, truncated, no mask, of another shape than `shape`, or empty where that is not allowed.
    """
    path = need_file(path, "a mask such as .png")
    with _opened(path) as (picture, _):
        codes = _codes(path, picture)
    if shape is not None and codes.shape != tuple(shape):
        hint = "; is its picture turned by EXIF? then turn the mask, too" if codes.shape == tuple(shape)[::-1] else ""
        raise InputError(
            f"{path}: the mask has {codes.shape[0]} rows and {codes.shape[1]} columns, its picture {shape[0]} and "
            f"{shape[1]}; they must agree{hint}"
        )
    values = np.unique(codes)
    if values[0] < 0 or len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise InputError(
            f"{path}: expected a mask of 0 and one positive value, found {len(values)} values ({values[0]:g} to "
            f"{values[-1]:g}); threshold it, and save it without lossy compression"
        )
    if not values.any() and not allow_empty:
        raise InputError(f"{path}: the mask is empty; expected a structure in it")
    return codes > 0


@contextmanager
def _opened(path: Path) -> Iterator[tuple]:
    """A Pillow image of one frame, checked by its header, decoded and upright, and whether the file has 16 bits."""
    from PIL import Image, ImageOps

    # From a stream: Pillow maps a file that it is given by name, and then mixes up rows and columns of an uncompressed
    # TIFF that is marked as turned.
    with reading(path, "a picture"), path.open("rb") as stream:
        with Image.open(stream, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise InputError(
                    f"{path}: has {picture.width} x {picture.height} pixels, more than the limit of "
                    f"{MOST_PIXELS // 10**6} million; is this the right file?"
                )
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":
                raise InputError(f"{path}: holds {frames} pictures; expected one, save the one that is meant by itself")
            if picture.format == "PNG":
                picture.verify()  # checksums, which decoding ignores
        stream.seek(0)
        with Image.open(stream, formats=FORMATS) as picture:
            sixteen_bits = any(";16" in str(tile[-1]) for tile in picture.tile)
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            yield upright, sixteen_bits or (picture.mode == "I" and picture.format in ("PNG", "PPM"))


def _without_alpha(path: Path, picture):
    """The picture in a mode without transparency."""
    if picture.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        clear = int((alpha < 255).sum())
        if clear:
            raise InputError(
                f"{path}: {clear} of {alpha.size} pixels are transparent; put the picture on a background and save it "
                "without transparency"
            )
        picture = picture.convert("L" if picture.mode in ("L", "LA", "La", "1") else "RGB")
    return picture


def _intensities(path: Path, picture, sixteen_bits: bool) -> np.ndarray:
    """float32 (H, W) or (H, W, 3) in [0, 1]."""
    picture = _without_alpha(path, picture)
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture, dtype=np.float32)
    if mode.startswith("I;16") or (mode == "I" and sixteen_bits):
        values = np.asarray(picture).astype(np.float32)
        _refuse_few_bits(path, float(values.max()))
        return values / 65535
    if mode == "I":
        raise InputError(f"{path}: has 32-bit whole numbers, whose range is not known; save it with 8 or 16 bits")
    if mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: holds NaN or infinite intensities")
        if values.min() < 0 or values.max() > 1:
            raise InputError(
                f"{path}: holds floating-point intensities from {values.min():g} to {values.max():g}; scale them to "
                "0 to 1, or save it with 8 or 16 bits"
            )
        return values
    values = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    if sixteen_bits:
        _refuse_few_bits(path, 256.0 * float(values.max()))
    return values.astype(np.float32) / 255


def _refuse_few_bits(path: Path, brightest: float) -> None:
    if 0 < brightest < 2**14:
        raise InputError(
            f"{path}: has 16 bits, but its brightest value is {brightest:g}, so that it may really have 14 or fewer; "
            "scale it to 0 to 65535, or save it with 8 bits"
        )


def _codes(path: Path, picture) -> np.ndarray:
    """(H, W) numbers of a mask, 0 outside."""
    if picture.mode in ("P", "PA"):
        index = np.asarray(picture if picture.mode == "P" else picture.convert("P"))
        coloured = np.asarray(_without_alpha(path, picture).convert("RGB")).any(2)
        if ((index > 0) != coloured).any():
            raise InputError(f"{path}: index 0 of the palette is not its only black, so it is unclear what is inside")
        return index
    picture = _without_alpha(path, picture)
    if picture.mode == "RGB":
        codes = np.asarray(picture)
        if (codes != codes[..., :1]).any():
            raise InputError(f"{path}: is coloured; expected a mask of 0 and one positive value")
        return codes[..., 0]
    if picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        raise InputError(
            f"{path}: has the colour mode {picture.mode}; expected a grey mask of 0 and one positive value"
        )
    codes = np.asarray(picture)
    if codes.dtype.kind == "f" and not np.isfinite(codes).all():
        raise InputError(f"{path}: holds NaN or infinite values; expected a mask of 0 and one positive value")
    return codes.astype(np.uint8) if codes.dtype == bool else codes
