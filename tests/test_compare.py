"""Comparing runs: Welch and Holm against closed forms, false verdicts at the nominal rate, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import __main__ as command
from evaluation.compare.__main__ import CompareOptions, runs_first
from evaluation.compare.runs import NEUTRAL, ScoredRun, Variant, letters
from evaluation.compare.significance import Summary, holm, least_shown, summary, welch
from evaluation.compare.verdicts import compare
from evaluation.run_scores.reading import Evaluation
from toolkit.command_line import dump, parse
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError

PROTOCOL = {"real": "shards", "n_real": 1000, "n_fake": 1000, "resolution": "32x32", "captions_sha256": "ab",
            "inception": {"feature_layers": ["768"], "resize": "legacy", "weights_sha256": "cd",
                          "device": "cpu"}}  # fmt: skip


def write_run(
    folder: Path, scores: dict, step: int = 100, protocol: dict | None = None, name: str = "", **options
) -> str:
    """A run folder with config.yaml and an evaluation; run again, one more evaluation."""
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        (folder / "config.yaml").write_text(dump(ResolvedConfig(out_dir=str(folder), data="shards", **options)))
    report = {"scores": scores, "protocol": {**PROTOCOL, "fake": str(folder), "step": step, **(protocol or {})}}
    (folder / "evaluations" / (name or f"step_{step:07d}.json")).write_text(json.dumps(report))
    return str(folder)


def variants(*groups: dict[str, list[float]]) -> list[Variant]:
    """A variant per group: score -> its value for each seed."""
    found = []
    for place, group in enumerate(groups):
        runs = []
        for seed in range(len(next(iter(group.values())))):
            scores = {name: values[seed] for name, values in group.items()}
            evaluation = Evaluation(Path("e.json"), 1, scores, [], PROTOCOL)
            runs.append(ScoredRun(Path(f"{place}_{seed}"), ResolvedConfig(seed=seed), "", evaluation))
        found.append(Variant(letters(place), runs))
    return found


def said(capsys, *runs: str, **options) -> str:
    command.main(CompareOptions(list(runs), **options))
    return capsys.readouterr().out


class TestStatistics:
    def test_welch_against_numbers_by_hand(self):
        test = welch(summary([1.0, 2.0, 3.0]), summary([2.0, 4.0, 6.0, 8.0]))
        assert (test.difference, test.error, test.t) == pytest.approx(
            (-3, math.sqrt(1 / 3 + 20 / 3 / 4), -3 / math.sqrt(2))
        )
        assert test.freedom == pytest.approx(4 / ((1 / 9) / 2 + (25 / 9) / 3))

    def test_p_against_the_closed_form_of_two_degrees_of_freedom(self):
        test = welch(summary([0.0, 2.0]), summary([5.0, 7.0]))
        assert test.freedom == pytest.approx(2)
        assert test.p == pytest.approx(1 - abs(test.t) / math.sqrt(2 + test.t**2))

    def test_without_noise_there_is_no_test(self):
        assert welch(summary([1.0]), summary([2.0, 3.0])) is None
        assert welch(summary([1.0, 1.0]), summary([2.0, 2.0])) is None
        assert welch(summary([1.0, 1.0]), summary([2.0, 2.5])) is not None

    @pytest.mark.parametrize("seeds, tests", [(2, 1), (3, 12), (8, 5)])
    def test_the_least_difference_that_is_shown(self, seeds, tests):
        shift = least_shown(seeds, tests, 0.05)
        assert welch(Summary(10 + shift, 1.0, seeds), Summary(10.0, 1.0, seeds)).p == pytest.approx(0.05 / tests)

    def test_holm_by_hand(self):
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []

    def test_equal_variants_are_told_apart_at_the_nominal_rate(self):
        draws, names = np.random.default_rng(0), [f"score_{i}" for i in range(5)]
        any_of_five = one_alone = uncorrected = 0
        for _ in range(1000):
            a, b = ({name: list(draws.normal(size=4)) for name in names} for _ in range(2))
            five = compare(variants(a, b), 0.05)
            any_of_five += any(one.better for one in five)
            uncorrected += any(one.test.p < 0.05 for one in five)
            one_alone += bool(compare(variants({"fid": a[names[0]]}, {"fid": b[names[0]]}), 0.05)[0].better)
        # 50 expected of each, 7 the standard deviation; Welch's test of so few is a little cautious
        assert 25 <= one_alone <= 70 and 20 <= any_of_five <= 70
        assert uncorrected > 150

    def test_unequal_noise_does_not_fool_it(self):
        """Student's t with the pooled variance is wrong about a third of these."""
        draws, wrong = np.random.default_rng(1), 0
        for _ in range(1000):
            quiet, loud = draws.normal(0, 0.1, size=10), draws.normal(0, 1, size=3)
            wrong += bool(compare(variants({"fid": list(quiet)}, {"fid": list(loud)}), 0.05)[0].better)
        assert wrong <= 80

    @pytest.mark.parametrize(("name", "better"), [
        ("fid_768", "B"), ("kid", "B"), ("median_rank", "B"), ("dinov2_fd", "B"), ("clean_fid_infinity_64", "B"),
        ("recall", "A"), ("clip_score", "A"), ("authenticity", "A"), ("inception_score", "A"),
    ])  # fmt: skip
    def test_a_clear_difference_is_found_in_the_right_direction(self, name, better):
        [found] = compare(variants({name: [31.0, 31.4, 30.7]}, {name: [28.0, 28.3, 27.8]}), 0.05)
        assert found.better == better and found.verdict.startswith(f"{better} better than {'BA'['AB'.index(better)]}: ")
        assert "difference 3" in found.verdict

    def test_of_scores_that_tell_of_other_scores_no_verdict_is_given(self):
        both = {name: [1.0, 2.0] for name in ("kid_768", "kid_low_768", "kid_std", "vendi_real", "clip_score_shuffled")}
        assert [one.score for one in compare(variants(both, both), 0.05)] == ["kid_768"]


