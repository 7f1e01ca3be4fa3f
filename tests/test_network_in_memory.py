"""A network in memory as a source: it draws what its checkpoint draws, and stays as it was."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.sources import opening
from evaluation.sources.generated import generated_source
from evaluation.sources.opening import open_source
from evaluation.sources.source import Source, chosen
from tests.scored import Sensitive, images_of, load_sensitive, untrained, write_run, write_shards
from toolkit.data.shard_reader import ShardSet

SIZES = {"resolution": 32, "base_ch": 8}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("prompts") / "s", 37)


def in_memory(network: nn.Module, prompts: Path, count: int = 40) -> Source:
    """The very prompts, in the very order, that `open_source` takes from `prompts`."""
    shards = ShardSet(prompts)
    texts = [shards.read_texts(i) for i in chosen(len(shards), None, seed=0)]
    captions, text = [one.captions[0] for one in texts], torch.stack([one.vectors[0] for one in texts])
    return generated_source(network, 8, SIZES["resolution"], captions, text, count, 0, "step 7")


def test_it_draws_what_its_checkpoint_draws(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "load_generator", load_sensitive)
    stored = open_source(write_run(tmp_path / "run", **SIZES), count=40, prompts=prompts)
    source = in_memory(Sensitive(untrained(**SIZES)).eval(), prompts)
    assert torch.equal(images_of(source), images_of(stored)) and source.captions == stored.captions


def test_drawing_leaves_network_and_random_states_as_they_were(prompts):
    network = untrained(**SIZES).train()
    network.blocks[0].eval()
    modes = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    trained = images_of(in_memory(network, prompts))
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert torch.equal(trained, images_of(in_memory(network.eval(), prompts)))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_modes_come_back_after_an_error(prompts):
    network = untrained(**SIZES).train()
    network.to_rgb = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        images_of(in_memory(network, prompts))
    assert all(part.training for part in network.modules())


def test_what_training_has_switched_on_is_off_meanwhile(prompts):
    """TF32, algorithms chosen by timing, autocast."""
    network, seen = untrained(**SIZES).eval(), []

    def state() -> tuple:
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.benchmark, torch.is_autocast_enabled("cpu")

    network.register_forward_hook(lambda *_: seen.append(state()))
    expected, before = images_of(in_memory(network, prompts)), state()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(images_of(in_memory(network, prompts)), expected)
            assert state() == ("high", True, True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
    assert set(seen) == {("highest", False, False)}


def test_each_pass_draws_from_the_network_as_it_is_then(prompts):
    """A source outlives training steps: nothing of an earlier pass is kept."""
    network = untrained(**SIZES).eval()
    source = in_memory(network, prompts, count=3)
    early = source.draw(range(3))
    with torch.no_grad():
        network.to_rgb.bias.add_(0.5)
    late = source.draw(range(3))
    assert not torch.equal(early, late)
    assert torch.equal(late, in_memory(network, prompts, count=3).draw(range(3)))
