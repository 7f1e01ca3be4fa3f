"""The text in training: noise by its formula, the ramp, and mismatched captions in G's loss."""

import pytest
import torch
import torch.nn.functional as F

from tests.running import lone_trainer, next_batch
from toolkit.config import ResolvedConfig
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.training.conditioning import perturbed, text_share


def drawn(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_noise_adds_a_vector_of_the_given_length():
    text, noise = F.normalize(drawn(5, 16), dim=1), drawn(5, 16, seed=1)
    found = perturbed(text, noise, 0.75)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert torch.equal(perturbed(text, noise, 0.0), F.normalize(text, dim=1))
    by_hand = torch.stack([t + 0.75 * e / e.norm() for t, e in zip(text, noise, strict=True)])
    torch.testing.assert_close(found, by_hand / by_hand.norm(dim=1, keepdim=True))


def test_in_many_dimensions_noise_is_orthogonal_to_the_text():
    """The cosine with what it was is then 1 / sqrt(1 + strength^2)."""
    text = F.normalize(drawn(4000, 768), dim=1)
    cosine = (perturbed(text, drawn(4000, 768, seed=1), 0.5) * text).sum(dim=1)
    assert cosine.mean().item() == pytest.approx(1 / 1.25**0.5, abs=2e-3)


def test_the_ramp():
    options = ResolvedConfig(unconditional_kimg=2, ramp_kimg=4)
    pairs = [(text_share(n, options), n) for n in (0, 1999, 2000, 3000, 6000, 10**6)]
    assert [share for share, _ in pairs] == [0.0, 0.0, 0.0, 0.25, 1.0, 1.0]
    assert text_share(0, ResolvedConfig()) == 1.0
    assert text_share(2000, ResolvedConfig(unconditional_kimg=2)) == 1.0


def test_before_the_ramp_no_text_reaches_a_network(shard_folder):
    one = lone_trainer(shard_folder, unconditional_kimg=1, text_noise=0.5)
    inputs = one.inputs(next_batch(one), StepDraws(0, 8, 0, 0), "D", "augment fake", shows_real=True)
    assert not inputs.text.any() and not inputs.mismatched.any()
    one.position = 1000
    inputs = one.inputs(next_batch(one), StepDraws(0, 8, 0, 0), "D", "augment fake", shows_real=True)
    torch.testing.assert_close(inputs.text.norm(dim=1), torch.ones(8))
    assert one.step()["loss_mismatch"].isfinite()


def test_noise_is_another_for_d_and_g_and_the_same_again(shard_folder):
    one = lone_trainer(shard_folder, text_noise=0.5)
    batch, noise = next_batch(one), StepDraws(0, 8, 0, 0)
    of_d, of_g, again = (one.inputs(batch, noise, phase, "augment fake", True) for phase in ("D", "G", "D"))
    assert torch.equal(of_d.text, again.text) and torch.equal(of_d.mismatched, again.mismatched)
    assert not torch.equal(of_d.text, of_g.text)
    cosine = (of_d.text * batch.text).sum(dim=1)
    assert cosine.mean().item() == pytest.approx(1 / 1.25**0.5, abs=0.03)


def test_gs_loss_asks_for_its_own_caption(shard_folder):
    """The loss grows by the weight times the mean softplus of the margins."""
    losses = {}
    for weight in (0.0, 2.0):
        one = lone_trainer(shard_folder, g_mismatch_weight=weight, loss="nonsaturating", d_scales=1)
        loss, stats = one.generator_loss(next_batch(one), StepDraws(0, 8, 0, 0))
        losses[weight] = float(loss.detach()), float(stats.get("loss_g_mismatch", torch.zeros(())).detach())
    assert losses[0.0][1] == 0
    assert losses[2.0][1] > 0
    assert losses[2.0][0] - losses[0.0][0] == pytest.approx(2 * losses[2.0][1], rel=1e-4)


def test_mismatched_captions_are_read_for_g_alone_too(shard_folder):
    one = lone_trainer(shard_folder, mismatch_weight=0.0, g_mismatch_weight=1.0)
    assert next_batch(one).differs.any()
    none = lone_trainer(shard_folder, mismatch_weight=0.0)
    assert not next_batch(none).differs.any()


@pytest.mark.parametrize("options", [{"text_noise": -1}, {"ramp_kimg": -1}, {"g_mismatch_weight": float("inf")}])
def test_out_of_range(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ResolvedConfig(**options)
