"""Verdicts against the noise, and the tricks that are combined by them."""

import json
import statistics
from pathlib import Path
from threading import Event

import pytest
import yaml
from scipy.stats import ttest_ind

from benchmarks.ablate.combine import combine
from benchmarks.ablate.grid import Grid, fingerprint, read_grid
from benchmarks.ablate.results import Results, start
from benchmarks.ablate.runs import Clock, due, measure
from benchmarks.ablate.training import Job
from benchmarks.ablate.verdicts import judge
from tests.ablate.made import TEXT, made, results_of


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
