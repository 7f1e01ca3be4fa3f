"""A tar of img2dataset's or of any other WebDataset writer: its samples that can be trained on, and why not the rest.

img2dataset (https://github.com/rom1504/img2dataset) writes KEY.jpg|png|webp, KEY.txt (empty where the list had no
caption) and KEY.json per image that it got; those it failed to get stand in its .parquet and _stats.json alone.
"""

import contextlib
import json
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.caption_folder.collection import clean_caption
from shards.problems import Problem
from toolkit.data.tar_index import list_tar
from toolkit.errors import UserError

MAX_TEXT_BYTES = 1_000_000
Span = tuple[int, int]
"""Offset and size in bytes."""


class ForeignSample(NamedTuple):
    """An image, not looked at yet, with a usable caption."""

    key: str
    place: str
    """'TAR/KEY', for people."""
    caption: str
    image: Span
    text: Span
    """Where the caption stands in the tar, as plain text or as a JSON string."""


def read_tar(path: Path, caption_key: str = "") -> tuple[list[ForeignSample], list[Problem]]:
    """The samples in their order, and those left out. Captions: the .txt, or the field `caption_key` of the .json.

    Raises UserError if the tar is damaged or holds what no data set should.
    """
    keys, rows = list_tar(path, 0)
    found, problems = [], []
    with path.open("rb") as file:
        spans = _json_spans(path) if caption_key else dict(zip(keys, map(tuple, rows[:, 3:5].tolist()), strict=True))
        for key, image in zip(keys, map(tuple, rows[:, 1:3].tolist()), strict=True):
            try:
                if not image[1]:
                    raise UserError("bad image: an empty file" if image[0] else "no image")
                text, caption = _caption(file.fileno(), spans.get(key, (0, 0)), caption_key)
                found.append(ForeignSample(key, f"{path.name}/{key}", caption, image, text))
            except UserError as error:
                problems.append(Problem(f"{path.name}/{key}", str(error)))
    return found, problems


def downloads(tars: list[Path]) -> tuple[int, int]:
    """How many images img2dataset tried and got, by the NAME_stats.json beside the tars; (0, 0) without them."""
    tried = got = 0
    for tar in tars:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a help to people, nothing depends on it
            stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_bytes())
            tried, got = tried + int(stats["count"]), got + int(stats["successes"])
    return tried, got


def _caption(file: int, span: Span, caption_key: str) -> tuple[Span, str]:
    """Where the caption stands, and what it is. Raises UserError with the reason alone."""
    offset, size = span
    if not offset:
        raise UserError(f"no caption: no .{'json' if caption_key else 'txt'} in the sample")
    if size > MAX_TEXT_BYTES:
        raise UserError(f"caption too long: over {MAX_TEXT_BYTES:,} bytes")
    data = os.pread(file, size, offset)
    if not caption_key:
        return span, clean_caption(data.decode("utf-8", "surrogateescape"))
    value = _field(data, caption_key)
    caption = clean_caption(value)
    for literal in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        if (at := data.find(literal)) >= 0:  # wherever these bytes stand, they are the caption
            return (offset + at, len(literal)), caption
    raise UserError(f"odd caption: the .json writes {caption_key!r} in a way that cannot be read in place")


def _field(data: bytes, name: str) -> object:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"malformed JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(fields, dict) or fields.get(name) is None:
        raise UserError(f"no caption: the .json has no {name!r}")
    return fields[name]


def _json_spans(path: Path) -> dict[str, Span]:
    """Key -> where its .json stands, in a tar that `list_tar` has found sound."""
    spans: dict[str, Span] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, slash, base = member.name.rpartition("/")
            key, _, suffix = base.partition(".")
            if suffix.lower() == "json":
                spans.setdefault(folder + slash + key, (member.offset_data, member.size))
    return spans


def index_rows(samples: list[ForeignSample], vector_spans: np.ndarray) -> np.ndarray:
    """int64 [N, 7], INDEX_COLUMNS with shard 0; `vector_spans`: int64 [N, 2]."""
    spans = np.array([(0, *sample.image, *sample.text) for sample in samples], dtype=np.int64)
    return np.concatenate([spans.reshape(-1, 5), vector_spans], axis=1)
