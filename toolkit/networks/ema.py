"""Exponential moving averages of the generator: modules of their own, never swapped into the one in training."""

import copy

import torch
from torch import nn


class EMA:
    """shadow <- d * shadow + (1 - d) * G after each real G step; buffers (batch-norm statistics) likewise.

    d = `decay`, or 0.5^(batch / half-life) with `half_life` in images that G has drawn; with `ramp` at most
    (1 + n) / (10 + n) at the n-th update. Before `start` updates the shadow is a copy of G.

    With `rampup` the half-life is at most `rampup` times the images drawn, those before `start` included: d is at
    most 0.5^(1 / (rampup n)) at the n-th update, whatever the batch, and 0 at the first (Karras et al. 2020, arXiv
    2006.06676, their code's ema_rampup, 0.05).
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        start: int = 0,
        ramp: bool = False,
        half_life: float | None = None,
        batch: int = 1,
        rampup: float = 0.0,
    ) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.full_decay = decay if half_life is None else 0.5 ** (batch / half_life)
        self.start, self.ramp, self.rampup = start, ramp, rampup
        self.updates = 0

    def decay(self) -> float:
        """The decay of the next update; 0 before the start."""
        if self.updates < self.start:
            return 0.0
        counted, decay = self.updates - self.start, self.full_decay
        if self.ramp:
            decay = min(decay, (1 + counted) / (10 + counted))
        if self.rampup:
            decay = min(decay, 0.5 ** (1 / (self.rampup * self.updates)) if self.updates else 0.0)
        return decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the shadow towards `network` (unwrapped, same architecture)."""
        mine, theirs = self.module.state_dict(), network.state_dict()
        floating = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floating], [theirs[name] for name in floating], 1 - self.decay())
        for name in mine.keys() - set(floating):  # counters
            mine[name].copy_(theirs[name])
        self.updates += 1
