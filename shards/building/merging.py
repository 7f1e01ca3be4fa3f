"""Finished parts, and the shards that stood there before -> a shard folder."""

import dataclasses
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.building.folders import place
from shards.building.parts import Record, Source, rows_name, seal, tar_name
from shards.near_duplicates import group
from shards.problems import Problem
from shards.report_file import SOURCES_NAME, write_report
from toolkit.data.shard_format import INDEX_NAME, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import ShardFile
from toolkit.durable import file_sha256
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

KEY, IMAGE, CAPTIONS, LOOK, CROP = range(5)
"""Columns of sources.jsonl, a line per sample in the order of their numbers; the last where there are several crops."""


def read_sources(folder: Path) -> Iterator[Source]:
    """Where the samples of a built folder came from, in their order. Raises UserError if the list is damaged."""
    path = folder / SOURCES_NAME
    try:
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                crop = map(tuple, row[CROP:])
                yield Source(row[KEY], row[IMAGE], tuple(row[CAPTIONS]), tuple(row[LOOK]), *crop)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged ({error!r}); build the shards anew with --overwrite") from None


def load_records(building: Path, parts: range) -> Iterator[Record]:
    """Of finished parts, in their order. Raises UserError if one is not."""
    for number in parts:
        record = Record.load(building, number)
        if record is None:
            raise UserError(f"shard {number} in {building} has been damaged; run the same command again")
        yield record


def find_near_duplicates(building: Path, parts: range, base: Path | None, bits: int) -> tuple[dict[int, str], bool]:
    """Position among the parts' samples -> the earlier image that it looks like; what stands in `base` is earlier.

    And False if there were too many alike to compare them all.
    """
    looks, images = [], []
    for source in read_sources(base) if base else ():
        looks.append(source.look)
        images.append(source.image)
    start = len(looks)
    for record in load_records(building, parts):
        looks += [source.look for source in record.sources]
        images += [source.image for source in record.sources]
    groups = group(np.array(looks, dtype=np.uint64).reshape(-1, 2), bits)
    doubles = {
        member - start: images[members[0]]
        for members in groups.members
        for member in members[1:]
        if member >= start and images[member] != images[members[0]]
    }
    return doubles, groups.complete


class Merger:
    """A shard folder in the making: first what stood there, then part by part, then `finish`."""

    def __init__(self, new: Path, problems: list[Problem]) -> None:
        self.new, self.problems = new, list(problems)
        self.shards: list[ShardFile] = []
        self._rows: list[np.ndarray] = []
        self._distinct: set[int] = set()
        self.added = self._seen = 0
        """Samples of the parts: taken in, and looked at."""
        self._sources = (new / SOURCES_NAME).open("x", encoding="ascii")

    def __enter__(self) -> "Merger":
        return self

    def __exit__(self, *_) -> None:
        self._sources.close()

    def add_base(self, base: Path) -> None:
        """Raises UserError if the folder is damaged."""
        shards = ShardSet(base)
        for shard in shards.manifest.shards:
            place(base / shard.name, self.new / shard.name)
        self._rows.append(np.array(shards.index))
        self.shards += shards.manifest.shards
        self._list(read_sources(base))

    def add_part(self, building: Path, number: int, record: Record, doubles: dict[int, str]) -> None:
        """Without the samples `doubles`, as of `find_near_duplicates`."""
        self.problems += record.skipped
        sources, left_out = [], set()
        for position, source in enumerate(record.sources):
            if first := doubles.get(self._seen + position):
                left_out.add(position)
                problem = Problem(source.image, f"near-duplicate: looks like {first}")
                if problem not in self.problems[-1:]:  # crops of one image stand side by side
                    self.problems.append(problem)
            else:
                sources.append(source)
        self._seen += len(record.sources)
        self.added += len(sources)
        self._list(sources)
        if not sources:
            return
        if left_out:
            copy_without(building / tar_name(number), self.new / tar_name(number), left_out)
            shard, rows = seal(self.new / tar_name(number), number, len(sources))
        else:
            assert record.shard is not None  # it has samples
            place(building / tar_name(number), self.new / tar_name(number))
            shard, rows = record.shard, np.load(building / rows_name(number), allow_pickle=False)
        rows[:, 0] = len(self.shards)
        self._rows.append(rows)
        self.shards.append(shard)

    def finish(self, identity: EncoderIdentity, built_with: dict) -> Manifest:
        """At least one sample must have been added. The manifest comes last: without it there is no shard folder."""
        self._sources.close()
        with (self.new / INDEX_NAME).open("xb") as file:
            np.save(file, np.concatenate(self._rows))
        manifest = Manifest(
            samples=sum(shard.samples for shard in self.shards),
            distinct_captions=len(self._distinct),
            resolution=built_with["size"],
            encoder=identity,
            shards=tuple(self.shards),
            index_sha256=file_sha256(self.new / INDEX_NAME),
            built_with=built_with,
        )
        if sum(map(len, self._rows)) != manifest.samples:
            raise UserError(
                f"indexed {sum(map(len, self._rows))} samples, wrote {manifest.samples}; is the disk sound?"
            )
        write_report(self.new, manifest.samples, self.problems)
        manifest.save(self.new)
        return manifest

    def _list(self, sources: "Iterator[Source] | list[Source]") -> None:
        for source in sources:
            row = dataclasses.astuple(source)
            self._sources.write(json.dumps(row if source.crop else row[:CROP]) + "\n")
            self._distinct.update(map(hash, source.captions))  # hashes: a million captions would be 100 MB


def copy_without(source: Path, target: Path, positions: set[int]) -> None:
    """A tar without the samples at `positions`; the others keep their members byte for byte."""
    keys: dict[str, int] = {}  # key -> position, as they come
    with tarfile.open(source, "r:") as old, tarfile.open(target, "x:", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            if keys.setdefault(member.name.partition(".")[0], len(keys)) not in positions:
                new.addfile(member, old.extractfile(member))
