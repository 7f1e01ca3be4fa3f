"""How training is started, what is refused at the start, and what becomes of a run that loses a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.running import assert_equal_runs, finish, launch, lone_trainer, train
from toolkit import command_line
from toolkit import train as command
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.launching.launch import start_accelerator
from toolkit.run_folder.checkpoint import checkpoints, newest_valid
from toolkit.run_folder.records import read_log

WORKER = REPOSITORY / "tests" / "workers" / "train_with_fault.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Each test starts Accelerate anew, outside any launcher."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


MODULE = ("-m", "toolkit.train")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}


def test_the_module_starts_from_another_folder(tmp_path):
    """Paths are what most tests of commands start. A refusal is one line and exit code 1."""
    done = subprocess.run([sys.executable, *MODULE, "--data", str(tmp_path / "none")], cwd=tmp_path,
                          env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"train: no shard folder at {tmp_path / 'none'}")


def test_accelerate_starting_one_process_instead_of_two_is_refused(shard_folder, tmp_path):
    """`accelerate launch --cpu --num_processes 2` does that without a word."""
    arguments = ["--data", shard_folder, "--out_dir", tmp_path / "run", "--resolution", 16]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, *MODULE, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert "train: accelerate launch --cpu starts one process whatever --num_processes says" in done.stderr
    assert done.returncode == 1 and not (tmp_path / "run").exists()


def test_no_argument_at_all_is_one_line(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="1"):
        command_line.run(command.main, ResolvedConfig, [])
    assert capsys.readouterr().err == "toolkit.train: no data: pass --data SHARDS (made by python -m shards.create)\n"


@pytest.mark.dist
def test_processes_that_each_believe_to_be_alone_are_refused(shard_folder, tmp_path, monkeypatch):
    """torchrun on a machine without GPU and without ACCELERATE_USE_CPU: all would write the same folder."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU this launch is right")
    run, environment = tmp_path / "run", os.environ | ENVIRONMENT | {"ACCELERATE_USE_CPU": "false"}
    arguments = ["--data", shard_folder, "--out_dir", run, "--resolution", 16]
    process = Forked([*TORCHRUN, *MODULE, *map(str, arguments)], tmp_path, environment)
    told, said = finish(process), "2 processes were launched but each believes it is alone (no GPU found)"
    assert process.returncode != 0 and f"train: {said}" in told and f"train (process 1): {said}" in told, told[-3000:]
    assert not run.exists()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        (
            "ACCELERATE_DYNAMO_BACKEND",
            "INDUCTOR",
            "which R1 cannot differentiate twice; launch with --dynamo_backend no and train with --compile default",
        ),
    ],
)
def test_back_ends_that_cannot_train_two_networks_are_refused_in_one_line(monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match=words) as told:
        start_accelerator(ResolvedConfig())
    assert "\n" not in str(told.value)


def test_the_networks_are_prepared_without_what_would_spoil_r1(monkeypatch):
    """No static graph (gradients would silently not be averaged), no buffers broadcast between two forwards of D."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    options = start_accelerator(ResolvedConfig()).ddp_handler
    assert not options.static_graph and not options.broadcast_buffers and not options.find_unused_parameters


def test_neither_network_is_compiled(shard_folder):
    one = lone_trainer(shard_folder)
    for network in (one.G, one.D):
        assert not isinstance(network, torch._dynamo.OptimizedModule)
        assert not any(isinstance(module, torch._dynamo.OptimizedModule) for module in network.modules())


def test_fp16_on_a_cpu_is_said_and_the_record_holds_the_precision_used(shard_folder, tmp_path, capsys):
    train(shard_folder, tmp_path / "run", iters=1, mixed_precision="fp16")
    assert capsys.readouterr().err.count("fp16 needs a GPU, which is not here: training in fp32 instead") == 1
    state = json.loads((tmp_path / "run" / "ckpt_0000001" / "state.json").read_text())
    assert state["config"]["mixed_precision"] == "no" and state["scaler"] is None
    assert "mixed_precision: 'no'" in (tmp_path / "run" / "config.yaml").read_text()


def test_synchronised_batch_norm_is_nothing_to_one_process(shard_folder):
    one = lone_trainer(shard_folder, sync_bn=True, g_norm="batch")
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in one.G.modules())


@pytest.mark.dist
def test_a_killed_process_ends_the_others_and_the_launcher(shard_folder, tmp_path):
    """SIGKILL of process 1 in its 4th step. What was saved stays."""
    run = tmp_path / "run"
    process = launch(shard_folder, run, script=WORKER, processes=2, fault="killed:1:3", iters=8, ckpt_every=2)
    said = finish(process)
    assert process.returncode != 0 and "process 0 waited in vain at step 3" in said
    told = [line for line in said.splitlines() if "waited in vain" in line]
    assert len(told) == 1 and told[0].startswith("toolkit.train: ") and "another process is gone" in told[0]
    assert newest_valid(run) == (run / "ckpt_0000002", [])


@pytest.mark.dist
def test_torchrun_restarts_a_killed_run_and_the_end_is_the_same(shard_folder, tmp_path, monkeypatch):
    """--max-restarts 1, bitwise: the second life takes the lock and goes on from step 6.

    Of itself torchrun (torch 2.15) leaves the first life's addresses in the store it shares with its processes.
    """
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = {"processes": 2, "iters": 8, "ckpt_every": 3}
    whole = launch(shard_folder, tmp_path / "whole", **options)
    assert finish(whole) is not None and whole.returncode == 0
    options |= {"processes": 1, "launcher": (*TORCHRUN, "--max-restarts", "1"), "script": WORKER, "fault": "killed:1:7"}
    process = launch(shard_folder, tmp_path / "run", **options)
    said = finish(process)
    assert process.returncode == 0, said[-3000:]
    assert "ckpt_0000006 at step 6" in said
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", 8)


@pytest.mark.dist
def test_a_process_that_stands_still_is_named_with_its_step(shard_folder, tmp_path):
    """SIGSTOP of process 1 in its 4th step, as a hung disk or a debugger would; --timeout 6."""
    run = tmp_path / "run"
    options = {"processes": 2, "script": WORKER, "fault": "stopped:1:3", "timeout": 6, "iters": 100}
    process = launch(shard_folder, run, **options)
    beats, said = run / "heartbeats", []
    while line := process.stderr.readline():
        said.append(line)
        if "no step for" in line:
            break
    signs = [json.loads((beats / f"process_{k}.json").read_text()) for k in range(2)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(signs[1]["pid"], signal.SIGKILL)  # or torchrun would wait 30 s for it
    said.append(finish(process))
    told = [line for line in "".join(said).splitlines() if "no step for" in line]
    assert process.returncode != 0 and len(told) == 1, "".join(said)[-4000:]
    where = f"process 1 (pid {signs[1]['pid']} on {signs[1]['host']}) gave its last sign of life"
    assert (
        "train (process 0): no step for 6 s (--timeout): " + where in told[0]
        and f"at step {signs[1]['step']}" in told[0]
    )
    assert 1 <= signs[1]["step"] <= 3 and signs[0]["process"] == 0
    assert [path.name for path in checkpoints(run)] == ["ckpt_0000000"] and len(read_log(run)) == 3
