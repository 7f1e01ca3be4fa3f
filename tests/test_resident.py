"""A data set in memory gives the batches that its files give, bit for bit, damage and interruptions included."""

import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.running import assert_equal_runs, train
from tests.test_bad_samples import IMAGE, TEXT, VECTOR, images_until_stopped, spoil
from toolkit.data import feed as feed_module
from toolkit.data import resident
from toolkit.data.dataset import BAD_IN_A_ROW, Batch, ShardDataset, batches
from toolkit.data.feed import Feed
from toolkit.data.resident import ResidentSet, fits, free_memory, size
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.run_folder import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shard_folder, tmp_path / "copy")


def assert_equal_batches(one: list[list[Batch]], other: list[list[Batch]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(itertools.chain(*one), itertools.chain(*other), strict=True):
        for x, y in zip((*a[:4], a.numbers), (*b[:4], b.numbers), strict=True):
            assert torch.equal(x, y.cpu()) and x.dtype == y.dtype and x.stride() == y.stride()
        assert (a.captions, a.rows, a.damaged) == (b.captions, b.rows, b.damaged)


def both(folder: Path, steps=12, start=0, share=slice(0, 8), parts=1, mismatch=True, workers=0, device=CPU) -> tuple:
    """The same steps read from the files and from memory."""
    shards = ShardSet(folder)
    dataset = ShardDataset(shards, seed=0, mismatch=mismatch)
    held = ResidentSet(shards, device, workers, shown=False)
    read, indexed = batches(dataset, start, 8, share, parts, 0), held.batches(dataset, start, 8, share, parts)
    return list(itertools.islice(read, steps)), list(itertools.islice(indexed, steps))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mismatch", [False, True])
def test_equal_over_four_epochs(shard_folder, mismatch, workers):
    read, indexed = both(shard_folder, mismatch=mismatch, workers=workers)
    assert_equal_batches(read, indexed)
    captions = {caption for parts in indexed for batch in parts for caption in batch.captions}
    assert len(captions) == 7  # second captions are drawn too


@pytest.mark.parametrize("share, parts", [(slice(0, 8), 2), (slice(0, 4), 1), (slice(4, 8), 2)])
def test_equal_for_a_share_in_parts_from_a_later_position(shard_folder, share, parts):
    assert_equal_batches(*both(shard_folder, start=40, share=share, parts=parts))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("column", [IMAGE, TEXT, VECTOR])
def test_equal_with_damaged_samples(copy, column, workers):
    """Stand-ins and what is said of them; a sample of which the image alone is damaged still lends its caption."""
    for bad in (3, 4, 11, 20):
        spoil(copy, bad, column, b"\xff" * 4)
    read, indexed = both(copy, workers=workers)
    assert_equal_batches(read, indexed)
    assert sum(len(batch.damaged) for parts in indexed for batch in parts) >= 4 * 4  # four samples, four epochs


def test_nothing_but_damage_ends_it(copy):
    for bad in range(24):
        spoil(copy, bad)
    with pytest.raises(UserError, match=rf"{BAD_IN_A_ROW} damaged samples in a row, the last: .*sample \d+"):
        dataset = ShardDataset(ShardSet(copy), seed=0)
        next(ResidentSet(dataset.shards, CPU, 0, shown=False).batches(dataset, 0, 8, slice(0, 8), 1))


def steps_of(feed: Feed, steps: int, count: int = 1) -> list[list[Batch]]:
    found, position = [], 0
    for _ in range(steps):
        feed.fetch(position, slice(0, 8), 2, count)
        found += feed.take()
        position += 8 * count
    feed.close()
    return found


def fed(folder: Path, kept: bool | str, workers: int = 0, max_bad: float = 1.0) -> Feed:
    return Feed(ShardDataset(ShardSet(folder), seed=0), 8, workers, CPU, max_bad, kept)


@pytest.mark.parametrize("count", [1, 2])
def test_a_feed_changes_over_after_some_steps_and_nobody_notices(shard_folder, capsys, count):
    """`count` batches a step, as with --d_steps 2."""
    source = fed(shard_folder, "auto", workers=1)
    found = steps_of(source, feed_module.RESIDENT_AFTER, count)
    assert source.resident is None
    source = fed(shard_folder, "auto", workers=1)
    found = steps_of(source, feed_module.RESIDENT_AFTER + 4, count)
    assert source.resident is not None
    assert capsys.readouterr().err.count("data: 24 images on cpu, 0 MB\n") == 1
    assert_equal_batches(steps_of(fed(shard_folder, False), feed_module.RESIDENT_AFTER + 4, count), found)


def test_a_feed_leaves_a_set_that_is_too_large_where_it_is(shard_folder, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 4 * size(ShardSet(shard_folder)) - 4)
    source = fed(shard_folder, "auto")
    steps_of(source, feed_module.RESIDENT_AFTER + 4)
    assert source.resident is None


def test_damage_counts_the_same(copy):
    for bad in range(8):
        spoil(copy, bad)
    told = [images_until_stopped(fed(copy, kept, max_bad=0.05)) for kept in (False, True)]
    assert told[0] == told[1] and told[0][0] > 50 and "more than --max_bad 0.05" in told[0][1]


def test_the_size_is_known_beforehand(shard_folder):
    """But for the headers of the embeddings' files, counted as 256 bytes each."""
    shards = ShardSet(shard_folder)
    taken = ResidentSet(shards, CPU, 0, shown=False).bytes()
    assert taken == 24 * 3 * 16 * 16 + 30 * 768 * 4  # 30 captions
    assert size(shards) == taken + 24 * 256


def test_a_quarter_of_the_free_memory_is_taken_unasked(shard_folder, monkeypatch):
    shards = ShardSet(shard_folder)
    for free, expected in ((4 * size(shards), True), (4 * size(shards) - 4, False), (0, False)):
        monkeypatch.setattr(resident, "free_memory", lambda device, free=free: free)
        assert fits(shards, CPU) is expected


def test_what_cannot_fit_is_refused_before_it_is_read(shard_folder, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 10_000)
    monkeypatch.setattr(ShardSet, "read", lambda self, i: pytest.fail("read"))
    with pytest.raises(UserError, match=r"24 images take 0 MB, cpu has 0 MB free; pass --resident false"):
        ResidentSet(ShardSet(shard_folder), CPU, 0, shown=False)


def test_processes_of_a_machine_and_its_container_share_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_available", lambda: 1000)
    monkeypatch.setattr(resident, "_left_in_container", lambda: 600)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 150
    assert free_memory(torch.device("meta")) == 0


def test_a_run_in_memory_is_the_run_from_files(shard_folder, tmp_path):
    """And may be resumed as the other kind."""
    train(shard_folder, tmp_path / "files", iters=6, resident=False)
    train(shard_folder, tmp_path / "memory", iters=4, resident=True)
    train(shard_folder, tmp_path / "memory", iters=6, resident=True)
    train(shard_folder, tmp_path / "mixed", iters=3, resident=True)
    train(shard_folder, tmp_path / "mixed", iters=6, resident=False)
    for name in ("memory", "mixed"):
        assert_equal_runs(tmp_path / "files", tmp_path / name, 6, but=("resident",))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_while_loading_ends_the_run_with_a_checkpoint(shard_folder, tmp_path, monkeypatch, workers):
    """The signal comes in the middle of a read of ten minutes: of this process's own, or of one that works for it."""
    run, read, main = tmp_path / "run", ShardSet.read, os.getpid()

    def blocking(self, i):
        if i == 17 and (run / checkpoint.checkpoint_name(0)).exists():
            os.kill(main, signal.SIGTERM)
            time.sleep(600)
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(ShardSet, "read", blocking)
        with pytest.raises(SystemExit) as end:
            train(shard_folder, run, iters=6, resident=True, workers=workers)
    assert end.value.code == 128 + signal.SIGTERM
    assert [path.name for path in checkpoint.checkpoints(run)] == [checkpoint.checkpoint_name(0)]
    train(shard_folder, run, iters=6, resident=True, workers=workers)
    train(shard_folder, tmp_path / "whole", iters=6)
    assert_equal_runs(tmp_path / "whole", run, 6, but=("resident", "workers"))


def test_a_process_killed_while_loading_is_named(shard_folder, monkeypatch):
    read, main = ShardSet.read, os.getpid()

    def dying(self, i):
        if os.getpid() != main and i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, i)

    monkeypatch.setattr(ShardSet, "read", dying)
    with pytest.raises(UserError, match=r"data worker \d+ was killed \(signal 9\)"):
        ResidentSet(ShardSet(shard_folder), CPU, 2, shown=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_equal_on_a_gpu(copy):
    spoil(copy, 5)
    assert_equal_batches(*both(copy, device=torch.device("cuda:0"), parts=2))
