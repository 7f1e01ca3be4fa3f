"""The training step: what moves, what must not, and equality over accumulation, processes and resumption."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import toolkit.train
from tests.running import QUIET, TINY, finish, launch, lone_trainer, next_batch, run_training, train, wait_for
from toolkit import command_line
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.networks.losses import gradient_penalty
from toolkit.networks.models import Look, Verdict
from toolkit.run_folder.checkpoint import newest_valid
from toolkit.run_folder.records import read_log
from toolkit.training.trainer import Trainer, frozen


def trainer(shard_folder: Path, **options) -> Trainer:
    config = ResolvedConfig(**{"data": str(shard_folder), **TINY, **options})
    return Trainer(config, Accelerator(cpu=True), ShardSet(shard_folder))


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def distance(a: dict, b: dict) -> float:
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def stand_still(one: Trainer) -> None:
    """Adam's first step is lr by the gradient's sign: where that is rounding noise, D would differ for G."""
    for group in one.phases["D"].optimizer.param_groups:
        group["lr"] = 0.0


def test_a_step_moves_both_networks_and_the_average(shard_folder):
    one = trainer(shard_folder, ema_decay=0.5)
    before = weights(one.G), weights(one.D), weights(one.ema.module)
    stats = one.step()
    after = weights(one.G), weights(one.D), weights(one.ema.module)
    assert all(distance(a, b) > 0 for a, b in zip(before, after, strict=True))
    expected = {name: (before[0][name] + after[0][name]) / 2 for name in after[0]}
    assert distance(expected, after[2]) < 1e-6
    assert one.step_number == 1 and one.position == 8
    assert set(stats) >= {"loss_d", "loss_g", "logit_real", "logit_fake", "logit_mismatched", "r1", "grad_norm_g"}
    assert all(value.isfinite() for value in stats.values())


def test_the_g_phase_leaves_d_alone_and_d_is_thawed_even_after_an_error(shard_folder):
    one = trainer(shard_folder)
    batch = next_batch(one)
    from toolkit.draws import StepDraws

    before = {name: value.clone() for name, value in one.D.named_parameters()}
    with pytest.raises(RuntimeError), frozen(one.D):
        loss, _ = one.generator_loss(batch, StepDraws(0, 8, 0, 0))
        loss.backward()
        assert all(parameter.grad is None for parameter in one.D.parameters())
        assert any(parameter.grad is not None for parameter in one.G.parameters())
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in one.D.parameters())
    assert all(torch.equal(before[name], value) for name, value in one.D.named_parameters())


def double(value):
    """Floating tensors of a tensor, a tuple of them or a tuple of such tuples in float64."""
    if isinstance(value, tuple):
        return type(value)(*(double(part) for part in value))
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def in_double_precision(one: Trainer) -> Trainer:
    """In float32, convolutions of another batch size round otherwise on some processors: now and then that puts a
    value on the other side of a ReLU's kink, and the gradient's norm moved by 2e-4."""
    for network in (one.G, one.D, one.ema.module):
        network.double()
    inputs = one.inputs
    one.inputs = lambda *arguments, **named: double(inputs(*arguments, **named))
    return one


def test_accumulation_equals_the_whole_batch(shard_folder):
    """Gradients of D and G from 4 micro-batches of 2 against one of 8, R1 and mismatched captions included."""
    norms = []
    for batch_gpu in (None, 2):
        one = in_double_precision(trainer(shard_folder, batch_gpu=batch_gpu))
        stand_still(one)
        stats = one.step()
        norms.append((stats["grad_norm_d"].item(), stats["grad_norm_g"].item()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_logged_scalars_do_not_depend_on_the_micro_batches(shard_folder):
    ones = [in_double_precision(trainer(shard_folder, batch_gpu=batch_gpu)) for batch_gpu in (None, 2)]
    for one in ones:
        stand_still(one)
    whole, parts = (one.step() for one in ones)
    for name in ("loss_d", "loss_g", "loss_mismatch", "logit_real", "logit_fake", "r1"):
        assert whole[name].item() == pytest.approx(parts[name].item(), rel=1e-6, abs=1e-9), name


def test_an_overflow_moves_nothing_and_logs_no_infinite_norm(shard_folder):
    """fp16 gradients overflow now and then by design: the scale is halved, the run goes on."""
    one = trainer(shard_folder)
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights(one.G), weights(one.ema.module)
    stats = one.step()
    one.accelerator.scaler, scale = None, one.accelerator.scaler.get_scale()
    assert scale == 2.0**125 and one.ema.updates == 0  # halved once for each network
    assert not any(name.startswith("grad_norm") for name in stats) and all(v.isfinite() for v in stats.values())
    moved = {name for name in before[0] if not torch.equal(before[0][name], one.G.state_dict()[name])}
    assert distance(before[1], one.ema.module.state_dict()) == 0 and not moved


def test_lazy_r1_appears_at_its_interval_and_every_option_trains(shard_folder):
    one = trainer(shard_folder, r1_interval=2, d_steps=2, loss="nonsaturating", feature_matching=1.0, grad_clip=1.0,
                  diffaug="color,translation,cutout,flip", g_norm="batch", ema_kimg=0.1, ema_ramp=True)  # fmt: skip
    seen = [one.step() for _ in range(3)]
    assert ["r1" in stats for stats in seen] == [True, False, True]
    assert all("feature_matching" in stats for stats in seen) and one.position == 3 * 2 * 8


def test_bf16_stays_close_to_fp32_and_r1_is_exact(shard_folder):
    """R1 is computed in fp32 inside the prepared D: equal to the fp32 run's, while the logits are rounded."""
    exact = trainer(shard_folder).step()
    AcceleratorState._reset_state(reset_partial_state=True)
    config = ResolvedConfig(data=str(shard_folder), **TINY)
    rounded = Trainer(config, Accelerator(cpu=True, mixed_precision="bf16"), ShardSet(shard_folder)).step()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert rounded["r1"].item() == pytest.approx(exact["r1"].item(), rel=1e-5)
    assert rounded["loss_d"].item() == pytest.approx(exact["loss_d"].item(), rel=0.05)


