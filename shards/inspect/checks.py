"""The questions a shard folder can be asked, each answered with ok, BAD or not checked.

(No `__init__.py` in this folder: when a script in shards/ is started by its path, shards/ stands first on sys.path, and
a package named `inspect` there would hide the standard library's. A namespace package never does.)
"""

import io
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from toolkit.data.decoding import FORMATS, decode_image
from toolkit.data.remote_shards import RemoteShardSet, open_shards
from toolkit.data.shard_format import Manifest
from toolkit.data.shard_reader import Sample, ShardSet
from toolkit.data.tar_index import INDEX_COLUMNS, list_tar
from toolkit.durable import file_sha256
from toolkit.encoders.text_encoder import SAME_ENCODER_COSINE, load_encoder
from toolkit.errors import UserError


class Check(NamedTuple):
    """One answer."""

    name: str
    state: Literal["ok", "BAD", "not checked"]
    detail: str


def judge(name: str, failures: list[str], detail: str) -> Check:
    """ok with `detail`, or BAD with the number of failures and the first three."""
    if not failures:
        return Check(name, "ok", detail)
    return Check(name, "BAD", f"{len(failures)} failed: {'; '.join(failures[:3])}")


def check_sizes(location: str, manifest: Manifest, fetch_all: bool) -> tuple[Check, ShardSet | None]:
    """Do the shards and the index fit the manifest? With the opened set if they do; first fetched whole if asked."""
    try:
        shard_set = open_shards(location)
        if fetch_all and isinstance(shard_set, RemoteShardSet):
            shard_set.fetch_all()
    except UserError as error:
        return Check("sizes", "BAD", str(error)), None
    if isinstance(shard_set, RemoteShardSet) and not fetch_all:
        return Check("sizes", "not checked", "of what is not fetched yet; add --verify"), shard_set
    total = sum(shard.samples for shard in manifest.shards)
    failures = [] if total == manifest.samples else [f"shards sum to {total}, manifest says {manifest.samples}"]
    return judge("sizes", failures, f"{len(manifest.shards)} shards as long as the manifest says"), shard_set


def check_hashes(folder: Path, manifest: Manifest) -> Check:
    """Reads every byte."""
    expected = {file.name: file.sha256 for file in manifest.files} | {manifest.index_name: manifest.index_sha256}
    missing = [f"{name} is missing" for name in expected if not (folder / name).is_file()]
    changed = [
        f"{name} has changed since it was written"
        for name, sha256 in expected.items()
        if (folder / name).is_file() and file_sha256(folder / name) != sha256
    ]
    return judge("sha256", missing + changed, f"{len(expected)} files equal to what was written")


def check_index(shard_set: ShardSet) -> Check:
    """Does every tar hold the samples that index and manifest say, at these places, and nothing hostile?

    Hashes tell what has changed since it was written; this tells what was wrong from the beginning.
    """
    failures, start = [], 0
    for number, shard in enumerate(shard_set.manifest.shards):
        try:
            _, rows = list_tar(shard_set.folder / shard.name, number)
        except UserError as error:
            failures.append(str(error))
        else:
            failures += _misplaced(shard_set, number, rows, shard_set.index[start : start + shard.samples])
        start += shard.samples
    return judge("index", failures, f"{start:,} samples where the index says, each whole")


def _misplaced(shard_set: ShardSet, number: int, rows: np.ndarray, indexed: np.ndarray) -> list[str]:
    """What is wrong with the index of one shard, whose tar holds `rows`."""
    manifest = shard_set.manifest
    name, columns = manifest.shards[number].name, slice(0, len(INDEX_COLUMNS))
    if manifest.vectors:  # then the tar may hold samples that the index leaves out, and has no say on the embeddings
        columns = slice(0, INDEX_COLUMNS.index("vector_offset"))
        rows = rows[np.isin(rows[:, 1], indexed[:, 1])]
    if len(rows) != len(indexed):
        return [f"{name} holds {len(rows)} samples, the manifest says {len(indexed)}"]
    if not np.array_equal(rows[:, columns], indexed[:, columns]):
        return [f"{name} has its samples at other places than {manifest.index_name} says"]
    return [f"{name}: a sample lacks image, caption or embedding"] if (indexed[:, 1:] == 0).any() else []


