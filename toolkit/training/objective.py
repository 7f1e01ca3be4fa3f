"""What the two networks minimise, as functions of tensors alone: no draws, files or processes. The trainer feeds it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolkit.config import ResolvedConfig
from toolkit.data.images import to_float
from toolkit.networks import diffaug, losses
from toolkit.networks.models import Look, Verdict
from toolkit.training import compiling

Scalars = dict[str, Tensor]


class Inputs(NamedTuple):
    """A micro-batch of N images and its random numbers, on the device."""

    images: Tensor
    """uint8 [N, 3, R, R]."""
    text: Tensor
    """[N, E], as G and D shall see it: unit length but for the ramp, and so `mismatched`."""
    mismatched: Tensor
    differs: Tensor
    """[N], 1 where `mismatched` really differs."""
    caption: Tensor
    """[N, E], unit length: the caption's vector without noise and ramp, for CLIP guidance."""
    z: Tensor
    """[N, z_dim], standard normal."""
    for_real: diffaug.Numbers | None
    """None where G's phase has no use for real images."""
    for_fake: diffaug.Numbers
    others: Tensor | None = None
    """[K, E], unit length: captions among which an image's own is to be found; None where no loss asks for it."""
    taken: Tensor | None = None
    """bool [N, K]: which of them would be right too."""
    held_out: Tensor | None = None
    """[N], 1 for real images on which the matching loss is measured and from which D does not learn it; None: it is
    measured on all and all teach."""
    gate: Tensor | None = None
    """Scalar in [0, 1]: how much of G's matching loss counts now."""


