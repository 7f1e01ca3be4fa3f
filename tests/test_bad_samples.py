"""A damaged sample is replaced by one that (seed, position) names; too many of them end the run, naming the last."""

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hostile import npy
from tests.running import TINY, assert_equal_runs, logged, train
from toolkit import draws
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import BAD_IN_A_ROW, Batch, ShardDataset, batches
from toolkit.data.feed import NAMED, SHARE_OF, Feed
from toolkit.data.shard_format import INDEX_NAME
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.health.score import SwdScore
from toolkit.networks.ema import EMA
from toolkit.networks.models import Generator
from toolkit.run_folder.sample_grid import SampleGrid

CPU = torch.device("cpu")
IMAGE, TEXT, VECTOR = 1, 3, 5
"""Columns of the index where these begin."""


def spoil(folder: Path, sample: int, column: int = IMAGE, data: bytes | None = None) -> None:
    """Overwrite a member in place, with zeros or with `data` and zeros."""
    row = np.load(folder / INDEX_NAME)[sample]
    offset, size = (int(value) for value in row[column : column + 2])
    with (folder / f"shard-{row[0]:05d}.tar").open("r+b") as file:
        file.seek(offset)
        file.write((data or b"").ljust(size, b"\0")[:size])


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shard_folder, tmp_path / "copy")


def order(count: int = 24, epoch: int = -1) -> list[int]:
    """Sample numbers; in epoch -1 the order from whose beginning the images of the sample grid are taken."""
    return draws.permutation(count, 0, epoch).tolist()


def take(folder: Path, count: int, start=0, share=slice(0, 8), workers=0, parts=1) -> list[list[Batch]]:
    stream = batches(ShardDataset(ShardSet(folder), seed=0), start, 8, share, parts, workers)
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def rows(steps: list[list[Batch]]) -> list[tuple]:
    """(image, text, mismatched, caption) of each row, in order."""
    return [
        row
        for parts in steps
        for batch in parts
        for row in zip(batch.images, batch.text, batch.mismatched, batch.captions, strict=True)
    ]


