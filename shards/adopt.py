"""The field's own data sets, trained on as they are: `python -m shards.adopt DIR --size 128 --encoder ...`."""

import contextlib
import dataclasses
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from shards.adoption.clip_retrieval import read_clip_retrieval
from shards.adoption.foreign_tars import downloads
from shards.adoption.image_checks import ImageChecks
from shards.adoption.merging import merge
from shards.adoption.one_tar import adopt_tar
from shards.adoption.progress import by_other_weights, check_encoder, is_complete, left_to_do, list_tars, make_room
from shards.adoption.records import FOLDER, Record
from shards.embedding.staging import Staging
from shards.embedding_sources import EmbeddingSource, encode_now
from shards.problems import print_problems, summary
from shards.share import Share
from toolkit.command_line import data_first, run
from toolkit.data.worker_count import cores
from toolkit.encoders.text_encoder import DEFAULT_ENCODER
from toolkit.errors import UserError, check

SETTINGS = ("encoder", "embeddings", "caption_key", "decode", "min_side")
"""Options that the work on a tar depends on."""
PASSING = ("data", "device", "workers", "share", "overwrite")
"""Options that leave no trace in the content."""
SMALL = 100_000_000
"""Bytes of tars below which further processes are not worth their start."""


@dataclass(frozen=True)
class AdoptOptions:
    """Make a shard folder of tars that img2dataset or another WebDataset writer made; the tars stay as they are.

    Embeddings, index and manifest are written beside them. The same command goes on after a kill, and run again adds
    tars that are new.
    """

    data: Path
    """The folder of NAME.tar, with KEY.jpg|png|webp and KEY.txt or .json; may also stand first without its flag."""
    size: int
    """Width and height that images are fitted to when they are read, in pixels, 8 to 1024."""
    resize_mode: Literal["crop", "pad", "stretch"] = "crop"
    """How they are fitted: the centre square, the whole image on white, or stretched; default crop."""
    encoder: str = ""
    """'hashing' or 'architecture/tag'; default ViT-L-14/laion2b_s32b_b82k. With --embeddings: which made them."""
    encoder_weights: Path | None = None
    """Local copy of the encoder's weights file; default: open_clip's cache or download."""
    embeddings: Path | None = None
    """Output folder of clip-retrieval inference (text_emb_N.npy, metadata_N.parquet); default: embedded now."""
    caption_key: str = ""
    """Field of KEY.json that holds the caption; default: KEY.txt is the caption."""
    decode: bool = True
    """Decode every image in full and leave out what is damaged; false: training will meet it; default true."""
    min_side: int = 0
    """Images with a shorter side are left out, in pixels; default 0: none are."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one)."""
    workers: int = 0
    """Processes that decode, 1 to 256; the result does not depend on it; default 0: one per core."""
    share: str = ""
    """I/N: do every N-th tar from the I-th on; default: as accelerate, torchrun or a SLURM array say, else all."""
    overwrite: bool = False
    """Adopt anew what has changed or was adopted with other options; default false: refused."""

    def __post_init__(self) -> None:
        check(8 <= self.size <= 1024, "--size", self.size, "from 8 to 1024 pixels")
        check(self.min_side >= 0, "--min_side", self.min_side, "0 or a number of pixels")
        check(self.decode or not self.min_side, "--min_side", self.min_side, "0 with --decode false")
        check(0 <= self.workers <= 256, "--workers", self.workers, "0 (automatic) or from 1 to 256")

    def record(self) -> dict:
        """What the manifest keeps: all that shapes the content, and of paths the name alone."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in PASSING}
        fields |= {"input": self.data.resolve().name, "encoder": self.encoder or DEFAULT_ENCODER}
        return {name: value.resolve().name if isinstance(value, Path) else value for name, value in fields.items()}


def main(options: AdoptOptions) -> None:
    folder, built_with = options.data, options.record()
    settings, share = {name: built_with[name] for name in SETTINGS}, Share.parse(options.share)
    try:
        tars = list_tars(folder)
        todo = left_to_do(folder, tars, settings, options.overwrite)
        if not todo and not options.overwrite and is_complete(folder, tars, built_with):
            print(f"{folder}: {len(tars):,} tars, nothing new")
            return
        source = _embeddings(options)
        if options.overwrite:
            todo += by_other_weights(folder, tars, source.identity)
        else:
            check_encoder(folder, source.identity)
        mine = [tar for tar in share.mine(tars) if tar in set(todo)]
        _adopt(options, tars, mine, settings, source)
        records = [record for tar in tars if (record := Record.load(folder, tar.name))]
        if len(records) < len(tars):
            print(
                f"{folder}: {len(records):,} of {len(tars):,} tars are done; the process that does the last one ends it"
            )
            return
        manifest, problems = merge(folder, records, source.identity, built_with, staging := Staging(folder))
        with contextlib.suppress(OSError):
            staging.path.rmdir()
    except OSError as error:
        raise UserError(f"cannot read {folder} or write beside its tars: {error.strerror or error}") from None
    print_problems(problems)
    tried, got = downloads(tars)
    if tried > got:
        print(f"img2dataset had got {got:,} of {tried:,} images; the others are in no tar (see its *_stats.json)")
    print(
        f"adopted {manifest.samples:,} samples with {manifest.distinct_captions:,} distinct captions in "
        f"{len(manifest.shards):,} tars of {folder} (encoder {manifest.encoder.name}); {summary(problems)}"
    )


def _embeddings(options: AdoptOptions) -> EmbeddingSource:
    if options.embeddings:
        return read_clip_retrieval(options.embeddings, options.encoder, options.encoder_weights)
    return encode_now(options.encoder or DEFAULT_ENCODER, options.encoder_weights, options.device)


def _adopt(options: AdoptOptions, tars: list[Path], mine: list[Path], settings: dict, source: EmbeddingSource) -> None:
    folder = options.data
    (folder / FOLDER).mkdir(exist_ok=True)
    if options.overwrite:
        make_room(folder, tars, mine)
    with ImageChecks(_workers(options.workers, mine)) as checks:
        for tar in tqdm(mine, unit="tar", disable=None):
            adopt_tar(tar, settings, source, checks, Staging(folder))


def _workers(asked: int, tars: list[Path]) -> int:
    """For 0 one per core, or one in all for so little that starting others takes longer."""
    return asked or (cores() if sum(tar.stat().st_size for tar in tars) > SMALL else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `kill` too leaves no half-written file
    run(main, AdoptOptions, data_first(sys.argv[1:]))
