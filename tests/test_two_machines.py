"""Two launchers, each with one process, that meet over the loopback device: the same training as one process."""

import os
import socket
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.running import QUIET, finish, train
from toolkit.run_folder.checkpoint import find_problem
from toolkit.run_folder.records import read_log

SCRIPT = str(REPOSITORY / "toolkit" / "train.py")
CONFIGS = REPOSITORY / "configs" / "accelerate"
TORCHRUN = ["-m", "torch.distributed.run"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
COURSE = {"iters": 3, "r1_interval": 2}


def torchrun(rank: int, port: int) -> list[str]:
    where = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return [*TORCHRUN, "--nnodes", "2", "--node_rank", str(rank), *where, "--nproc_per_node", "1"]


def accelerate(rank: int, port: int) -> list[str]:
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    config = ["--config_file", str(CONFIGS / "two_machines.yaml"), "--num_processes", "2"]
    return [*ACCELERATE, *config, "--machine_rank", str(rank), *where]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def training(shard_folder: Path, out_dir: Path) -> list[str]:
    options = {**QUIET, **COURSE, "data": shard_folder, "out_dir": out_dir, "timeout": 300}
    return [SCRIPT, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def tensors(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"ckpt_{step:07d}" / f"{name}.safetensors")


def check_same_training(a: Path, b: Path) -> None:
    """Weights and average after three steps equal to 1e-5, and the last gradients to 2e-5 of the largest.

    Adam moves a weight by the learning rate in the direction of its gradient's sign, however small it is. Weights
    whose gradient is rounding alone (biases that a normalisation takes out again) so differ by 2e-4, and do not count.
    """
    for name in ("networks", "generator"):
        start, one, two = tensors(a, 0, name), tensors(a, 3, name), tensors(b, 3, name)
        assert start.keys() == one.keys() == two.keys()
        moved, apart = (torch.cat([(other[key] - one[key]).abs().flatten() for key in one]) for other in (start, two))
        assert (apart > 1e-5).float().mean() < 1e-4 and apart.mean() < 1e-3 * moved.mean()
    one, two = tensors(a, 3, "optimizers"), tensors(b, 3, "optimizers")
    for network in ("D.", "G."):  # with beta1 = 0 Adam's first moment is the last gradient itself
        names = [name for name in one if name.startswith(network) and name.endswith(".exp_avg")]
        largest = max(one[name].abs().max() for name in names)
        assert len(names) > 20 and max((one[name] - two[name]).abs().max() for name in names) < 2e-5 * largest


@pytest.fixture(scope="module")
def one_process(shard_folder, tmp_path_factory) -> Path:
    """The run folder of the same training in one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(shard_folder, run, **COURSE)
    return run


@pytest.mark.dist
@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_two_machines_train_what_one_process_trains(shard_folder, tmp_path, one_process, launcher):
    """Three steps, two of them with R1; one run folder, whole checkpoints, weights that differ by rounding."""
    run, port = tmp_path / "run", free_port()
    commands = [[*launcher(rank, port), *training(shard_folder, run)] for rank in (0, 1)]
    machines = [Forked(command, tmp_path, ENVIRONMENT) for command in commands]
    said = [finish(machine) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(text[-3000:] for text in said)
    assert "done: 3 steps" in said[0]
    last = run / "ckpt_0000003"
    assert find_problem(last) == "" and not list(run.glob(".tmp-*"))
    assert [line["step"] for line in read_log(run)] == [1, 2, 3]
    assert sorted(path.name for path in run.glob("ckpt_*")) == sorted(path.name for path in one_process.glob("ckpt_*"))
    check_same_training(one_process, run)


@pytest.mark.dist
def test_several_processes_of_one_machine_under_accelerate_launch(shard_folder, tmp_path, one_process):
    """configs/accelerate/multi_gpu.yaml, whose port 0 lets two runs share a machine."""
    run = tmp_path / "run"
    launcher = [*ACCELERATE, "--config_file", str(CONFIGS / "multi_gpu.yaml"), "--num_processes", "2"]
    process = Forked([*launcher, *training(shard_folder, run)], tmp_path, ENVIRONMENT)
    said = finish(process)
    assert process.returncode == 0 and "already in use" not in said, said[-3000:]
    check_same_training(one_process, run)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_line_of_our_launch_configs(path):
    """Unknown keys it refuses by itself; keys whose flag has a default it reads and silently ignores."""
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(config, ClusterConfig) and config.num_processes == written["num_processes"]
    assert not written.keys() & {"rdzv_backend", "same_network", "main_training_function", "downcast_bf16"}
