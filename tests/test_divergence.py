"""Runs that diverge: what is kept, how often they go back and with what changes, how they end."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.running import assert_equal_runs, train
from toolkit import train as command
from toolkit.command_line import run
from toolkit.config import ResolvedConfig
from toolkit.errors import Diverged
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import NETWORKS, newest_valid
from toolkit.run_folder.records import EVENTS_NAME, read_log
from toolkit.training.run import LOOK_EVERY, Run
from toolkit.training.trainer import Trainer

OFTEN = {"iters": 8, "ckpt_every": 2, "rollback_skip": 2, "lr_g": 1e-4, "lr_d": 4e-4}
NAN = float("nan")


def poison(monkeypatch, when) -> list[tuple[int, int]]:
    """D's loss is NaN in every step for which `when(trainer)`. Returns the (step, position) of all D steps, as made."""
    loss_of, made = Trainer.discriminator_loss, []

    def poisoned(self, batch, noise):
        made.append((self.step_number, self.position))
        assert len(made) < 200, "an endless loop"
        loss, stats = loss_of(self, batch, noise)
        return (loss * NAN if when(self) else loss), stats

    monkeypatch.setattr(Trainer, "discriminator_loss", poisoned)
    return made


def rollbacks(run: Path) -> list[dict]:
    lines = (run / EVENTS_NAME).read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["name"] == "rollback"]


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def test_a_step_that_always_diverges_is_tried_max_rollbacks_times_with_other_data_and_rates(
    shard_folder, tmp_path, monkeypatch
):
    """NaN in the 6th step whatever the images. Checkpoints are at steps 0, 2 and 4: 4 steps and 32 images."""
    run, made = tmp_path / "run", poison(monkeypatch, lambda trainer: trainer.step_number == 5)
    with pytest.raises(Diverged, match="diverged after 3 rollbacks: a loss or gradient was no longer finite") as told:
        train(shard_folder, run, **OFTEN)
    assert told.value.exit_code == 3
    events = rollbacks(run)
    assert [(event["step"], event["level"]) for event in events] == [(4, "action")] * 3
    for k, event in enumerate(events, start=1):
        assert f"back from step 6 to ckpt_0000004, rollback {k} of 3" in event["text"]
        assert f"learning rates x {0.5**k:g}, R1 x {2**k}, 16 images left out" in event["text"]
    assert made == [(s, 8 * s) for s in range(6)] + [(s, 8 * s + 16 * k) for k in (1, 2, 3) for s in (4, 5)]
    tried = [(line["step"], line.get("attempt", 0), line["lr_g"], line["lr_d"], line["r1_scale"])
             for line in read_log(run)]  # fmt: skip
    assert tried == [(s, 0, 1e-4, 4e-4, 1) for s in range(1, 6)] + [
        (5, k, 1e-4 * 0.5**k, 4e-4 * 0.5**k, 2**k) for k in (1, 2, 3)
    ]
    newest, passed_over = newest_valid(run)
    assert newest.name == "ckpt_0000004" and passed_over == []
    assert all(value.isfinite().all() for value in load_file(newest / NETWORKS).values())


def test_the_checkpoint_gone_back_to_keeps_its_weights(shard_folder, tmp_path, monkeypatch):
    """It is written anew with the count of rollbacks and the new position, and nothing else."""
    train(shard_folder, tmp_path / "whole", **OFTEN | {"iters": 4})
    poison(monkeypatch, lambda trainer: trainer.step_number == 5)
    with pytest.raises(Diverged):
        train(shard_folder, tmp_path / "run", **OFTEN)
    whole, run = (tmp_path / name / "ckpt_0000004" for name in ("whole", "run"))
    for name in (NETWORKS, checkpoint.GENERATOR, checkpoint.OPTIMIZERS):
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name
    changed = {name for name in state(whole) if state(whole)[name] != state(run)[name]}
    assert changed == {"position", "left_out", "attempt", "rollbacks", "config"} and state(run)["rollbacks"] == 3
    assert state(run)["position"] == 32 + 3 * 16 and state(run)["left_out"] == 3 * 16


@pytest.mark.parametrize("options", [{"on_divergence": "stop"}, {"max_rollbacks": 0}], ids=["stop", "none allowed"])
def test_without_rollbacks_the_run_ends_at_once(shard_folder, tmp_path, monkeypatch, options):
    run, made = tmp_path / "run", poison(monkeypatch, lambda trainer: trainer.step_number == 5)
    with pytest.raises(Diverged, match="^training diverged: a loss or gradient was no longer finite at step 6"):
        train(shard_folder, run, **OFTEN, **options)
    assert len(made) == 6 and newest_valid(run)[0].name == "ckpt_0000004" and state(run / "ckpt_0000004")["step"] == 4
    assert not rollbacks(run)


