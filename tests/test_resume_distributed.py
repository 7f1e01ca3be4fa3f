"""Stopped and resumed with several processes, and with another number of them: the same images, the same course."""

import json
import shutil
from pathlib import Path

import pytest

from tests.running import assert_equal_runs, finish, launch, logged, train
from toolkit.data.dataset import PositionSampler, ShardDataset
from toolkit.data.shard_reader import ShardSet

LOGGING = Path(__file__).parent / "workers" / "train_with_reading_log.py"
COURSE = {"r1_interval": 4, "lecam": 0.1, "adaptive_augment": True, "ema_profiles": "0.02,0.1"}


@pytest.fixture
def go(shard_folder, tmp_path, monkeypatch):
    """Train run `name` with so many processes up to step `iters`; returns what each process read, in its order."""

    def train_on(name: str, processes: int, iters: int) -> list[list]:
        log = tmp_path / f"reads of {name} to {iters}"
        log.mkdir()
        monkeypatch.setenv("READING_LOG", str(log))
        options = {**COURSE, "iters": iters, "score": "none"}
        process = launch(shard_folder, tmp_path / name, processes=processes, script=LOGGING, **options)
        said = finish(process)
        assert process.returncode == 0, said[-3000:]
        return [[json.loads(line) for line in (log / str(k)).read_text().splitlines()] for k in range(processes)]

    return train_on


@pytest.mark.dist
def test_two_processes_resume_bitwise_and_other_numbers_of_processes_read_the_same_images(go, shard_folder, tmp_path):
    """Two processes for 6 steps against 4 + 2 (an epoch has 3); then one process against 1 for 2 steps, 2 up to 4,
    1 up to 6. Results of one process and two differ in the order of sums only: no norm of G sees the other images."""
    whole = go("whole", 2, 6)
    parts = [go("parts", 2, iters) for iters in (4, 6)]
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts", 6)
    dataset = ShardDataset(ShardSet(shard_folder), seed=0)
    captions = [dataset[position].caption for position in range(48)]
    expected = [[position, dataset.sample_at(position), captions[position]] for position in range(48)]
    for rank in range(2):
        share = [expected[8 * step + 4 * rank + row] for step in range(6) for row in range(4)]
        assert whole[rank] == share and parts[0][rank] + parts[1][rank] == share

    one, changing = tmp_path / "one", tmp_path / "changing"
    train(shard_folder, one, iters=6, **COURSE)
    train(shard_folder, changing, iters=2, **COURSE)
    shutil.copytree(changing, tmp_path / "one again")
    reads = go("changing", 2, 4)
    train(shard_folder, changing, iters=6, **COURSE)
    assert sorted(reads[0] + reads[1]) == expected[16:32]
    lines = [logged(run) for run in (one, changing)]
    assert lines[0] != lines[1] and lines[0][:2] == lines[1][:2]  # two processes did take part
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys() and a["images_seen"] == b["images_seen"]
        for name in (name for name in a if name.startswith(("loss", "logit", "r1", "lecam", "grad"))):
            if name.endswith("_max"):
                continue  # the largest of any process: of half batches it is another number
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), (a["step"], name)
    train(shard_folder, tmp_path / "one again", iters=6, **COURSE)
    assert_equal_runs(one, tmp_path / "one again", 6)


@pytest.mark.parametrize("start", [0, 20, 1000])
@pytest.mark.parametrize("processes,parts", [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (4, 1), (12, 1)])
def test_any_number_of_processes_and_micro_batches_reads_every_position_once_and_in_order(start, processes, parts):
    """12 images a step: together the processes read `start`, `start` + 1, ... with nothing left out or doubled."""
    share, streams = 12 // processes, []
    for process in range(processes):
        streams.append(iter(PositionSampler(start, 12, slice(process * share, (process + 1) * share), parts)))
    for step in range(4):
        read = [position for stream in streams for _ in range(parts) for position in next(stream)]
        assert read == list(range(start + 12 * step, start + 12 * (step + 1)))
