"""Two images of one caption side by side: an order of the epoch like any other, and what D sees of it."""

import numpy as np
import pytest
import torch

from tests.running import assert_equal_runs, logged, lone_trainer, next_batch, train
from toolkit import draws
from toolkit.config import TrainConfig
from toolkit.data.dataset import ShardDataset
from toolkit.data.pairs import caption_groups, in_pairs
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.networks.layers import with_minibatch_std
from toolkit.run_folder.checkpoint import checkpoint_name


def orders(groups: np.ndarray, epochs: int, seed: int = 0) -> list[np.ndarray]:
    count = len(groups)
    return [in_pairs(draws.permutation(count, seed, e).numpy(), groups, seed, e) for e in range(epochs)]


@pytest.mark.parametrize("sizes", [[4, 6], [5, 3, 1, 7], [1, 1, 1], [2], [9], [3, 3, 1]])
def test_each_epoch_has_every_image_once_and_as_many_pairs_as_there_are(sizes):
    groups = np.repeat(np.arange(len(sizes)) * 7 - 3, sizes)
    found = orders(groups, 4)
    for order in found:
        assert sorted(order.tolist()) == list(range(len(groups)))
    # Counted over all epochs, pairs begin at even positions: with an odd number of images too.
    twos = groups[np.concatenate(found)].reshape(-1, 2)
    assert (twos[:, 0] == twos[:, 1]).sum() >= 4 * sum(size // 2 for size in sizes)


def test_pairs_are_new_in_each_epoch_and_stand_anywhere_in_it():
    groups = np.repeat(np.arange(5), 40)
    first, second = ({frozenset(two) for two in order.reshape(-1, 2).tolist()} for order in orders(groups, 2))
    assert len(first & second) < 20  # of 100 by chance 100 / 39
    counts = np.bincount(groups[orders(groups, 1)[0][:100]], minlength=5)
    assert counts.min() >= 8  # no caption waits for the end; 20 on average


def test_left_over_images_are_spread_over_the_epoch():
    groups = np.concatenate([np.repeat(np.arange(50), 2), 1000 + np.arange(100)])
    order = orders(groups, 1)[0]
    single = np.flatnonzero(groups[order] >= 1000)
    assert 80 < single.mean() < 120 and len(single) == 100


def test_groups_are_those_of_captions_read_without_images(shard_folder):
    shards = ShardSet(shard_folder)
    groups = caption_groups(shards)
    captions = [shards.read_texts(number).captions for number in range(len(shards))]
    for i in range(len(shards)):
        assert [bool(found) for found in groups == groups[i]] == [sorted(c) == sorted(captions[i]) for c in captions]


def test_both_of_a_pair_have_the_same_caption_in_a_batch(shard_folder):
    one = lone_trainer(shard_folder, pairs=True)
    batch = next_batch(one)
    groups = one.feed.dataset.groups[batch.numbers.numpy()].reshape(-1, 2)
    of = np.array(batch.captions).reshape(-1, 2)
    same = groups[:, 0] == groups[:, 1]
    assert same.any() and (of[same, 0] == of[same, 1]).all()
    again = ShardDataset(one.shards, one.config.seed, groups=one.feed.dataset.groups)
    assert [again.sample_at(p) for p in range(8)] == batch.numbers.tolist()


def test_the_deviation_is_then_taken_over_twos():
    assert TrainConfig(pairs=True).resolved().std_group == 2 and TrainConfig().resolved().std_group == 4
    x = torch.randn(6, 3, 2, 2)
    found = with_minibatch_std(x, [6], 2)[:, 3, 0, 0]
    expected = [(x[i : i + 2].var(dim=0, correction=0) + 1e-8).sqrt().mean().item() for i in (0, 2, 4)]
    assert found.tolist() == pytest.approx(np.repeat(expected, 2).tolist(), rel=1e-5)
    twins = x[[0, 0, 2, 3, 4, 4]]
    assert with_minibatch_std(twins, [6], 2)[[0, 4], 3, 0, 0].tolist() == pytest.approx([1e-4] * 2, rel=1e-2)


def test_an_odd_micro_batch_and_captions_that_all_differ_are_refused(shard_folder, tmp_path):
    with pytest.raises(UserError, match="even number"):
        lone_trainer(shard_folder, pairs=True, batch=7)
    shards = ShardSet(shard_folder)
    assert shards.manifest.distinct_captions <= len(shards) / 2
    shards.manifest.__dict__["distinct_captions"] = len(shards)
    from toolkit.launching.launch import check_data

    with pytest.raises(UserError, match="no partner"):
        config = TrainConfig(data=str(shard_folder), resolution=16, pairs=True, match_weight=0, g_match_weight=0)
        check_data(config.resolved(), shards)


RELATIVISTIC = {"loss": "relativistic", "pairs": True, "fresh_for_g": True, "d_steps": 2, "minibatch_std": True}


def test_g_has_images_of_its_own_and_d_sees_none_of_them(shard_folder):
    one = lone_trainer(shard_folder, **RELATIVISTIC)
    seen: dict[str, list[int]] = {"D": [], "G": []}
    run = one._run_phase

    def noting(name, loss_of, micro_batches, noise):
        seen[name] += [number for batch in micro_batches for number in batch.numbers.tolist()]
        return run(name, loss_of, micro_batches, noise)

    one._run_phase = noting
    one.step()
    expected = [one.feed.dataset.sample_at(position) for position in range(24)]
    assert seen["D"] == expected[:16] and seen["G"] == expected[16:]
    assert one.images_seen == 16 and one.position == 24 and one.for_g == 8


def test_a_loss_that_looks_at_no_real_images_in_gs_phase_reads_none_for_it(shard_folder):
    one = lone_trainer(shard_folder, loss="hinge", fresh_for_g=True)
    one.step()
    assert one.images_seen == one.position == 8


@pytest.mark.parametrize("at", [2, 4])
def test_runs_with_pairs_and_fresh_images_resume_bitwise(shard_folder, tmp_path, at):
    """24 images, 24 a step: each step is an epoch."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(shard_folder, whole, iters=6, **RELATIVISTIC)
    train(shard_folder, resumed, iters=at, **RELATIVISTIC)
    train(shard_folder, resumed, iters=6, **RELATIVISTIC)
    assert_equal_runs(whole, resumed, 6)
    assert [line["images_seen"] for line in logged(resumed)] == [16 * step for step in range(1, 7)]
    assert (resumed / checkpoint_name(6)).is_dir()
