"""What training may adjust by itself while it runs, each on its own flag: augmentation, D steps, R1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import check


@dataclass(frozen=True)
class AdaptiveOptions:
    """What adapts during training"""

    adaptive_augment: bool = False
    """Raise or lower the probability of augmentation, from 0, so that D's verdict on real images meets ada_target."""
    ada_target: float = 0.6
    """Target of the mean sign of D's logits on real images: above it D overfits. With the relativistic loss, of the
    differences between the logits of its pairs."""
    ada_kimg: float = 500.0
    """Thousands of images for the augmentation probability to go from 0 to 1 at most."""
    adaptive_d_steps: bool = False
    """1 or 2 D steps per G step by D's relative strength; d_steps is where it starts."""
    adaptive_r1: bool = False
    """Scale R1 and R2 between 1/10 and 10 times r1_penalty by the same signal as adaptive_augment."""

    @property
    def adapts(self) -> bool:
        return self.adaptive_augment or self.adaptive_d_steps or self.adaptive_r1

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(-1 < self.ada_target < 1, "ada_target", self.ada_target, "between -1 and 1")
        check(0 < self.ada_kimg < 1e9, "ada_kimg", self.ada_kimg, "a number above 0")


class Adaptive:
    """The adjustable quantities of a run and the statistics they follow. Every process holds the same values.

    r = E[sign D(x)] over real images measures how far D overfits (Karras et al. 2020, arXiv 2006.06676, section 3.1,
    r_t): 0 means D tells nothing about them, 1 that it is certain of all. Every 16 steps
    - augmentation p and log R1 scale move a fixed step up where r > ada_target, else down (their sect. 3.1);
    - D steps: with s = (E[sign D(x)] - E[sign D(G(z))]) / 2, D's margin over chance, 2 below 0.2 and 1 above 0.8.
    With the relativistic loss, which compares and gives D's logits no zero, D(x) stands for D(x) - D(G(z)).
    """

    EVERY = 16
    LECAM_DECAY = 0.99
    """Of the running means of D's logits (Tseng et al. 2021, arXiv 2104.03310)."""

    def __init__(self, options: AdaptiveOptions, d_steps: int, augment_p: float, batch: int) -> None:
        self.options, self.batch = options, batch
        self.augment_p = 0.0 if options.adaptive_augment else augment_p
        self.r1_scale, self.d_steps = 1.0, d_steps
        self.anchors = torch.zeros(2)
        """LeCam's running means of D's logits on real and on generated images."""
        self._signs: list[Tensor] = []

    def observe(self, logits: Tensor, signs: Tensor) -> None:
        """One D step's mean logits, and means of their signs, [real, fake] each, over all processes.

        Tensors are read every 16th step only: reading them waits for the GPU.
        """
        self.anchors = torch.lerp(self.anchors.to(logits), logits, 1 - self.LECAM_DECAY)
        if self.options.adapts:
            self._signs.append(signs)
            if len(self._signs) >= self.EVERY:
                self._adapt()
                self._signs.clear()

    def _adapt(self) -> None:
        real, fake = torch.stack(self._signs).double().mean(dim=0).tolist()
        options, share = self.options, self.batch * self.EVERY / (self.options.ada_kimg * 1000)
        direction = (real > options.ada_target) - (real < options.ada_target)
        if options.adaptive_augment:
            self.augment_p = min(1.0, max(0.0, self.augment_p + direction * share))
        if options.adaptive_r1:
            self.r1_scale = min(10.0, max(0.1, self.r1_scale * 10 ** (direction * share)))
        if options.adaptive_d_steps:
            margin = (real - fake) / 2
            self.d_steps = 2 if margin < 0.2 else 1 if margin > 0.8 else self.d_steps

    def state(self) -> dict:
        """JSON for the checkpoint."""
        return {
            "augment_p": self.augment_p, "r1_scale": self.r1_scale, "d_steps": self.d_steps,
            "anchors": self.anchors.tolist(), "signs": [pair.tolist() for pair in self._signs],
        }  # fmt: skip

    def restore(self, state: dict, device: torch.device, new_d_steps: bool = False) -> None:
        """What no longer adapts takes the config's value; d_steps may also have been lowered by the monitor."""
        options = self.options
        if options.adaptive_augment:
            self.augment_p = state["augment_p"]
        if options.adaptive_r1:
            self.r1_scale = state["r1_scale"]
        if options.adaptive_d_steps or not new_d_steps:
            self.d_steps = state["d_steps"]
        self.anchors = torch.tensor(state["anchors"], device=device)
        self._signs = [torch.tensor(pair, device=device) for pair in state["signs"]] if self.options.adapts else []
