"""Standing statistics: an averaged G is normalised by what it draws itself, not by an average of statistics."""

import pytest
import torch

from tests.running import assert_equal_runs, lone_trainer, train
from toolkit.data.shard_reader import ShardSet
from toolkit.inference.sampling import load_generator
from toolkit.networks.norms import BatchNorm
from toolkit.training.standing import StandingInputs, stand

ON = {"g_norm": "batch", "standing_images": 128, "d_scales": 1}


class Seen:
    """Inputs of a network's batch norms during forward passes."""

    def __init__(self, network):
        self.inputs = {}
        self.hooks = [
            norm.register_forward_pre_hook(lambda module, given: self.inputs.setdefault(module, []).append(given[0]))
            for norm in network.modules()
            if isinstance(norm, BatchNorm)
        ]


def test_the_statistics_are_those_of_what_the_network_draws(shard_folder):
    """Mean and unbiased variance of each batch's activations, all batches alike."""
    one = lone_trainer(shard_folder, **ON)
    one.step()
    network, inputs = one.ema.module, one.standing
    seen = Seen(network)
    stand(network, inputs)
    assert len(seen.inputs) > 3
    for norm, batches in seen.inputs.items():
        assert len(batches) == 2
        mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
        var = torch.stack([batch.transpose(0, 1).flatten(1).var(dim=1) for batch in batches]).mean(dim=0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-6)
        assert not norm.training and norm.momentum == 0.1


def test_it_is_a_function_of_weights_and_inputs_alone(shard_folder):
    one = lone_trainer(shard_folder, **ON)
    one.step()
    one.average_statistics()
    before = {name: value.clone() for name, value in one.ema.module.state_dict().items()}
    for norm in one.ema.module.modules():
        if isinstance(norm, BatchNorm):
            norm.running_var.fill_(7.0)
    one.average_statistics()
    assert all(torch.equal(before[name], value) for name, value in one.ema.module.state_dict().items())


def test_the_average_then_draws_as_in_training_mode(shard_folder):
    """An average of weights that have moved: with averaged statistics its images are farther from those by its own."""
    one = lone_trainer(shard_folder, **ON, lr_g=0.02, ema_decay=0.9)
    for _ in range(6):
        one.step()
    network, inputs = one.ema.module, one.standing

    def drawn(train: bool) -> torch.Tensor:
        for norm in network.modules():
            if isinstance(norm, BatchNorm):
                norm.momentum, norm.training = 0.0, train  # looks, keeps nothing
        with torch.no_grad():
            images = network(inputs.z, inputs.text)
        network.eval()
        return images

    own, averaged = drawn(train=True), drawn(train=False)
    stand(network, inputs)
    standing = drawn(train=False)
    assert (standing - own).square().mean() < 0.5 * (averaged - own).square().mean()


def test_runs_resume_bitwise_and_the_file_has_the_standing_statistics(shard_folder, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(shard_folder, whole, iters=6, **ON)
    train(shard_folder, halves, iters=3, **ON)
    train(shard_folder, halves, iters=6, **ON)
    assert_equal_runs(whole, halves, 6)
    network = load_generator(whole).network
    inputs = StandingInputs(ShardSet(shard_folder), 128, 8, 0)
    saved = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    stand(network, inputs)
    assert saved and all(torch.allclose(saved[n], network.state_dict()[n], atol=1e-6) for n in saved)


def test_captions_come_as_often_as_the_dataset_has_them(shard_folder):
    shards = ShardSet(shard_folder)
    inputs = StandingInputs(shards, 48, 8, 0)
    known = torch.cat([shards.read_texts(number).vectors for number in range(len(shards))])
    cosines = (inputs.text @ known.T).amax(dim=1)
    assert inputs.z.shape == (48, 8) and cosines.tolist() == pytest.approx([1.0] * 48, abs=1e-5)
    assert torch.equal(inputs.text[:24], inputs.text[24:])  # each of the 24 samples twice
    assert torch.equal(inputs.z, StandingInputs(shards, 48, 8, 0).z)


def test_other_norms_need_none(shard_folder):
    one = lone_trainer(shard_folder, g_norm="group", standing_images=128)
    assert one.standing is None
    one.average_statistics()
