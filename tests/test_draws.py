"""Random numbers as functions of (seed, purpose, counters)."""

import torch

from toolkit import draws


def test_equal_arguments_equal_numbers_and_others_differ():
    base = torch.randn(100, generator=draws.generator(1, "z", 5))
    assert torch.equal(base, torch.randn(100, generator=draws.generator(1, "z", 5)))
    for other in ((2, "z", 5), (1, "w", 5), (1, "z", 6), (1, "z", 5, 0)):
        correlation = torch.corrcoef(torch.stack([base, torch.randn(100, generator=draws.generator(*other))]))[0, 1]
        assert abs(correlation) < 0.4


def test_rows_are_slices_of_the_global_batch():
    noise = draws.StepDraws(0, 8, 3)
    whole = noise.normal("z", slice(0, 8), 5)
    assert torch.equal(noise.normal("z", slice(2, 6), 5), whole[2:6])
    assert whole.std() > 0.5


def test_permutation_is_one_and_changes_with_the_epoch():
    first, second = draws.permutation(1000, 0, 0), draws.permutation(1000, 0, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1000))
    assert (first == second).float().mean() < 0.02
    correlation = torch.corrcoef(torch.stack([first.float(), torch.arange(1000.0)]))[0, 1]
    assert abs(correlation) < 0.15  # no trace of the file order


def test_sample_noise_belongs_to_the_seed():
    z = draws.sample_noise([7, 3, 7], 16)
    assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert torch.equal(z[1], draws.sample_noise([3], 16)[0])


def test_integers_are_spread():
    counts = torch.bincount(torch.tensor([draws.integer(4, 0, "caption", i) for i in range(4000)]))
    assert counts.min() > 900
