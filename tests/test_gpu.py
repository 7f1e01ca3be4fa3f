"""What only a GPU shows: half precision against fp32, skipped fused steps, memory, synchronised batch norm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.running import TINY, lone_trainer
from toolkit.checks import memory
from toolkit.checks.micro_batch import largest_micro_batch
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.launching.launch import start_accelerator
from toolkit.run_folder.records import Window
from toolkit.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_and_fresh(monkeypatch):
    """Each test starts Accelerate anew, on the GPU; fp32 means fp32, not TF32."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    AcceleratorState._reset_state(reset_partial_state=True)


def on_gpu(shard_folder: Path, precision: str = "no", **options) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    values = {**TINY, "data": str(shard_folder), "mixed_precision": precision, **options}
    config = ResolvedConfig(**values)
    accelerator = start_accelerator(config)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    one = Trainer(config, accelerator, ShardSet(shard_folder))
    assert one.device.type == "cuda" and accelerator.mixed_precision == precision
    return one


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in network.parameters()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_close_to_fp32_and_its_penalties_are_fp32s(shard_folder, precision):
    """Learning rates of 1e-6 keep the networks together, so that each step compares the same weights."""
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    options = {"r1_interval": 1, "r2_penalty": 1.0, "lr_g": 1e-6, "lr_d": 1e-6}
    exact, half = on_gpu(shard_folder, "no", **options), on_gpu(shard_folder, precision, **options)
    for _ in range(4):
        expected, found = exact.step(), half.step()
        for name in ("loss_d", "loss_g", "logit_real", "logit_fake", "loss_mismatch"):
            assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.05), name
        assert found["r1"].item() == pytest.approx(expected["r1"].item(), rel=1e-3)
        # R2's images are G's, which half precision has rounded
        assert found["r2"].item() == pytest.approx(expected["r2"].item(), rel=0.05)
        assert found.get("skipped", torch.zeros(())).item() == 0
    assert all(p.dtype == torch.float32 for network in (half.G, half.D) for p in network.parameters())


def test_fp32_on_the_gpu_is_fp32_on_the_cpu(shard_folder):
    """The same draws on both: the first step's losses and gradient norms."""
    found = on_gpu(shard_folder).step()
    expected = lone_trainer(shard_folder).step()
    for name in ("loss_d", "logit_real", "logit_fake", "r1", "grad_norm_d"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-3, abs=1e-4), name
    assert found["loss_g"].item() == pytest.approx(expected["loss_g"].item(), rel=0.02, abs=0.02)  # after D's Adam


def test_the_loss_scale_is_logged_and_skipped_steps_are_counted(shard_folder):
    one = on_gpu(shard_folder, "fp16")
    window = Window()
    window.add(one.step())
    line = window.read(one.accelerator) | one.settings()
    assert line["loss_scale"] == one.accelerator.scaler.get_scale() <= 2.0**16 and line["skipped"] in (0.0, 1.0)
    assert "loss_scale" not in on_gpu(shard_folder).settings()


@pytest.mark.parametrize("which", ["D", "G"])
def test_a_fused_adam_skips_an_overflow_whole(shard_folder, which):
    """Weights and Adam's step count stay, the scale is halved once, and the other network's step is taken."""
    one = on_gpu(shard_folder, "fp16")
    one.step()
    phase, before = one.phases[which], {name: weights(one.phases[name].network) for name in "DG"}
    counts = [int(state["step"]) for state in phase.optimizer.state_dict()["state"].values()]
    scale, backward, number = one.accelerator.scaler.get_scale(), phase.backward, one.step_number

    def overflowing(loss):
        backward(loss)
        phase.parameters[0].grad.view(-1)[0] = float("inf")

    assert phase.optimizer.param_groups[0]["fused"]
    phase.backward = overflowing
    stats = one.step()
    after = [int(state["step"]) for state in phase.optimizer.state_dict()["state"].values()]
    assert after == counts and one.accelerator.scaler.get_scale() == scale / 2 and stats["skipped"] == 1
    assert {name: same(before[name], weights(one.phases[name].network)) for name in "DG"} == {
        name: name == which for name in "DG"
    }
    assert one.step_number - number == (which == "D")