class Objective:
    """Both losses of the networks as prepared by Accelerate."""

    def __init__(
        self,
        config: ResolvedConfig,
        G: nn.Module,
        D: nn.Module,
        perceptual: nn.Module | None,
        guidance: nn.Module | None = None,
    ) -> None:
        self.config, self.G, self.D, self.perceptual, self.guidance = config, G, D, perceptual, guidance
        self.shows_real = config.feature_matching > 0 or config.loss == "relativistic"
        """Whether G's phase looks at real images too."""
        self.split = config.column_split
        self.shown: Callable[[Inputs], tuple[Tensor, Tensor]] = self._shown
        self.judged: Callable[..., tuple[Tensor, Scalars]] = self._judged
        self.generator: Callable[[Inputs], tuple[Tensor, Scalars]] = self._generator

    def compile(self, mode: compiling.Mode, backend: str = "inductor") -> None:
        """Run the three parts as compiled by torch from now on, each if it can be."""
        compiling.prepare()
        self.shown = compiling.Compiled(self._shown, mode, backend, first=True, loss=False)
        self.judged = compiling.Compiled(self._judged, mode, backend, first=False, loss=True)
        self.generator = compiling.Compiled(self._generator, mode, backend, first=True, loss=True)

    def discriminator(
        self, inputs: Inputs, r1_scale: float, r2_scale: float, anchors: Tensor | None, heads_scale: float = 0.0
    ) -> tuple[Tensor, Scalars]:
        """Adversarial and mismatched-caption terms on augmented images, and the penalties in the same graph.

        `r1_scale` and `r2_scale` are what R1 and R2 are multiplied by, `heads_scale` what R1 of the frozen heads is, 0
        for none; `anchors` [2] are LeCam's.
        """
        real, fake = self.shown(inputs)
        real.requires_grad_(r1_scale > 0)
        fake.requires_grad_(r2_scale > 0)
        return self.judged(real, fake, inputs, r1_scale, r2_scale, anchors, heads_scale)

    @torch.no_grad()
    def _shown(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Real and generated images as D sees them: augmented, both in one go."""
        assert inputs.for_real is not None  # D's phase always has real images
        numbers = inputs.for_real.joined(inputs.for_fake)
        both = torch.cat([to_float(inputs.images), self.G(inputs.z, inputs.text)])
        real, fake = self.augment(both, numbers).chunk(2)
        return real, fake

    def _judged(
        self,
        real: Tensor,
        fake: Tensor,
        inputs: Inputs,
        r1_scale: float,
        r2_scale: float,
        anchors: Tensor | None,
        heads_scale: float,
    ) -> tuple[Tensor, Scalars]:
        """D's loss on these images."""
        config = self.config
        on_real, on_fake = self.D(
            Look(
                real,
                inputs.text,
                inputs.mismatched,
                r1_scale > 0,
                caption=inputs.caption,
                others=inputs.others,
                heads_penalised=heads_scale > 0,
            ),
            Look(fake, inputs.text, penalised=r2_scale > 0, heads_penalised=heads_scale > 0),
        )
        adversarial = losses.discriminator_loss(on_real.logits, on_fake.logits, config.loss, self.split)
        mismatch = losses.mismatch_loss(on_real.logits, on_real.mismatched, config.loss, self.split) * inputs.differs
        loss = (adversarial + config.mismatch_weight * mismatch).mean()
        stats = _statistics(adversarial, mismatch, on_real, on_fake, config.loss)
        if on_real.match is not None:
            term, found = _matching(on_real.match, inputs)  # before D learns from these images
            stats |= found
            loss = loss + config.match_weight * term
        if r1_scale:
            stats["r1"] = losses.gradient_penalty(self.trained(on_real.logits), real).mean()
            loss = loss + r1_scale * stats["r1"]
        if r2_scale:
            stats["r2"] = losses.gradient_penalty(self.trained(on_fake.logits), fake).mean()
            loss = loss + r2_scale * stats["r2"]
        if heads_scale:
            stats["r1_frozen"] = (on_real.heads_penalty + on_fake.heads_penalty).mean()
            loss = loss + heads_scale * stats["r1_frozen"]
        if anchors is not None:
            stats["lecam"] = losses.lecam_penalty(on_real.logits, on_fake.logits, tuple(anchors)).mean()
            loss = loss + config.lecam * stats["lecam"]
        return loss, stats

    def _generator(self, inputs: Inputs) -> tuple[Tensor, Scalars]:
        """Adversarial term on augmented images, and the options: mismatched captions, the caption among others, feature
        matching, perceptual distance, CLIP guidance."""
        config, matching = self.config, self.config.feature_matching > 0
        fake = self.G(inputs.z, inputs.text)
        mismatched = inputs.mismatched if config.g_mismatch_weight else None
        others = inputs.others if config.g_match_weight else None
        seen = self.augment(fake, inputs.for_fake)
        look = Look(seen, inputs.text, mismatched, features=matching, caption=inputs.caption, others=others)
        (on_fake,) = self.D(look)
        on_real = None
        if self.shows_real:
            assert inputs.for_real is not None  # as `shows_real` asks for
            with torch.no_grad():
                real = self.augment(to_float(inputs.images), inputs.for_real)
                (on_real,) = self.D(Look(real, inputs.text, features=matching))
        loss = losses.generator_loss(on_fake.logits, on_real and on_real.logits, config.loss, self.split).mean()
        stats = {"loss_g": loss}
        if mismatched is not None:
            margins = losses.mismatch_loss(on_fake.logits, on_fake.mismatched, config.loss, self.split) * inputs.differs
            stats["loss_g_mismatch"] = margins.mean()
            loss = loss + config.g_mismatch_weight * stats["loss_g_mismatch"]
        if on_fake.match is not None:
            assert inputs.taken is not None and inputs.gate is not None  # asked for together
            stats["loss_g_match"] = losses.match_loss(on_fake.match, inputs.taken).mean()
            loss = loss + config.g_match_weight * inputs.gate * stats["loss_g_match"]
        if matching:
            assert on_real is not None  # matching shows real images
            stats["feature_matching"] = losses.feature_matching(on_real.features, on_fake.features)
            loss = loss + config.feature_matching * stats["feature_matching"]
        if self.perceptual:
            stats["perceptual"] = self.perceptual(fake, to_float(inputs.images)).mean()
            loss = loss + config.perceptual * stats["perceptual"]
        if self.guidance:
            stats["clip_distance"] = self.guidance(fake, inputs.caption).mean()
            loss = loss + config.clip_guidance * stats["clip_distance"]
        return loss, stats

    def trained(self, logits: Tensor) -> Tensor:
        """[N, columns] -> [N, d_scales]: without those of the frozen features, which no penalty differentiates."""
        return logits[:, : self.config.d_scales] if self.config.frozen_backbone else logits

    def augment(self, images: Tensor, numbers: diffaug.Numbers) -> Tensor:
        return diffaug.augment(images, self.config.diffaug_names, *numbers)


def _matching(scores: Tensor, inputs: Inputs) -> tuple[Tensor, Scalars]:
    """D's matching loss, and what is measured of it, before D learns from these images.

    `match_reference` and `match_measured` are sums over the images it is measured on, and their number, both over N.
    """
    assert inputs.taken is not None
    each = losses.match_loss(scores, inputs.taken)
    measured = torch.ones_like(each) if inputs.held_out is None else inputs.held_out.to(each.dtype)
    term = each.mean() if inputs.held_out is None else (each * (1 - measured)).mean()
    now = each.detach()
    return term, {
        "loss_match": now.mean(),
        "match_blind": losses.blind_match_loss(inputs.taken).mean(),
        "match_reference": (now * measured).mean(),
        "match_measured": measured.mean(),
    }


def _statistics(adversarial: Tensor, mismatch: Tensor, on_real: Verdict, on_fake: Verdict, loss: str) -> Scalars:
    """Means of the terms, of D's logits, and of the signs of D's verdicts.

    The relativistic loss leaves the logits without a zero: its verdict is that of a pair, one minus the other.
    """
    assert on_real.mismatched is not None  # D's phase always asks about other captions too
    logits = torch.stack([on_real.logits, on_fake.logits, on_real.mismatched]).detach()
    verdicts = logits[:2] - logits[:2].flip(0) if loss == "relativistic" else logits[:2]
    values = torch.cat([logits, verdicts.sign()]).mean(dim=(1, 2))
    terms = torch.stack([adversarial, mismatch]).detach().mean(dim=1)
    names = ("loss_d", "loss_mismatch", "logit_real", "logit_fake", "logit_mismatched", "real_sign", "fake_sign")
    return dict(zip(names, torch.cat([terms, values]).unbind(), strict=True))
