"""Picture files -> the squares that a shard keeps."""

import io
from pathlib import Path
from typing import NamedTuple

from PIL import ImageColor

from toolkit.data.decoding import BadPicture, decode_picture, fit_square
from toolkit.data.shard_format import MAX_MEMBER_BYTES


class StoredPicture(NamedTuple):
    """A picture as a shard keeps it, and the width and height of its source, upright, in pixels."""

    data: bytes
    width: int
    height: int


def store_picture(
    path: Path, size: int, suffix: str, quality: int, background: tuple[int, int, int]
) -> StoredPicture | str:
    """A picture file -> size x size, as JPEG, or lossless as PNG or WebP; or the reason why it is left out."""
    try:
        if path.stat().st_size > MAX_MEMBER_BYTES:
            return f"bad picture: over {MAX_MEMBER_BYTES:,} bytes"
        picture = decode_picture(path.read_bytes(), background)
    except OSError as error:
        return f"bad picture: cannot be read ({error.strerror})"
    except BadPicture as error:
        return f"bad picture: {' '.join(str(error).split())}"
    square = fit_square(picture, size)
    square.info.clear()  # Pillow would store the source's colour profile and comment with every picture
    data = io.BytesIO()
    if suffix == "jpg":
        # 4:4:4, because halved colour resolution is visible in pictures this small
        square.save(data, "JPEG", quality=quality, subsampling=0)
    elif suffix == "png":
        square.save(data, "PNG")
    else:
        square.save(data, "WEBP", lossless=True)
    return StoredPicture(data.getvalue(), *picture.size)


def parse_colour(name: str) -> tuple[int, int, int] | None:
    """'white', '#rrggbb' -> RGB in [0, 255]; None for what is no opaque colour."""
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        return None
    return colour if len(colour) == 3 else None
