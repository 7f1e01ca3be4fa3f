"""The heads on a frozen backbone: their size, their share of the loss, their learning rates and their R1."""

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tests import tiny_clip
from tests.running import lone_trainer, next_batch
from toolkit.config import ResolvedConfig
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.networks import losses
from toolkit.networks.architecture import EARLIER, ModelConfig, as_made
from toolkit.networks.backbones import load_backbone
from toolkit.networks.frozen_features import heads_penalty
from toolkit.networks.models import Discriminator, Look, count_parameters
from toolkit.training.trainer import parameter_groups

BACKBONE = f"open_clip/{tiny_clip.NAME}"
SMALL = {"resolution": 16, "base_ch": 4, "cond_dim": 24, "z_dim": 8, "frozen_backbone": BACKBONE, "match_width": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_clip.save_weights(tmp_path_factory.mktemp("clip"))[0]


def discriminator(weights: Path, **options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(ModelConfig(**SMALL | options), load_backbone(BACKBONE, weights))


def look(count: int = 4, **options) -> Look:
    drawn = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, generator=drawn) * 2 - 1
    text = nn.functional.normalize(torch.randn(count, 24, generator=drawn), dim=1)
    return Look(images, text, **options)


def penalty_of(D: Discriminator, asked: Look) -> Tensor:
    return D(asked._replace(heads_penalised=True))[0].heads_penalty


def test_a_file_without_these_options_has_the_heads_it_was_made_with(weights):
    old = ModelConfig(**as_made(SMALL))
    assert (old.frozen_width, old.frozen_kernel, old.frozen_std) == (256, 3, False)
    D = Discriminator(old, load_backbone(BACKBONE, weights))
    of_head = 32 * 256 + 256 + 256 * 256 * 9 + 256 + 256 + 1 + 24 * 256 + 256 + 256 * 256
    assert count_parameters(D.frozen) == of_head
    bare = {name: value for name, value in SMALL.items() if name != "frozen_backbone"}
    assert ModelConfig(**as_made(bare)) == ModelConfig(**{**EARLIER, **bare})


def test_the_penalty_is_that_of_finite_differences_of_the_heads(weights):
    """|gradient|^2 is the sum of squared slopes along an orthonormal basis: here 32 channels at 4 positions."""
    D = discriminator(weights, d_scales=0, frozen_std=False).double()
    asked = look(2)._replace(images=look(2).images.double(), text=look(2).text.double())
    found = penalty_of(D, asked)
    (maps,) = D.frozen(asked.images, asked.text[None])[1]
    head, step = D.frozen.heads[0], 1e-5
    steps = step * torch.eye(maps[0].numel(), dtype=torch.float64).view(-1, *maps[0].shape)
    for i in range(2):
        text = asked.text[i].expand(1, len(steps), -1)
        up, down = (head(maps[i] + sign * steps, text, [len(steps)])[0] for sign in (1, -1))
        expected = ((up - down) / (2 * step)).square().sum() / 2
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-9)


def test_the_penalty_does_not_depend_on_the_split_of_the_batch_and_reaches_the_heads_alone(weights):
    D = discriminator(weights, frozen_std=False)
    whole = penalty_of(D, look())
    images, text = look().images, look().text
    parts = [penalty_of(D, Look(images[i : i + 2], text[i : i + 2])) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.cat(parts))
    whole.sum().backward()
    assert not any(weight.grad is not None and weight.grad.any() for weight in D.scales.parameters())
    assert D.frozen.heads[0].narrow.weight.grad.abs().sum() > 0


def test_under_autocast_the_backbone_is_in_half_precision_and_the_penalised_heads_are_not(weights):
    D = discriminator(weights)
    images, texts = look().images, look().text[None]
    D.norms.normalise()
    exact = D.frozen(images, texts)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, maps, coarse = D.frozen(images, texts, penalised=True)
    assert 1e-4 < (maps[0] - exact[0]).abs().max() < 0.5  # rounded by the backbone
    assert coarse.dtype == maps[0].dtype == torch.float32
    expected = heads_penalty(D.frozen.by_heads(maps, texts, [4]), maps)
    torch.testing.assert_close(coarse, expected)


def test_asking_for_the_penalty_changes_no_logit(weights):
    D = discriminator(weights)
    plain, penalised = D(look())[0], D(look(heads_penalised=True))[0]
    assert plain.heads_penalty is None
    assert torch.equal(plain.logits, penalised.logits)


