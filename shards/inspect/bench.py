"""How fast are the shards read, beside plain webdataset on the same files? In turns, on one core each."""

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from shards.inspect.checks import Check
from toolkit.data.dataset import ShardDataset, batches
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import IMAGE_SUFFIXES
from toolkit.errors import UserError

BATCH, ROUNDS, SAMPLES = 64, 5, 4096
"""Of a round at most so many samples; smaller sets are read several times."""


def compare_speed(shard_set: ShardSet) -> Check:
    """Samples per second of CPU time as training gets them and by webdataset: images decoded to uint8 [N, 3, R, R],
    embeddings and captions, in batches of 64. Medians of alternating rounds after one that counts for nothing.
    """
    if reason := _not_comparable(shard_set):
        return Check("speed", "not checked", reason)
    ways: list[Callable[[ShardSet], int]] = [_ours, _plain_webdataset]
    rates: list[list[float]] = []
    try:
        with _one_thread():
            for _ in range(1 + ROUNDS):
                rates.append([_rate(way, shard_set) for way in ways])
    except UserError:
        raise
    except Exception as error:  # of foreign code on files it does not know
        return Check(
            "speed", "not checked", f"webdataset cannot read these shards ({' '.join(str(error).split())[:100]})"
        )
    ours, plain = (statistics.median(column) for column in zip(*rates[1:], strict=True))
    ratio = statistics.median(one / other for one, other in rates[1:])
    return Check(
        "speed", "ok",
        f"{ours:,.0f} samples/s on a core, {ratio:.2f} times the {plain:,.0f} of plain webdataset ({ROUNDS} rounds)",
    )  # fmt: skip


def _not_comparable(shard_set: ShardSet) -> str:
    """Why webdataset would do other work on these files, or ''."""
    manifest = shard_set.manifest
    if manifest.vectors:
        return "webdataset does not read embeddings that stand beside the tars"
    if manifest.fit:
        return "webdataset does not fit images to a size"
    if not all((shard_set.folder / shard.name).is_file() for shard in manifest.shards):
        return "the shards are not in a local folder"
    return ""


def _rate(read: Callable[[ShardSet], int], shard_set: ShardSet) -> float:
    """Samples per second of this process's CPU time: others on the machine do not count."""
    start, count = time.process_time(), 0
    while count < SAMPLES and (not count or time.process_time() - start < 1):
        count += read(shard_set)
    return count / (time.process_time() - start)


def _ours(shard_set: ShardSet) -> int:
    """At random, as training reads; without mismatched captions, which webdataset does not draw."""
    size = min(BATCH, len(shard_set))
    stream = batches(ShardDataset(shard_set, seed=0, mismatch=False), 0, size, slice(0, size), 1, workers=0)
    with contextlib.closing(stream):
        steps = itertools.islice(stream, max(1, min(SAMPLES, len(shard_set)) // size))
        return sum(len(batch.captions) for step in steps for batch in step)


def _plain_webdataset(shard_set: ShardSet) -> int:
    """One after the other, as tars are streamed."""
    paths = [str(shard_set.folder / shard.name) for shard in shard_set.manifest.shards]
    loader = webdataset.WebDataset(paths, shardshuffle=False).map(_decoded).batched(BATCH)
    count = 0
    for _, _, captions in loader:
        count += len(captions)
        if count >= SAMPLES:
            break
    return count


def _decoded(sample: dict) -> tuple[Tensor, Tensor, str]:
    suffix = next(suffix for suffix in IMAGE_SUFFIXES if suffix in sample)
    data = io.BytesIO(sample[suffix])
    pixels = np.load(data) if suffix.endswith("npy") else np.array(Image.open(data).convert("RGB"))
    vectors = np.atleast_2d(np.load(io.BytesIO(sample["npy"])))[0]  # the first caption's, or they could not be stacked
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(vectors), sample["txt"].decode()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
