"""What surrounds the training step leaves no trace in it: samples, scores, evaluations, checkpoints, the global random
state."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.running import QUIET, assert_equal_runs, train
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.health.reports import Reports
from toolkit.health.score import Scoring, SwdScore
from toolkit.inference.sampling import sample
from toolkit.launching.processes import Processes
from toolkit.run_folder.checkpoint import checkpoint_name
from toolkit.run_folder.snapshot import take_snapshot
from toolkit.training.trainer import Trainer

COURSE = {"iters": 7, "r1_interval": 3, "g_norm": "batch", "lecam": 0.1}


def everything(trainer: Trainer) -> dict:
    """Every tensor, buffer, gradient, mode and counter of a training, and the global random state, copied."""
    found = {
        "python": random.getstate(), "numpy": str(np.random.get_state()), "torch": torch.get_rng_state(),
        "step": trainer.step_number, "position": trainer.position, "ema updates": trainer.ema.updates,
        "adaptive": str(trainer.adaptive.state()), "default dtype": torch.get_default_dtype(),
        "grad enabled": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
    }  # fmt: skip
    for name, network in (("G", trainer.G), ("D", trainer.D), ("ema", trainer.ema.module)):
        found |= {f"{name}.{key}": value.clone() for key, value in network.state_dict().items()}
        found |= {f"{name}.{key} training": module.training for key, module in network.named_modules()}
        for key, parameter in network.named_parameters():
            found |= {f"{name}.{key} requires_grad": parameter.requires_grad, f"{name}.{key} grad": parameter.grad}
    for name, phase in trainer.phases.items():
        for index, moments in phase.optimizer.state_dict()["state"].items():
            found |= {f"Adam of {name}.{index}.{key}": value.clone() for key, value in moments.items()}
    return found


def differences(before: dict, after: dict) -> list[str]:
    def equal(a, b) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return [name for name in before.keys() | after.keys() if not equal(before.get(name), after.get(name))]


def evaluate(trainer: Trainer) -> dict:
    """Stands for evaluation.during_training: images drawn by the averaged G."""
    drawn = sample(trainer.ema.module, torch.ones(4, trainer.config.z_dim), torch.ones(4, trainer.config.cond_dim))
    return {"scores": {"fid": drawn.float().mean().item()}, "images": Image.fromarray(drawn[0].numpy().T)}


@pytest.fixture(scope="module")
def plain(shard_folder, tmp_path_factory) -> Path:
    """The run folder of the course with nothing round it."""
    run = tmp_path_factory.mktemp("plain")
    train(shard_folder, run, **COURSE)
    return run


@pytest.fixture(scope="module")
def reports(shard_folder, tmp_path_factory):
    """Of a training with batch norm, two steps old or three: nothing but a step changes it, as is shown below."""
    places = {"data": str(shard_folder), "out_dir": str(tmp_path_factory.mktemp("reports"))}
    config = ResolvedConfig(**{**QUIET, **COURSE, **places, "score_count": 64})
    shards = ShardSet(shard_folder)
    trainer, score = Trainer(config, Accelerator(cpu=True), shards), SwdScore(shards, config)
    trainer.step()
    trainer.step()
    scoring = Scoring("swd", score=lambda trainer: score(trainer.ema), evaluate=evaluate)
    opened = Reports(trainer, main=True, scoring=scoring)
    yield opened
    opened.close()
    trainer.close()


@pytest.mark.parametrize(
    "action", ["samples", "write_checkpoint", "rate", "evaluate", "snapshot", "statistics", "fingerprint"]
)
def test_sampling_probing_scoring_and_saving_change_nothing(reports, action):
    trainer = reports.trainer
    before = everything(trainer)
    assert sum(isinstance(value, torch.Tensor) for value in before.values()) > 200
    if action == "snapshot":
        take_snapshot(trainer)
    elif action == "evaluate":
        reports.evaluate(Processes(None, 60))
        assert reports.evaluations.scores(trainer.step_number)["fid"] > 0
    elif action in ("statistics", "fingerprint"):
        {"statistics": trainer.average_statistics, "fingerprint": trainer.fingerprint}[action]()
    else:
        getattr(reports, action)()
    assert differences(before, everything(trainer)) == []


def test_a_step_is_seen_by_the_comparison_above(reports):
    """And touches no global random state."""
    before = everything(reports.trainer)
    reports.trainer.step()
    changed = differences(before, everything(reports.trainer))
    assert {"step", "position", "ema updates", "adaptive"} <= set(changed)
    assert {name.split(".")[0] for name in changed} >= {"G", "D", "ema", "Adam of G", "Adam of D"}
    for buffer in ("running_mean", "u"):
        assert any(name.endswith(f".{buffer}") for name in changed)
    assert not {"python", "numpy", "torch"} & set(changed)


def test_samples_scores_and_checkpoints_at_every_step_leave_the_training_as_it_is(shard_folder, tmp_path, plain):
    busy = {"sample_every": 1, "ckpt_every": 1, "score": "swd", "score_count": 64}
    train(shard_folder, tmp_path / "busy", **COURSE, **busy)
    quiet, other = (run / checkpoint_name(7) for run in (plain, tmp_path / "busy"))
    for name in ("generator", "networks", "optimizers"):
        assert (quiet / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
    assert len(list((tmp_path / "busy").glob("sample_0*.png"))) == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_scrambling_the_global_random_state_before_every_step_changes_nothing(
    shard_folder, tmp_path, plain, monkeypatch, workers
):
    """No random state is stored, so none can be silently lost: every draw is a function of seed, purpose and step."""
    entropy, methods = random.SystemRandom(), {name: getattr(Trainer, name) for name in ("step", "fetch")}
    scrambled = []

    def scrambling(name):
        def method(trainer):
            random.seed(entropy.randrange(2**32))
            np.random.seed(entropy.randrange(2**32))
            torch.manual_seed(entropy.randrange(2**32))
            scrambled.append(torch.rand(1).item())
            return methods[name](trainer)

        return method

    for name in methods:
        monkeypatch.setattr(Trainer, name, scrambling(name))
    train(shard_folder, tmp_path / "scrambled", **COURSE, workers=workers)
    assert len(set(scrambled)) > 14
    assert_equal_runs(plain, tmp_path / "scrambled", 7, but=("workers",))


def test_the_weights_in_training_are_not_the_averaged_ones(reports):
    """Sampling and saving use the average without putting it in G's place."""
    trainer = reports.trainer
    reports.samples()
    reports.write_checkpoint()
    mine, averaged = trainer.G.state_dict(), trainer.ema.module.state_dict()
    saved = take_snapshot(trainer)
    weights = [name for name in mine if name.endswith("weight")]
    assert weights and not any(torch.equal(mine[name], averaged[name]) for name in weights)
    assert all(torch.equal(saved.networks[f"G.{name}"], mine[name]) for name in mine)
    assert all(torch.equal(saved.generator.tensors[name], averaged[name]) for name in averaged)
