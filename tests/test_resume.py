"""A run that was stopped and resumed is bitwise the uninterrupted one, wherever it stopped and however it goes on."""

import json
import os
import shutil
import signal
from unittest import mock

import pytest
import torch
from accelerate import Accelerator

from tests.running import PLAIN, TINY, assert_equal_runs, finish, launch, logged, run_training, train, wait_for
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.health.score import Scoring
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import STATE, checkpoint_name
from toolkit.run_folder.records import read_log
from toolkit.run_folder.snapshot import take_snapshot
from toolkit.training.trainer import Trainer

COURSE = {"iters": 9, "r1_interval": 4}
"""24 images in batches of 8: an epoch ends after steps 3, 6, 9; R1 is computed in steps 1, 5 and 9."""
DEFAULTS = {**COURSE, **{name: getattr(ResolvedConfig(), name) for name in PLAIN}, "g_norm": ResolvedConfig().g_norm}
"""The recipe that a run has where nothing is said."""
ADAPTING = {
    "adaptive_augment": True, "adaptive_d_steps": True, "adaptive_r1": True, "ada_kimg": 1.0, "ada_target": -0.9,
    "lr_d": 1e-6, "lecam": 0.1, "r2_penalty": 0.5, "feature_matching": 1.0, "diffaug": "color,flip",
    "iters": 24, "r1_interval": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(shard_folder, tmp_path_factory):
    """Run folders of uninterrupted runs, each trained once."""
    found = {}

    def whole(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in found:
            found[key] = tmp_path_factory.mktemp("whole")
            train(shard_folder, found[key], **options)
        return found[key]

    return whole


def stopped_and_resumed(shard_folder, run, at: int, **options) -> None:
    train(shard_folder, run, **{**options, "iters": at})
    train(shard_folder, run, **options)


@pytest.mark.parametrize("g_norm", ["group", "batch"])
@pytest.mark.parametrize("at", [1, 3, 4, 5], ids=["first step", "epoch's end", "before R1", "after R1"])
def test_where_a_run_stopped_makes_no_difference(shard_folder, tmp_path, uninterrupted, at, g_norm):
    options = {**COURSE, "g_norm": g_norm}
    stopped_and_resumed(shard_folder, tmp_path, at, **options)
    assert_equal_runs(uninterrupted(**options), tmp_path, 9)
    assert ["r1" in line for line in logged(tmp_path)] == [step % 4 == 0 for step in range(9)]


@pytest.mark.parametrize("at", [3, 4])
def test_the_default_recipe_resumes_bitwise(shard_folder, tmp_path, uninterrupted, at):
    """Two batches a step: the epochs of 24 images end in the middle of one."""
    assert DEFAULTS["loss"] == "relativistic" and DEFAULTS["d_steps"] == 2 and DEFAULTS["minibatch_std"]
    stopped_and_resumed(shard_folder, tmp_path, at, **DEFAULTS)
    assert_equal_runs(uninterrupted(**DEFAULTS), tmp_path, 9)
    assert ["r1" in line and "r2" in line for line in logged(tmp_path)] == [step % 4 == 0 for step in range(9)]


def test_the_checkpoint_before_the_first_step_is_a_place_to_resume_from(shard_folder, tmp_path, uninterrupted):
    start = uninterrupted(**COURSE) / checkpoint_name(0)
    train(shard_folder, tmp_path / "branch", **COURSE, resume_from=str(start))
    assert_equal_runs(uninterrupted(**COURSE), tmp_path / "branch", 9)


@pytest.mark.parametrize("before,after", [(0, 2), (2, 0), (2, 1)])
def test_the_number_of_data_workers_makes_no_difference(shard_folder, tmp_path, uninterrupted, before, after):
    train(shard_folder, tmp_path, **{**COURSE, "iters": 4}, workers=before)
    train(shard_folder, tmp_path, **COURSE, workers=after)
    assert_equal_runs(uninterrupted(**COURSE), tmp_path, 9, but=("workers",))


@pytest.mark.parametrize("g_norm", ["group", "batch"])
def test_a_run_that_accumulates_micro_batches_resumes_bitwise(shard_folder, tmp_path, uninterrupted, g_norm):
    options = {**COURSE, "batch_gpu": 2, "g_norm": g_norm}
    stopped_and_resumed(shard_folder, tmp_path, 5, **options)
    assert_equal_runs(uninterrupted(**options), tmp_path, 9)


@pytest.mark.parametrize("at", [2, 5])
def test_the_average_resumes_before_its_start_and_on_its_ramp(shard_folder, tmp_path, uninterrupted, at):
    """Decay 0 up to step 4, then (1 + n) / (10 + n) at most."""
    options = {**COURSE, "ema_start": 4, "ema_ramp": True, "ema_kimg": 1.0}
    stopped_and_resumed(shard_folder, tmp_path, at, **options)
    assert_equal_runs(uninterrupted(**options), tmp_path, 9)
    decays = [line["ema_decay"] for line in logged(tmp_path)]  # of the next update
    assert decays == pytest.approx([0.0] * 3 + [(1 + n) / (10 + n) for n in range(6)])


def test_everything_that_adapts_resumes_in_the_middle_of_its_interval(shard_folder, tmp_path, uninterrupted):
    whole = uninterrupted(**ADAPTING)
    train(shard_folder, tmp_path, **{**ADAPTING, "iters": 19})
    adaptive = json.loads((tmp_path / checkpoint_name(19) / STATE).read_text())["adaptive"]
    assert len(adaptive["signs"]) == 6 and min(map(abs, adaptive["anchors"])) > 0
    assert adaptive["augment_p"] == 0.128 and adaptive["r1_scale"] == pytest.approx(10**0.128)  # adapted once by then,
    assert adaptive["d_steps"] == 2  # after 16 steps; since then D makes two of them for one of G
    train(shard_folder, tmp_path, **ADAPTING)
    assert_equal_runs(whole, tmp_path, 24)
    adaptive = json.loads((tmp_path / checkpoint_name(24) / STATE).read_text())["adaptive"]
    assert adaptive["augment_p"] == 0.256 and adaptive["signs"] == []  # adapted once more at D's step 32


def test_a_resumed_run_keeps_the_fp16_loss_scale(shard_folder, tmp_path):
    """The scale, and the steps since it last grew: it must double again at the right step."""

    def trainer() -> Trainer:
        one = Trainer(ResolvedConfig(data=str(shard_folder), **TINY), Accelerator(cpu=True), ShardSet(shard_folder))
        one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=6)
        return one

    def step(one: Trainer) -> float:
        one.step()
        return one.accelerator.scaler.get_scale()

    whole = trainer()
    assert [step(whole) for _ in range(4)] == [4, 4, 8, 8]  # each makes two optimizer steps
    checkpoint.save(tmp_path, take_snapshot(whole), keep=2)
    scales = [step(whole) for _ in range(3)]
    resumed = trainer()
    resumed.resume(tmp_path / checkpoint_name(4))
    assert [step(resumed) for _ in range(3)] == scales == [8, 16, 16]
    assert torch.equal(whole.fingerprint(), resumed.fingerprint())


def test_a_signal_in_the_middle_of_a_step_is_one_more_place_to_stop(shard_folder, tmp_path, uninterrupted, monkeypatch):
    step = Trainer.step

    def interrupted(trainer):
        if trainer.step_number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Trainer, "step", interrupted)
        train(shard_folder, tmp_path, **COURSE)
    assert ended.value.code == 128 + signal.SIGTERM
    assert checkpoint.newest_valid(tmp_path)[0].name == checkpoint_name(5)  # the step it fell into was finished
    train(shard_folder, tmp_path, **COURSE)
    assert_equal_runs(uninterrupted(**COURSE), tmp_path, 9)


