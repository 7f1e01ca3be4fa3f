"""What tells one set of scored images from another: a hash over the bytes that they are decoded from."""

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from PIL import features
from tqdm import tqdm

from toolkit.data.decoding import FAST_JPEG

RULES = 1
"""Raise it when decoding or resizing changes a pixel of any image."""
LIBRARIES = ("libjpeg_turbo", "webp", "littlecms2")
SOON = 2.0
"""Seconds without a progress bar."""


def images_fingerprint(
    hashes: Iterable[bytes], name: str, count: int, width: int, height: int, fit: str = "crop"
) -> str:
    """SHA-256 in hex over `count` images in order, given the SHA-256 of the file of each, and what is made of them.

    That is their size, how they are fitted to it, and the versions of the decoders; not the files' names and places,
    and no manifest's word, so that a byte changed behind a manifest's back changes the fingerprint too.
    """
    made = {"rules": RULES, "count": count, "width": width, "height": height, "fit": fit, "decoders": _decoders()}
    total = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
    for one in tqdm(hashes, f"{Path(name).name}: checksum", count, unit=" images", delay=SOON):
        total.update(one)
    return total.hexdigest()


def _decoders() -> dict[str, str | None]:
    found = {"pillow": version("pillow")} | {library: features.version(library) for library in LIBRARIES}
    return found | ({"simplejpeg": version("simplejpeg")} if FAST_JPEG else {})
