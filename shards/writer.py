"""Writes a shard folder so that it appears whole or not at all, with the same bytes for the same samples."""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import webdataset
from PIL import ImageColor

from toolkit.decoding import BadPicture, decode_picture, fit_square
from toolkit.errors import UserError
from toolkit.shard_format import (
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_MEMBER_BYTES,
    ShardFile,
    file_sha256,
    index_tar,
)

REPORT_NAME = "report.json"


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


class ShardWriter:
    """Samples -> numbered tars of `samples_per_shard` in `folder`."""

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self.folder, self.samples_per_shard, self.samples = folder, samples_per_shard, 0
        self.paths: list[Path] = []

    def add(self, members: dict[str, bytes]) -> None:
        """`members`: suffix -> content. The key is the sample's number, for a dot in a name would split the sample."""
        if self.samples % self.samples_per_shard == 0:
            self.close()
            self.paths.append(self.folder / f"shard-{len(self.paths):05d}.tar")
            self._file = self.paths[-1].open("xb")
            # Bytes only (no encoder, which may pickle); no time and no user, so that equal samples give equal tars.
            self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        self._tar.write({"__key__": f"{self.samples:09d}", **members})
        self.samples += 1

    def close(self) -> None:
        if self.paths and not self._file.closed:
            self._tar.close()
            self._file.close()

    def index(self) -> tuple[ShardFile, ...]:
        """Re-read every tar, write the index and return what the manifest says about the shards."""
        self.close()
        rows = [index_tar(path, number) for number, path in enumerate(self.paths)]
        with (self.folder / INDEX_NAME).open("xb") as file:
            np.save(file, np.concatenate(rows))
        return tuple(
            ShardFile(path.name, len(found), path.stat().st_size, file_sha256(path))
            for path, found in zip(self.paths, rows, strict=True)
        )


@contextmanager
def staged_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its name at the end, or is removed if anything goes wrong.

    Raises UserError if `out` is in use, or cannot be written.
    """
    out = out.resolve()  # a link keeps pointing to its target, on whose file system the staging must lie
    staging = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        _check_replaceable(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        stale = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.tmp-")]
        for path in stale:
            print(f"note: {path} is of another build; delete it if none is running", file=sys.stderr)
        staging.mkdir()
        yield staging
        _sync([*staging.iterdir(), staging])
        _replace(staging, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """UserError unless `out` is free, or holds nothing but shards that `overwrite` allows to replace."""
    if os.path.ismount(out):
        raise UserError(f"{out} is a mount point and cannot be renamed to; name a folder inside it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a folder")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if present and not overwrite:
        raise UserError(f"{out} exists and is not empty; choose another --out or add --overwrite true")
    known = {MANIFEST_NAME, INDEX_NAME, REPORT_NAME}
    foreign = [name for name in present if name not in known and not name.endswith(".tar")]
    if foreign or (present and MANIFEST_NAME not in present):
        what = f"it holds {foreign[0]}" if foreign else f"it holds no {MANIFEST_NAME}"
        raise UserError(f"{out} is no shard folder ({what}); --overwrite replaces shard folders only")


def write_report(folder: Path, written: int, skipped: list[tuple[str, str]]) -> None:
    """`report.json`: how many samples were written, and each file left out with its reason."""
    content = {"written": written, "skipped": [{"path": path, "reason": reason} for path, reason in skipped]}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with (folder / REPORT_NAME).open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def _replace(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    _sync([out.parent])
    shutil.rmtree(old, ignore_errors=True)


def _sync(paths: list[Path]) -> None:
    """To the disk: a rename must not become durable before what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