def same(one: tuple, other: tuple) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True)) and one[3] == other[3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("column", [IMAGE, TEXT, VECTOR])
def test_one_of_24_is_replaced_by_the_drawn_one_and_no_other_row_changes(shard_folder, copy, workers, column):
    bad = order()[-1]
    spoil(copy, bad, column, b"\xff" * 4)
    before, after = take(shard_folder, 6), take(copy, 6, workers=workers)
    dataset, shards = ShardDataset(ShardSet(copy), seed=0), ShardSet(shard_folder)
    replaced = [position for position in range(48) if dataset.sample_at(position) == bad]
    assert len(replaced) == 2  # once in each of two epochs
    for position, (one, other) in enumerate(zip(rows(before), rows(after), strict=True)):
        if position in replaced:
            number = draws.integer(24, 0, "stand-in", position, 1)
            assert number != bad
            sample = shards.read(number)
            caption = draws.integer(len(sample.captions), 0, "caption", position)
            assert other[3] == sample.captions[caption] and torch.equal(other[1], sample.vectors[caption])
            assert not torch.equal(other[0], one[0])
        elif column == IMAGE:
            assert same(one, other)
        else:  # a row whose mismatched caption was the damaged one's has drawn another
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    named = [reason for parts in after for batch in parts for found in batch.damaged for reason in found]
    assert len(named) == 2 and all(f"shard-0000{bad // 10}.tar: sample {bad}" in reason for reason in named)


def test_processes_micro_batches_and_a_later_start_draw_the_same_stand_ins(copy):
    for bad in (3, 14, 22):
        spoil(copy, bad)
    whole = take(copy, 6)
    halves = [take(copy, 6, share=share, workers=2, parts=2) for share in (slice(0, 4), slice(4, 8))]
    for step in range(6):
        pieces = rows([half[step] for half in halves])
        assert all(same(*pair) for pair in zip(rows([whole[step]]), pieces, strict=True))
    assert sum(len(batch.damaged) for half in halves for parts in half for batch in parts) == 6
    assert all(same(*pair) for pair in zip(rows(whole[4:]), rows(take(copy, 2, start=32)), strict=True))


def test_a_stand_in_may_be_damaged_too(copy):
    sound = order()[0]
    for bad in set(range(24)) - {sound}:
        spoil(copy, bad)
    expected = ShardSet(copy).read(sound)
    items = [ShardDataset(ShardSet(copy), seed=0, mismatch=False)[position] for position in range(24)]
    assert all(item.caption in expected.captions for item in items)
    assert torch.equal(items[0].image, items[23].image)
    tries = [len(item.damaged) for item in items]
    for position, count in enumerate(tries):
        drawn = [order(epoch=0)[position], *(draws.integer(24, 0, "stand-in", position, k) for k in range(1, 100))]
        assert count == drawn.index(sound)


def test_an_image_of_another_size_is_damaged(copy):
    """Stacked with the others it would be a traceback."""
    small = io.BytesIO()
    Image.new("L", (4, 4)).save(small, "png", optimize=True)
    spoil(copy, 5, IMAGE, small.getvalue())
    dataset = ShardDataset(ShardSet(copy), seed=0)
    item = dataset[order(epoch=0).index(5)]
    assert item.image.shape == (3, 16, 16) and "sample 5: 4x4 px, not 16x16" in item.damaged[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_damage_stops_at_once(copy, workers):
    for bad in range(24):
        spoil(copy, bad)
    with pytest.raises(
        UserError, match=rf"{BAD_IN_A_ROW} damaged .*shard-0000\d.tar: sample \d+: .*inspect"
    ) as stopped:
        take(copy, 1, workers=workers)
    assert "\n" not in str(stopped.value)


def feed(folder: Path, max_bad: float, workers: int = 0) -> Feed:
    return Feed(ShardDataset(ShardSet(folder), seed=0), 8, workers, CPU, max_bad)


def images_until_stopped(source: Feed, steps: int = 200) -> tuple[int, str]:
    position = 0
    try:
        for _ in range(steps):
            source.fetch(position, slice(0, 8), 1, 1)
            source.take()
            position += 8
    except UserError as error:
        return source.bad, str(error)
    finally:
        source.close()
    return source.bad, ""


@pytest.mark.parametrize("max_bad, allowed", [(0, 0), (0.001, 1), (0.01, 10), (0.02, 20)])
def test_more_than_the_share_stops_the_run_naming_shard_and_sample(copy, max_bad, allowed):
    """One of 24, so 4 % are bad: below 1,000 images the share is taken of 1,000."""
    bad = order()[-1]
    spoil(copy, bad)
    count, said = images_until_stopped(feed(copy, max_bad))
    assert count == allowed + 1 and f"shard-0000{bad // 10}.tar: sample {bad}: " in said
    assert said.startswith(f"{allowed + 1} of the ") and f"--max_bad {max_bad:g}" in said and "\n" not in said


def test_a_share_below_the_limit_goes_on_beyond_the_first_thousand(copy):
    spoil(copy, order()[-1])
    count, said = images_until_stopped(feed(copy, 0.05))
    assert said == "" and 1600 // 24 <= count <= -(-1600 // 24) and count > 0.05 * SHARE_OF
    assert images_until_stopped(feed(copy, 0.041))[0] == 42  # 42 of the first 1,008


def test_each_damaged_sample_is_named_once_and_only_so_many(copy, capfd):
    for bad in range(22):
        spoil(copy, bad)
    images_until_stopped(feed(copy, 1, workers=2), steps=20)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == NAMED and all(".tar: sample " in line for line in lines)
    assert "further ones are only counted" in lines[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_damage_resumes_bitwise_and_logs_its_share(copy, tmp_path, workers):
    for bad in order()[-2:]:
        spoil(copy, bad)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train(copy, whole, iters=6)
    train(copy, halved, iters=4, workers=workers)
    train(copy, halved, iters=6, workers=workers)
    assert_equal_runs(whole, halved, 6, but=("workers",))
    shares = [line["bad_samples"] for line in logged(whole)]
    assert shares == [line["bad_samples"] for line in logged(halved)]
    assert sum(shares) * 8 == pytest.approx(4)  # 48 images, two of 24 twice
    assert all(share * 8 == int(share * 8) for share in shares)


def test_max_bad_is_an_option(copy, tmp_path):
    for bad in order()[-2:]:
        spoil(copy, bad, VECTOR, npy(np.zeros(768, dtype=np.int16)))
    with pytest.raises(
        UserError, match=r"1 of the \d+ samples read so far are damaged, more than --max_bad 0, the last: "
    ):
        train(copy, tmp_path / "run", iters=6, max_bad=0.0)
    with pytest.raises(UserError, match="max_bad is 1.5; it must be from 0 to 1"):
        train(copy, tmp_path / "run", max_bad=1.5)


def test_what_is_drawn_and_scored_leaves_damaged_samples_out(copy, tmp_path):
    """Half of the set is damaged: the grid's rows and the scored images are the sound ones, in the same order."""
    shards = ShardSet(copy)
    damaged = {number for number in range(24) if number % 2}
    for number in damaged:
        spoil(copy, number)
    config = ResolvedConfig(data=str(copy), **TINY, n_sample=28, score_count=24)
    grid = SampleGrid(ShardSet(copy), config)
    sound = [shards.read(number).captions[0] for number in order() if number not in damaged]
    assert [row.captions[0] for row in grid.rows] == list(dict.fromkeys(sound))[:7] and len(grid.reals) == len(
        grid.rows
    )
    score = SwdScore(ShardSet(copy), config)
    assert [len(part) for part in score._read()] == [12, 12]
    assert score(EMA(Generator(config), 0.5)) > 0