def read_evenly(shard_set: ShardSet, count: int) -> tuple[list[Sample], Check]:
    """Up to `count` samples spread over the whole set; the reader checks caption text, width, count and NaN."""
    numbers = sorted({i * len(shard_set) // count for i in range(count)})
    samples, failures = [], []
    for number in numbers:
        try:
            samples.append(shard_set.read(number))
        except UserError as error:
            failures.append(str(error))
    return samples, judge("samples", failures, f"{len(numbers)} read, evenly spread")


def check_images(samples: list[Sample], manifest: Manifest) -> Check:
    """Does every image decode fully, at the manifest's size unless it is fitted on reading?"""
    resolution = manifest.resolution
    failures = []
    for sample in samples:
        try:
            size = decode_image(sample.image).size
            if size != (resolution, resolution) and not manifest.fit:
                failures.append(f"{size[0]}x{size[1]} px under the caption '{sample.captions[0]}'")
        except UserError as error:
            failures.append(f"{error} under the caption '{sample.captions[0]}'")
    return judge("images", failures, f"decode, {resolution}x{resolution} px when read")


def image_format(sample: Sample) -> str:
    """'JPEG', 'PNG', 'WEBP', or 'unknown'."""
    try:
        return Image.open(io.BytesIO(sample.image), formats=FORMATS).format or "unknown"
    except OSError:
        return "unknown"


def check_captions(samples: list[Sample]) -> Check:
    """The reader has refused what is no UTF-8; what is left may still be blank."""
    captions = [caption for sample in samples for caption in sample.captions]
    failures = ["blank caption" for caption in captions if not caption.strip()]
    return judge("captions", failures, f"{len(captions)} read, none blank")


def check_embeddings(samples: list[Sample], dimension: int) -> Check:
    """The reader has refused other widths and NaN, and scaled to unit length; a zero vector stays one."""
    vectors = torch.cat([sample.vectors for sample in samples])
    lengths = vectors.norm(dim=1)
    failures = [f"length {length:.3f}, expected 1" for length in lengths.tolist() if abs(length - 1) > 1e-3]
    return judge("embeddings", failures, f"{dimension}-d, finite, unit length")


def check_encoder(samples: list[Sample], manifest: Manifest, name: str, weights: Path | None) -> Check:
    """Do these embeddings belong to this encoder? Encodes the captions again and compares.

    The control is the mean cosine between embeddings and *other* captions: far below it would be a coincidence,
    near 1 would mean that the embeddings tell no captions apart.
    """
    try:
        encoder = load_encoder(name, weights)
    except UserError as error:
        return Check("encoder", "not checked", str(error))
    captions = [caption for sample in samples for caption in sample.captions]
    text = torch.cat([sample.vectors for sample in samples])
    if encoder.dimension != text.shape[1]:
        return Check("encoder", "BAD", f"{name} makes {encoder.dimension}-d vectors, these are {text.shape[1]}-d")
    cosines = text @ encoder.encode(captions).T
    own, probes = cosines.diagonal(), manifest.encoder.cosine(encoder)
    other = cosines[torch.from_numpy(np.array(captions)[:, None] != np.array(captions))]
    control = f"{other.mean():.3f}" if len(other) else "none, all captions are equal"
    detail = (
        f"{name}: cosine mean {own.mean():.4f}, min {own.min():.4f} over {len(captions)} captions encoded again, "
        f"probe captions min {probes:.4f}; other captions (control) {control}"
    )
    same = min(float(own.min()), probes) >= SAME_ENCODER_COSINE
    return Check("encoder", "ok" if same else "BAD", detail)
