"""Fréchet Inception Distance between two sources of pictures: JSON with the number and how it was made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from evaluation.frechet import Statistics, frechet_distance, statistics
from evaluation.inception import Extractor, features, load_extractor
from evaluation.sources import Source, is_checkpoint, is_shards, open_source
from toolkit.command_line import run
from toolkit.devices import pick_device
from toolkit.errors import UserError, check

FEWEST = 64
"""Below this the covariance term is noise; the same pictures give any value."""
UNBIASED_FROM = 10_000


@dataclass(frozen=True, kw_only=True)
class FidOptions:
    """Fréchet Inception Distance (lower is better) between two sources: picture folder, shard folder or checkpoint."""

    real: str
    """The reference: a picture folder, a shard folder (local or an address) or a checkpoint."""
    fake: str
    """What is scored: the same kinds. A checkpoint is a ckpt_* folder, a run folder or a generator.safetensors."""
    count: int | None = None
    """Pictures from each side, drawn by seed (default: all; a checkpoint draws as many as the real side has)."""
    size: int | None = None
    """Centre-crop and resize every picture to this many pixels (default: as they are; one size each side)."""
    feature_layer: Literal[64, 192, 768, 2048] = 2048
    """Inception features; only 2048 is called "fid", others "fid_768" and so on, and compare with nothing else."""
    weights: Path | None = None
    """torch-fidelity's Inception weights file (default: its download)."""
    prompts: str | None = None
    """Prompts for a checkpoint: a shard folder, or a text file with one a line (default: --real if it is shards)."""
    encoder_weights: Path | None = None
    """Local weights of the checkpoint's text encoder, for prompts from a text file."""
    batch: int = 32
    """Pictures at a time."""
    seed: int = 0
    """Chooses the pictures, and the noise of a checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_few: bool = False
    """Score fewer than 64 pictures all the same."""


def main(options: FidOptions) -> None:
    print(json.dumps(fid(options), indent=1, ensure_ascii=False))


def fid(options: FidOptions) -> dict:
    """The report: "fid" (or "fid_768", ...), "protocol", "notes". Raises UserError."""
    check(options.batch > 0, "batch", options.batch, "at least 1")
    device = pick_device(options.device)
    real, fake = _open_both(options, device)
    for side, source in (("real", real), ("fake", fake)):
        if source.count < (2 if options.allow_few else FEWEST):
            raise UserError(
                f"--{side} {source.name} has {source.count} pictures; FID needs {FEWEST} on either side "
                "(--allow_few: 2, for tests)"
            )
    extractor = load_extractor(str(options.feature_layer), options.weights, device)
    of_real, of_fake = (statistics(features(source, extractor, options.batch)) for source in (real, fake))
    key = "fid" if options.feature_layer == 2048 else f"fid_{options.feature_layer}"
    return {
        key: frechet_distance(of_real, of_fake),
        "protocol": _protocol(options, real, fake, extractor),
        "notes": _notes(real, fake, of_real, of_fake),
    }


def _open_both(options: FidOptions, device: torch.device) -> tuple[Source, Source]:
    """--real first: it gives a checkpoint its default prompts and count."""
    shards = options.real if is_shards(options.real) else None
    common = (options.size, options.seed, options.prompts or shards, device, options.encoder_weights)
    real = open_source(options.real, options.count, *common)
    count = real.count if options.count is None and is_checkpoint(options.fake) else options.count
    return real, open_source(options.fake, count, *common)


def _protocol(options: FidOptions, real: Source, fake: Source, extractor: Extractor) -> dict:
    checkpoints = [source for source in (real, fake) if source.kind == "checkpoint"]
    return {
        "real": real.name,
        "fake": fake.name,
        "n_real": real.count,
        "n_fake": fake.count,
        "resolution": f"{real.width}x{real.height}" if _same_size(real, fake) else "unequal",
        "checkpoint": checkpoints[-1].name if checkpoints else None,
        "prompts": checkpoints[-1].prompts if checkpoints else None,
        "seed": options.seed,
        "batch": options.batch,
        **extractor.protocol(),
    }


def _notes(real: Source, fake: Source, of_real: Statistics, of_fake: Statistics) -> list[str]:
    notes = []
    fewest, width = min(real.count, fake.count), len(of_real.mean)
    if fewest < UNBIASED_FROM:
        notes.append(f"biased: N < {UNBIASED_FROM:,} ({fewest:,}); compare only with values at equal N")
    if fewest <= width:
        notes.append(f"rank-deficient covariance: {fewest:,} pictures for {width} features")
    if real.count != fake.count:
        notes.append(f"unequal N: {real.count:,} real, {fake.count:,} fake")
    if not _same_size(real, fake):
        notes.append(
            f"unequal sizes: real {real.width}x{real.height}, fake {fake.width}x{fake.height}; the distance includes "
            "that of the resizing (--size brings both to one)"
        )
    if (real.name, real.kind) == (fake.name, fake.kind):
        notes.append("both sides are the same source")
    if of_fake.covariance.trace() < 0.1 * of_real.covariance.trace():
        notes.append("the fake pictures hardly differ from each other (feature variance < 10 % of real): collapsed?")
    return notes


def _same_size(real: Source, fake: Source) -> bool:
    return (real.width, real.height) == (fake.width, fake.height)


if __name__ == "__main__":
    run(main, FidOptions)