def test_heads_see_how_far_images_of_one_look_differ(weights):
    """Equal images are judged otherwise beside others, and never by those of another look."""
    D = discriminator(weights, minibatch_std=False)
    alone, varied = look(4), look(4)._replace(images=look(4).images[:1].expand(4, -1, -1, -1))
    apart = [D(one)[0].logits for one in (alone, varied)]
    together = [verdict.logits for verdict in D(alone, varied)]
    for one, other in zip(apart, together, strict=True):
        torch.testing.assert_close(one, other)
    same_caption = varied._replace(text=alone.text)
    own, of_head = (D(same_caption)[0].logits[0] - D(alone)[0].logits[0]).abs()
    assert own < 1e-6 and of_head > 1e-4


@pytest.mark.parametrize("loss", ["hinge", "nonsaturating", "relativistic"])
def test_the_weight_is_of_the_frozen_columns_mean(loss):
    real, fake, other = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    for of in (
        lambda columns, split=None: losses.discriminator_loss(real[:, columns], fake[:, columns], loss, split),
        lambda columns, split=None: losses.generator_loss(fake[:, columns], real[:, columns], loss, split),
        lambda columns, split=None: losses.mismatch_loss(real[:, columns], other[:, columns], loss, split),
    ):
        expected = 0.7 * of(slice(0, 2)) + 0.3 * of(slice(2, 6))
        torch.testing.assert_close(of(slice(0, 6), (2, 0.3)), expected)
        torch.testing.assert_close(of(slice(0, 6), (2, 4 / 6)), of(slice(0, 6)))  # as much as there are columns


def test_when_columns_are_split():
    config = ResolvedConfig(frozen_backbone=BACKBONE, d_scales=2)
    assert config.column_split == (2, 0.5)
    assert dataclasses.replace(config, frozen_weight="even").column_split is None
    assert dataclasses.replace(config, frozen_backbone="").column_split is None


def test_groups_keep_the_networks_order_and_have_their_factors(weights):
    D = discriminator(weights)
    options = ResolvedConfig(frozen_lr=0.25, frozen_text_lr=0.5)
    groups = parameter_groups(D, 0.1, options)
    assert [group["factor"] for group in groups] == [1.0, 0.25, 0.5]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.025, 0.05])
    flat = [parameter for group in groups for parameter in group["params"]]
    assert all(a is b for a, b in zip(flat, D.parameters(), strict=True))
    assert {id(weight) for weight in groups[2]["params"]} == {id(w) for w in D.frozen.heads[0].text.parameters()}
    even = ResolvedConfig(frozen_lr=1, frozen_text_lr=1)
    assert len(parameter_groups(D, 0.1, even)) == 1  # as in old checkpoints
    assert len(parameter_groups(Discriminator(ModelConfig(resolution=16, base_ch=4)), 0.1, options)) == 1


def test_rollbacks_keep_the_factors_and_the_log_says_ds_own_rate(shard_folder, weights):
    one = lone_trainer(shard_folder, frozen_backbone=BACKBONE, frozen_weights=str(weights), rollback_lr=0.5, lr_d=0.01)
    one.rollbacks = 2
    one.apply_rollbacks()
    rates = [group["lr"] for group in one.phases["D"].optimizer.param_groups]
    assert rates == pytest.approx([0.0025, 0.00025])
    assert one.settings()["lr_d"] == pytest.approx(0.0025)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_loss_holds_the_heads_penalty_without_the_interval_and_with_rollbacks(shard_folder, weights):
    how = {"frozen_backbone": BACKBONE, "frozen_weights": str(weights), "r1_penalty": 0, "r2_penalty": 0}
    found = {}
    for weight, rollbacks in ((0.0, 0), (10.0, 0), (10.0, 1)):
        one = lone_trainer(shard_folder, r1_interval=4, rollback_r1=2.0, d_scales=1, frozen_r1=weight, **how)
        batch = next_batch(one)
        one.rollbacks = rollbacks
        loss, stats = one.discriminator_loss(batch, StepDraws(0, 8, 0, 0))
        found[weight, rollbacks] = loss.item(), stats["r1_frozen"].item() if "r1_frozen" in stats else 0.0
        one.step_number = 1
        assert "r1_frozen" not in one.discriminator_loss(batch, StepDraws(0, 8, 1, 0))[1]
        AcceleratorState._reset_state(reset_partial_state=True)
    assert found[0.0, 0][1] == 0 and found[10.0, 0][1] > 0
    for rollbacks in (0, 1):
        loss, penalty = found[10.0, rollbacks]
        assert loss - found[0.0, 0][0] == pytest.approx(10 * 2**rollbacks * penalty, rel=1e-3)


@pytest.mark.parametrize("options", [
    {"frozen_width": 0}, {"frozen_kernel": 2}, {"frozen_weight": 1.0}, {"frozen_lr": 0}, {"frozen_text_lr": -1},
    {"frozen_r1": -1},
])  # fmt: skip
def test_out_of_range(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ResolvedConfig(**options)