def test_a_command_stopped_by_a_signal_is_resumed_by_the_same_command(shard_folder, tmp_path, uninterrupted):
    """Two processes: one ended by SIGTERM where it happened to be, and the same again; then the reference."""
    run, arguments = tmp_path / "run", ("--g_norm", "batch", "--workers", "2", "--r1_interval", "4")
    process = launch(shard_folder, run, "--iters", "100000", *arguments)
    wait_for(lambda: len(read_log(run)) >= 2, process)
    os.kill(process.pid, signal.SIGTERM)
    said = finish(process)
    assert process.returncode == 128 + signal.SIGTERM and "run the same command again to go on" in said, said[-2000:]
    reached = int(checkpoint.newest_valid(run)[0].name[5:])
    said = run_training(shard_folder, run, *arguments, iters=reached + 2, log_every=1, score="none")
    assert f"resuming from {run / checkpoint_name(reached)} at step {reached:,}" in said
    whole = {**COURSE, "iters": reached + 2, "g_norm": "batch", "workers": 2}
    assert_equal_runs(uninterrupted(**whole), run, reached + 2, but=("sample_every", "ckpt_every"))


def test_the_same_command_resumes_by_itself_until_nothing_is_left(shard_folder, tmp_path, capsys):
    run = tmp_path / "run"
    train(shard_folder, run, iters=3)
    assert "resuming" not in capsys.readouterr().err
    train(shard_folder, run, iters=5)
    said = capsys.readouterr().err
    assert f"resuming from {run / checkpoint_name(3)} at step 3" in said and "changed since then: iters 3 -> 5" in said
    before = {path: path.read_bytes() for path in run.glob("ckpt_*/*")}
    train(shard_folder, run, iters=5)
    said = capsys.readouterr().err
    assert f"resuming from {run / checkpoint_name(5)} at step 5" in said and "done: 5 steps, 40 images seen" in said
    assert {path: path.read_bytes() for path in run.glob("ckpt_*/*")} == before and len(logged(run)) == 5


