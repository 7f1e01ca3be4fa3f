"""The matching head: its scores and loss, the captions it looks among, and the gate on G's share of it."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.running import lone_trainer, next_batch
from toolkit.config import TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.networks.losses import blind_match_loss, match_loss
from toolkit.networks.matching import MatchingHead, readable
from toolkit.networks.models import Discriminator, Generator, Look
from toolkit.training.match_gate import HALF_LIFE, RANGE, CaptionPool, MatchGate, held_out

ON = {"match_weight": 0.5, "g_match_weight": 0.5, "match_width": 8, "mismatch_weight": 0.25}


def test_scores_are_cosines_of_centred_captions_over_the_temperature():
    torch.manual_seed(0)
    head = MatchingHead(5, 6, 3)
    features, own, others = (
        torch.randn(2, 5),
        F.normalize(torch.randn(2, 6), dim=1),
        F.normalize(torch.randn(4, 6), dim=1),
    )
    scores = head(features, own, others)
    for i in range(2):
        image = features[i] @ head.image.weight.T + head.image.bias
        projected = [text * math.sqrt(6) @ head.text.weight.T + head.text.bias for text in [own[i], *others]]
        centre = sum(projected[1:]) / 4
        expected = [F.cosine_similarity(image, one - centre, dim=0) / 0.1 for one in projected]
        assert torch.allclose(scores[i], torch.stack(expected), atol=1e-5)


def test_what_all_captions_have_in_common_changes_no_score():
    torch.manual_seed(0)
    head = MatchingHead(5, 6, 3)
    features, own, others, common = torch.randn(2, 5), torch.randn(2, 6), torch.randn(4, 6), torch.randn(6)
    assert torch.allclose(head(features, own, others), head(features, own + common, others + common), atol=1e-4)


def test_each_depth_counts_alike_however_large_its_features():
    one, other = torch.randn(3, 4), torch.randn(3, 6)
    assert torch.allclose(readable([one, other]), readable([100 * one + 7, other]), atol=1e-3)
    assert readable([one, other]).shape == (3, 10)


def test_the_loss_is_the_cross_entropy_of_the_own_caption_among_those_that_are_wrong():
    scores = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    none, one = torch.tensor([[False] * 3]), torch.tensor([[True, False, False]])
    assert match_loss(scores, none).item() == pytest.approx(F.cross_entropy(scores, torch.tensor([0])).item())
    left = scores[:, [0, 2, 3]]
    assert match_loss(scores, one).item() == pytest.approx(F.cross_entropy(left, torch.tensor([0])).item())
    assert match_loss(scores, torch.tensor([[True] * 3])).item() == pytest.approx(0)


def test_a_blind_head_has_the_blind_loss():
    taken = torch.tensor([[False] * 3, [True, False, False]])
    assert torch.allclose(match_loss(torch.full((2, 4), 0.7), taken), blind_match_loss(taken))
    assert blind_match_loss(taken).tolist() == pytest.approx([math.log(4), math.log(3)])


def test_generated_images_are_read_by_the_same_head_as_real_ones(shard_folder):
    one = lone_trainer(shard_folder, **ON)
    batch = next_batch(one)
    D, text = one.D, batch.text
    images = torch.rand(8, 3, 16, 16)
    look = Look(images, text, caption=text, others=text[:3])
    (alone,) = D(look)
    together, plain = D(look, Look(images, text))
    assert torch.allclose(alone.match, together.match, atol=1e-5) and plain.match is None
    (exact,) = D(look._replace(penalised=True))
    assert torch.allclose(alone.match, exact.match, atol=1e-5)


def test_the_pool_has_every_caption_once_and_draws_by_the_step_alone(shard_folder):
    shards = ShardSet(shard_folder)
    pool = CaptionPool(shards, 0, torch.device("cpu"))
    assert len(pool.vectors) == shards.manifest.distinct_captions
    assert torch.unique(pool.vectors, dim=0).shape == pool.vectors.shape
    for vector, number in zip(pool.vectors, pool.numbers.tolist(), strict=True):
        assert (shards.read_texts(number).vectors == vector).all(dim=1).any()
    count = len(pool.vectors) - 1
    drawn, again, later = (pool.draw(count, "D", step, 0)[0] for step in (3, 3, 4))
    assert torch.equal(drawn, again) and not torch.equal(drawn, later)
    assert len(torch.unique(drawn, dim=0)) == count
    assert torch.equal(pool.draw(10**6, "D", 0)[0], pool.vectors)


def test_own_captions_and_near_synonyms_do_not_count(shard_folder):
    one = lone_trainer(shard_folder, **ON)
    batch = next_batch(one)
    inputs = one.inputs(batch, StepDraws(0, 8, 0, 0), "D", "augment fake", shows_real=True)
    cosines = batch.text @ one.captions.vectors.T
    assert inputs.taken.any(dim=1).all()  # the pool has every caption: each image's own is among them
    assert torch.equal(inputs.taken | (cosines < 0.999), torch.ones_like(inputs.taken))
    for row, number in enumerate(batch.numbers.tolist()):
        others = [k for k, of in enumerate(one.captions.numbers.tolist()) if of == number]
        assert inputs.taken[row, others].all()


def test_the_gates_means_forget_by_half_in_a_thousand_images():
    gate = MatchGate(HALF_LIFE // 2, torch.device("cpu"))  # two batches are a half-life
    keep = 0.5**0.5
    for loss in (3.0, 1.0, 2.0):
        gate.observe(False, torch.tensor(loss), torch.tensor(1.0))
    weights = [keep**2, keep, 1]
    expected = sum(w * v for w, v in zip(weights, (3.0, 1.0, 2.0), strict=True)) / sum(weights)
    assert gate.means()[0].item() == pytest.approx(expected) and gate.value().item() == 0  # no generated ones yet
    gate.observe(True, torch.tensor(expected + RANGE / 2), torch.tensor(1.0))
    assert gate.value().item() == pytest.approx(0.5, abs=1e-4)
    for worse, value in ((9.0, 1.0), (0.0, 0.0)):
        other = MatchGate(8, torch.device("cpu"))
        other.restore(gate.state())
        other.observe(True, torch.tensor(1000 * worse), torch.tensor(1.0))
        assert other.value().item() == value


def test_the_gate_counts_images_and_leaves_out_what_is_not_finite():
    gate = MatchGate(8, torch.device("cpu"))
    gate.observe(False, torch.tensor(0.0), torch.tensor(0.0))  # none of this batch is measured
    assert gate.value().item() == 0
    gate.observe(False, torch.tensor(0.5), torch.tensor(0.25))  # two of eight, 2.0 each
    assert gate.means()[0].item() == pytest.approx(2.0)
    gate.observe(False, torch.tensor(float("inf")), torch.tensor(1.0))
    assert gate.means()[0].item() == pytest.approx(2.0)


def test_a_tenth_of_the_images_is_held_out_the_same_in_every_epoch():
    found = held_out(0, list(range(4000)))
    assert 0.08 < found.mean().item() < 0.12
    assert torch.equal(found[100:200], held_out(0, list(range(100, 200)))) and not torch.equal(
        found, held_out(1, list(range(4000)))
    )


@pytest.mark.parametrize("opened", [0.0, 1.0])
def test_g_follows_the_captions_as_far_as_the_gate_is_open(shard_folder, opened):
    """With an adversarial loss without gradient, G's gradient is that of the matching loss alone."""
    one = lone_trainer(shard_folder, **ON)
    inputs = one.inputs(next_batch(one), StepDraws(0, 8, 0, 0), "G", "augment for G", one.objective.shows_real)
    inputs = inputs._replace(gate=torch.tensor(opened))
    loss, stats = one.objective.generator(inputs)
    without, _ = one.objective.generator(inputs._replace(gate=torch.tensor(0.0)))
    assert (loss - without).item() == pytest.approx(0.5 * opened * stats["loss_g_match"].item(), abs=1e-5)