def test_a_rollback_past_the_bad_images_lets_the_run_end_well(shard_folder, tmp_path, monkeypatch):
    """Images 40 to 47 are poison; from image 32 the rollback leaves out 16."""
    run, made = tmp_path / "run", poison(monkeypatch, lambda trainer: trainer.position == 40)
    train(shard_folder, run, **OFTEN)
    assert len(rollbacks(run)) == 1 and [position for _, position in made[6:]] == [48, 56, 64, 72]
    last = state(run / "ckpt_0000008")
    assert (last["step"], last["position"], last["rollbacks"]) == (8, 80, 1)
    assert [line["lr_g"] for line in read_log(run)][-4:] == [0.5e-4] * 4


def test_a_kill_right_after_a_rollback_does_not_forget_it(shard_folder, tmp_path, monkeypatch):
    """The run goes on with the lowered rates over the later images, bitwise like one that was not killed."""
    poison(monkeypatch, lambda trainer: trainer.position == 40)
    train(shard_folder, tmp_path / "whole", **OFTEN)
    fetch = Trainer.fetch

    def dying(self):
        if self.rollbacks:
            raise KeyboardInterrupt
        fetch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fetch", dying)
        with pytest.raises(KeyboardInterrupt):
            train(shard_folder, tmp_path / "run", **OFTEN)
    assert newest_valid(tmp_path / "run")[0].name == "ckpt_0000004"
    train(shard_folder, tmp_path / "run", **OFTEN)
    assert len(rollbacks(tmp_path / "run")) == 1
    for name in (NETWORKS, checkpoint.GENERATOR, checkpoint.OPTIMIZERS):
        whole, killed = ((tmp_path / run / "ckpt_0000008" / name).read_bytes() for run in ("whole", "run"))
        assert whole == killed, name
    assert state(tmp_path / "run" / "ckpt_0000008")["rollbacks"] == 1


def test_the_bound_on_rollbacks_holds_over_restarts(shard_folder, tmp_path, monkeypatch):
    run, made = tmp_path / "run", poison(monkeypatch, lambda trainer: trainer.step_number == 5)
    for count in (6 + 2, 2):  # two tries of the 6th step, then from the checkpoint once more
        made.clear()
        with pytest.raises(Diverged, match="after 1 rollbacks"):
            train(shard_folder, run, **OFTEN, max_rollbacks=1)
        assert len(made) == count
    assert len(rollbacks(run)) == 1


@pytest.mark.parametrize("network", ["G", "D", "average"])
def test_a_weight_that_is_not_finite_is_not_saved(shard_folder, tmp_path, monkeypatch, network):
    """One weight, spoilt just before the checkpoint at step 4 by something no gradient sees."""
    run, average_statistics = tmp_path / "run", Trainer.average_statistics

    def spoiling(self):
        if self.step_number == 4:
            with torch.no_grad():
                spoilt = {"G": self.G, "D": self.D, "average": self.ema.module}[network]
                next(spoilt.parameters()).view(-1)[3] = NAN
        average_statistics(self)

    monkeypatch.setattr(Trainer, "average_statistics", spoiling)
    with pytest.raises(Diverged, match="training diverged: not saved: the weight .* is no longer finite"):
        train(shard_folder, run, **OFTEN, on_divergence="stop")
    assert not list(run.glob(".tmp-*"))
    assert newest_valid(run) == (run / "ckpt_0000002", [])
    with pytest.raises(Diverged, match="after 2 rollbacks"):
        train(shard_folder, run, **OFTEN, max_rollbacks=2)
    assert newest_valid(run) == (run / "ckpt_0000002", [])


@pytest.mark.parametrize(("policy", "tries", "words"), [("stop", 1, ""), ("rollback", 2, " after 1 rollbacks")])
def test_an_fp16_scale_that_sinks_to_nothing_ends_the_run(shard_folder, tmp_path, monkeypatch, policy, tries, words):
    """NaN for good from the 2nd step on: 2^16 is halved 17 times until it is below 1, and not on and on down to 0.

    D's step is skipped and G's goes on, for D's frozen weights are sound.
    """
    run, made = tmp_path / "run", poison(monkeypatch, lambda trainer: trainer.step_number >= 1)
    start = command.start_accelerator

    def with_scaler(config):
        accelerator = start(config)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    monkeypatch.setattr(command, "start_accelerator", with_scaler)
    options = {"iters": 50, "log_every": 1000, "max_rollbacks": 1, "on_divergence": policy}
    with pytest.raises(Diverged, match=f"^training diverged{words}: the fp16 loss scale sank to 0.5 at") as told:
        train(shard_folder, run, **options)
    assert told.value.exit_code == 3 and [step for step, _ in made] == [*range(18)] * tries
    assert newest_valid(run) == (run / "ckpt_0000000", [])
    assert state(run / "ckpt_0000000")["scaler"]["scale"] == 2**16


