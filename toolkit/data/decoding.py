"""Picture files of any kind -> RGB of the asked size. Formats by allow-list, colours as a viewer would show them."""

import io
import itertools
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, ImageOps

from toolkit.errors import UserError

# Image.open would otherwise probe forty parsers, Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 100_000_000
"""Largest width x height that is decoded; a decompression bomb announces itself in the header."""
NEARLY_SRGB = 2
"""Levels; a colour profile that moves no colour further is taken for sRGB, and the picture stays as it is."""


class BadPicture(UserError):
    """A file that is no picture we decode, with the reason; the caller adds the file's name."""


def decode_picture(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Bytes of a picture file -> upright sRGB in full size, fully decoded.

    EXIF orientation and colour profile are applied, transparency is laid over `background`, 16-bit grey is scaled
    (not clipped), CMYK, palette, grey and 1-bit become RGB, of an animation the first frame is taken.
    Raises BadPicture for anything else, for truncated data and for more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise BadPicture(f"{picture.width}x{picture.height} px is over the limit of {MAX_PIXELS:,} pixels")
        picture.load()
        upright = _eight_bit(ImageOps.exif_transpose(picture))
        return _over_background(upright, picture.info.get("icc_profile"), background)
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


def _over_background(picture: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """Any 8-bit mode -> RGB; `background` is sRGB, so the picture's own colours are converted first."""
    if picture.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in picture.info:
        return _srgb(picture, profile)
    rgba = picture.convert("RGBA")
    opaque = _srgb(rgba.getchannel("R") if picture.mode in ("L", "LA", "La") else rgba.convert("RGB"), profile)
    opaque.putalpha(rgba.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), opaque).convert("RGB")


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Any 8-bit mode without alpha -> sRGB; a profile that is broken, or of other channels, counts as none."""
    mode = {"1": "L", "L": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    if profile:
        try:
            if transform := _transform_to_srgb(profile, mode):
                return transform.apply(picture.convert(mode))
        except Exception:  # OSError, TypeError, PyCMSError, ... of a bad profile; the picture itself is sound
            pass
    return picture.convert("RGB")


def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for sRGB. It has many spellings, so the profile is judged by what it does to a grid of colours."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    levels = itertools.product(range(0, 256, 51), repeat=len(mode))  # one letter of the mode per channel
    grid = Image.frombytes(mode, (6 ** len(mode), 1), bytes(itertools.chain.from_iterable(levels)))
    moved = np.asarray(transform.apply(grid), dtype=int) - np.asarray(grid.convert("RGB"), dtype=int)
    return transform if np.abs(moved).max() > NEARLY_SRGB else None


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
