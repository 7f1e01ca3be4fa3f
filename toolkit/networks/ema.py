"""Exponential moving average of the generator: a module of its own, never swapped into the one in training."""

import copy

import torch
from torch import nn


class EMA:
    """shadow <- d * shadow + (1 - d) * G after each real G step; buffers (batch-norm statistics) likewise.

    d = `decay`, or 0.5^(batch / half-life) with `half_life` in pictures; with `ramp` at most (1 + n) / (10 + n) at the
    n-th update. Before `start` updates the shadow is a copy of G.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        start: int = 0,
        ramp: bool = False,
        half_life: float | None = None,
        batch: int = 1,
    ) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.full_decay = decay if half_life is None else 0.5 ** (batch / half_life)
        self.start, self.ramp = start, ramp
        self.updates = 0

    def decay(self) -> float:
        """The decay of the next update; 0 before the start."""
        if self.updates < self.start:
            return 0.0
        counted = self.updates - self.start
        return min(self.full_decay, (1 + counted) / (10 + counted)) if self.ramp else self.full_decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the shadow towards `network` (unwrapped, same architecture)."""
        mine, theirs = self.module.state_dict(), network.state_dict()
        floating = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floating], [theirs[name] for name in floating], 1 - self.decay())
        for name in mine.keys() - set(floating):  # counters
            mine[name].copy_(theirs[name])
        self.updates += 1
