"""The benchmark of several processes: the model's closed forms, what is made of the workers' answers, a tiny run."""

import math
from typing import NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import scaling, scaling_model
from benchmarks.scaling import CPU, Session, Split, compare_weights, measure, predict, process_counts
from benchmarks.scaling_model import (
    COUNTS,
    NETWORKS,
    WINDOW,
    Link,
    ScalingOptions,
    all_reduce_seconds,
    buckets,
    draw_table,
    expected_maximum,
    gradient_bytes,
    link_of,
    step_seconds,
    waiting_seconds,
)  # fmt: skip
from benchmarks.scaling_worker import COLUMNS, Worker, WorkerOptions, in_buckets
from benchmarks.side_by_side import Different, Row, Setting
from tests.workers.two_processes import SCALED
from toolkit.errors import UserError
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.models import Discriminator, Generator

MB = 2**20


class TestModel:
    @pytest.mark.parametrize("count, factor", [(2, 1.0), (4, 1.5), (8, 1.75), (1024, 2046 / 1024)])
    def test_a_ring_moves_nearly_twice_the_bytes(self, count, factor):
        assert all_reduce_seconds(10**9, count, Link(1e9, 0)) == pytest.approx(factor)

    def test_one_process_exchanges_nothing(self):
        assert all_reduce_seconds(10**9, 1, Link(1e9, 1)) == 0
        assert waiting_seconds(1, 1.0, 0.5) == pytest.approx(0, abs=1e-9)

    def test_an_infinite_bandwidth_leaves_a_latency_per_bucket(self):
        assert all_reduce_seconds(51 * MB, 8, Link(math.inf, 0.001)) == pytest.approx(0.003)

    @pytest.mark.parametrize("size, count", [(4, 1), (MB, 1), (MB + 4, 2), (26 * MB, 2), (26 * MB + 4, 3)])
    def test_buckets(self, size, count):
        assert buckets(size) == len(in_buckets(size)) == count
        assert sum(in_buckets(size)) == size and max(in_buckets(size)) <= 25 * MB

    def test_the_expected_maximum_has_its_closed_forms(self):
        assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
        assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))

    def test_waiting_is_that_of_simulated_steps(self):
        """Both halves of a step wait for the slowest of 64; one process's whole step varies by 5 %."""
        generator = torch.Generator().manual_seed(0)
        halves = 0.5 + 0.05 / math.sqrt(2) * torch.randn(20_000, 2, 64, generator=generator, dtype=torch.float64)
        assert float(halves.sum(1).std()) == pytest.approx(0.05, rel=0.01)
        simulated = float(halves.max(2).values.sum(1).mean()) - 1
        assert waiting_seconds(64, 1.0, 0.05) == pytest.approx(simulated, rel=0.01)

    def test_what_fits_behind_the_backward_passes_is_hidden(self):
        assert step_seconds(1.0, 0.2, 0.1, 0) == pytest.approx(1.3)
        assert step_seconds(1.0, 0.2, 0.1, 1) == pytest.approx(1.1)
        assert step_seconds(1.0, 3.0, 0.1, 1) == pytest.approx(1.1 + 3 - WINDOW)

    def test_between_machines_the_narrower_link_counts(self):
        options = ScalingOptions(10, inside="pcie", network="infiniband")
        assert link_of(options, 8) == scaling_model.INSIDE["pcie"]
        assert link_of(options, 16).bandwidth == scaling_model.INSIDE["pcie"].bandwidth
        assert link_of(options, 16).latency == scaling_model.BETWEEN["infiniband"].latency
        assert link_of(options, 64).latency > link_of(options, 16).latency
        ethernet = link_of(ScalingOptions(10, network="ethernet25"), 16)
        assert ethernet.bandwidth == scaling_model.BETWEEN["ethernet25"].bandwidth

    def test_gradients_have_four_bytes_a_parameter(self):
        config = ModelConfig(resolution=32, base_ch=4, **NETWORKS)
        expected = {name: sum(p.numel() * p.element_size() for p in kind(config).parameters())
                    for name, kind in (("G", Generator), ("D", Discriminator))}  # fmt: skip
        assert gradient_bytes(32, 4) == expected

    def test_table(self):
        lines = draw_table(ScalingOptions(step_ms=20, batch=4, base_ch=4, resolution=32, variation=0)).splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[-len(COUNTS) :]]
        assert [row[0] for row in cells] == ["1", "8", "64", "256", "1,024"]
        assert cells[0][1:] == ["4", "0.00", "0.00", "20.00–20.00", "200–200", "100%–100%"]
        assert all(row[3] == "0.00" and row[6].endswith("100%") for row in cells)  # all hidden, nobody late

    @pytest.mark.parametrize("wrong", [{"step_ms": 0}, {"step_ms": 1, "batch": 0}, {"step_ms": 1, "variation": 1}])
    def test_options_out_of_range(self, wrong):
        with pytest.raises(UserError, match="must be"):
            ScalingOptions(**wrong)


