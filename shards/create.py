"""Captioned pictures -> shards: `python -m shards.create --input DIR --out OUT --size 128`."""

import dataclasses
import io
import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from shards.captions import CaptionRules, Sample, find_samples
from shards.embedding_sources import EmbeddingSource, encode_now, find_orphans, read_stored
from shards.problems import Problem, first_few, print_problems, summary
from shards.staged_folder import staged_folder
from shards.stored_pictures import StoredPicture, parse_colour, store_picture
from shards.writer import ShardWriter, write_report
from toolkit.command_line import run
from toolkit.data.shard_format import INDEX_NAME, Manifest, file_sha256
from toolkit.encoders.text_encoder import DEFAULT_ENCODER, EncoderIdentity
from toolkit.errors import UserError, check

CHUNK = 128
"""Samples prepared between two writes; bounds memory."""


@dataclass(frozen=True)
class CreateOptions:
    """Build a shard folder from captioned pictures: centre crop, embed the captions, write, index, check."""

    input: Path
    """Folder with pictures and captions: a table, images/ and captions/, .txt beside pictures, or class folders."""
    out: Path
    """The shard folder to make; appears only when it is complete."""
    size: int
    """Width and height of the stored pictures in pixels, 8 to 1024."""
    embeddings: Path | None = None
    """Folder of KEY.npy made by shards.embed or elsewhere; default: captions are embedded now by --encoder."""
    encoder: str = ""
    """'hashing' or 'architecture/tag'; default ViT-L-14/laion2b_s32b_b82k. With --embeddings: which made them."""
    encoder_weights: Path | None = None
    """Local copy of the encoder's weights file; default: open_clip's cache or download."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one)."""
    where: str = ""
    """FIELD=VALUE: only the table rows with that value, e.g. split=train; default all."""
    file_column: str = ""
    """Table column with the picture's path; default: file, file_name, filename, image or path."""
    caption_column: str = ""
    """Table column with the caption or list of captions; default: caption, captions, text or title."""
    class_template: str = ""
    """For class folders: the caption with {} for the folder's name, e.g. 'a photo of {}'."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """How pictures are stored: jpg, or lossless as png or webp; default jpg."""
    quality: int = 95
    """JPEG quality, 1 to 100; default 95."""
    background: str = "white"
    """Colour under transparent pictures: a name or '#rrggbb'; default white."""
    samples_per_shard: int = 1000
    """Samples per tar, 1 to 1000000; default 1000."""
    limit: int = 0
    """Only the first so many samples, sorted by name; default 0: all."""
    strict: bool = False
    """Stop at the first picture, caption or embedding that would be skipped; default false."""
    overwrite: bool = False
    """Replace an existing shard folder once the new one is complete; default false."""
    threads: int = 2
    """Pictures decoded at the same time, 1 to 64; the result does not depend on it; default 2."""

    def __post_init__(self) -> None:
        check(8 <= self.size <= 1024, "--size", self.size, "from 8 to 1024 pixels")
        check(1 <= self.quality <= 100, "--quality", self.quality, "from 1 to 100")
        sane = 1 <= self.samples_per_shard <= 10**6
        check(sane, "--samples_per_shard", self.samples_per_shard, "from 1 to 1000000")
        check(self.limit >= 0, "--limit", self.limit, "0 (all) or a number of samples")
        check(1 <= self.threads <= 64, "--threads", self.threads, "from 1 to 64")
        is_colour = parse_colour(self.background) is not None
        check(is_colour, "--background", self.background, "a colour name or '#rrggbb'")
        _ = self.rules  # checks --where and --class_template

    @property
    def rules(self) -> CaptionRules:
        return CaptionRules(self.where, self.file_column, self.caption_column, self.class_template)

    def record(self) -> dict:
        """What the manifest keeps: all that shapes the content, and of paths the name alone."""
        fields = dataclasses.asdict(self)
        for name in ("out", "overwrite", "threads", "device"):
            del fields[name]
        return {name: value.resolve().name if isinstance(value, Path) else value for name, value in fields.items()}


def main(options: CreateOptions) -> None:
    with staged_folder(options.out, options.overwrite) as folder:
        samples, problems = find_samples(options.input, options.rules)
        if options.embeddings and not options.where:
            problems += find_orphans(options.embeddings, {sample.key for sample in samples})
        _stop_if_strict(options, problems)
        samples = samples[: options.limit or None]
        if not samples:
            raise UserError(f"no usable sample in {options.input}; {summary(problems)}{first_few(problems)}")
        if options.embeddings:
            vectors = read_stored(options.embeddings, options.encoder, options.encoder_weights, samples)
        else:
            vectors = encode_now(options.encoder or DEFAULT_ENCODER, options.encoder_weights, options.device)
        writer, distinct = ShardWriter(folder, options.samples_per_shard), set()
        for sample, members in tqdm(_prepare(options, samples, vectors), total=len(samples), disable=None):
            if isinstance(members, Problem):
                problems.append(members)
                _stop_if_strict(options, problems)
            else:
                writer.add(members)
                distinct.update(sample.captions)
        if not writer.samples:
            raise UserError(f"no sample of {options.input} is usable; {summary(problems)}{first_few(problems)}")
        manifest = _finish(options, writer, len(distinct), vectors.identity, problems)
    print_problems(problems)
    print(
        f"wrote {manifest.samples:,} samples with {manifest.distinct_captions:,} distinct captions in "
        f"{len(manifest.shards)} shards to {options.out} (encoder {manifest.encoder.name}); {summary(problems)}"
    )


def _stop_if_strict(options: CreateOptions, problems: list[Problem]) -> None:
    if options.strict and problems:
        raise UserError(f"--strict and {summary(problems)}{first_few(problems)}")


def _prepare(
    options: CreateOptions, samples: list[Sample], vectors: EmbeddingSource
) -> Iterator[tuple[Sample, dict[str, bytes] | Problem]]:
    """For each sample its members, suffix -> content, or why it is left out; in order, whatever the threads do."""
    store = partial(
        store_picture,
        size=options.size,
        suffix=options.format,
        quality=options.quality,
        background=parse_colour(options.background),
    )
    pool = ThreadPoolExecutor(options.threads)  # Pillow decodes and resizes outside the interpreter lock
    try:
        for start in range(0, len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            pictures = pool.map(store, [sample.picture for sample in chunk])
            for sample, found, picture in zip(chunk, vectors.of(chunk), pictures, strict=True):
                if isinstance(picture, str):
                    yield sample, Problem(sample.picture.relative_to(options.input).as_posix(), picture)
                elif isinstance(found, Problem):
                    yield sample, found
                else:
                    yield sample, _members(sample, picture, found, options.format)
    finally:
        pool.shutdown(cancel_futures=True)


def _members(sample: Sample, picture: StoredPicture, vectors: np.ndarray, suffix: str) -> dict[str, bytes]:
    source = {"key": sample.key, "width": picture.width, "height": picture.height}
    array = io.BytesIO()
    np.save(array, (vectors[0] if len(vectors) == 1 else vectors).astype("<f2"))
    return {
        suffix: picture.data,
        "txt": "\n".join(sample.captions).encode(),
        "npy": array.getvalue(),
        "json": json.dumps(source, sort_keys=True, ensure_ascii=False).encode(),
    }


def _finish(
    options: CreateOptions, writer: ShardWriter, distinct: int, identity: EncoderIdentity, problems: list[Problem]
) -> Manifest:
    """Index, report and, last, the manifest: a folder without it is no shard folder."""
    shards = writer.index()
    write_report(writer.folder, writer.samples, problems)
    manifest = Manifest(
        samples=sum(shard.samples for shard in shards),
        distinct_captions=distinct,
        resolution=options.size,
        encoder=identity,
        shards=shards,
        index_sha256=file_sha256(writer.folder / INDEX_NAME),
        built_with=options.record(),
    )
    if manifest.samples != writer.samples:
        raise UserError(f"wrote {writer.samples} samples but read back {manifest.samples}; is the disk sound?")
    manifest.save(writer.folder)
    return manifest


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `kill` too removes the staging folder
    run(main, CreateOptions)
