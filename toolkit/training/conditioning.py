"""How the text reaches both networks in training: from when on, how exactly, and what a wrong one costs."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import UserError, check


@dataclass(frozen=True)
class ConditioningOptions:
    """Text in training"""

    match_weight: float = 0.5
    """Weight in D's loss of finding a real image's caption among others, with a head of its own (match_width); 0 =
    off."""
    g_match_weight: float = 0.5
    """Weight in G's loss of the same on generated images. It counts only while their captions are found less well than
    those of real images: beyond that G would draw caricatures. 0 = off."""
    match_captions: int = 64
    """Among how many other captions, drawn anew for each step. Those as near as mismatch_cosine do not count, nor do
    the image's own."""
    mismatch_weight: float = 0.5
    """Weight in D's loss of telling a real image's caption from another image's; 0 = off."""
    mismatch_cosine: float = 0.999
    """Another image's caption counts as different only below this cosine to all of this image's, above 0 and at
    most 1: near-synonyms are no mismatch. Where none is found the image takes no part in the mismatch loss."""
    g_mismatch_weight: float = 0.0
    """Weight in G's loss of the same on generated images: each must fit its own caption better; 0 = off."""
    text_noise: float = 0.0
    """Length of a random vector added to each text vector (of length 1) that G and D see, before it is brought back to
    length 1; 0 = off. Few distinct captions become many, and vectors near a caption mean the same."""
    unconditional_kimg: float = 0.0
    """Thousands of images at the start for which both networks see no text: with few images G first learns what
    they have in common. Samples and scores of that time are of no use."""
    ramp_kimg: float = 0.0
    """Thousands of images after these over which the text comes in, from nothing to its whole length."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(1 <= self.match_captions <= 4096, "match_captions", self.match_captions, "from 1 to 4096")
        if self.g_match_weight > 0 and self.match_weight == 0:
            raise UserError(
                f"g_match_weight {self.g_match_weight:g} with match_weight 0: D has to learn what G shall follow; pass "
                "--match_weight 0.5, or --g_match_weight 0"
            )
        for name in (
            "match_weight",
            "g_match_weight",
            "mismatch_weight",
            "g_mismatch_weight",
            "text_noise",
            "unconditional_kimg",
            "ramp_kimg",
        ):
            check(0 <= getattr(self, name) < 1e9, name, getattr(self, name), "a finite number of at least 0")
        check(0 < self.mismatch_cosine <= 1, "mismatch_cosine", self.mismatch_cosine, "above 0 and at most 1")

    @property
    def mismatches(self) -> bool:
        """Whether any loss asks for another image's caption."""
        return self.mismatch_weight > 0 or self.g_mismatch_weight > 0


def perturbed(text: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Unit vectors [N, E] near unit vectors [N, E]: (t + strength e/|e|) over its length, e [N, E] standard normal.

    LAFITE's fixed perturbation (Zhou et al. 2022, arXiv 2111.13792, eq. 2) for |t| = 1; the conditioning augmentation
    of StackGAN (Zhang et al. 2017, arXiv 1612.03242) without anything to learn.
    """
    return F.normalize(text + strength * F.normalize(noise, dim=1), dim=1)


def text_share(images_seen: int, options: ConditioningOptions) -> float:
    """What text vectors are multiplied by: 0 until unconditional_kimg, then on a straight line to 1 over ramp_kimg.

    lambda_t of the transition from unconditional to conditional training (Shahbazi et al. 2022, arXiv 2201.06578,
    sect. 4). There it also weighs D's conditional term; here D's projection of the text fades in by itself with it.
    """
    into = images_seen - 1000 * options.unconditional_kimg
    if into < 0:
        return 0.0
    return min(1.0, into / (1000 * options.ramp_kimg)) if options.ramp_kimg else 1.0
