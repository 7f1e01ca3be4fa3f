"""torch.compile of the losses: the same step, and a way back. The backend is `aot_eager`, which takes seconds."""

import pytest
import torch

from tests.running import lone_trainer
from tests.test_architecture import EVERYTHING as ARCHITECTURE
from toolkit.training.compiling import Compiled
from toolkit.training.trainer import Trainer

SMALL = {"d_scales": 1, "r1_interval": 2, "lr_g": 1e-6, "lr_d": 1e-6, "g_norm": "batch"}


@pytest.fixture(autouse=True)
def forgotten():
    """torch keeps what it compiled by function, whichever Trainer it was for."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(trainer: Trainer) -> list[Compiled]:
    trainer.objective.compile("default", backend="aot_eager")
    return [trainer.objective.shown, trainer.objective.judged, trainer.objective.generator]


def compile_only(trainer: Trainer, *names: str) -> list[Compiled]:
    """The others run as they are: compiling a part takes seconds."""
    parts = {part.name: part for part in compiled(trainer)}
    for name in parts.keys() - names:
        parts[name].compiled = None
    return [parts[name] for name in names]


@pytest.mark.parametrize(
    "options",
    [
        {"diffaug": "color"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(
            {"r2_penalty": 1.0, "lecam": 0.1, "loss": "relativistic", "augment_p": 0.5}, marks=pytest.mark.slow
        ),
        pytest.param(ARCHITECTURE, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_are_the_eager_ones(shard_folder, options):
    """Four steps, every other one with R1: losses, penalties, gradient norms; nothing fell back to eager."""
    eager, other = (lone_trainer(shard_folder, **SMALL | options) for _ in range(2))
    parts = compiled(other)
    for _ in range(4):
        expected, found = eager.step(), other.step()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    assert all(part.compiled is not None for part in parts)
    torch.testing.assert_close(other.G.state_dict(), eager.G.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.D.state_dict(), eager.D.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "steps"), [(["judged"], 1), pytest.param(["shown", "judged", "generator"], 2, marks=pytest.mark.slow)]
)
def test_under_bf16_too(shard_folder, names, steps):
    """The first step is one with R1."""
    eager, other = (lone_trainer(shard_folder, "bf16", **SMALL) for _ in range(2))
    parts = compile_only(other, *names)
    for _ in range(steps):
        expected, found = eager.step(), other.step()
        for name in ("loss_d", "loss_g", "grad_norm_d"):
            assert found[name].item() == pytest.approx(expected[name].item(), rel=0.02, abs=0.02), name
        assert ("r1" in found) == ("r1" in expected) == (other.step_number % 2 == 1)
    assert all(part.compiled is not None for part in parts)


def test_what_cannot_be_compiled_runs_as_it_is_with_a_line(shard_folder, capsys):
    def no_compiler(graph, inputs):
        raise NotImplementedError("no such machine")

    one, eager = (lone_trainer(shard_folder, **SMALL, diffaug="") for _ in range(2))
    one.objective.compile("default", backend=no_compiler)
    for _ in range(2):
        found, expected = one.step(), eager.step()
        assert {name: value.item() for name, value in found.items()} == {n: v.item() for n, v in expected.items()}
    lines = [line for line in capsys.readouterr().err.splitlines() if "without torch.compile" in line]
    assert len(lines) == 3 and all("no such machine" in line for line in lines)


@pytest.mark.parametrize("lost", ["loss", "r1"])
def test_a_result_without_its_gradient_is_not_believed(shard_folder, lost, capsys):
    """As torch 2.11 may give R1: no error, and a training without R1."""
    one, eager = (lone_trainer(shard_folder, **SMALL) for _ in range(2))
    judged = one.objective.judged
    (part,) = compile_only(one, "judged")

    def silently(*arguments):
        loss, stats = judged(*arguments)
        return (loss.detach(), stats) if lost == "loss" else (loss, stats | {"r1": stats["r1"].detach()})

    part.compiled = silently
    found, expected = one.step(), eager.step()
    assert part.compiled is None and "came back without a gradient" in capsys.readouterr().err
    assert found["grad_norm_d"].item() == expected["grad_norm_d"].item()
