"""Captioned pictures -> shards: `python -m shards.create --input DIR --out OUT --size 128`."""

import contextlib
import dataclasses
import io
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from shards.captions import CaptionRules, Problem, Sample, find_samples, first_few, print_problems, summary
from shards.embed import embedding_widths, load_cached, load_identity, load_record, read_embedding
from shards.writer import ShardWriter, StoredPicture, parse_colour, staged_folder, store_picture, write_report
from toolkit.command_line import run
from toolkit.errors import UserError, check
from toolkit.shard_format import INDEX_NAME, Manifest, file_sha256
from toolkit.text_encoder import DEFAULT_ENCODER, EncoderIdentity

CHUNK = 128
"""Samples prepared between two writes; bounds memory."""
PROBES = 4
"""Captions of the data that identify an encoder whose vectors were computed elsewhere."""


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
        check(
            1 <= self.samples_per_shard <= 10**6,
            "--samples_per_shard",
            self.samples_per_shard,
            "from 1 to 1000000",
        )
        check(self.limit >= 0, "--limit", self.limit, "0 (all) or a number of samples")
        check(1 <= self.threads <= 64, "--threads", self.threads, "from 1 to 64")
        check(
            parse_colour(self.background) is not None,
            "--background",
            self.background,
            "a colour name or '#rrggbb'",
        )
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


class Vectors(NamedTuple):
    """Where embeddings come from."""

    identity: EncoderIdentity
    of: Callable[[list[Sample]], "list[np.ndarray | Problem]"]
    """Samples -> for each float32 [K, E], unit length, or why there is none."""


def main(options: CreateOptions) -> None:
    with staged_folder(options.out, options.overwrite) as folder:
        samples, problems = find_samples(options.input, options.rules)
        _stop_if_strict(options, problems)
        if options.embeddings and not options.where:
            problems += _orphans(options.embeddings, {sample.key for sample in samples})
            _stop_if_strict(options, problems)
        samples = samples[: options.limit or None]
        if not samples:
            raise UserError(f"no usable sample in {options.input}; {summary(problems)}{first_few(problems)}")
        vectors = _stored(options, samples) if options.embeddings else _encoded(options)
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
        raise UserError(f"--strict true and {summary(problems)}{first_few(problems)}")


def _encoded(options: CreateOptions) -> Vectors:
    encoder = load_cached(options.encoder or DEFAULT_ENCODER, options.encoder_weights, options.device)

    def encode(samples: list[Sample]) -> list[np.ndarray]:
        vectors = encoder.encode([caption for sample in samples for caption in sample.captions])
        ends = np.cumsum([len(sample.captions) for sample in samples])
        return np.split(vectors, ends[:-1])

    return Vectors(EncoderIdentity.of(encoder.encoder), encode)


def _stored(options: CreateOptions, samples: list[Sample]) -> Vectors:
    folder = options.embeddings
    if not folder.is_dir():
        raise UserError(f"no folder of embeddings at {folder}; make one with python -m shards.embed")
    identity = load_identity(folder)
    if identity and options.encoder not in ("", identity.name):
        raise UserError(f"{folder} was embedded by {identity.name}, not by --encoder {options.encoder}; leave it out")
    if identity is None and not options.encoder:
        raise UserError(f"{folder} does not say which encoder made it (no encoder.json); name it with --encoder")
    identity = identity or _declared(options.encoder, folder, samples)
    record = load_record(folder)

    def read(sample: Sample) -> np.ndarray | Problem:
        path = f"{sample.key}.npy"
        if record.get(sample.key, sample.captions) != sample.captions:
            return Problem(path, "stale embedding: made of other captions; run shards.embed again")
        try:
            return read_embedding(folder / path, len(sample.captions), identity.dimension)
        except UserError as error:
            return Problem(path, str(error))

    return Vectors(identity, lambda chunk: [read(sample) for sample in chunk])


def _declared(name: str, folder: Path, samples: list[Sample]) -> EncoderIdentity:
    """For vectors that came without an identity: the commonest width, and some of the data's own pairs as probes."""
    widths, probes = Counter(embedding_widths(folder / f"{sample.key}.npy" for sample in samples[:100])), {}
    dimension = widths.most_common(1)[0][0] if widths else 0
    for sample in samples[:2000]:
        with contextlib.suppress(UserError):
            vectors = read_embedding(folder / f"{sample.key}.npy", len(sample.captions), dimension)
            probes.setdefault(sample.captions[0], vectors[0])
        if len(probes) == PROBES:
            break
    if not probes:
        raise UserError(f"{folder} holds no usable embedding KEY.npy, the first expected is {samples[0].key}.npy")
    return EncoderIdentity.from_vectors(name, list(probes), torch.from_numpy(np.stack(list(probes.values()))))


def _orphans(folder: Path, keys: set[str]) -> list[Problem]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
    return [Problem(path, "embedding without image") for path in paths if path.removesuffix(".npy") not in keys]


def _prepare(
    options: CreateOptions, samples: list[Sample], vectors: Vectors
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
    options: CreateOptions,
    writer: ShardWriter,
    distinct: int,
    identity: EncoderIdentity,
    problems: list[Problem],
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