class TestAnswers:
    def test_a_split(self):
        """Two turns of two processes and two steps; the columns are those of the worker."""
        names = ("data", "waiting", "exchange", "buckets", "optimizer", "step")
        assert names == COLUMNS
        first = [[1, 0, 4, 2, 3, 18], [1, 0, 4, 2, 3, 22]]
        second = [[1, 2, 4, 2, 3, 18], [1, 6, 4, 2, 3, 22]]
        later = [[1, 4, 4, 2, 3, 20], [1, 4, 4, 2, 3, 20]]
        found = Split.of([{"steps": [first, second]}, {"steps": [later, later]}])
        assert (found.step, found.data, found.exchange, found.optimizer, found.buckets) == (20, 1, 4, 3, 2)
        assert (found.waiting, found.compute) == (3.5, 8.5)  # medians of 1, 3, 4, 4 and of 8, 8, 9, 11
        own = [[14, 18], [12, 12], [12, 12], [12, 12]]  # of each process in each turn
        assert found.variation == pytest.approx(math.sqrt(8 / 4) / (sum(map(sum, own)) / 8))

    def test_the_prediction_is_the_model_of_the_measured_link(self):
        """20 MB in 4 buckets: 30 ms, of which 4 are latency; a step of 100 ms that never varies."""
        reduced = {"bytes": {"G": 10 * MB, "D": 10 * MB}, "seconds": 0.030, "buckets": 4, "latency": 0.001}
        assert predict(2, 0.1, 0, reduced) == pytest.approx([0.1 / 0.130, 1])
        assert predict(2, 0.1, 0, reduced, slowdown=1.5) == pytest.approx([0.1 / 0.180, 0.1 / 0.150])

    def test_process_counts(self, monkeypatch):
        assert process_counts(CPU) == [2]
        for gpus, expected in ((1, []), (2, [2]), (6, [2, 4, 6]), (8, [2, 4, 8])):
            monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
            assert process_counts(torch.device("cuda")) == expected

    def test_other_weights_give_no_number(self):
        class Answering:
            def __init__(self, count: int, digest: str) -> None:
                self.count, self.answer = count, {"sha256": digest, "processes": count}

            def ask(self, turn: str) -> dict:
                return self.answer

        assert compare_weights(Answering(1, "a"), Answering(2, "a")).endswith("bitwise")
        with pytest.raises(Different, match="weights after 3 steps on 2 processes are not those on 1"):
            compare_weights(Answering(1, "a"), Answering(2, "b"))
        alone = Answering(2, "a")
        alone.answer["processes"] = 1  # each believes it is alone
        with pytest.raises(Different):
            compare_weights(Answering(1, "a"), alone)

    def test_workers_that_cannot_start_say_why(self, tmp_path):
        options = WorkerOptions(tmp_path / "no shards here")
        with Session(options, 1, CPU, tmp_path) as session, pytest.raises(UserError, match="no shards here"):
            session.ask("steps")


class Recorded(NamedTuple):
    """A session whose answers are there already."""

    options: WorkerOptions
    count: int
    answers: dict[str, dict]

    def ask(self, turn: str) -> dict:
        return self.answers[turn]


def assert_measured(row: Row) -> None:
    split = row.details["split"]["several"]
    assert split["exchange"] > 0 and split["compute"] > 0 and split["buckets"] > 1
    assert split["step"] == pytest.approx(
        sum(split[name] for name in ("data", "compute", "waiting", "exchange", "optimizer")), rel=0.5
    )


@pytest.mark.dist
def test_two_workers_answer_what_a_row_is_made_of(two, shard_folder, monkeypatch):
    """Real turns of two processes and of one, in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    options = WorkerOptions(shard_folder, **SCALED)
    turns = ("parity", "steps", "split")
    one = Recorded(options, 1, dict(zip(turns, Worker(options).answers(turns), strict=True)))
    AcceleratorState._reset_state(reset_partial_state=True)
    several, other = (Recorded(options, 2, facts["turns"]) for facts in two.facts)
    assert compare_weights(one, several) == compare_weights(one, other) == "weights after 3 steps bitwise"
    row = measure(one, several, rounds=1, parity="the same")
    assert_measured(row)
    found = row.details["all_reduce_alone"]
    assert found["bytes"] == gradient_bytes(16, 4) and found["seconds"] > 0 and found["latency"] > 0


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_are_measured_and_their_weights_compared(tmp_path):
    """Real ones, tiny."""
    setting = Setting(torch.device("cpu"), tmp_path, rounds=1)
    (row,) = scaling.rows(setting, resolution=32, base_ch=4, batch=4, steps=3)
    assert row.parity == "weights after 3 steps bitwise" and 0.05 < row.ratio < 2
    assert_measured(row)
