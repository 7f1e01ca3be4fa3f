"""kill -9 at random moments while a run saves all the time: what is there afterwards always loads, and goes on."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from tests.running import assert_equal_runs, finish, launch, newest_step, train, wait_for
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.networks.architecture import ModelConfig
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import GeneratorFile, Snapshot, checkpoint_name, checkpoints, find_problem


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.iterdir() if path.name.startswith((".tmp-", ".old-"))]


def numbers(step: int, size: int = 20_000) -> Snapshot:
    """A checkpoint whose every number is a function of the step."""
    config, identity = ModelConfig(resolution=16, base_ch=2, z_dim=4, d_scales=1), EncoderIdentity.of(HashingEncoder())
    tensors = {"w": torch.arange(size, dtype=torch.float32) + step}
    return Snapshot(GeneratorFile(tensors, config, identity, step), tensors, tensors, {"step": step})


def save_for_ever(run: Path, report) -> None:
    """What a run does with its folder, without the training: tidy, find the newest, save on; steps are saved twice."""
    torch.set_num_threads(1)
    checkpoint.tidy(run)
    newest, _ = checkpoint.newest_valid(run)
    step = int(newest.name[5:]) if newest else 0
    while True:
        for again in range(2):  # as after a rollback: the same name a second time
            checkpoint.save(run, numbers(step + again), keep=2)
            report.send(step + again)
        step += 1


@pytest.mark.parametrize("kills", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_while_saving_never_cost_more_than_the_save_they_fell_into(tmp_path, kills):
    """What `save` has returned for is there, whole, after any kill; `tidy` brings back what was being replaced."""
    moments, context = random.Random(kills), multiprocessing.get_context("fork")
    interrupted = reached = 0
    for _ in range(kills):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, sender))
        process.start()
        sender.close()
        receiver.poll(60)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        try:
            while True:
                reached = max(reached, receiver.recv())
        except EOFError:
            pass
        interrupted += bool(leftovers(tmp_path))
        checkpoint.tidy(tmp_path)
        newest, passed_over = checkpoint.newest_valid(tmp_path)
        assert newest is not None and not passed_over and not leftovers(tmp_path)
        step = int(newest.name[5:])
        assert reached <= step <= reached + 1
        loaded, expected = checkpoint.load(newest), numbers(step)
        assert loaded.state == {"step": step} and torch.equal(loaded.networks["w"], expected.networks["w"])
    assert interrupted >= kills // 6, "the kills did not fall into saves: nothing was tested"


@pytest.mark.parametrize("final_there", [True, False])
def test_a_checkpoint_being_replaced_is_brought_back_only_if_its_successor_is_not_there(tmp_path, final_there):
    checkpoint.save(tmp_path, numbers(1), keep=2)
    old = tmp_path / f".old-{checkpoint_name(2)}"
    checkpoint.save(tmp_path, numbers(2, size=10), keep=2).rename(old)
    if final_there:
        checkpoint.save(tmp_path, numbers(2), keep=2)
    (tmp_path / f".tmp-{checkpoint_name(3)}").mkdir()
    checkpoint.tidy(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [checkpoint_name(1), checkpoint_name(2)]
    assert not leftovers(tmp_path) and not find_problem(tmp_path / checkpoint_name(2))
    assert len(checkpoint.load(tmp_path / checkpoint_name(2)).networks["w"]) == (20_000 if final_there else 10)


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_bitwise_where_the_uninterrupted_one_does(shard_folder, tmp_path, kills):
    """The same command each time, saving every step; it must resume every time, from no earlier than the last save."""
    run, moments, reached, resumed = tmp_path / "run", random.Random(7), -1, 0
    options = {"ckpt_every": 1, "keep": 2, "g_norm": "batch", "iters": 100_000}
    for kill in range(kills):
        process, before = launch(shard_folder, run, **options), newest_step(run)
        wait_for(lambda before=before: newest_step(run) > before, process)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None, finish(process)[-2000:]
        reached = newest_step(run)
        process.kill()
        said = finish(process)
        resumed += "resuming from" in said
        assert (f"resuming from {run / checkpoint_name(before)}" in said) == (kill > 0), said[-2000:]
        assert not any("Traceback" in line or "passing over" in line for line in said.splitlines())
        newest, _ = checkpoint.newest_valid(run)
        assert newest is not None and int(newest.name[5:]) >= reached
    assert resumed == kills - 1
    iters = newest_step(run) + 2
    last = launch(shard_folder, run, **{**options, "iters": iters})
    said = finish(last)
    assert last.returncode == 0 and f"at step {iters - 2:,}" in said, said[-2000:]
    assert not leftovers(run) and [path.name[5:] for path in checkpoints(run)] == [f"{iters - 1:07d}", f"{iters:07d}"]
    train(shard_folder, tmp_path / "whole", g_norm="batch", iters=iters)
    assert_equal_runs(tmp_path / "whole", run, iters, but=("ckpt_every", "keep"))
