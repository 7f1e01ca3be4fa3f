"""fp16's loss scale over whole training steps: one scaler, two optimizers, clipping, accumulation, overflows."""

import itertools

import pytest
import torch

from tests.running import lone_trainer
from toolkit.training.trainer import Trainer

SLOW = {"lr_g": 1e-9, "lr_d": 1e-9, "r1_interval": 1, "lecam": 0.1}
"""So small that G's gradient does not depend on how D's step rounded."""


def watch(one: Trainer) -> dict[str, list[torch.Tensor]]:
    """The gradients each optimizer is given, once per call of its `step`."""
    seen = {name: [] for name in one.phases}
    for name, phase in one.phases.items():

        def note(optimizer, *_, name=name, phase=phase):
            flat = torch.cat([p.grad.flatten() for p in phase.parameters])
            divisor = getattr(optimizer, "grad_scale", None)  # a fused kernel may be asked to unscale by itself
            seen[name].append(flat.clone() if divisor is None else flat / divisor)

        phase.optimizer.register_step_pre_hook(note)
    return seen


def overflow(one: Trainer, network: str, only: int | None = None) -> None:
    """From now on one element of the network's gradient is infinite; `only`: in the n-th backward pass from here."""
    phase = one.phases[network]
    backward, number = phase.backward, itertools.count()

    def overflowing(loss):
        backward(loss)
        if only in (None, next(number)):
            phase.parameters[0].grad.view(-1)[0] = float("inf")

    phase.backward = overflowing


def scaled(one: Trainer, scale: float = 2.0**16) -> Trainer:
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return one


def skip(one: Trainer, network: str) -> None:
    """The fp32 run that an overflow is compared with: the network's step is left out."""
    phase = one.phases[network]
    step = phase.optimizer.step
    phase.optimizer.step = lambda: None
    assert step is not phase.optimizer.step


@pytest.mark.parametrize("which", ["none", "D", "G"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_each_optimizer_sees_the_fp32_gradient(shard_folder, clip, parts, which):
    """Over two steps; an overflowing network is skipped, and the other one's gradient is untouched by that."""
    options = SLOW | {"grad_clip": clip, "batch_gpu": 8 // parts}
    exact, half = lone_trainer(shard_folder, **options), scaled(lone_trainer(shard_folder, **options))
    if which != "none":
        skip(exact, which)
        overflow(half, which)
    expected, found = watch(exact), watch(half)
    for _ in range(2):
        exact.step()
        half.step()
        half.step_number = exact.step_number  # a G step that overflowed does not count; compare the same draws
    half.accelerator.scaler = None
    for name in "DG":
        if name == which:
            assert all(not gradient.isfinite().all() for gradient in found[name])
            continue
        assert len(found[name]) == len(expected[name]) == 2
        for a, b in zip(expected[name], found[name], strict=True):
            assert a.norm() > 0.04 and (not clip or a.norm() == pytest.approx(clip, rel=1e-3))
            assert (a - b).norm() < 1e-3 * a.norm()


def moments(one: Trainer, network: str) -> list[torch.Tensor]:
    states = one.phases[network].optimizer.state_dict()["state"].values()
    return [value.clone() for state in states for value in state.values()]


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in network.parameters()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("which", ["D", "G"])
def test_an_overflow_advances_nothing_of_its_network(shard_folder, which):
    """Weights, Adam's moments and step count; with G's also the average and the step number. The optimizer is fused."""
    one = scaled(lone_trainer(shard_folder, ema_decay=0.5))
    one.step()
    assert one.phases[which].optimizer.param_groups[0]["fused"]
    before = {name: (weights(one.phases[name].network), moments(one, name)) for name in "DG"}
    average = weights(one.ema.module)
    overflow(one, which)
    stats = one.step()
    scale, one.accelerator.scaler = one.accelerator.scaler.get_scale(), None
    for name in "DG":
        now = weights(one.phases[name].network), moments(one, name)
        assert [same(a, b) for a, b in zip(before[name], now, strict=True)] == [name == which] * 2
        assert (f"grad_norm_{name.lower()}" in stats) == (name != which)
    assert scale == 2.0**15 and stats["skipped"] == 1 and one.broken == 0
    assert same(average, weights(one.ema.module)) == (which == "G")
    assert (one.step_number, one.ema.updates) == ((1, 1) if which == "G" else (2, 2))
    assert one.position == 16  # the images are spent either way


@pytest.mark.parametrize("only", [0, 1])
def test_of_two_d_steps_the_one_that_overflowed_is_not_heard(shard_folder, monkeypatch, only):
    """Neither by LeCam's means nor by what adapts, although the other one's gradient was sound."""
    one = scaled(lone_trainer(shard_folder, d_steps=2, lecam=0.1))
    overflow(one, "D", only)
    heard = []
    monkeypatch.setattr(one, "_adapt", lambda stats: heard.append("grad_norm_d" in stats))
    stats = one.step()
    one.accelerator.scaler = None
    assert heard == [True] and stats["skipped"] == 1 and one.skipped
    assert ("grad_norm_d" in stats) == (only == 0)  # the scalars are those of the last D step
    assert (one.step_number, one.position) == (1, 16)
