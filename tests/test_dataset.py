"""Order, captions and mismatched captions as functions of (seed, position), for any number of workers and processes."""

import itertools

import pytest
import torch

from toolkit import draws
from toolkit.data import shard_reader
from toolkit.data.dataset import PositionSampler, ShardDataset, batches
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError


@pytest.fixture
def shards(shard_folder) -> ShardSet:
    return ShardSet(shard_folder)


def take(dataset, count, start=0, batch=8, share=None, parts=1, workers=0):
    stream = batches(dataset, start, batch, share or slice(0, batch), parts, workers)
    return list(itertools.islice(stream, count))


def test_each_epoch_is_another_permutation(shards):
    dataset, n = ShardDataset(shards, seed=0), len(shards)
    first, second = ([dataset.sample_at(epoch * n + k) for k in range(n)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second and first != [ShardDataset(shards, seed=1).sample_at(k) for k in range(n)]


@pytest.mark.parametrize("epoch", range(4))
def test_the_order_of_the_files_leaves_no_trace(epoch):
    """Neither place against number nor neighbour against neighbour; 0.04 is four standard errors at 10,000."""
    order = draws.permutation(10_000, 0, epoch).double()
    pairs = [(order, torch.arange(10_000).double()), (order[:-1], order[1:]), (order, draws.permutation(10_000, 0, 9))]
    for one, other in pairs:
        assert abs(torch.corrcoef(torch.stack([one, other.double()]))[0, 1]) < 0.04


def test_items_hold_the_shards_bytes(shards):
    dataset = ShardDataset(shards, seed=0)
    for position in range(10):
        sample, item = shards.read(dataset.sample_at(position)), dataset[position]
        assert item.image.shape == (3, shards.manifest.resolution, shards.manifest.resolution)
        assert torch.equal(item.text, sample.vectors[sample.captions.index(item.caption)])
        assert item.text.norm().item() == pytest.approx(1, abs=1e-5)


def test_mismatched_captions_really_differ(shards):
    """Never a caption of the same image, nor the same words from another image."""
    dataset = ShardDataset(shards, seed=0)
    vectors = {caption: v for i in range(len(shards)) for caption, v in zip(*shards.read(i)[1:], strict=True)}
    for position in range(3 * len(shards)):
        item, own = dataset[position], shards.read(dataset.sample_at(position)).captions
        assert item.differs == 1
        nearest = max(vectors, key=lambda caption: float(vectors[caption] @ item.mismatched))
        assert nearest not in own
        assert max(float(vectors[caption] @ item.mismatched) for caption in own) < 0.999


def test_an_image_without_any_other_caption_is_marked(shards, monkeypatch):
    """All samples replaced by one: no caption can differ, and the row says so."""
    only = shards.read(0)
    for name in ("read", "read_texts"):
        monkeypatch.setattr(ShardSet, name, lambda self, i: only)
    item = ShardDataset(shards, seed=0)[0]
    assert item.differs == 0 and torch.equal(item.mismatched, item.text)


def test_several_captions_are_all_drawn(shards):
    number = next(i for i in range(len(shards)) if len(shards.read(i).captions) == 2)
    dataset = ShardDataset(shards, seed=0)
    positions = [p for p in range(20 * len(shards)) if dataset.sample_at(p) == number]
    assert {dataset[p].caption for p in positions} == set(shards.read(number).captions)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_the_batches(shards, workers):
    dataset = ShardDataset(shards, seed=0)
    for alone, helped in zip(take(dataset, 4, workers=0), take(dataset, 4, workers=workers), strict=True):
        assert torch.equal(alone[0].images, helped[0].images) and alone[0].captions == helped[0].captions
        assert torch.equal(alone[0].mismatched, helped[0].mismatched)


@pytest.mark.parametrize("column, named", [(0, "captions"), (1, "vectors")])
def test_texts_are_those_of_the_whole_sample(shards, column, named):
    for i in range(len(shards)):
        whole, texts = getattr(shards.read(i), named), shards.read_texts(i)[column]
        assert torch.equal(whole, texts) if column else whole == texts


def test_members_far_apart_are_read_one_by_one(shards, monkeypatch):
    together = [shards.read(i) for i in range(len(shards))]
    monkeypatch.setattr(shard_reader, "MAX_GAP", -(2**20))
    for i, expected in enumerate(together):
        found = shards.read(i)
        assert found[:2] == expected[:2] and torch.equal(found.vectors, expected.vectors)


@pytest.mark.parametrize("processes,parts", [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_out_the_same_global_batch(shards, processes, parts):
    dataset, size = ShardDataset(shards, seed=0), 8 // processes
    whole = take(dataset, 3)
    for step in range(3):
        pieces = [
            batch
            for rank in range(processes)
            for batch in take(dataset, 3, share=slice(rank * size, (rank + 1) * size), parts=parts)[step]
        ]
        assert torch.equal(torch.cat([piece.images for piece in pieces]), whole[step][0].images)
        assert [piece.rows.start for piece in pieces] == list(range(0, 8, 8 // (processes * parts)))


def test_starting_at_a_position_continues_the_stream(shards):
    dataset = ShardDataset(shards, seed=0)
    later = take(dataset, 2, start=16)
    assert torch.equal(take(dataset, 4)[3][0].images, later[1][0].images)


def test_sampler_positions():
    sampler = iter(PositionSampler(start=10, batch=8, share=slice(4, 8), parts=2))
    assert [next(sampler) for _ in range(4)] == [[14, 15], [16, 17], [22, 23], [24, 25]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_naming_the_sample(shards, monkeypatch, workers):
    broken = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, i: broken(self, i)._replace(image=b"no image"))
    with pytest.raises(UserError, match=r"sample \d+: no JPEG.*shards\.inspect") as caught:
        take(ShardDataset(shards, seed=0, mismatch=False), 1, workers=workers)
    assert "\n" not in str(caught.value)
