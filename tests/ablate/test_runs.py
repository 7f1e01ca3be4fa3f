"""Order, time, failures, going on, records, and one small grid for real."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from threading import Event, Thread

import pytest
from PIL import Image

from benchmarks.ablate import __main__ as command
from benchmarks.ablate import floor, training
from benchmarks.ablate.grid import read_grid
from benchmarks.ablate.results import Results, read, start
from benchmarks.ablate.runs import Clock, due, expected, measure
from benchmarks.ablate.table import draw_table
from benchmarks.ablate.training import Job, costs_of, record, seconds_per_kimg
from tests.ablate.made import Fake, results_of, write_grid
from tests.forking import Forked
from tests.inception_files import write_random
from toolkit.errors import UserError
from toolkit.networks.architecture import EARLIER, ModelConfig

ORDER = [(name, seed) for seed in (0, 1) for name in ("base", "faster", "large")]


class TestRuns:
    def test_whole_rounds_the_control_first(self, grid, tmp_path):
        results, fake = start(grid, tmp_path), Fake()
        assert measure(due(grid, results, tmp_path), results, tmp_path, fake, Clock(None)) == []
        assert fake.ran == ORDER
        assert len(read(tmp_path).runs) == 6 and due(grid, start(grid, tmp_path), tmp_path) == []

    def test_runs_go_side_by_side_and_none_twice(self, grid, tmp_path):
        results, fake = start(grid, tmp_path), Fake()
        measure(due(grid, results, tmp_path), results, tmp_path, fake, Clock(None), parallel=3)
        assert sorted(fake.ran) == sorted(ORDER) and {run["parallel"] for run in results.runs} == {3}

    def test_what_does_not_fit_into_the_time_waits_for_the_next_call(self, grid, tmp_path):
        """Runs of 10 s in 35: after three 5 s are left, too few for a fourth."""
        now = [0.0]
        results, fake = start(grid, tmp_path), Fake(now=now)
        jobs = due(grid, results, tmp_path)
        missing = measure(jobs, results, tmp_path, fake, Clock(35 / 60, lambda: now[0]))
        assert fake.ran == ORDER[:3] and missing == jobs[3:]
        assert "3 runs are missing: base, seed 1; faster, seed 1; large, seed 1; run the same" in (
            command.describe_missing(missing)
        )
        again = Fake()
        results = start(grid, tmp_path)
        measure(due(grid, results, tmp_path), results, tmp_path, again, Clock(None))
        assert again.ran == ORDER[3:]

    def test_a_run_is_expected_to_take_as_long_as_its_variant(self, grid, tmp_path):
        results = results_of({"base": [1.0], "large": [1.0]})
        results.runs[1]["wall_seconds"] = 30.0
        jobs = {job.variant: job for job in due(grid, Results(results.grid), tmp_path)}
        assert [expected(jobs[name], results) for name in ("base", "large", "faster")] == [10, 30, 20]

    def test_a_run_still_going_when_time_is_up_is_stopped_and_not_recorded(self, grid, tmp_path):
        def endless(job: Job, stop: Event) -> dict:
            assert stop.wait(30)
            return {"variant": job.variant, "seed": job.seed, "status": "interrupted", "reason": "exit code 143"}

        results = start(grid, tmp_path)
        jobs = due(grid, results, tmp_path)
        missing = measure(jobs, results, tmp_path, endless, Clock(0.2 / 60), parallel=2)
        assert missing == jobs and results.runs == []

    def test_a_failed_run_is_recorded_and_tried_again_only_on_request(self, grid, tmp_path):
        results = start(grid, tmp_path)
        measure(due(grid, results, tmp_path), results, tmp_path, Fake(fails=[("large", 1)]), Clock(None))
        assert [run["seed"] for run in results.of("large", "failed")] == [1] and due(grid, results, tmp_path) == []
        assert [str(job) for job in due(grid, results, tmp_path, retry=True)] == ["large, seed 1"]
        text = draw_table(results)
        assert "- failed: large, seed 1: diverged" in text and "| 1 + 1 failed |" in text

    def test_a_runner_that_breaks_costs_its_run(self, grid, tmp_path):
        def broken(job: Job, stop: Event) -> dict:
            raise OSError("no\nspace")

        results = start(grid, tmp_path)
        assert measure(due(grid, results, tmp_path), results, tmp_path, broken, Clock(None)) == []
        assert {run["reason"] for run in results.runs} == {"no space"} and "no space" in draw_table(results)

    def test_a_changed_variant_is_refused(self, place, grid, tmp_path):
        results = start(grid, tmp_path)
        measure(due(grid, results, tmp_path), results, tmp_path, Fake(), Clock(None))
        changed = read_grid(write_grid(place, "lr_g: 1e-3", "lr_g: 5e-3"))
        with pytest.raises(UserError, match=r"variant faster was measured .*lr_g 0.001 -> 0.005.*another name"):
            due(changed, start(changed, tmp_path), tmp_path)

    def test_so_is_one_whose_run_was_only_begun(self, place, grid, tmp_path):
        job = due(grid, start(grid, tmp_path), tmp_path)[1]
        training._note(job, training.begun(job))
        changed = read_grid(write_grid(place, "lr_g: 1e-3", "lr_g: 5e-3"))
        with pytest.raises(UserError, match="variant faster was measured"):
            due(changed, start(changed, tmp_path), tmp_path)


class TestRecords:
    def test_seconds_leave_out_the_start_and_what_evaluations_bring(self, tmp_path):
        """Evaluations at 4 and 8: lines of 4, 5 and 8 hold samples and plots, line 1 the start."""
        rates = {1: 1, 2: 100, 3: 50, 4: 2, 5: 3, 6: 100, 7: 50, 8: 4}
        lines = [{"step": step, "images_seen": 10 * step, "images_per_second": rate} for step, rate in rates.items()]
        (tmp_path / "training_log.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert seconds_per_kimg(tmp_path, 4) == pytest.approx(1000 * (0.1 + 0.2 + 0.1 + 0.2) / 40)
        assert seconds_per_kimg(tmp_path, 1) == pytest.approx(1000 * sum(10 / rate for rate in rates.values()) / 80)
        assert seconds_per_kimg(tmp_path / "none", 4) is None

    def test_multiply_adds_of_layers_that_can_be_counted_by_hand(self):
        """G at 16 px, 4 channels: text 768 x 256 + 256 x 256, start, two up-blocks, norms, to_rgb."""
        found = costs_of(ModelConfig(resolution=16, base_ch=4, z_dim=8, d_scales=1, **EARLIER))
        widths = [16, 8, 4]
        G = 768 * 256 + 256 * 256 + (8 + 256) * widths[0] * 16 + 4 * 3 * 9 * 256
        G += sum(256 * 2 * c for pair in ((16, 8), (8, 4)) for c in pair) + 256 * 2 * 4
        for before, after, size in ((16, 8, 8), (8, 4, 16)):
            G += size * size * 9 * (before * after + after * after) + (size // 2) ** 2 * before * after
        assert found["multiply_adds"]["G"] == G
        assert found["parameters"]["G"] > 0 and 0 < found["multiply_adds"]["D"] < found["multiply_adds"]["G"]

    def test_a_run_without_its_last_evaluation_has_failed(self, grid, tmp_path):
        job = due(grid, start(grid, tmp_path), tmp_path)[0]
        job.folder.mkdir(parents=True)
        (job.folder / "events.json").write_text(
            json.dumps({"step": 16, "level": "warning", "name": "not_evaluated", "text": "no evaluation: time"}) + "\n"
        )
        found = record(job, 0, "done", 1.0)
        assert (found["status"], found["reason"]) == ("failed", "no last evaluation: no evaluation: time")
        assert record(job, 3, f"train: diverged in {job.folder}", 1.0)["reason"] == "train: diverged in RUN"


class ForkedCommands:
    """subprocess, as the grid uses it, without a new Python for every command."""

    DEVNULL = subprocess.DEVNULL

    class Popen(Forked):
        def __init__(self, command: list[str], stdin: int, stdout, stderr, env: dict, start_new_session: bool) -> None:
            super().__init__(command[1:], Path.cwd(), env, stdout=True)
            told = os.dup(stdout.fileno())
            self.telling = Thread(target=self._tell, args=(told,))
            self.telling.start()

        def _tell(self, told: int) -> None:
            os.write(told, "".join(self.communicate()).encode())
            os.close(told)

        def poll(self) -> int | None:
            return None if self.telling.is_alive() else self.returncode

        def wait(self) -> None:
            self.telling.join()

        def terminate(self) -> None:
            self.send_signal(signal.SIGTERM)

    @staticmethod
    def run(command: list[str], env: dict, capture_output: bool, text: bool) -> subprocess.CompletedProcess:
        process = Forked(command[1:], Path.cwd(), env, stdout=True)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


REAL = [("base", 0), ("base", 1), ("faster", 0), ("faster", 1)]


@pytest.mark.parametrize("runs", [REAL[:1], pytest.param(REAL, marks=pytest.mark.slow)])
def test_a_small_grid_for_real(place, tmp_path, monkeypatch, capsys, runs):
    """Two variants, two seeds, by commands, evaluated by an untrained Inception; or one run, forked. The first training
    is stopped at its first evaluation and goes on; the same command again finds all done."""
    write_random(place / "random.pth")
    path = write_grid(place, '  large: {batch: 16, d_steps: 2, diffaug: "", compile: "no"}\n', "", "real.yaml")
    path.write_text(path.read_text().replace("layer: 64", "layer: 64, weights: random.pth") + "test: test\n")
    if runs != REAL:
        path.write_text(path.read_text().replace("  faster: {lr_g: 1e-3}\n", "").replace("[0, 1]", "[0]"))
        monkeypatch.setattr(training, "subprocess", ForkedCommands)
        monkeypatch.setattr(floor, "subprocess", ForkedCommands)
    grid, out = read_grid(path), tmp_path / "out"
    lone = due(grid, start(grid, out), out)[0]
    stop = Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: _wait_for(out / "cache" / "features", seconds))
    first = training.train(lone, stop)
    assert first["status"] == "interrupted" and sorted(lone.folder.glob("ckpt_*")) != []
    assert [path.name for path in (lone.folder / "evaluations").glob("*.json")] == ["step_0000008.json"]
    arguments = ["--out", str(out), "--device", "cpu", "--parallel", "2"]
    command.run(command.main, command.AblateOptions, command.paths_first([str(path), *arguments]))
    results = read(out)
    assert [(run["variant"], run["seed"], run["status"]) for run in results.runs] == [
        (*run, "finished") for run in runs
    ]
    for run in results.runs:
        assert [point["images_seen"] for point in run["points"]] == [64, 128]
        assert run["points"][0]["scores"]["fid_64"] != run["points"][1]["scores"]["fid_64"]
        assert run["seconds_per_kimg"] > 0 and run["clock"] == "process CPU time" and run["parameters"]["G"] > 0
    assert str(tmp_path) not in (out / "results.json").read_text() and (out / "results.json").stat().st_size < 20_000
    assert 0 < results.floor["scores"]["fid_64"] < results.runs[0]["points"][-1]["scores"]["fid_64"]
    assert {path.name for path in out.iterdir()} >= {"table.md", "plot.png", "grid.png", "results.json"}
    with Image.open(out / "grid.png") as image:
        assert image.height < 3 * 110  # two rows at most
    left = {path.name for path in lone.folder.iterdir()}
    assert "generator.safetensors" in left and not any(name.startswith("ckpt_") for name in left)
    assert "floor" in capsys.readouterr().out
    seeds = {seed for _, seed in runs}  # a reference by seed, not by run
    assert len(list((out / "cache" / "features").glob("*.safetensors"))) == len(seeds)
    command.run(command.main, command.AblateOptions, command.paths_first([str(path), *arguments]))
    assert read(out) == results


def _wait_for(features: Path, seconds: float) -> bool:
    """As Event.wait: whether the first evaluation is half done, the reference's features written and the others' not.
    It looks often: the last evaluation is but eight steps behind."""
    deadline = time.monotonic() + seconds
    while not (found := list(features.glob("*.safetensors"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(found)