def test_the_command_ends_with_exit_code_3_and_one_line(shard_folder, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda trainer: True)
    with pytest.raises(SystemExit, match="3"):
        run(lambda config: train(shard_folder, tmp_path / "run", on_divergence="stop"), ResolvedConfig, ["--seed", "0"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "training diverged: a loss or gradient was no longer finite at step 1" in last and "Checkpoints are" in last


def test_losses_beyond_all_measure_are_rolled_back_as_well(shard_folder, tmp_path):
    """Finite but absurd, by the monitor's judgement of every log line."""
    run = tmp_path / "run"
    with pytest.raises(Diverged, match="diverged after 2 rollbacks"):
        train(shard_folder, run, **OFTEN, max_rollbacks=2, watch_diverged=1e-9)
    assert len(rollbacks(run)) == 2 and [line["step"] for line in read_log(run)] == [1, 1, 1]


def test_on_a_gpu_the_run_looks_for_nan_every_tenth_step_and_before_what_it_writes():
    """Looking waits for the GPU. Nothing has moved in between: see test_phase.py."""
    trainer = SimpleNamespace(device=torch.device("cuda"), broken=torch.ones(()), skipped=False,
                              accelerator=SimpleNamespace(scaler=None))  # fmt: skip
    run, looks = Run.__new__(Run), []
    run.trainer = trainer
    for trainer.step_number in range(1, 51):
        try:
            run._check_health(now=trainer.step_number == 23)
        except Diverged:
            looks.append(trainer.step_number)
    assert looks == [*range(LOOK_EVERY, 51, LOOK_EVERY)][:2] + [23, 30, 40, 50]


def test_a_rolled_back_run_equals_itself(shard_folder, tmp_path, monkeypatch):
    """Rollbacks are as reproducible as everything else."""
    poison(monkeypatch, lambda trainer: trainer.position == 40)
    for name in ("one", "other"):
        train(shard_folder, tmp_path / name, **OFTEN)
    assert [line.get("attempt", 0) for line in read_log(tmp_path / "one")] == [0] * 5 + [1] * 4
    for name in ("one", "other"):  # one line more than steps: the 5th was logged twice
        path = tmp_path / name / "training_log.json"
        path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert_equal_runs(tmp_path / "one", tmp_path / "other", 8)


def test_new_learning_rates_after_a_divergence_count_in_full_and_rollbacks_anew(shard_folder, tmp_path, monkeypatch):
    """README's advice for a run that ended with code 3: lower the rates and run the same command again."""
    run = tmp_path / "run"
    poison(monkeypatch, lambda trainer: trainer.step_number == 5)
    with pytest.raises(Diverged):
        train(shard_folder, run, **OFTEN)
    monkeypatch.undo()
    train(shard_folder, run, **OFTEN | {"lr_g": 1e-5})
    last = read_log(run)[-1]
    assert last["lr_g"] == 1e-5 and last["lr_d"] == OFTEN["lr_d"] and last["r1_scale"] == 1 and last["attempt"] == 3
    assert state(run / "ckpt_0000008")["rollbacks"] == 0
    assert last["images_seen"] == 8 * 8 and state(run / "ckpt_0000008")["position"] == 8 * 8 + 3 * 16


def test_a_divergence_in_the_very_last_steps_is_rolled_back_too(shard_folder, tmp_path, monkeypatch):
    """Step 8 of 8 ends the loop; what is found while finishing must not end the run with an error."""
    found = iter(["rollback"])
    run = tmp_path / "run"
    monkeypatch.setattr("toolkit.health.reports.Reports.line", lambda self, line: (
        (next(found, ""), "made up") if line["step"] == 8 and self.trainer.step_number == 8 else ("", "")
    ))  # fmt: skip
    train(shard_folder, run, **OFTEN | {"log_every": 100, "ckpt_every": 5})
    assert len(rollbacks(run)) == 1 and newest_valid(run)[0].name == "ckpt_0000008"
    assert state(run / "ckpt_0000008")["rollbacks"] == 1