class TestRuns:
    def test_seeds_are_repetitions_and_other_options_another_variant(self, tmp_path, capsys):
        runs = [
            write_run(tmp_path / f"a{i}", {"fid": 30 + i / 10}, seed=i, workers=i, log_every=10 + i) for i in range(3)
        ]
        runs += [write_run(tmp_path / f"b{i}", {"fid": 20 + i / 10}, seed=i, lr_g=5e-5) for i in range(3)]
        shown = said(capsys, *runs, json=tmp_path / "numbers.json")
        assert "lr_g 0.00025 -> 5e-05" in shown and "B better than A: difference 10, noise 0.082" in shown
        numbers = json.loads((tmp_path / "numbers.json").read_text())
        assert [len(one["runs"]) for one in numbers["variants"]] == [3, 3]
        assert numbers["variants"][0]["scores"]["fid"] == pytest.approx({"mean": 30.1, "deviation": 0.1, "count": 3})
        assert (
            numbers["variants"][1]["options"] == {"lr_g": [2.5e-4, 5e-5]} and numbers["comparisons"][0]["better"] == "B"
        )

    def test_the_data_count_by_their_content(self, tmp_path, capsys):
        runs = [write_run(tmp_path / name, {"fid": 1.0}, seed=i) for i, name in enumerate("ab")]
        for name, fingerprint in (("a", "1" * 64), ("b", "2" * 64)):
            (tmp_path / name / "ckpt_0000100").mkdir()
            state = {"step": 100, "data_fingerprint": fingerprint}
            (tmp_path / name / "ckpt_0000100" / "state.json").write_text(json.dumps(state))
        assert "data 111" in said(capsys, *runs)

    def test_one_seed_each_gives_no_verdict_but_what_the_intervals_say(self, tmp_path, capsys):
        def scores(kid):
            return {"fid": 30.0, "kid_768": kid, "kid_low_768": kid - 0.002, "kid_high_768": kid + 0.002}

        one, near, far = (write_run(tmp_path / name, scores(kid), lr_d=lr) for name, kid, lr in
                          (("a", 0.01, 1e-4), ("b", 0.013, 2e-4), ("c", 0.02, 3e-4)))  # fmt: skip
        shown = said(capsys, one, near, far)
        assert (
            shown.count("one seed each: no verdict; run both with another --seed") == 4 and "better than" not in shown
        )
        assert "0.008 to 0.012 and 0.011 to 0.015 overlap: not even they need differ" in shown
        assert "0.008 to 0.012 and 0.018 to 0.022 do not overlap: the two checkpoints differ" in shown

    @pytest.mark.parametrize(("change", "told"), [
        ({"n_fake": 500}, "n_fake 1000 against 500"), ({"resolution": "64x64"}, "resolution 32x32 against 64x64"),
        ({"captions_sha256": "ff"}, "captions_sha256 ab against ff"),
        ({"real": "others"}, "real shards against others"),
        ({"inception": {**PROTOCOL["inception"], "resize": "clean"}}, "inception.resize legacy against clean"),
        ({"inception": {**PROTOCOL["inception"], "weights_sha256": "00"}}, "inception.weights_sha256 cd against 00"),
    ])  # fmt: skip
    def test_other_protocols_are_refused_by_name(self, tmp_path, capsys, change, told):
        one = write_run(tmp_path / "a", {"fid": 30.0})
        other = write_run(tmp_path / "b", {"fid": 20.0}, protocol=change, seed=1)
        with pytest.raises(UserError, match="evaluated in different ways") as error:
            said(capsys, one, other)
        assert told in str(error.value) and "\n" not in str(error.value)
        assert f"FORCED: {one} and {other} were evaluated in different ways: {told}" in said(
            capsys, one, other, force=True
        )

    def test_what_does_not_change_the_numbers_may_differ(self, tmp_path, capsys):
        inception = {**PROTOCOL["inception"], "device": "cuda:0", "feature_layers": ["768", "2048"], "torch": "3"}
        one = write_run(tmp_path / "a", {"fid": 30.0}, protocol={"real_fingerprint": "77", "checkpoint": "x"})
        change = {
            "inception": inception,
            "real": "elsewhere",
            "real_fingerprint": "77",
            "batch": 7,
            "clip": {"model": "B"},
        }
        other = write_run(tmp_path / "b", {"fid": 20.0, "clip_score": 9.0}, protocol=change, lr_g=5e-5)
        shown = said(capsys, one, other)
        assert "30" in shown and "clip_score" not in shown

    def test_one_run_counted_twice_is_refused(self, tmp_path, capsys):
        one, copy = (write_run(tmp_path / name, {"fid": 30.0}, seed=4) for name in "ab")
        with pytest.raises(UserError, match="same variant with the same seed 4"):
            said(capsys, one, copy)
        with pytest.raises(UserError, match="different folders"):
            said(capsys, one, f"{tmp_path}/b/../a")

    def test_which_evaluation_counts(self, tmp_path, capsys):
        runs = []
        for i, lr in enumerate((1e-4, 2e-4)):
            for step, fid in ((100, 30.0 + i), (200, 10.0 + i), (1000, 20.0 + i)):
                runs.append(write_run(tmp_path / f"r{i}", {"fid": fid}, step=step, lr_g=lr))
            write_run(tmp_path / f"r{i}", {"fid": 50.0 + i}, step=100, name="full.json", lr_g=lr)
            write_run(tmp_path / f"r{i}", {"fid": 1.0}, step=150, protocol={"n_fake": 9}, lr_g=lr)
        pair = sorted(set(runs))
        assert "20         21" in said(capsys, *pair)
        assert "30         31" in said(capsys, *pair, step=100, file="step_0000100.json")
        assert "50         51" in said(capsys, *pair, file="full.json")
        shown = said(capsys, *pair, best="fid")
        assert "10         11" in shown and "picked by itself" in shown
        with pytest.raises(UserError, match="holds no evaluation of step 7; python -m evaluation"):
            said(capsys, *pair, step=7)
        with pytest.raises(UserError, match="holds no evaluation with a recall"):
            said(capsys, *pair, best="recall")

    def test_seeds_of_different_steps_are_no_repetitions(self, tmp_path, capsys):
        one = write_run(tmp_path / "a", {"fid": 30.0}, step=100, seed=0)
        later = write_run(tmp_path / "b", {"fid": 20.0}, step=200, seed=1)
        with pytest.raises(UserError, match="evaluated at different steps .* name one by --step"):
            said(capsys, one, later)

    def test_one_variant_alone_is_summed_up(self, tmp_path, capsys):
        runs = [write_run(tmp_path / f"a{i}", {"fid": 30.0 + i}, seed=i) for i in range(3)]
        shown = said(capsys, *runs)
        assert "31 ± 1" in shown and "nothing to compare them with" in shown and "noise" not in shown

    def test_what_is_no_run_and_what_is_damaged(self, tmp_path, capsys):
        one = write_run(tmp_path / "a", {"fid": 30.0})
        with pytest.raises(UserError, match="nowhere does not exist"):
            said(capsys, one, str(tmp_path / "nowhere"))
        broken = write_run(tmp_path / "b", {"fid": 30.0}, lr_g=5e-5)
        (tmp_path / "b" / "evaluations" / "step_0000100.json").write_text('{"scores": ')
        with pytest.raises(UserError, match="holds no evaluation .1 damaged, the first step_0000100.json"):
            said(capsys, one, broken)
        apart = write_run(tmp_path / "c", {"kid": 0.1}, lr_g=5e-5)
        with pytest.raises(UserError, match="no score in common: A has fid; B has kid"):
            said(capsys, one, apart)


def test_run_folders_stand_first_whatever_their_names():
    names = ["runs/a b", "runs/[x], y: 'z'", "ćevapi"]
    parsed = parse(CompareOptions, runs_first([*names, "--step", "5", "--force"]))
    assert (parsed.runs, parsed.step, parsed.force) == (names, 5, True)


def test_neutral_options_exist():
    coming = {"eval_every", "eval_count", "eval_minutes", "metrics"}  # of evaluations during training
    assert set(NEUTRAL) - coming <= {field for field in ResolvedConfig.__dataclass_fields__}
