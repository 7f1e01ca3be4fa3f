"""The images of a folder and those below it, with captions in text files beside them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evaluation.sources.decoded import decoded, named, square_pixels
from evaluation.sources.fingerprint import images_fingerprint
from evaluation.sources.prompts import lines_of
from evaluation.sources.source import Source, chosen
from toolkit.data.decoding import SUFFIXES, BadImage, decode_pixels
from toolkit.errors import UserError


def image_folder(folder: Path, count: int | None, size: int | None, seed: int) -> Source:
    """`count` images (None: all) by `seed`; each may have a text file of its stem, whose first line is the caption.

    Raises UserError, for images that cannot be read or differ in size (without `size`) when they are drawn.
    """
    files = _image_files(folder)
    files = [files[i] for i in sorted(chosen(len(files), count, seed))]
    height, width = (size, size) if size else _pixels(files[0], None).shape[:2]

    def pixels(i: int) -> np.ndarray:
        found = _pixels(files[i], size)
        if found.shape[:2] != (height, width):
            sizes = f"is {found.shape[1]}x{found.shape[0]} px, {files[0]} is {width}x{height}"
            raise UserError(f"{files[i]} {sizes}; choose one size for all with --size")
        return found

    return Source(
        str(folder),
        "images",
        len(files),
        width,
        height,
        decoded(pixels, width, height),
        lambda: _captions(files),
        lambda: images_fingerprint(_hashes(files), str(folder), len(files), width, height),
    )


def _pixels(file: Path, size: int | None) -> np.ndarray:
    """uint8 [H, W, 3]. Raises BadImage."""
    return named(file, lambda: square_pixels(file.read_bytes(), size) if size else decode_pixels(file.read_bytes()))


def _hashes(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with path.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise BadImage(f"{path}: cannot be read ({error.strerror})") from None


def _captions(files: list[Path]) -> list[str] | None:
    texts = [file.with_suffix(".txt") for file in files]
    missing = [text for text in texts if not text.is_file()]
    if missing and len(missing) < len(texts):
        raise UserError(f"{missing[0]}: no such file; {len(missing)} of {len(texts)} images have no caption")
    return None if missing else [lines_of(text)[0] for text in texts]


def _image_files(folder: Path) -> list[Path]:
    """By path, without hidden files and folders; links to folders are not followed (they can loop)."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}), no shards and no checkpoint")
    return sorted(found)
