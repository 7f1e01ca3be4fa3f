"""A full disk costs the file it falls on, never an earlier checkpoint; the user decides whether the run goes on."""

import contextlib
import json
import resource
from pathlib import Path

import pytest
import torch

from tests.running import assert_equal_runs, logged, train
from tests.test_checkpoint import snapshot
from toolkit.errors import NotSaved, UserError
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import checkpoint_name, find_problem
from toolkit.run_folder.plots import plot_training
from toolkit.training.trainer import Trainer

FULL = OSError(28, "No space left on device")


@pytest.fixture
def writes(monkeypatch):
    """Counts everything `save` does to the disk; the call whose number is in `failing` fails."""
    calls, failing = [], set()

    def counted(real):
        def call(*arguments, **named):
            calls.append(real.__name__)
            if len(calls) in failing:
                raise FULL
            return real(*arguments, **named)

        return call

    for owner, name in ((checkpoint, "save_file"), (checkpoint, "flush_to_disk"), (Path, "write_text"),
                        (Path, "rename"), (Path, "mkdir")):  # fmt: skip
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return calls, failing


@pytest.mark.parametrize("step", [2, 1], ids=["a new step", "a step saved before"])
def test_whichever_write_fails_the_earlier_checkpoints_stay_and_the_message_says_so(tmp_path, writes, step):
    calls, failing = writes
    checkpoint.save(tmp_path / "count", snapshot(1), keep=2)
    calls.clear()
    checkpoint.save(tmp_path / "count", snapshot(step), keep=2)
    total = len(calls)
    assert total == 14 + (step == 1)  # mkdir, 5 files, 6 flushes, 1 or 2 renames, a flush
    for number in range(1, total + 1):
        run = tmp_path / str(number)
        first = checkpoint.save(run, snapshot(1), keep=2)
        calls.clear()
        failing.add(number)
        with pytest.raises(NotSaved, match="cannot save .*No space left on device.*earlier checkpoints are untouched"):
            checkpoint.save(run, snapshot(step), keep=2)
        failing.clear()
        assert not find_problem(first), f"write {number} ({calls[-1]}) cost an earlier checkpoint"
        assert not list(run.glob(".tmp-*")) and not list(run.glob(".old-*"))
        assert checkpoint.save(run, snapshot(step), keep=2).is_dir()  # room again


@contextlib.contextmanager
def largest_file(size: int):
    """Writes beyond `size` bytes fail, as with ulimit -f."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["generator", "networks", "optimizers"])
def test_a_limit_of_the_system_on_file_sizes_is_met_like_a_full_disk(tmp_path, name):
    """Each file is larger than those before it, so this is the one that does not fit."""
    sizes = {"generator": 10**5, "networks": 2 * 10**5, "optimizers": 3 * 10**5}
    found = snapshot(2)
    found = found._replace(
        generator=found.generator._replace(tensors={"w": torch.zeros(sizes["generator"])}),
        networks={"G.w": torch.zeros(sizes["networks"])},
        optimizers={"G.0.exp_avg": torch.zeros(sizes["optimizers"])},
    )
    first = checkpoint.save(tmp_path, snapshot(1), keep=2)
    with largest_file(4 * sizes[name]), pytest.raises(NotSaved, match="File too large"):
        checkpoint.save(tmp_path, found, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == [first.name] and not find_problem(first)
    assert checkpoint.save(tmp_path, found, keep=2).is_dir()


def failing_at(monkeypatch, *steps: int) -> None:
    real = checkpoint.save_file

    def save_file(tensors, path, *rest):
        if any(checkpoint_name(step) in str(path) for step in steps) and path.name == checkpoint.NETWORKS:
            raise FULL
        real(tensors, path, *rest)

    monkeypatch.setattr(checkpoint, "save_file", save_file)


@pytest.fixture(scope="module")
def whole(shard_folder, tmp_path_factory) -> Path:
    """5 steps with room on the disk."""
    run = tmp_path_factory.mktemp("whole")
    train(shard_folder, run, iters=5)
    return run


def test_training_goes_on_and_saves_again_when_there_is_room(shard_folder, tmp_path, whole, monkeypatch, capsys):
    failing_at(monkeypatch, 2, 3)
    run = tmp_path / "run"
    train(shard_folder, run, iters=5, ckpt_every=1, keep=0)
    assert [path.name[-1] for path in checkpoint.checkpoints(run)] == ["0", "1", "4", "5"]
    assert_equal_runs(whole, run, 5, but=("ckpt_every", "keep"))
    events = [json.loads(line) for line in (run / "events.json").read_text().splitlines()]
    told = [event for event in events if event["name"] == "not_saved"]
    assert [event["step"] for event in told] == [2, 3] and all("No space left" in event["text"] for event in told)
    assert capsys.readouterr().err.count("training goes on: make room before the next one") == 2


@pytest.mark.parametrize("options,step", [({"on_save_error": "stop"}, 2), ({}, 5), ({}, 0)])
def test_training_ends_where_it_should_not_go_on_without_a_checkpoint(
    shard_folder, tmp_path, whole, monkeypatch, options, step
):
    """As asked for; at the last step; and at the first, where nobody has waited for anything yet."""
    with monkeypatch.context() as patch:
        failing_at(patch, step)
        with pytest.raises(NotSaved, match="No space left on device"):
            train(shard_folder, tmp_path, iters=5, ckpt_every=1, keep=0, **options)
    assert [int(path.name[5:]) for path in checkpoint.checkpoints(tmp_path)] == list(range(step))
    assert not any(map(find_problem, checkpoint.checkpoints(tmp_path)))
    train(shard_folder, tmp_path, iters=5)
    assert_equal_runs(whole, tmp_path, 5, but=("ckpt_every", "keep", "on_save_error"))


def fill(path: Path) -> None:
    """From now on writing there meets a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