def test_held_out_images_teach_the_head_nothing(shard_folder):
    one = lone_trainer(shard_folder, **ON)
    inputs = one.inputs(next_batch(one), StepDraws(0, 8, 0, 0), "D", "augment fake", shows_real=True)
    apart = torch.tensor([1.0] * 8)
    loss, stats = one.objective.discriminator(inputs._replace(held_out=apart), 0.0, 0.0, None)
    loss.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in one.D.match.parameters())
    assert stats["match_measured"].item() == 1
    assert stats["match_reference"].item() == pytest.approx(stats["loss_match"].item())


@pytest.mark.parametrize("options", [{"match_weight": 0.0}, {"match_width": 0}])
def test_a_matching_loss_without_its_head_or_without_ds_is_one_line(shard_folder, options):
    with pytest.raises(UserError, match="match_weight"):
        lone_trainer(shard_folder, **ON | options)


def test_the_head_is_not_built_where_no_loss_uses_it(shard_folder):
    assert lone_trainer(shard_folder, **ON | {"match_weight": 0.0, "g_match_weight": 0.0}).D.match is None


def test_text_features_have_mean_square_one_whatever_the_layers_give():
    config = TrainConfig(resolution=16, base_ch=4, z_dim=8, cond_dim=24).resolved()
    G = Generator(config)
    text = F.normalize(torch.randn(4, 24), dim=1)
    features = G._text_features(text)
    assert features.square().mean(dim=1).tolist() == pytest.approx([1.0] * 4, rel=1e-4)
    G.text_norm = False
    assert G._text_features(text).square().mean() < 0.1


def test_a_discriminator_without_the_head_gives_no_scores():
    config = TrainConfig(resolution=16, base_ch=4, z_dim=8, cond_dim=24, match_weight=0, g_match_weight=0).resolved()
    text = F.normalize(torch.randn(4, 24), dim=1)
    (verdict,) = Discriminator(config)(Look(torch.rand(4, 3, 16, 16), text, caption=text, others=text))
    assert verdict.match is None
