"""Image files -> the squares that a shard keeps."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from shards.near_duplicates import Look, look_of
from toolkit.data.decoding import SUFFIXES as IMAGE_SUFFIXES
from toolkit.data.decoding import BadImage, decode_image, fit_square
from toolkit.data.tar_index import MAX_MEMBER_BYTES

SUFFIXES = {"jpg": "jpg", "png": "png", "webp": "webp", "raw": "image.npy"}
"""Storage -> suffix of the member."""
APART = 10
"""Neighbouring crops of an image are at least this part of their side apart: they overlap by 90 % at most."""


@dataclass(frozen=True)
class ImageRules:
    """How images are kept, and which are left out; fields as the options of `shards.create`."""

    size: int
    format: str
    quality: int
    background: tuple[int, int, int]
    resize_mode: str
    min_side: int
    max_aspect: float
    keep_originals: bool
    crops: int = 1


class StoredImage(NamedTuple):
    """An image, or one of several crops of it, as a shard keeps it."""

    members: dict[str, bytes]
    """Suffix -> content: the square, and the source file if it is kept (of several crops with the first)."""
    width: int
    height: int
    """Of the source, upright, in pixels."""
    look: Look
    """Of the centre square, for near-duplicates: crops of one image have the same, so they are no duplicates."""
    crop: tuple[int, ...]
    """Of several crops: (left, top, right, bottom) in the source, upright, in pixels; else ()."""


def store_image(path: Path, rules: ImageRules) -> list[StoredImage] | str:
    """An image file -> its square or squares, or the reason why it is left out."""
    try:
        if path.stat().st_size > MAX_MEMBER_BYTES:
            return f"bad image: over {MAX_MEMBER_BYTES:,} bytes"
        source = path.read_bytes()
        image = decode_image(source, rules.background)
    except OSError as error:
        return f"bad image: cannot be read ({error.strerror})"
    except BadImage as error:
        return f"bad image: {' '.join(str(error).split())}"
    if reason := _misfit(image, rules):
        return reason
    if rules.resize_mode == "none":
        square = image
    else:
        square = fit_square(image, rules.size, rules.resize_mode, rules.background)
    unchanged = rules.resize_mode == "none" and rules.format == "jpg" and _is_plain_jpeg(source)
    boxes = crop_boxes(*image.size, rules.crops)
    squares = [fit_square(image.crop(box), rules.size) for box in boxes] or [square]
    stored = [source if unchanged else encode(each, rules.format, rules.quality) for each in squares]
    members = [{SUFFIXES[rules.format]: data} for data in stored]
    if rules.keep_originals:
        suffix = path.suffix.lower()  # a table may name files of any suffix, those of code too
        members[0][f"original{suffix if suffix in IMAGE_SUFFIXES else ''}"] = source
    look = look_of(square)
    crops: list[tuple[int, ...]] = [*boxes] or [()]
    return [StoredImage(m, *image.size, look, crop) for m, crop in zip(members, crops, strict=True)]


def crop_boxes(width: int, height: int, most: int) -> list[tuple[int, int, int, int]]:
    """Up to `most` squares of the short side spread evenly along the long one, from end to end, in whole pixels.

    Fewer where they would not be APART; where that leaves a single one, none: it is then the centre square's place.
    """
    side, overhang = min(width, height), abs(width - height)
    count = min(most, 1 + overhang // -(-side // APART))
    starts = [overhang * i // (count - 1) for i in range(count)] if count > 1 else []
    return [(at, 0, at + side, side) if width > height else (0, at, side, at + side) for at in starts]


def encode(image: Image.Image, storage: str, quality: int) -> bytes:
    """RGB -> JPEG of `quality`, or lossless: PNG, WebP, or 'raw', a .npy of uint8 [H, W, 3]."""
    image.info.clear()  # Pillow would store the source's colour profile and comment with every image
    data = io.BytesIO()
    if storage == "raw":
        np.save(data, np.asarray(image))
    elif storage == "jpg":
        # 4:4:4, because halved colour resolution is visible in images this small
        image.save(data, "JPEG", quality=quality, subsampling=0)
    elif storage == "png":
        image.save(data, "PNG")
    else:
        image.save(data, "WEBP", lossless=True)
    return data.getvalue()


def parse_colour(name: str) -> tuple[int, int, int] | None:
    """'white', '#rrggbb' -> RGB in [0, 255]; None for what is no opaque colour."""
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        return None
    return colour if len(colour) == 3 else None


def _misfit(image: Image.Image, rules: ImageRules) -> str:
    """Why a sound image is left out all the same, or ''."""
    short, long = sorted(image.size)
    size = f"{image.width}x{image.height} px"
    if rules.resize_mode == "none" and image.size != (rules.size, rules.size):
        return f"other size: {size}, with --resize_mode none it must be {rules.size}x{rules.size}"
    if short < rules.min_side:
        return f"too small: {size}, the short side must have --min_side {rules.min_side}"
    if rules.max_aspect and long > rules.max_aspect * short:
        return f"too long: {size}, over --max_aspect {rules.max_aspect:g}"
    return ""


def _is_plain_jpeg(source: bytes) -> bool:
    """Whether a decoded source can be kept byte for byte: a JPEG that any decoder shows as ours does."""
    image = Image.open(io.BytesIO(source))
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and image.getexif().get(0x0112, 1) == 1
        and "icc_profile" not in image.info
    )
