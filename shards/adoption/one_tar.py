"""One tar -> embeddings beside it and a record; the tar itself is only read."""

import hashlib
from pathlib import Path

import numpy as np

from shards.adoption.foreign_tars import ForeignSample, index_rows, read_tar
from shards.adoption.image_checks import ImageChecks
from shards.adoption.records import Record, save_rows, vectors_name
from shards.caption_folder.samples import Sample
from shards.embedding.staging import Staging
from shards.embedding_sources import EmbeddingSource
from shards.problems import Problem
from toolkit.data.shard_format import Sidecar
from toolkit.data.sidecar import DTYPE, check_sidecar, write_header
from toolkit.data.tar_index import ShardFile
from toolkit.durable import file_sha256
from toolkit.errors import UserError

CHUNK = 4096
"""Captions embedded at a time; bounds memory, and the same for any number of processes."""


def adopt_tar(tar: Path, settings: dict, source: EmbeddingSource, checks: ImageChecks, staging: Staging) -> Record:
    """What is written depends on the tar and the settings alone. Raises UserError if the tar is damaged; OSError."""
    status = tar.stat()
    samples, problems = read_tar(tar, settings["caption_key"])
    sha256 = checks.sha256(tar)  # both run while the captions are embedded here
    reasons = checks.reasons(tar, [s.image for s in samples], settings["min_side"]) if settings["decode"] else None
    vectors = _embed(samples, source)
    kept, rows = [], []
    for sample, found, reason in zip(samples, vectors, reasons() if reasons else [""] * len(samples), strict=True):
        if reason:
            problems.append(Problem(sample.place, reason))
        elif isinstance(found, Problem):
            problems.append(found)
        else:
            kept.append(sample)
            rows.append(found)
    folder, written = tar.parent, None
    if kept:
        written = _write_vectors(folder / vectors_name(tar.name), np.stack(rows), staging)
        places = _vector_spans(folder / written.name, len(kept), source.identity.dimension)
        digests = np.array([_digest(sample.caption) for sample in kept], dtype=np.int64)
        save_rows(folder, tar.name, np.concatenate([index_rows(kept, places), digests[:, None]], axis=1), staging)
    file = ShardFile(tar.name, len(kept), status.st_size, sha256())
    if (after := tar.stat()).st_size != status.st_size or after.st_mtime_ns != status.st_mtime_ns:
        raise UserError(f"{tar} is being written; run again when it is complete")
    problems.sort(key=lambda problem: problem.path)
    record = Record(file, status.st_mtime_ns, written, source.identity.weights_sha256, settings, problems)
    record.save(folder, staging)
    return record


def _embed(samples: list[ForeignSample], source: EmbeddingSource) -> "list[np.ndarray | Problem]":
    """Per sample float16 [E], or why there is none."""
    found = []
    for start in range(0, len(samples), CHUNK):
        chunk = [Sample(s.key, str(Path(s.place)), (s.caption,)) for s in samples[start : start + CHUNK]]
        found += [f if isinstance(f, Problem) else f[0].astype(DTYPE) for f in source.of(chunk)]
    return found


def _write_vectors(path: Path, vectors: np.ndarray, staging: Staging) -> Sidecar:
    with staging.write(path) as file:
        write_header(file, *vectors.shape)
        file.write(vectors.tobytes())
    return Sidecar(path.name, path.stat().st_size, file_sha256(path))


def _vector_spans(path: Path, rows: int, dimension: int) -> np.ndarray:
    """int64 [rows, 2]: offset and size in bytes."""
    width = dimension * DTYPE.itemsize
    offsets = check_sidecar(path, dimension, rows) + width * np.arange(rows)
    return np.stack([offsets, np.full(rows, width)], axis=1)


def _digest(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little", signed=True)
