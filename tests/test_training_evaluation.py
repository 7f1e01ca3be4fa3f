"""Evaluations during training: when, what is written, what a kill, a failure or a way back leaves of them, and that the
training itself is what it would be without."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.evaluating import FakeEvaluator, evaluating
from tests.running import assert_equal_runs, finish, launch, logged, train
from tests.test_disk_full import fill
from tests.test_divergence import poison
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.run_folder import checkpoint
from toolkit.run_folder.evaluations import Evaluations, read_evaluations
from toolkit.run_folder.records import read_events, read_log

NEW = ("eval_every", "eval_count", "metrics", "eval_minutes", "score")


def evaluated(run: Path) -> list[int]:
    return [one.step for one in read_evaluations(run)]


def best(run: Path) -> dict:
    return json.loads((run / "best.json").read_text())


def events(run: Path, name: str) -> list[tuple[int, str]]:
    return [(event["step"], event["text"]) for event in read_events(run) if event["name"] == name]


def saved(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoint.checkpoints(run)]


def test_a_run_that_evaluates_is_bitwise_the_run_without(shard_folder, tmp_path):
    """With batch norm, and an evaluator that leaves the global random state in disorder."""
    course = {"iters": 5, "g_norm": "batch", "r1_interval": 3}
    train(shard_folder, tmp_path / "quiet", **course)
    with evaluating(FakeEvaluator()) as fake:
        train(shard_folder, tmp_path / "run", **course, eval_every=2)
    assert fake.calls == [2, 4, 5]  # the last step whatever eval_every says
    assert_equal_runs(tmp_path / "quiet", tmp_path / "run", 5, but=NEW)
    assert saved(tmp_path / "run") == [0, 5] and not (tmp_path / "run" / "best.json").exists()


def test_the_report_is_written_whole_with_its_images(shard_folder, tmp_path):
    scores = {"fid": 3.25, "kid": math.nan, "kid_low": math.inf, "recall": None}
    with evaluating(FakeEvaluator(lambda step: scores)):
        train(shard_folder, tmp_path, iters=2, eval_every=2)
    names = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert names == ["step_0000002.json", "step_0000002_nearest.png"]
    text = (tmp_path / "evaluations" / names[0]).read_text(encoding="utf-8")
    assert "ћевапи" in text
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 2, "images_seen": 16, "scores": {"fid": 3.25, "kid": None, "kid_low": None, "recall": None},
        "protocol": {"step": 2, "prompts": "ћевапи"}, "notes": ["biased"], "nearest_image": names[1],
    }  # fmt: skip
    with Image.open(tmp_path / "evaluations" / names[1]) as image:
        assert image.size == (4, 2) and image.getpixel((0, 0)) == (2, 0, 0)
    assert events(tmp_path, "evaluation") == [(2, "evaluation: fid 3.25")]


def test_the_score_of_an_evaluation_decides_which_checkpoint_is_kept(shard_folder, tmp_path):
    """Recall, of which more is better: evaluations save, other checkpoints have no score, and 2 is never pruned."""
    recall = {2: 0.5, 4: 0.1, 6: 0.2, 8: 0.3}
    with evaluating(FakeEvaluator(lambda step: {"recall": recall[step]}), "recall", higher_is_better=True):
        train(shard_folder, tmp_path, iters=8, ckpt_every=3, keep=2, eval_every=2, score="recall")
    found = best(tmp_path)
    assert found["history"] == [[2, 0.5], [4, 0.1], [6, 0.2], [8, 0.3]]
    assert (found["metric"], found["higher_is_better"], found["step"], found["value"]) == ("recall", True, 2, 0.5)
    assert checkpoint.checkpoint_name(2) == found["checkpoint"] and saved(tmp_path) == [2, 6, 8]
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, 9))


def test_without_eval_every_such_a_score_is_taken_at_every_checkpoint(shard_folder, tmp_path):
    with evaluating(FakeEvaluator()) as fake:
        train(shard_folder, tmp_path, iters=5, ckpt_every=2, score="fid")
    assert fake.calls == evaluated(tmp_path) == [2, 4, 5] == saved(tmp_path)[-3:]
    assert best(tmp_path)["history"] == [[2, 98.0], [4, 96.0], [5, 95.0]]


def test_patience_counts_the_scores_of_evaluations(shard_folder, tmp_path, capsys):
    with evaluating(FakeEvaluator(lambda step: {"fid": 7.0})):
        train(shard_folder, tmp_path, iters=9, eval_every=1, score="fid", patience=2)
    assert "ended early: the last 2 scores brought no gain" in capsys.readouterr().err and evaluated(tmp_path) == [
        1,
        2,
        3,
    ]


def test_a_run_killed_between_saving_and_evaluating_evaluates_when_it_goes_on(shard_folder, tmp_path):
    """KeyboardInterrupt: a second Ctrl-C, which no run survives."""

    def kill() -> None:
        raise KeyboardInterrupt

    options = {"iters": 5, "eval_every": 2, "score": "fid"}
    with evaluating(FakeEvaluator()):
        train(shard_folder, tmp_path / "whole", **options)
    with evaluating(FakeEvaluator(at={4: kill})), pytest.raises(KeyboardInterrupt):
        train(shard_folder, tmp_path / "run", **options)
    assert saved(tmp_path / "run")[-1] == 4 and evaluated(tmp_path / "run") == [2]
    with evaluating(FakeEvaluator()) as fake:
        train(shard_folder, tmp_path / "run", **options)
    assert fake.calls == [4, 5] and best(tmp_path / "run") == best(tmp_path / "whole")
    for name in ("step_0000004.json", "step_0000005.json"):
        one, other = (tmp_path / run / "evaluations" / name for run in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes()
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", 5)


def test_a_run_killed_between_evaluating_and_scoring_takes_the_score_from_the_file(shard_folder, tmp_path):
    options = {"iters": 4, "eval_every": 2, "score": "fid"}
    with evaluating(FakeEvaluator()) as fake:
        train(shard_folder, tmp_path, **options)
        whole = best(tmp_path)
        (tmp_path / "best.json").write_text(json.dumps(whole | {"history": whole["history"][:1]}))
        train(shard_folder, tmp_path, **options)
    assert best(tmp_path) == whole and fake.calls == [2, 4]


@pytest.mark.parametrize(
    "error", [UserError("time was up"), RuntimeError("out of\nmemory"), KeyError("x"), ValueError()]
)
def test_an_evaluation_that_fails_costs_itself_alone(shard_folder, tmp_path, capsys, error):
    def fail() -> None:
        raise error

    options = {"iters": 4, "eval_every": 2, "score": "fid"}
    with evaluating(FakeEvaluator(at={2: fail, 4: fail})):
        train(shard_folder, tmp_path / "run", **options)
    told = events(tmp_path / "run", "not_evaluated")
    assert [step for step, _ in told] == [2, 4] and told[0][1] in capsys.readouterr().err
    assert told[0][1] == f"no evaluation: {' '.join(str(error).split()) or 'ValueError'}"
    assert best(tmp_path / "run")["history"] == [[2, None], [4, None]] and evaluated(tmp_path / "run") == []
    train(shard_folder, tmp_path / "quiet", **{**options, "eval_every": 0, "score": "none"})
    assert_equal_runs(tmp_path / "quiet", tmp_path / "run", 4, but=NEW)
    with evaluating(FakeEvaluator()):  # the same command again tries the last one once more
        train(shard_folder, tmp_path / "run", **options)
    assert best(tmp_path / "run")["history"] == [[2, None], [4, 96.0]] and evaluated(tmp_path / "run") == [4]


@pytest.mark.parametrize("report", [None, {}, {"scores": None}, {"scores": {}, "protocol": {1, 2}}])
def test_a_report_that_is_none_is_a_failed_evaluation(shard_folder, tmp_path, monkeypatch, report):
    monkeypatch.setattr(FakeEvaluator, "__call__", lambda self, trainer: report)
    with evaluating(FakeEvaluator()):
        train(shard_folder, tmp_path, iters=2, eval_every=2)
    assert len(events(tmp_path, "not_evaluated")) == 1 and evaluated(tmp_path) == []


@pytest.mark.parametrize("name", [".step_0000002.json.tmp", ".step_0000002_nearest.png.tmp"])
def test_a_full_disk_costs_the_file_and_not_the_score(shard_folder, tmp_path, name):
    with evaluating(FakeEvaluator(at={2: lambda: fill(tmp_path / "evaluations" / name)})):
        train(shard_folder, tmp_path, iters=3, eval_every=1, score="fid")
    told = [(2, "the evaluation could not be written (No space left on device)")]
    assert events(tmp_path, "not_written") == told and evaluated(tmp_path) == [1, 3]
    assert best(tmp_path)["history"] == [[1, 99.0], [2, 98.0], [3, 97.0]]


def test_going_on_removes_what_an_earlier_life_found_later_and_nothing_else(tmp_path):
    folder = tmp_path / "evaluations"
    one = Evaluations(tmp_path, 0)
    for step in (100, 200, 300):
        one.add(step, 8 * step, {"scores": {"fid": step / 2}, "images": Image.new("L", (2, 2))})
    mine = [folder / name for name in ("mine.json", "step_5.json", "step_0000300.txt", "my_step_0000300.json")]
    for path in (*mine, folder / ".step_0000100.json.tmp"):
        path.write_text("{}")
    again = Evaluations(tmp_path, 200)
    assert [again.tried(step) for step in (100, 200, 300)] == [True, True, False]
    assert again.scores(200) == {"fid": 100.0} and again.scores(300) == {}
    again.forget_after(100)
    kept = ["step_0000100.json", "step_0000100_nearest.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, *(path.name for path in mine)])
    assert not again.tried(200) and evaluated(tmp_path) == [100]


def test_a_resumed_run_replaces_the_evaluations_it_comes_to_again(shard_folder, tmp_path):
    """The first life evaluated at 4 and 5 and saved at 3: in the second these have other scores."""
    with evaluating(FakeEvaluator()):
        train(shard_folder, tmp_path, iters=6, ckpt_every=3, eval_every=1)
    for path in (tmp_path / "ckpt_0000006").iterdir():
        path.unlink()
    (tmp_path / "ckpt_0000006").rmdir()
    with evaluating(FakeEvaluator(lambda step: {"fid": -1.0})) as fake:
        train(shard_folder, tmp_path, iters=4, ckpt_every=3, eval_every=1)
    found = [(one.step, one.scores["fid"]) for one in read_evaluations(tmp_path)]
    assert found == [(1, 99.0), (2, 98.0), (3, 97.0), (4, -1.0)] and fake.calls == [4]


def test_a_rollback_takes_the_evaluations_back_with_it(shard_folder, tmp_path, monkeypatch):
    """NaN in the 4th step of the first attempt; back to step 2 with evaluations of 1, 2 and 3."""
    poison(monkeypatch, lambda trainer: trainer.step_number == 3 and not trainer.attempt)
    seen = []
    with evaluating(FakeEvaluator(at={3: lambda: seen.append(evaluated(tmp_path))})) as fake:
        train(shard_folder, tmp_path, iters=4, ckpt_every=2, eval_every=1, rollback_skip=2)
    assert fake.calls == [1, 2, 3, 3, 4] and seen == [[1, 2], [1, 2]] and evaluated(tmp_path) == [1, 2, 3, 4]


def test_a_stop_waits_for_the_evaluation_and_no_longer(shard_folder, tmp_path):
    with (
        evaluating(FakeEvaluator(at={2: lambda: os.kill(os.getpid(), signal.SIGTERM)})) as fake,
        pytest.raises(SystemExit) as end,
    ):
        train(shard_folder, tmp_path, iters=9, eval_every=2)
    assert end.value.code == 128 + signal.SIGTERM and fake.calls == [2] == evaluated(tmp_path)
    assert saved(tmp_path) == [0, 2]


def test_scores_go_to_tensorboard_at_their_steps(shard_folder, tmp_path):
    pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tests.test_trackers import points, tensorboard

    with evaluating(FakeEvaluator(lambda step: {"fid": 10.0 - step, "kid": None})):
        train(shard_folder, tmp_path, iters=4, eval_every=2, track="tensorboard")
    assert points(tmp_path, "eval/fid") == [(2, 8.0), (4, 6.0)]
    assert "eval/kid" not in tensorboard(tmp_path).Tags()["scalars"]
    assert [image.step for image in tensorboard(tmp_path).Images("eval/nearest")] == [2, 4]


def test_the_time_an_evaluation_takes_is_not_the_trainings(shard_folder, tmp_path, monkeypatch):
    """A clock that only the evaluation moves, and that by an hour."""
    now = [0.0]
    clock = type("Clock", (), {"perf_counter": lambda: now.__setitem__(0, now[0] + 1) or now[0]})
    monkeypatch.setattr("toolkit.training.run.time", clock)

    def hour() -> None:
        now[0] += 3600

    with evaluating(FakeEvaluator(at={2: hour})):
        train(shard_folder, tmp_path, iters=4, eval_every=2)
    assert min(line["images_per_second"] for line in read_log(tmp_path)) >= 8 / 10


@pytest.mark.parametrize(
    "options, told",
    [
        ({"score": "fdi"}, "fdi"),
        ({"score": "none", "eval_every": 1, "metrics": "fid,speed"}, "speed"),
        ({"score": "none", "eval_every": 1, "metrics": ""}, "metrics"),
        ({"score": "fid", "eval_count": 64}, "at least 64"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_be_evaluated_is_said_before_training_starts(shard_folder, tmp_path, options, told, dry_run):
    """By the evaluation itself; 24 images are too few for it."""
    with pytest.raises(UserError, match=told):
        train(shard_folder, tmp_path / "run", iters=1, dry_run=dry_run, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value", [("eval_every", -1), ("eval_count", 0), ("eval_minutes", 0), ("score", ""),
                                         ("score", "../x"), ("eval_minutes", math.nan), ("patience", -1)])  # fmt: skip
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=f"^{name} is "):
        ResolvedConfig(**{name: value})


def test_an_evaluation_is_bounded_by_what_the_other_processes_wait():
    assert ResolvedConfig(eval_minutes=2).evaluation_seconds == 120
    assert ResolvedConfig(eval_minutes=20, timeout=600).evaluation_seconds == 300


def test_an_old_config_evaluates_as_many_images_as_it_scored():
    old = ResolvedConfig(score="fid", score_count=500)
    assert (old.evaluation_count, old.evaluation_steps, old.evaluates) == (500, old.ckpt_every, True)
    assert ResolvedConfig(score_count=500, eval_count=70).evaluation_count == 70
    assert not ResolvedConfig().evaluates and ResolvedConfig(eval_every=7, score="fid").evaluation_steps == 7


@pytest.mark.dist
@pytest.mark.parametrize("failing", ["0", "1"])
def test_two_processes_evaluate_at_the_same_steps_and_one_that_fails_holds_up_none(shard_folder, tmp_path, failing):
    worker = REPOSITORY / "tests" / "workers" / "train_evaluating.py"
    options = {"iters": 5, "eval_every": 2, "score": "fid", "timeout": 60, "log_every": 1}
    process = launch(shard_folder, tmp_path, "--failing", f"{failing}:2", processes=2, script=worker, **options)
    said = finish(process, timeout=120)
    assert process.returncode == 0, said[-3000:]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"evaluated_{rank}.json").read_text()) == [2, 4, 5]
    assert evaluated(tmp_path) == [4, 5] and best(tmp_path)["history"] == [[2, None], [4, 96.0], [5, 95.0]]
    ((step, text),) = events(tmp_path, "not_evaluated")
    who = "of process 0" if failing == "0" else "another process could not go on"
    assert step == 2 and who in text
    assert ("process 1: no evaluation: of process 1" in said) == (failing == "1")
