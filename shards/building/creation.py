"""What `shards.create` does, in words of the build: which samples, which embeddings, which folders."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from shards.building.build import build
from shards.building.job import Job
from shards.building.options import CreateOptions
from shards.caption_folder.samples import Sample, find_samples
from shards.embedding_sources import EmbeddingSource, encode_now, find_orphans, read_stored
from shards.problems import Problem
from shards.share import Share
from toolkit.encoders.text_encoder import DEFAULT_ENCODER
from toolkit.errors import UserError

SETTINGS = (
    "input", "size", "format", "quality", "background", "resize_mode", "crops", "min_side", "max_aspect",
    "keep_originals", "where", "file_column", "caption_column", "class_template", "dedupe", "near", "val_share",
    "val_out",
)  # fmt: skip
"""Options in which additions must agree with what is there."""


def create(options: CreateOptions) -> None:
    """Build the folder, or both folders, of the command. Raises UserError."""
    share = Share.parse(options.share)
    scan = lru_cache(1)(lambda: _scan(options))  # once for both parts of a split
    for part, out in {"train": options.out, "val": options.val_out}.items():
        if out is not None:
            build(_job(options, share, scan, part, out))


def _job(options: CreateOptions, share: Share, scan: Callable, part: str, out: Path) -> Job:
    def scan_part() -> tuple[list[Sample], list[Problem]]:
        samples, problems = scan()
        if options.val_out:
            samples = [s for s in samples if is_validation(s.key, options.val_share) == (part == "val")]
        return samples, list(problems)

    def embed(samples: list[Sample]) -> EmbeddingSource:
        if options.embeddings:
            return read_stored(options.embeddings, options.encoder, options.encoder_weights, samples)
        return encode_now(options.encoder or DEFAULT_ENCODER, options.encoder_weights, options.device)

    record = options.record() | {"val_out": f"this is the {part} part" if options.val_out else "unused"}
    return Job(
        images=options.input, out=out, settings={name: record[name] for name in SETTINGS},
        built_with=record, rules=options.image_rules, workers=options.workers,
        per_part=max(1, options.samples_per_shard // options.crops),
        share=share, near_bits=options.near if options.dedupe else None, strict=options.strict,
        overwrite=options.overwrite, scan=scan_part, embed=embed,
    )  # fmt: skip


def _scan(options: CreateOptions) -> tuple[list[Sample], list[Problem]]:
    samples, problems = find_samples(options.input, options.rules)
    if options.embeddings and not options.where:
        problems += find_orphans(options.embeddings, {sample.key for sample in samples})
    samples = samples[: options.limit or None]
    if options.val_out and samples:
        share, count = options.val_share, sum(is_validation(s.key, options.val_share) for s in samples)
        if count in (0, len(samples)):
            raise UserError(
                f"with --val_share {share} {count} of {len(samples)} samples are validation; choose another"
            )
    return samples, problems


def is_validation(key: str, share: float) -> bool:
    """Whether a sample is of the validation part: a function of its key alone, so that new images move no old one."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") < share * 2**64
