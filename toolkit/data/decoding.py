"""Image files of any kind -> RGB of the asked size. Formats by allow-list, colours as a viewer would show them."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, ImageOps, features

from toolkit.data import npy
from toolkit.errors import UserError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Image.open would otherwise probe forty parsers, Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 100_000_000
"""Largest width x height that is decoded; a decompression bomb announces itself in the header."""
NEARLY_SRGB = 2
"""Levels; a colour profile that moves no colour further is taken for sRGB, and the image stays as it is."""

FAST_JPEG = simplejpeg is not None and features.check_feature("libjpeg_turbo")
"""simplejpeg and Pillow then decode by the same library, to the same pixels."""
PLAIN_JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
FRAMES, TABLES, SCAN = (0xC0, 0xC2), (0xC4, 0xDB, 0xDD, 0xFE), 0xDA
"""JPEG markers: baseline and progressive frames; Huffman and quantization tables, restart interval, comment; data."""


class BadImage(UserError):
    """A file that is no image we decode, with the reason; the caller adds the file's name."""


def decode_image(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Bytes of an image file -> upright sRGB in full size, fully decoded.

    EXIF orientation and colour profile are applied, transparency is laid over `background`, 16-bit grey is scaled
    (not clipped), CMYK, palette, grey and 1-bit become RGB, of an animation the first frame is taken.
    Raises BadImage for anything else, for truncated data and for more than MAX_PIXELS.
    """
    if data.startswith(npy.MAGIC):
        return Image.fromarray(_raw(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width}x{image.height} px is over the limit of {MAX_PIXELS:,} pixels")
        image.load()
        upright = _eight_bit(ImageOps.exif_transpose(image))
        return _over_background(upright, image.info.get("icc_profile"), background)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"over the limit of {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImage(f"no {', '.join(FORMATS)} image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImage(f"damaged ({error})") from None


def decode_pixels(data: bytes) -> np.ndarray:
    """The pixels of `decode_image`, uint8 [H, W, 3], by the shortest way. Raises BadImage as that does."""
    if data.startswith(npy.MAGIC):
        return _raw(data)
    if FAST_JPEG and _is_plain_jpeg(data):
        with contextlib.suppress(ValueError):  # of anything odd, a mere warning too: Pillow decides
            return simplejpeg.decode_jpeg(data)
    return np.asarray(decode_image(data))


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the header asks for pixels and nothing else: 8-bit YCbCr without EXIF, profile or Adobe's transform."""
    if not data.startswith(PLAIN_JPEG):
        return False
    at, end, plain = 20, len(data) - 10, False
    for _ in range(32):
        if at > end or data[at] != 0xFF:
            return False
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == SCAN:
            return plain
        if marker in FRAMES:
            height, width = (data[at + k] << 8 | data[at + k + 1] for k in (5, 7))
            plain = data[at + 4] == 8 and data[at + 9] == 3 and 0 < height * width <= MAX_PIXELS
        elif marker not in TABLES:
            return False
        at += 2 + length
    return False


def _raw(data: bytes) -> np.ndarray:
    """A .npy of uint8 [H, W, 3], which shards may hold for speed."""
    try:
        values = npy.read_npy(data, "u")
    except ValueError as error:
        raise BadImage(f"damaged ({error})") from None
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3 or not 0 < values.size <= 3 * MAX_PIXELS:
        raise BadImage(f"an array of {values.dtype} {list(values.shape)}, expected uint8 [height, width, 3]")
    return values


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey ('I;16'; of our formats only PNG has it) scaled to 'L'; Pillow's own convert would clip at 255."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255; by the format, not by the largest value
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _over_background(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """Any 8-bit mode -> RGB; `background` is sRGB, so the image's own colours are converted first."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return _srgb(image, profile)
    rgba = image.convert("RGBA")
    opaque = _srgb(rgba.getchannel("R") if image.mode in ("L", "LA", "La") else rgba.convert("RGB"), profile)
    opaque.putalpha(rgba.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), opaque).convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any 8-bit mode without alpha -> sRGB; a profile that is broken, or of other channels, counts as none."""
    mode = {"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    if profile:
        try:
            if transform := _transform_to_srgb(profile, mode):
                return transform.apply(image.convert(mode))
        except Exception:  # OSError, TypeError, PyCMSError, ... of a bad profile; the image itself is sound
            pass
    return image.convert("RGB")


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


def fit_square(
    image: Image.Image, size: int, mode: str = "crop", background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """RGB of any size -> size x size by Lanczos, which averages over what it makes smaller (antialiased).

    'crop': the centre square, the short side kept whole. 'pad': the whole image in the middle of `background`.
    'stretch': both sides to `size`.
    """
    width, height = image.size
    if mode == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Whole pixels: the half-pixel crop of ImageOps.fit blurs images whose short side has the size already.
        image = image.crop((left, top, left + side, top + side))
    if mode != "pad" or width == height:
        return image.resize((size, size), Image.Resampling.LANCZOS)
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new("RGB", (size, size), background)
    square.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return square


def read_image(read: Callable[[], bytes], name: object, background: tuple[int, int, int]) -> Image.Image:
    """decode_image of `read()`, with `name` in front of any complaint, a read error's too."""
    try:
        return decode_image(read(), background)
    except OSError as error:
        raise BadImage(f"{name}: cannot be read ({error.strerror})") from None
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None