def test_without_a_scaler_a_nan_freezes_both_networks_on_the_gpu(shard_folder):
    """Nobody waits for the GPU in between: the fused kernels read the flag themselves."""
    one = on_gpu(shard_folder)
    one.step()
    before, loss_of = [weights(one.phases[name].network) for name in "DG"], one.discriminator_loss

    def poisoned(batch, noise):
        loss, stats = loss_of(batch, noise)
        return loss * float("nan"), stats

    one.discriminator_loss = poisoned
    one.step()
    one.discriminator_loss = loss_of
    for _ in range(2):
        one.step()
    assert one.broken.item() == 1
    assert all(same(a, weights(one.phases[name].network)) for a, name in zip(before, "DG", strict=True))


def test_batch_gpu_auto_takes_what_fits_and_leaves_no_trace(shard_folder):
    """All of a tiny batch."""
    one = on_gpu(shard_folder)
    before = [weights(one.phases[name].network) for name in "DG"]
    assert largest_micro_batch(one, 8) == 8
    assert all(same(a, weights(one.phases[name].network)) for a, name in zip(before, "DG", strict=True))
    assert one.step_number == 0 and all(p.grad is None for phase in one.phases.values() for p in phase.parameters)


def test_batch_gpu_auto_halves_a_batch_that_does_not_fit(shard_folder):
    one = on_gpu(shard_folder, base_ch=32, batch=4096)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(one.device).total_memory
    held, needed = torch.cuda.memory_reserved(one.device), memory.estimate(one.config, 1, "no").activations(4096)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + needed / 2) / whole), one.device)
    try:
        found = largest_micro_batch(one, 4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, one.device)
    assert 1 <= found < 4096 and 4096 % found == 0


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_the_peak_is_near_the_estimate(shard_folder, precision):
    """Between 0.7 and 1.6 times: cuDNN's workspaces and rounded blocks come on top. 512 images drown the rest."""
    one = on_gpu(shard_folder, precision, base_ch=32, batch=512, r1_interval=1)
    estimate = memory.estimate(one.config, 1, precision).total()
    one.step()  # makes Adam's moments and lets cuDNN choose
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    one.step()
    torch.cuda.synchronize()
    assert 0.7 * estimate < torch.cuda.max_memory_allocated() < 1.6 * estimate


@pytest.mark.dist
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_synchronised_batch_norm_over_two_gpus_is_that_of_the_whole_batch(shard_folder, tmp_path):
    """Over NCCL: G's running statistics after a step, equal on both and equal to one process's with all images."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(REPOSITORY / "tests" / "workers" / "synced_norm.py"), str(shard_folder), str(tmp_path)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    alone = on_gpu(shard_folder, g_norm="batch")
    alone.step()
    expected = {name: value for name, value in alone.G.state_dict().items() if "running" in name}
    two = [load_file(tmp_path / f"rank_{k}.safetensors") for k in range(2)]
    assert len(expected) > 4
    for name, value in expected.items():
        torch.testing.assert_close(two[0][name], two[1][name], rtol=0, atol=0)
        torch.testing.assert_close(two[0][name], value.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_are_the_eager_ones(shard_folder, mode, capsys):
    """In bf16, every other step with R1, through warm-up and replays; nothing has fallen back to eager."""
    torch._dynamo.reset()
    options = {"r1_interval": 2, "d_scales": 1, "lr_g": 1e-6, "lr_d": 1e-6}
    eager, other = on_gpu(shard_folder, "bf16", **options), on_gpu(shard_folder, "bf16", compile=mode, **options)
    for _ in range(8):
        expected, found = eager.step(), other.step()
        assert found.keys() == expected.keys()
        for name in ("loss_d", "loss_g", "logit_real", "logit_fake", "grad_norm_d", "grad_norm_g"):
            assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.05), name
        if "r1" in expected:
            assert found["r1"].item() == pytest.approx(expected["r1"].item(), rel=1e-2)
    assert "without torch.compile" not in capsys.readouterr().err


def test_no_step_waits_for_the_gpu(shard_folder):
    """But for the fetching of images and fp16's one question whether gradients overflowed."""
    one = on_gpu(shard_folder, "bf16", resident=True)
    for _ in range(3):
        one.step()
    one.fetch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