def test_a_signal_to_the_whole_group_ends_with_a_complete_checkpoint(shard_folder, tmp_path):
    """Launchers and schedulers signal every process, data workers too."""
    run = tmp_path / "run"
    process = launch(shard_folder, run, workers=2, iters=100_000)
    wait_for(lambda: len(read_log(run)) >= 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    said = finish(process)
    assert process.returncode == 128 + signal.SIGTERM, said[-2000:]
    newest, _ = newest_valid(run)
    assert newest is not None and f"saved {newest}" in said and "stopped by SIGTERM" in said.splitlines()[-1]


def test_refusals_are_one_line(shard_folder, tmp_path, capsys, monkeypatch):
    """As `python -m toolkit.train` ends, the first one in a process of its own."""
    run = tmp_path / "run"
    train(shard_folder, run, iters=1)
    said = run_training(shard_folder, run, "--iters", "2", "--base_ch", "8", code=1)
    assert "another architecture (base_ch 4 -> 8)" in said.splitlines()[-1] and "Traceback" not in said
    cases = [
        ({"iters": 2, "base_ch": 8}, 1, "another architecture (base_ch 4 -> 8)"),
        ({"data": tmp_path / "none"}, 1, "no shard folder at"),
        ({"resolution": 32}, 1, "pass --resolution 16"),
        ({"cond_dim": 512}, 1, "pass --cond_dim 768"),
        ({"bath": 4}, 2, "did you mean 'batch'?"),
        ({"out_dir": shard_folder / "manifest.json" / "run"}, 1, "is not writable"),
    ]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for options, code, words in cases:
        values = {**QUIET, "data": shard_folder, "out_dir": run, **options}
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.run(toolkit.train.main, TrainConfig, [f"--{name}={value}" for name, value in values.items()])
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == code and words in lines[-1], lines
        assert not any("Traceback" in line for line in lines), lines
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [path.name for path in run.glob("ckpt_*")] != []


def test_other_data_is_refused_on_resume(shard_folder, tmp_path):
    one = trainer(shard_folder)
    from toolkit.run_folder.snapshot import restore_snapshot, take_snapshot

    snapshot = take_snapshot(one)
    other = trainer(shard_folder)
    manifest = other.shards.manifest
    other.shards.manifest = dataclasses.replace(manifest, shards=manifest.shards[:1])
    with pytest.raises(UserError, match="not those the checkpoint was trained on"):
        restore_snapshot(other, snapshot)
    restore_snapshot(trainer(shard_folder), snapshot)


def test_four_accumulated_steps_equal_four_whole_ones(shard_folder):
    """8 micro-batches in pairs: both Adams made 4 steps, on the same gradients."""
    whole, parts = (trainer(shard_folder, batch_gpu=n, lr_g=1e-5, lr_d=1e-5) for n in (None, 4))
    start = weights(whole.G)
    for _ in range(4):
        norms = [[stats[f"grad_norm_{name}"].item() for name in "gd"] for stats in (whole.step(), parts.step())]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for name in "GD":
        steps = {int(state["step"]) for state in parts.phases[name].optimizer.state_dict()["state"].values()}
        assert steps == {4}
    moved = distance(start, weights(whole.G))
    assert moved > 3e-5 and parts.position == 32
    for one, other in ((whole.G, parts.G), (whole.D, parts.D)):
        apart = torch.cat([(a - b).flatten() for a, b in zip(one.parameters(), other.parameters(), strict=True)])
        assert apart.abs().mean() < 1e-3 * moved  # Adam makes whole steps of rounding where a gradient is nearly 0


@pytest.mark.parametrize("penalty", ["r1_penalty", "r2_penalty"])
def test_penalties_under_bf16_are_those_of_fp32_and_d_never_leaves_it(shard_folder, penalty):
    """Value, gradient with respect to D's weights, and the type of every activation inside D on penalised images."""
    found, kinds = [], {}
    on = {"r1_penalty": 0.0, "r2_penalty": 0.0, "diffaug": "", "mismatch_weight": 0.0, penalty: 1.0}
    for precision in ("no", "bf16"):
        one = lone_trainer(shard_folder, precision, **on)
        batch, noise = next_batch(one), StepDraws(0, 8, 0, 0)
        images = torch.linspace(-1, 1, 8 * 3 * 16 * 16).reshape(8, 3, 16, 16).requires_grad_()
        seen = kinds.setdefault(precision, [])
        layers = [layer for layer in one.D.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
        hooks = [layer.register_forward_hook(lambda _, __, out, s=seen: s.append(out.dtype)) for layer in layers]
        (verdict,) = one.D(Look(images, batch.text, penalised=True))
        value = gradient_penalty(verdict.logits, images).mean()
        gradient = torch.autograd.grad(value, [p for p in one.D.parameters()], allow_unused=True)
        found.append([value, *(g for g in gradient if g is not None)])
        assert set(seen) == {torch.float32} and len(seen) >= len(layers)
        seen.clear()
        _, stats = one.discriminator_loss(batch, noise)
        assert penalty[:2] in stats
        half = sum(kind == torch.bfloat16 for kind in seen)
        assert half == (len(seen) // 2 if precision == "bf16" else 0)  # the other images', which have no penalty
        for hook in hooks:
            hook.remove()
    assert found[0][0] > 0 and sum(gradient.norm() > 0 for gradient in found[0]) > 15
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).norm() <= 1e-5 * exact.norm()


def test_r1_of_a_linear_d_is_half_its_squared_weights(shard_folder):
    """D(x) = w . x: the gradient is w whatever the image; the loss takes it times lambda and the interval."""
    one = lone_trainer(shard_folder, r1_penalty=3.0, r1_interval=4, mismatch_weight=0.0)
    w = torch.randn(3 * 16 * 16, generator=torch.Generator().manual_seed(0)) / 10

    def linear(*looks):
        logits = [(look.images.flatten(1) @ w)[:, None].expand(-1, 2) for look in looks]
        return tuple(Verdict(found, found, ()) for found in logits)

    one.objective.D = linear
    batch = next_batch(one)
    losses = [one.discriminator_loss(batch, StepDraws(0, 8, 0, 0)) for one.step_number in (0, 1)]
    r1 = w.square().sum().item() / 2
    assert losses[0][1]["r1"].item() == pytest.approx(r1, rel=1e-5) and "r1" not in losses[1][1]
    assert losses[0][0].item() - losses[1][0].item() == pytest.approx(3.0 * 4 * r1, rel=1e-4)


def test_a_whole_g_phase_leaves_d_bitwise_alone_and_an_error_in_it_thaws_d(shard_folder):
    one = trainer(shard_folder)
    loss_of, held = one.generator_loss, []

    def remembering(batch, noise):
        held.append(weights(one.D))
        assert not any(p.requires_grad or p.grad is not None for p in one.D.parameters())
        return loss_of(batch, noise)

    one.generator_loss = remembering
    one.step()
    assert distance(held[0], weights(one.D)) == 0 and all(p.grad is None for p in one.D.parameters())
    one.generator_loss = lambda batch, noise: (_ for _ in ()).throw(RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="no memory"):
        one.step()
    assert all(parameter.requires_grad for parameter in one.D.parameters()) and one.step_number == 1
