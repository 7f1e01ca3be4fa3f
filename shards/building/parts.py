"""One part of a plan -> one shard: tar, index rows and, last, the record that says it is complete."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shards.building.staged_file import staged_file
from shards.building.stored_images import ImageRules, StoredImage, store_image
from shards.caption_folder.samples import Sample
from shards.problems import Problem
from toolkit.data.tar_index import ShardFile, index_tar
from toolkit.durable import file_sha256
from toolkit.errors import UserError


@dataclass(frozen=True)
class Part:
    """The work of one shard."""

    number: int
    """Of the shard."""
    first: int
    """Number of its first sample; one that is left out keeps its number, so that no other part need know."""
    samples: list[Sample]
    """As found: with `ImageRules.crops` each becomes so many in the shard at most."""
    vectors: "list[np.ndarray | Problem]"
    """Per sample float16 [K, E], unit length, or why there is none."""


@dataclass(frozen=True)
class Source:
    """Where a sample of a shard came from."""

    key: str
    image: str
    captions: tuple[str, ...]
    look: tuple[int, int]
    """Perceptual hash and mean colour of the stored image."""
    crop: tuple[int, ...] = ()
    """As of StoredImage."""


@dataclass(frozen=True)
class Record:
    """What has become of a part."""

    shard: ShardFile | None
    """None if no sample of the part is usable."""
    sources: list[Source]
    skipped: list[Problem]

    def save(self, folder: Path, number: int) -> None:
        with staged_file(folder / record_name(number)) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, folder: Path, number: int) -> "Record | None":
        """None for a part that is still to be built, or whose tar is not what its record says."""
        try:
            fields = json.loads((folder / record_name(number)).read_bytes())
            shard = ShardFile(**fields["shard"]) if fields["shard"] else None
            if shard and (folder / shard.name).stat().st_size != shard.bytes:
                return None
            return cls(
                shard, [_source(row) for row in fields["sources"]], [Problem(*problem) for problem in fields["skipped"]]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _source(row: dict) -> Source:
    image = row["image"] if "image" in row else row["picture"]  # its name in builds that an earlier version began
    return Source(row["key"], image, tuple(row["captions"]), tuple(row["look"]), tuple(row.get("crop", ())))


def tar_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def record_name(number: int) -> str:
    return f"shard-{number:05d}.json"


def rows_name(number: int) -> str:
    return f"shard-{number:05d}.rows.npy"


def build_part(folder: Path, images: Path, rules: ImageRules, part: Part, tick: Callable[[], object]) -> None:
    """Write the shard into `folder`; its bytes depend on the part alone. `tick` is called once per sample.

    Raises UserError if what is read back is not what was written; OSError.
    """
    path = folder / tar_name(part.number)
    with staged_file(path) as file:
        sources, skipped = _write(file, images, rules, part, tick)
    if sources:
        shard, rows = seal(path, part.number, len(sources))
        with staged_file(folder / rows_name(part.number)) as file:
            np.save(file, rows)
    else:
        path.unlink(missing_ok=True)
    Record(shard if sources else None, sources, skipped).save(folder, part.number)


def _write(
    file: IO[bytes], images: Path, rules: ImageRules, part: Part, tick: Callable[[], object]
) -> tuple[list[Source], list[Problem]]:
    """The tar; where its samples came from, and what was left out."""
    sources, skipped = [], []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for offset, (sample, vectors) in enumerate(zip(part.samples, part.vectors, strict=True)):
            if isinstance(vectors, Problem):
                skipped.append(vectors)
            elif isinstance(found := store_image(images / sample.image, rules), str):
                skipped.append(Problem(sample.image, found))
            else:
                for number, image in enumerate(found, part.first + offset * rules.crops):
                    _add(tar, f"{number:09d}", _members(sample, image, vectors))
                    look = image.look.hash, image.look.colour
                    sources.append(Source(sample.key, sample.image, sample.captions, look, image.crop))
            tick()
    return sources, skipped


def seal(tar: Path, number: int, samples: int) -> tuple[ShardFile, np.ndarray]:
    """What a manifest says of a written tar, and its index rows. Raises UserError if it holds other than `samples`."""
    rows = index_tar(tar, number)
    if len(rows) != samples:
        raise UserError(f"wrote {samples} samples but read back {len(rows)}; is the disk sound?")
    return ShardFile(tar.name, len(rows), tar.stat().st_size, file_sha256(tar)), rows


def _members(sample: Sample, image: StoredImage, vectors: np.ndarray) -> dict[str, bytes]:
    source = {"key": sample.key, "width": image.width, "height": image.height}
    source |= {"crop": image.crop} if image.crop else {}
    array = io.BytesIO()
    np.save(array, vectors.astype("<f2"))  # [1, E] for one caption too: others read one shape, or none
    return image.members | {
        "txt": "\n".join(sample.captions).encode(),
        "npy": array.getvalue(),
        "json": json.dumps(source, sort_keys=True, ensure_ascii=False).encode(),
    }


def _add(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # no time and no user, so that equal samples give equal tars
        info.size, info.mode = len(content), 0o444
        tar.addfile(info, io.BytesIO(content))
