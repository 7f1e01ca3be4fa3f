"""Picture files of any kind -> RGB of the asked size. Formats by allow-list, colours as a viewer would show them."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from toolkit.errors import UserError

# Image.open would otherwise probe forty parsers, Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 100_000_000
"""Largest width x height that is decoded; a decompression bomb announces itself in the header."""


class BadPicture(UserError):
    """A file that is no picture we decode, with the reason; the caller adds the file's name."""


def decode_picture(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Bytes of a picture file -> upright RGB in full size, fully decoded.

    EXIF orientation is applied, transparency is laid over `background`, 16-bit grey is scaled (not clipped),
    CMYK, palette, grey and 1-bit become RGB, of an animation the first frame is taken.
    Raises BadPicture for anything else, for truncated data and for more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise BadPicture(f"{picture.width}x{picture.height} px is over the limit of {MAX_PIXELS:,} pixels")
        picture.load()
        return _over_background(_eight_bit(ImageOps.exif_transpose(picture)), background)
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(f"over the limit of {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadPicture(f"no {', '.join(FORMATS)} picture") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BadPicture(f"damaged ({error})") from None


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey ('I;16'; of our formats only PNG has it) scaled to 'L'; Pillow's own convert would clip at 255."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.float64) / 257  # 65535 -> 255; by the format, not by the largest value
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _over_background(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB")
    return picture.convert("RGB")


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """Centre crop to a square, then Lanczos (antialiased) to size x size: short side kept whole."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # Whole pixels: the half-pixel crop of ImageOps.fit blurs pictures whose short side has the size already.
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def read_picture(read: Callable[[], bytes], name: object, background: tuple[int, int, int]) -> Image.Image:
    """decode_picture of `read()`, with `name` in front of any complaint, a read error's too."""
    try:
        return decode_picture(read(), background)
    except OSError as error:
        raise BadPicture(f"{name}: cannot be read ({error.strerror})") from None
    except BadPicture as error:
        raise BadPicture(f"{name}: {error}") from None
