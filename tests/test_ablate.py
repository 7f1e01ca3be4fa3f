"""The ablation bench: grids, order, stops and going on, verdicts, what it draws, and one small grid for real."""

import json
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import ttest_ind

from benchmarks.ablate import __main__ as command
from benchmarks.ablate import pack, training
from benchmarks.ablate.combine import combine
from benchmarks.ablate.grid import Grid, fingerprint, read_grid
from benchmarks.ablate.pack import pack_best, pack_shards, pack_weights, unpack_weights
from benchmarks.ablate.plot import curve, draw_plot
from benchmarks.ablate.results import Results, merge, read, start
from benchmarks.ablate.runs import Clock, due, expected, measure
from benchmarks.ablate.table import draw_table, ranked
from benchmarks.ablate.training import Job, costs_of, record, seconds_per_kimg
from benchmarks.ablate.verdicts import judge
from tests.conftest import REPOSITORY
from tests.inception_files import write_random
from tests.scored import write_run, write_shards
from toolkit.data.dataset import read_decoded
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.networks.architecture import EARLIER, ModelConfig
from toolkit.sampling import load_generator

TEXT = """
data: shards
kimg: 0.128
seeds: [0, 1]
evaluate: {times: 2, count: 64, layer: 64, metrics: "fid,kid"}
base: {base_ch: 4, z_dim: 8, d_scales: 1, batch: 8, d_steps: 1}
variants:
  faster: {lr_g: 1e-3}
  base: {}
  large: {batch: 16, d_steps: 2, diffaug: "", compile: "no"}
control: base
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    write_shards(folder / "shards", 72)
    write_shards(folder / "test", 66)
    return folder


def write_grid(place: Path, old: str = "", new: str = "", name: str = "grid.yaml") -> Path:
    assert old in TEXT
    (place / name).write_text(TEXT.replace(old, new) if old else TEXT, encoding="utf-8")
    return place / name


@pytest.fixture
def grid(place) -> Grid:
    return read_grid(write_grid(place))


class TestGrid:
    def test_options_become_what_the_training_takes(self, grid):
        """1e-3 is a number, '' stays empty, "no" stays a word; what the grid decides is the same for all."""
        large, faster = (grid.config(name, seed=1, folder=Path("run")) for name in ("large", "faster"))
        assert (faster.lr_g, large.diffaug, large.compile) == (1e-3, "", "no")
        assert (large.resolution, large.seed, large.score, large.out_dir) == (16, 1, "none", "run")
        assert large.workers == 0 and replace(grid, on_gpu=True).config("large").workers == "auto"

    def test_evaluations_come_after_equal_numbers_of_pictures(self, grid):
        for name in grid.variants:
            config = grid.config(name)
            steps = [config.eval_every * i for i in (1, 2)]
            assert [step * config.batch * config.d_steps for step in steps] == [64, 128]
            assert steps[-1] == config.total_steps

    def test_a_variant_may_stand_on_a_config_of_its_own(self, place):
        (place / "own.yaml").write_text("base_ch: 8\nresolution: 64\nlr_d: 5.0e-4\nbatch: 16\nd_steps: 1\niters: 7\n")
        grid = read_grid(write_grid(place, "  base: {}", "  base: {}\n  own: {config: own.yaml, lr_g: 2e-4}"))
        own = grid.config("own")
        assert (own.base_ch, own.resolution, own.lr_d, own.lr_g, own.z_dim) == (8, 16, 5e-4, 2e-4, 128)
        assert own.total_steps == 8

    def test_the_same_training_has_the_same_fingerprint(self, place, grid):
        """Neither seed nor places nor other variants matter; what is trained, shown and measured does."""
        same = read_grid(write_grid(place, "faster: {lr_g: 1e-3}", "faster: {lr_g: 0.001}\n  more: {lr_g: 2e-3}"))
        assert fingerprint(same.definition("faster")) == fingerprint(grid.definition("faster"))
        others = [grid.definition("base"), grid.definition("large")]
        others.append(replace(grid, kimg=0.256).definition("faster"))
        others.append(replace(grid, evaluate=replace(grid.evaluate, count=70)).definition("faster"))
        others.append(replace(grid, data=str(place / "test")).definition("faster"))
        assert len({fingerprint(one) for one in [grid.definition("faster"), *others]}) == 6

    def test_a_file_lies_beside_the_grid_and_counts_by_what_it_holds(self, place):
        line = "frozen_backbone: timm/test_vit, frozen_weights: "
        found = []
        for name, content in (("one.pth", b"1"), ("same.pth", b"1"), ("other.pth", b"2")):
            (place / name).write_bytes(content)
            grid = read_grid(write_grid(place, "lr_g: 1e-3", line + name))
            assert grid.config("faster").frozen_weights == str(place / name)
            found.append(grid.definition("faster"))
        assert found[0] == found[1] != found[2] and str(place) not in json.dumps(found)

    @pytest.mark.parametrize("old, new, message", [
        ("lr_g: 1e-3", "lr_gg: 1e-3", "variant faster: unknown option 'lr_gg'; did you mean 'lr_g'"),
        ("lr_g: 1e-3", "lr_g: quick", "variant faster: lr_g"),
        ("lr_g: 1e-3", "lr_g: [1, 2]", "variant faster: lr_g is .* one value"),
        ("lr_g: 1e-3", "lr_g: 7", "variant faster: lr_g is 7.0; it must be above 0"),
        ("lr_g: 1e-3", "kimg: 3", "variant faster: kimg is decided by the grid"),
        ("lr_g: 1e-3", "config: none.yaml", "variant faster: no config file none.yaml"),
        ("lr_g: 1e-3", "frozen_weights: none.pth", "variant faster: no frozen_weights file none.pth"),
        ("lr_g: 1e-3", "adaptive_d_steps: true", "variant faster: adaptive_d_steps shows"),
        ("lr_g: 1e-3", "", "variants base and faster are the same training"),
        ("kimg: 0.128", "kimg: 0.1", r"variant base shows 8 pictures .* 100 pictures .* kimg: 0.128 suits"),
        ("kimg: 0.128", "kimg: long", "kimg is 'long'; it must be a number"),
        ("kimg: 0.128\n", "", "the grid lacks kimg"),
        ("kimg: 0.128\n", "kimg: 1\nkimg: 2\n", "the key 'kimg' stands twice"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds is .* different numbers"),
        ("seeds: [0, 1]", "sseeds: [1, 1]", "the grid knows no 'sseeds'; did you mean 'seeds'"),
        ("count: 64", "count: 63", "needs at least 64 pictures"),
        ("count: 64", "count: 64, weights: none.pth", "no Inception weights at none.pth"),
        ("fid,kid", "fid,kidd", "unknown metric 'kidd'; did you mean 'kid'"),
        ("control: base", "control: bse", "control is 'bse'; it must be one of"),
        ("control: base", "criterion: recall", "criterion is 'recall', which the metrics fid,kid do not give"),
        ("data: shards", "data: shards\ntest: none", "none"),
        ("  base: {}", "  ../base: {}", "a variant's name is '../base'"),
    ])  # fmt: skip
    def test_a_wrong_grid_is_refused_in_one_line(self, place, old, new, message):
        with pytest.raises(UserError, match=message) as refused:
            read_grid(write_grid(place, old, new))
        assert str(refused.value).startswith(f"{place / 'grid.yaml'}: ") and "\n" not in str(refused.value)


class Fake:
    """A runner that trains nothing: 10 s of wall time each on its own clock, FIDs from `fids`."""

    def __init__(self, fids=None, fails=(), now=None) -> None:
        self.fids, self.fails, self.now, self.ran = fids or {}, fails, now or [0.0], []

    def __call__(self, job: Job, stop: Event) -> dict:
        self.ran.append((job.variant, job.seed))
        self.now[0] += 10
        name = (job.variant, job.seed)
        run = made(*name, self.fids.get(job.variant, 50.0) + job.seed, wall_seconds=10.0)
        run |= {"definition": fingerprint(job.definition), "options": job.definition["options"]}
        return run | ({"status": "failed", "reason": "diverged", "points": []} if name in self.fails else {})


def made(variant: str, seed: int, fid: float, score: str = "fid_64", **changes) -> dict:
    points = [
        {"step": i, "images_seen": 64 * i, "training_seconds": 2.0 * i, "scores": {score: fid * 2 / i, "kid_64": 0.1}}
        for i in (1, 2)
    ]
    return {
        "variant": variant, "seed": seed, "status": "finished", "reason": "", "definition": variant, "options": {},
        "images_seen": 128, "points": points, "seconds_per_kimg": 4.0, "clock": "wall", "wall_seconds": 10.0,
        "parameters": {"G": 2_500_000, "D": 1000}, "multiply_adds": {"G": 3e9, "D": 12}, "findings": {},
        "collapsed": False, "protocol": {}, "device": "GPU", "versions": {"torch": "2.11"},
    } | changes  # fmt: skip


def results_of(fids: dict[str, list[float]], control: str = "base") -> Results:
    grid = {"name": "g", "control": control, "criterion": "fid_64", "kimg": 0.128, "seeds": [0, 1, 2],
            "variants": list(fids), "data": "d", "samples": 72, "resolution": 16}  # fmt: skip
    return Results(grid, [made(name, seed, fid) for name, found in fids.items() for seed, fid in enumerate(found)])


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


class TestVerdicts:
    def test_welch_and_holm_over_the_variants(self):
        """Against scipy on the raw numbers; the smaller of two p is doubled, the larger one stays."""
        fids = {"base": [50.0, 51.0, 52.5], "good": [40.0, 42.0, 41.0], "bad": [60.0, 61.0, 59.5]}
        found = judge(results_of(fids), "fid_64")
        p = {name: ttest_ind(fids[name], fids["base"], equal_var=False).pvalue for name in ("good", "bad")}
        smaller, larger = sorted(p, key=p.get)
        assert found[smaller].p_holm == pytest.approx(2 * p[smaller])
        assert found[larger].p_holm == pytest.approx(max(p[larger], 2 * p[smaller]))
        assert {name: one.word for name, one in found.items()} == {"good": "better", "bad": "worse"}
        assert found["good"].difference == pytest.approx(41 - statistics.fmean(fids["base"]))

    @pytest.mark.parametrize("mine, word", [
        ([40.0], "too few seeds"), ([50.5, 51.5, 52.0], "no difference shown"),
        ([51.0, 51.0, 51.0], "no noise to judge by"), ([50.0, 50.0, 50.0], "no difference shown"),
    ])  # fmt: skip
    def test_words_for_what_is_not_shown(self, mine, word):
        control = [50.0] * 3 if word == "no noise to judge by" or set(mine) == {50.0} else [50.0, 51.0, 52.5]
        assert judge(results_of({"base": control, "other": mine}), "fid_64")["other"].word == word

    def test_higher_may_be_better(self):
        results = results_of({"base": [0.1, 0.11, 0.12], "other": [0.4, 0.41, 0.42]})
        for run in results.runs:
            for point in run["points"]:
                point["scores"]["recall_64"] = point["scores"]["fid_64"]
        assert (
            judge(results, "recall_64")["other"].word == "better" and judge(results, "fid_64")["other"].word == "worse"
        )

    def test_survivors_of_failed_runs_are_not_called_better(self):
        results = results_of({"base": [50.0, 51.0, 52.5], "other": [10.0, 11.0, 12.0]})
        assert judge(results, "fid_64")["other"].word == "better"
        results.put(made("other", 3, 0.0, status="failed", points=[]))
        assert judge(results, "fid_64")["other"].word == "failed runs"


class TestDrawing:
    @pytest.fixture
    def results(self) -> Results:
        found = results_of({"base": [50.0, 51.0, 52.5], "good": [40.0, 42.0, 41.0], "bad": [60.0, 61.0, 59.5]})
        found.floor = {"count": 64, "scores": {"fid_64": 3.25}}
        for run in found.of("good"):
            run |= {"options": {"loss": "nonsaturating"}, "seconds_per_kimg": 6.0, "findings": {"collapse": 2}}
        return found

    def test_table(self, results):
        lines = draw_table(results).splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        assert {len(row) for row in rows} == {len(rows[0])} and rows[0][3] == "fid_64 ↓"
        base, good, bad, floor = rows[2:]
        assert base[:4] == ["**base** (control)", "", "3", "51.17 ± 1.3"]
        assert good[:4] == ["good", "loss nonsaturating", "3", "41 ± 1 (-10.2, **better**)"]
        assert good[4:] == ["0.1 ± 0 (+0)", "6 (x 1.50)", "2.5 M + 1 k", "3 G + 12", "collapse 3/3"]
        assert bad[3] == "60.17 ± 0.76 (+9, **worse**)" and floor[3] == "3.25"

    def test_seconds_of_two_devices_are_not_compared(self, results):
        for run in results.of("good"):
            run["device"] = "2 CPU cores"
        assert "6 (on another device)" in draw_table(results)

    def test_the_best_come_first(self, results):
        assert ranked(results) == ["good", "bad"]
        results.grid["control"] = "good"
        assert ranked(results) == ["base", "bad"]

    def test_curves_are_means_with_their_range(self, results):
        assert curve(results, "good", "fid_64", "images_seen") == [(0.064, 82, 80, 84), (0.128, 41, 40, 42)]
        assert [point[0] for point in curve(results, "good", "fid_64", "training_seconds")] == [2, 4]

    def test_the_plot_of_twenty_variants_is_drawn_and_most_of_them_are_grey(self, tmp_path):
        many = {"base": [50.0, 51.0]} | {f"variant_{i:02d}": [40.0 + i, 42.0 + i] for i in range(20)}
        draw_plot(results_of(many), tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            assert picture.size[0] > 1000
            colours = {colour for count, colour in picture.convert("RGB").getcolors(2**24) if count > 100}
        assert (0, 0, 0) in colours and (31, 119, 180) in colours and (191, 191, 191) in colours
        assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]

    def test_a_variant_of_failed_runs_alone_does_not_end_the_drawing(self, results, tmp_path):
        results.put(made("bad", 0, 0.0, status="failed", points=[], reason="diverged"))
        results.runs = [run for run in results.runs if run["variant"] != "bad" or run["status"] == "failed"]
        draw_plot(results, tmp_path / "plot.png")
        assert "| bad |  | 0 + 1 failed | – |" in draw_table(results)

    def test_committed_results_are_drawn_again_and_several_become_one(self, results, tmp_path, capsys):
        other = results_of({"base": [50.0, 51.0, 52.5], "more": [30.0, 31.0, 32.0]})
        results.write(tmp_path / "one")
        other.write(tmp_path / "two")
        command.main(command.AblateOptions([str(tmp_path / "one"), str(tmp_path / "two" / "results.json")], table=True))
        text = (tmp_path / "one" / "table.md").read_text(encoding="utf-8")
        assert text.strip() == capsys.readouterr().out.strip()
        assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:6] == [
            "**base** (control)", "good", "bad", "more",
        ]  # fmt: skip
        assert (tmp_path / "one" / "plot.png").is_file() and len(read(tmp_path / "one").runs) == 9

    def test_what_does_not_compare_is_not_merged(self, results, tmp_path):
        results.write(tmp_path / "one")
        for name, change in (("two", {"definition": "other"}), ("three", {})):
            other = results_of({"base": [1.0]})
            other.runs[0] |= change
            other.grid["kimg"] = 0.128 if change else 7
            other.write(tmp_path / name)
        with pytest.raises(UserError, match="variant base is another training than in"):
            merge([tmp_path / "one", tmp_path / "two"])
        with pytest.raises(UserError, match="differ in kimg"):
            merge([tmp_path / "one", tmp_path / "three"])

    def test_arguments(self):
        assert command.paths_first(["g.yaml", "--out", "o"]) == ['--paths=["g.yaml"]', "--out", "o"]
        assert command.paths_first(["--table", "a", "b", "--out", "o"]) == [
            '--paths=["a", "b"]', "--table", "--out", "o",
        ]  # fmt: skip
        with pytest.raises(UserError, match="one grid file"):
            command.AblateOptions([])


class TestCombining:
    """fids: FID by the set of tricks that a training has."""

    GRID = TEXT.replace(
        "faster: {lr_g: 1e-3}",
        "a: {lr_g: 1e-3}\n  b: {loss: nonsaturating}\n  c: {lr_g: 2e-3}\n  d: {lecam: 0.1}\n  e: {r1_penalty: 3}",
    ).replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    SETS = {"a": ("lr_g", 1e-3), "b": ("loss", "nonsaturating"), "c": ("lr_g", 2e-3), "d": ("lecam", 0.1),
            "e": ("r1_penalty", 3.0)}  # fmt: skip

    def grid(self, place) -> Grid:
        (place / "combine.yaml").write_text(self.GRID)
        return read_grid(place / "combine.yaml")

    def runner(self, effects: dict[frozenset, float], ran: list):
        def fake(job: Job, stop: Event) -> dict:
            ran.append((job.variant, job.seed))
            has = frozenset(name for name, (option, value) in self.SETS.items() if getattr(job.config, option) == value)
            run = made(job.variant, job.seed, effects.get(has, 100.0) + 0.1 * job.seed)
            return run | {"definition": fingerprint(job.definition), "options": job.definition["options"]}

        return fake

    def test_winners_are_added_as_long_as_they_win(self, place, tmp_path):
        """Alone a < b < d < base; c won too but sets what a sets; on top of a b helps; on both d does not."""
        effects = {frozenset("a"): 50, frozenset("b"): 60, frozenset("c"): 55, frozenset("d"): 70, frozenset("e"): 120,
                   frozenset("ab"): 40, frozenset("ad"): 49, frozenset("abd"): 40}  # fmt: skip
        ran: list[tuple[str, int]] = []
        runner, grid = self.runner(effects, ran), self.grid(place)

        def everything(grid: Grid, out: Path) -> Results:
            results = start(grid, out)
            assert measure(due(grid, results, out), results, out, runner, Clock(None)) == []
            return results

        found = combine(grid, everything(grid, tmp_path), tmp_path, everything)
        assert found.chosen == ["a", "b"] and found.left_out == {"c": "it sets lr_g, as a does"}
        assert len(ran) == 3 * (7 + 2 + 1)  # what won is not trained again as the next control
        rounds = json.loads((tmp_path / "combined.json").read_text())["rounds"]
        assert [(one["base"], one["candidates"], one["winner"]) for one in rounds] == [
            ("base", ["a", "c", "b", "d"], "a"), ("base+a", ["b", "d"], "b"), ("base+a+b", ["d"], None),
        ]  # fmt: skip
        config = yaml.safe_load((tmp_path / "combined.yaml").read_text())
        assert config == {
            "resolution": 16, "base_ch": 4, "z_dim": 8, "batch": 8, "d_steps": 1,
            "loss": "nonsaturating", "lr_g": 1e-3,
        }  # fmt: skip
        ran.clear()
        again = combine(grid, everything(grid, tmp_path), tmp_path, everything)
        assert again.rounds == found.rounds and ran == []

    def test_nothing_won(self, place, tmp_path):
        grid, ran = self.grid(place), []
        results = start(grid, tmp_path)
        measure(due(grid, results, tmp_path), results, tmp_path, self.runner({}, ran), Clock(None))
        found = combine(grid, results, tmp_path, lambda *_: pytest.fail("nothing to measure"))
        assert found.chosen == [] and "lr_g" not in yaml.safe_load((tmp_path / "combined.yaml").read_text())


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


def test_a_small_grid_for_real(place, tmp_path, monkeypatch, capsys):
    """Two variants, two seeds, by commands, evaluated by an untrained Inception. The first training is stopped at its
    first evaluation and goes on; the same command again finds all done."""
    write_random(place / "random.pth")
    path = write_grid(place, '  large: {batch: 16, d_steps: 2, diffaug: "", compile: "no"}\n', "", "real.yaml")
    path.write_text(path.read_text().replace("layer: 64", "layer: 64, weights: random.pth") + "test: test\n")
    grid, out = read_grid(path), tmp_path / "out"
    lone = due(grid, start(grid, out), out)[0]
    stop = Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: _wait_for(lone.folder / "evaluations/step_0000008.json", seconds))
    first = training.train(lone, stop)
    assert first["status"] == "interrupted" and sorted(lone.folder.glob("ckpt_*")) != []
    arguments = ["--out", str(out), "--device", "cpu", "--parallel", "2"]
    command.run(command.main, command.AblateOptions, command.paths_first([str(path), *arguments]))
    results = read(out)
    assert [(run["variant"], run["seed"], run["status"]) for run in results.runs] == [
        ("base", 0, "finished"), ("base", 1, "finished"), ("faster", 0, "finished"), ("faster", 1, "finished"),
    ]  # fmt: skip
    for run in results.runs:
        assert [point["images_seen"] for point in run["points"]] == [64, 128]
        assert run["points"][0]["scores"]["fid_64"] != run["points"][1]["scores"]["fid_64"]
        assert run["seconds_per_kimg"] > 0 and run["clock"] == "process CPU time" and run["parameters"]["G"] > 0
    assert str(tmp_path) not in (out / "results.json").read_text() and (out / "results.json").stat().st_size < 20_000
    assert 0 < results.floor["scores"]["fid_64"] < results.runs[0]["points"][-1]["scores"]["fid_64"]
    assert {path.name for path in out.iterdir()} >= {"table.md", "plot.png", "grid.png", "results.json"}
    with Image.open(out / "grid.png") as picture:
        assert picture.height < 3 * 110  # two rows
    left = {path.name for path in lone.folder.iterdir()}
    assert "generator.safetensors" in left and not any(name.startswith("ckpt_") for name in left)
    assert "floor" in capsys.readouterr().out
    assert len(list((out / "cache" / "features").glob("*.safetensors"))) == 2  # a reference by seed, not by run
    command.run(command.main, command.AblateOptions, command.paths_first([str(path), *arguments]))
    assert read(out) == results


class TestPacking:
    def test_smaller_shards_hold_the_same_samples(self, place, tmp_path):
        one, small = ShardSet(place / "shards"), ShardSet(pack_shards(place / "shards", tmp_path / "small", 8, 90))
        assert len(small) == len(one) and small.manifest.resolution == 8
        assert small.manifest.encoder == one.manifest.encoder
        for number in (0, 71):
            (before, wide), (after, narrow) = (read_decoded(shards, number) for shards in (one, small))
            assert after.captions == before.captions and torch.equal(after.vectors, before.vectors)
            assert narrow.shape == (3, 8, 8) and abs(int(narrow[0].float().mean()) - number) <= 3  # the red level
        with pytest.raises(UserError, match="16 px, too small for 32"):
            pack_shards(place / "shards", tmp_path / "large", 32, 90)

    def test_weights_come_back_within_half_precision(self, tmp_path):
        state = {"a": torch.randn(3, 4), "b": torch.randn(5), "zeros": torch.zeros(1000, 1000), "n": torch.tensor(0)}
        torch.save(state, tmp_path / "in.pth")
        pack_weights(tmp_path / "in.pth", tmp_path / "half.safetensors")
        unpack_weights(tmp_path / "half.safetensors", tmp_path / "out.pth")
        found = torch.load(tmp_path / "out.pth", weights_only=True)
        assert (tmp_path / "half.safetensors").stat().st_size < 1000 and found.keys() == state.keys()
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in state.items()
        }
        assert torch.equal(found["b"], state["b"]) and torch.allclose(found["a"], state["a"], rtol=1e-3)
        torch.save({"a": torch.full((2, 2), 1e6)}, tmp_path / "in.pth")
        with pytest.raises(UserError, match="a does not fit into half precision"):
            pack_weights(tmp_path / "in.pth", tmp_path / "half.safetensors")

    @pytest.mark.parametrize("largest, dtype", [(10**9, torch.float32), (1, torch.float16)])
    def test_the_best_generator_is_handed_back(self, tmp_path, monkeypatch, largest, dtype):
        results_of({"base": [50.0, 51.0], "good": [40.0, 42.0], "gone": [30.0, 31.0]}).write(tmp_path)
        for name in ("base", "good"):
            run = write_run(tmp_path / "runs" / name / "seed_0")
            (run / "ckpt_0000001" / "generator.safetensors").rename(run / "generator.safetensors")
        monkeypatch.setattr(pack, "LARGEST", largest)
        assert pack_best(tmp_path, tmp_path / "best.safetensors") == "good"
        back = load_generator(tmp_path / "best.safetensors")
        assert back.sample(torch.zeros(1, 768), [0]).shape == (1, 3, 16, 16)
        tensors = load_file(tmp_path / "best.safetensors").values()
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}

    def test_what_is_told_where_the_arguments_are_wrong(self):
        script = REPOSITORY / "benchmarks" / "gpu_quality.sh"
        ended = subprocess.run(["bash", str(script), "pack"], capture_output=True, text=True)
        assert ended.returncode == 2 and "gpu_quality.sh run DIR OUT GRID.yaml MINUTES" in ended.stdout


def _wait_for(file: Path, seconds: float) -> bool:
    """As Event.wait: whether it is there."""
    time.sleep(seconds)
    return file.is_file()
