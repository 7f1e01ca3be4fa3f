"""From shards to batches that a step can take, beside plain webdataset with Pillow and torchvision in a DataLoader."""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import webdataset
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from benchmarks.images import fresh_folder, sized_images
from benchmarks.side_by_side import Different, Row, Setting, compared, in_turns
from shards.building.creation import create
from shards.building.options import CreateOptions
from toolkit.data.dataset import ShardDataset, batches
from toolkit.data.images import to_float, to_uint8
from toolkit.data.resident import ResidentSet
from toolkit.data.shard_reader import ShardSet

BATCH, ORIGINAL, SIZE = 64, 512, 128
BATCHES, EPOCHS = {"cpu": 6, "cuda": 8}, {"cpu": 2, "cuda": 2}
"""Of the data set; and passes over it in a round, for each worker, so that starting them counts for little. Over the
originals, which take 20 times as long, there is one pass."""
FEW_ROUNDS = 3
"""For the originals."""
WORKERS = {"cpu": (0,), "cuda": (0, 8)}
"""On a CPU time is that of this process, which sees no worker's; wall time on a busy machine says nothing."""
ONCE_MORE = 3.0
"""Levels of mean difference in an image that compression to JPEG once more may make; 1.9 at most were measured."""

Delivered = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images float32 [N, 3, R, R] in [-1, 1] and embeddings float32 [N, E] on the device, and the captions."""
Stream = Callable[[], Iterator[Delivered]]
Samples = dict[str, tuple[Tensor, Tensor]]
"""By caption: image and embedding, on the CPU."""


def rows(setting: Setting, count: int | None = None) -> Iterator[Row]:
    """`count`: samples, a multiple of BATCH (default: by device)."""
    kind = setting.device.type
    count = count or BATCH * BATCHES[kind]
    folders = prepare(setting, count)
    for workers in WORKERS[kind]:
        yield from (_same_shards(setting, folders[stored], stored, workers) for stored in ("jpg", "raw"))
        yield _originals(setting, folders, workers)
    yield _resident(setting, folders["jpg"])


def prepare(setting: Setting, count: int) -> dict[str, Path]:
    """Shard folders: 'originals' of ORIGINAL pixels as JPEG; 'jpg', 'png' and 'raw' of SIZE; 768-d embeddings."""
    root = fresh_folder(setting, "loading")
    originals = root / "images"
    originals.mkdir()
    with (originals / "captions.jsonl").open("w") as captions:
        for i, image in enumerate(sized_images(setting, count, ORIGINAL)):
            image.save(originals / f"{i:05d}.jpg", quality=95)
            captions.write(json.dumps({"file": f"{i:05d}.jpg", "caption": f"an image of the sky, number {i}"}) + "\n")
    build = partial(CreateOptions, originals, encoder="hashing", samples_per_shard=BATCH, device="cpu")
    folders = {name: root / name for name in ("originals", "jpg", "png", "raw")}
    with contextlib.redirect_stdout(sys.stderr):
        create(build(out=folders["originals"], size=ORIGINAL, resize_mode="none"))
        for stored in ("jpg", "png", "raw"):
            create(build(out=folders[stored], size=SIZE, format=stored))
    return folders


def plain(folder: Path, setting: Setting, epochs: int, workers: int = 0) -> Iterator[Delivered]:
    """What one writes with webdataset; Lanczos, as the shards were made, so that pixels can be compared."""
    resize = [Resize(SIZE, InterpolationMode.LANCZOS)] * (ShardSet(folder).manifest.resolution != SIZE)
    prepared = Compose([*resize, ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(paths, shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg;png;image.npy", "npy", "txt")
        .map_tuple(prepared, torch.from_numpy, str)
    )
    pin = setting.device.type == "cuda"
    loader = DataLoader(dataset, BATCH, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0)
    for images, vectors, captions in itertools.chain.from_iterable(loader for _ in range(epochs)):
        images, vectors = (tensor.to(setting.device, non_blocking=True) for tensor in (images, vectors))
        yield images, vectors.flatten(1).float(), tuple(captions)


def ours(folder: Path, setting: Setting, epochs: int, workers: int = 0) -> Iterator[Delivered]:
    """As training gets them, at random; without mismatched captions, which the other does not draw."""
    dataset = ShardDataset(ShardSet(folder), seed=0, mismatch=False)
    stream = batches(dataset, 0, BATCH, slice(0, BATCH), 1, workers, pin=setting.device.type == "cuda")
    with contextlib.closing(stream):
        for (batch,) in itertools.islice(stream, epochs * len(dataset.shards) // BATCH):
            batch = batch.to(setting.device)
            yield to_float(batch.images), batch.text, batch.captions


def resident(held: ResidentSet, dataset: ShardDataset, epochs: int) -> Iterator[Delivered]:
    """From memory, once it is there."""
    stream = held.batches(dataset, 0, BATCH, slice(0, BATCH), 1)
    for (batch,) in itertools.islice(stream, epochs * len(dataset.shards) // BATCH):
        yield to_float(batch.images), batch.text, batch.captions


def check_same(found: Samples, expected: Samples, mean: float = 0.0) -> int:
    """Largest difference of pixels in levels. Raises Different unless they differ by `mean` on average at most, and
    embeddings by 1e-6 once both have unit length, sample by sample."""
    if found.keys() != expected.keys():
        raise Different(f"{len(found)} samples here, {len(expected)} there, {len(found.keys() & expected.keys())} both")
    largest = 0
    for caption, (image, vector) in expected.items():
        apart = (to_uint8(found[caption][0]).int() - to_uint8(image)).abs()
        largest = max(largest, int(apart.max()))
        if (average := float(apart.double().mean())) > mean:
            raise Different(f"pixels of {caption!r} differ by {apart.max()} levels, by {average:.3g} on average")
        if not (found[caption][1] - normalize(vector, dim=0)).abs().max() <= 1e-6:
            raise Different(f"the embedding of {caption!r} differs")
    return largest


def by_caption(stream: Iterator[Delivered]) -> Samples:
    return {
        caption: (image, vector)
        for images, vectors, captions in stream
        for caption, image, vector in zip(captions, images.cpu(), vectors.cpu(), strict=True)
    }


def _same_shards(setting: Setting, folder: Path, stored: str, workers: int) -> Row:
    way, their = (partial(way, folder, setting, workers=workers) for way in (ours, plain))
    check_same(by_caption(way(1)), by_caption(their(1)))
    epochs = _epochs(setting, workers)
    theirs, own = _measured(setting, partial(their, epochs), partial(way, epochs), setting.rounds)
    goal = {"jpg": 1.4, "raw": 2.5}[stored]
    return _row(
        f"{SIZE} px {stored}", workers, _samples(folder) * epochs, theirs, own, "equal pixels and vectors", goal
    )


def _originals(setting: Setting, folders: dict[str, Path], workers: int) -> Row:
    """PNG shards must hold exactly what the others make of the originals; the JPEG ones are timed."""
    their = partial(plain, folders["originals"], setting, 1, workers)
    expected = by_caption(their())
    check_same(by_caption(ours(folders["png"], setting, 1)), expected)
    apart = check_same(by_caption(ours(folders["jpg"], setting, 1)), expected, mean=ONCE_MORE)
    epochs, rounds = _epochs(setting, workers), min(setting.rounds, FEW_ROUNDS)
    theirs, own = _measured(setting, their, partial(ours, folders["jpg"], setting, epochs, workers), rounds)
    own = [seconds / epochs for seconds in own]
    parity = f"equal pixels from PNG shards, JPEG's within {apart} levels"
    count = _samples(folders["jpg"])
    return _row(f"{SIZE} px jpg for {ORIGINAL} px originals", workers, count, theirs, own, parity, 15)


def _resident(setting: Setting, folder: Path) -> Row:
    start = setting.clock()
    dataset = ShardDataset(ShardSet(folder), seed=0, mismatch=False)
    held = ResidentSet(dataset.shards, setting.device, 0, shown=False)
    filled = setting.clock() - start
    way, their = partial(resident, held, dataset), partial(plain, folder, setting)
    check_same(by_caption(way(1)), by_caption(their(1)))
    epochs = _epochs(setting, 0)
    theirs, own = _measured(setting, partial(their, epochs), partial(way, epochs), setting.rounds)
    count = _samples(folder) * epochs
    return _row(
        f"{SIZE} px jpg in memory", 0, count, theirs, own, "equal pixels and vectors", None, seconds_to_fill=filled
    )


def _epochs(setting: Setting, workers: int) -> int:
    return EPOCHS[setting.device.type] * max(1, workers)


def _measured(setting: Setting, theirs: Stream, own: Stream, rounds: int) -> tuple[list[float], list[float]]:
    ways = {name: partial(_consume, stream) for name, stream in (("theirs", theirs), ("ours", own))}
    seconds = in_turns(ways, rounds, setting.clock)
    return seconds["theirs"], seconds["ours"]


def _consume(stream: Stream) -> None:
    for _ in stream():
        pass


def _row(
    what: str, workers: int, count: int, theirs: list[float], own: list[float], parity: str, goal: float | None,
    **details: object,
) -> Row:  # fmt: skip
    point = f"{what}, batch {BATCH}, {workers} workers"
    baseline = f"webdataset {version('webdataset')}"
    return compared("loading", point, baseline, "samples/s", count, theirs, own, parity, goal, **details)


def _samples(folder: Path) -> int:
    return len(ShardSet(folder))
