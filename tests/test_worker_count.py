"""How many data workers: found on machines made of two numbers; and that no number of them changes a batch."""

import itertools
import time

import pytest
import torch

from tests.test_resident import assert_equal_batches, steps_of
from toolkit.data import feed as feed_module
from toolkit.data import worker_count
from toolkit.data.dataset import ShardDataset, batches
from toolkit.data.feed import Feed
from toolkit.data.shard_reader import ShardSet
from toolkit.data.worker_count import WARM_UP, WINDOW, WorkerCount, cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(worker_count, "cores", lambda: 8)


def found(loading: float, most_useful: int = 100, hindrance: float = 0.0, steps: int = 500) -> tuple[int, list[str]]:
    """A step computes for 1 s and needs `loading` s of loading, shared by up to `most_useful` processes."""
    workers, said = WorkerCount("auto"), []
    for _ in range(steps):
        n = workers.count
        computing = 1 + hindrance * n
        passed = max(computing, loading / min(n, most_useful)) if n else 1 + loading
        said.append(workers.saw(passed - computing, passed))
    assert workers.settled
    return workers.count, [line for line in said if line]


@pytest.mark.parametrize(
    "loading, most_useful, hindrance, expected",
    [
        (0.04, 100, 0, 0),  # waits for 4 % of its time
        (0.5, 100, 0, 1),
        (1.5, 100, 0, 2),
        (3.0, 100, 0, 4),
        (50.0, 100, 0, 8),  # all there are
        (50.0, 2, 0, 2),  # a disk that serves two
        (0.3, 100, 0.5, 0),  # processes that take the step's own core
    ],
)
def test_as_many_as_help(loading, most_useful, hindrance, expected):
    assert found(loading, most_useful, hindrance)[0] == expected


def test_each_change_is_told():
    assert found(3.0)[1] == [
        "steps wait 75% of their time for data; 0 -> 1 data workers",
        "steps wait 67% of their time for data; 1 -> 2 data workers",
        "steps wait 33% of their time for data; 2 -> 4 data workers",
    ]


def test_what_does_not_help_is_taken_back_and_no_more_is_tried():
    tried = [line.rpartition("; ")[2] for line in found(50.0, most_useful=2)[1]]
    assert tried == [f"{change} data workers" for change in ("0 -> 1", "1 -> 2", "2 -> 4", "4 -> 2")]


@pytest.mark.parametrize("number", [0, 3])
def test_a_given_number_stays(number):
    workers = WorkerCount(number)
    assert not any(workers.saw(9.0, 10.0) for _ in range(100))
    assert workers.count == number and workers.most == number


def test_pauses_and_the_first_steps_do_not_count():
    """The steps that warm up, and here and there a checkpoint: together more than half, in the window less."""
    workers = WorkerCount("auto")
    for k in range(WARM_UP + WINDOW):
        slow = k < WARM_UP or (k % 2 and k > WARM_UP + 2)
        assert workers.saw(*(30.0, 31.0) if slow else (0.0, 1.0)) == ""
    assert workers.settled and workers.count == 0


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(worker_count.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores() == 3


def test_a_feed_changes_its_workers_and_gives_the_same_batches(shard_folder, monkeypatch, capsys):
    dataset, steps, plan = ShardDataset(ShardSet(shard_folder), seed=0, mismatch=False), 40, {8: 1, 16: 2, 24: 0}
    expected = list(itertools.islice(batches(dataset, 0, 8, slice(0, 8), 2, 0), steps))
    opened, seen = [], itertools.count(1)
    monkeypatch.setattr(feed_module, "batches", lambda *what: (opened.append(what[5]), batches(*what))[1])
    source = Feed(dataset, 8, "auto", torch.device("cpu"), 1.0)

    def saw(waited: float, passed: float) -> str:
        """What the rule above would find on some machine."""
        step = next(seen)
        source.workers.count = plan.get(step, source.workers.count)
        return f"now {plan[step]} data workers" if step in plan else ""

    monkeypatch.setattr(source.workers, "saw", saw)
    assert_equal_batches(expected, steps_of(source, steps))
    assert opened == [0, 1, 2, 0]
    assert capsys.readouterr().err.count("data: now ") == 3


def test_each_step_is_measured_by_itself(shard_folder, monkeypatch):
    source, seen = Feed(ShardDataset(ShardSet(shard_folder), seed=0), 8, "auto", torch.device("cpu"), 1.0), []
    monkeypatch.setattr(source.workers, "saw", lambda *times: seen.append(times) or "")
    read = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, i: (time.sleep(0.001), read(self, i))[1])
    steps_of(source, 10)
    assert len(seen) == 10 and all(0.008 < waited <= passed for waited, passed in seen)  # 8 reads a step


def test_a_resident_set_ends_the_search(shard_folder, monkeypatch):
    monkeypatch.setattr(worker_count, "cores", lambda: 1)
    source = Feed(ShardDataset(ShardSet(shard_folder), seed=0), 8, "auto", torch.device("cpu"), 1.0, "auto")
    monkeypatch.setattr(source.workers, "saw", lambda waited, passed: asked.append(passed) or "")
    asked = []
    steps_of(source, feed_module.RESIDENT_AFTER + 10)
    assert source.resident is not None and len(asked) == feed_module.RESIDENT_AFTER - 1