@pytest.fixture(scope="module")
def weights(shard_folder, tmp_path_factory) -> Path:
    """Checkpoint of 3 steps with room on the disk."""
    run = tmp_path_factory.mktemp("weights")
    train(shard_folder, run, iters=3)
    return run / checkpoint_name(3)


@pytest.mark.parametrize("name,said", [
    ("training_log.json", "training_log.json cannot be written (No space left on device)"),
    ("events.json", "events.json cannot be written (No space left on device)"),
    (".sample_0000002.png.tmp", "samples could not be written (No space left on device)"),
    (".training_plots.png.tmp", "plots could not be written (No space left on device)"),
    (".best.json.tmp", "best.json not written: No space left on device"),
    ("heartbeats/.process_0.json.tmp", ""),
])  # fmt: skip
def test_a_full_disk_for_anything_else_costs_that_file_alone(
    shard_folder, tmp_path, weights, monkeypatch, capsys, name, said
):
    options = {"iters": 3, "sample_every": 1, "ckpt_every": 1, "keep": 0, "score": "swd", "score_count": 32}
    step, run = Trainer.step, tmp_path / "run"

    def filling(trainer):
        if trainer.step_number == 1:
            fill(run / name)
        return step(trainer)

    monkeypatch.setattr("toolkit.run_folder.heartbeat.EVERY", 0.0)
    plot = plot_training if "plots" in name else lambda run: None
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", filling)
        train(shard_folder, run, plot, **options)
    assert said in capsys.readouterr().err
    for file in ("generator", "networks", "optimizers"):
        one, other = (place / f"{file}.safetensors" for place in (run / checkpoint_name(3), weights))
        assert one.read_bytes() == other.read_bytes()
    assert name == "training_log.json" or len(logged(run)) == 3
    assert (run / "sample_0000003.png").is_file()


@pytest.mark.parametrize(
    "name", [".config.yaml.tmp", ".reals.png.tmp", "sample_captions.txt", ".training_log.json.tmp"]
)
def test_a_disk_that_is_full_when_a_run_starts_is_one_line(shard_folder, tmp_path, name):
    train(shard_folder, tmp_path, iters=1)
    fill(tmp_path / name)
    with pytest.raises(UserError, match="No space left on device") as refused:
        train(shard_folder, tmp_path, iters=2)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
    (tmp_path / name).unlink()
    train(shard_folder, tmp_path, iters=2)
    assert len(logged(tmp_path)) == 2


def test_a_disk_without_room_for_a_single_byte_is_one_line(shard_folder, tmp_path):
    with largest_file(0), pytest.raises(UserError, match="is not writable .*File too large"):
        train(shard_folder, tmp_path / "run", iters=1)