def test_resuming_from_latest_or_from_a_path_equals_resuming_by_itself(shard_folder, tmp_path, uninterrupted):
    whole = uninterrupted(**COURSE)
    train(shard_folder, tmp_path / "latest", **{**COURSE, "iters": 4})
    shutil.copytree(tmp_path / "latest", tmp_path / "path")
    chosen = str(tmp_path / "path" / checkpoint_name(4))
    train(shard_folder, tmp_path / "latest", **COURSE, resume_from="latest")
    train(shard_folder, tmp_path / "path", **COURSE, resume_from=chosen)
    train(shard_folder, tmp_path / "branch", **COURSE, resume_from=chosen)
    assert_equal_runs(whole, tmp_path / "latest", 9)
    assert_equal_runs(whole, tmp_path / "path", 9)
    branch = tmp_path / "branch"
    assert checkpoint.load(branch / checkpoint_name(9)).state["position"] == 72
    assert logged(branch) == logged(whole)[4:]


def test_what_cannot_be_resumed_from_is_refused(shard_folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="--resume_from latest: .* holds no valid checkpoint"):
        train(shard_folder, run, iters=2, resume_from="latest")
    train(shard_folder, run, iters=1)
    train(shard_folder, run, iters=2)
    with pytest.raises(UserError, match="no such folder"):
        train(shard_folder, run, iters=3, resume_from=str(run / "ckpt_0000007"))
    with pytest.raises(UserError, match=r"holds later checkpoints \(ckpt_0000002\)"):
        train(shard_folder, run, iters=3, resume_from=str(run / "ckpt_0000001"))
    assert sorted(path.name for path in run.glob("ckpt_*")) == [checkpoint_name(step) for step in (0, 1, 2)]


def test_a_command_that_starts_from_another_run_goes_on_in_its_own_folder_the_next_time(shard_folder, tmp_path, capsys):
    """A requeued job repeats its command: it must not start over from the other run's checkpoint each time."""
    train(shard_folder, tmp_path / "first", iters=2)
    branch = {"resume_from": str(tmp_path / "first" / "ckpt_0000002")}
    train(shard_folder, tmp_path / "second", iters=4, **branch)
    train(shard_folder, tmp_path / "second", iters=6, **branch)
    said = capsys.readouterr().err
    assert "second/ckpt_0000004 at step 4" in said and "has already gone on from" in said
    assert [line["step"] for line in logged(tmp_path / "second")] == [3, 4, 5, 6]
    train(shard_folder, tmp_path / "whole", iters=6)
    weights = [tmp_path / name / "ckpt_0000006" / checkpoint.NETWORKS for name in ("whole", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_d_steps_of_the_command_line_win_unless_they_adapt(shard_folder, tmp_path):
    train(shard_folder, tmp_path / "run", iters=2)
    train(shard_folder, tmp_path / "run", iters=3, d_steps=2)
    assert [line["d_steps"] for line in logged(tmp_path / "run")] == [1, 1, 2]


def test_a_score_that_fails_costs_the_score_alone(shard_folder, tmp_path, capsys):
    """FID of 24 images is refused: said at the start. What fails later, here the memory, is a warning."""
    with pytest.raises(UserError, match="needs at least 64"):
        train(shard_folder, tmp_path / "few", iters=2, score="fid")

    def failing(trainer):
        raise OSError("no memory")

    with mock.patch("toolkit.train.choose_scoring", lambda *arguments: Scoring("swd", score=failing)):
        train(shard_folder, tmp_path / "run", iters=2, score="swd")
    assert "no score: no memory" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "best.json").read_text())["history"] == [[2, None]]


def test_a_checkpoint_whose_score_was_cut_off_is_scored_on_resume(shard_folder, tmp_path):
    train(shard_folder, tmp_path / "run", iters=4, ckpt_every=2, score="swd")
    best = tmp_path / "run" / "best.json"
    whole = json.loads(best.read_text())
    best.write_text(json.dumps(whole | {"history": whole["history"][:1]}))
    train(shard_folder, tmp_path / "run", iters=4, ckpt_every=2, score="swd")
    assert json.loads(best.read_text()) == whole
