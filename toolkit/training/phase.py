"""One network's half of a training step: scaled backward, unscale, clip, step, for this network's optimizer only.

The optimizers are not prepared by Accelerate: its wrapper unscales every optimizer when one is clipped, updates the
scale once per optimizer, and cannot see that a fused optimizer skipped. Ten lines of our own say exactly what happens.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn


class StepResult(NamedTuple):
    gradient_norm: Tensor
    """L2 norm before clipping, scalar on the device."""
    skipped: bool
    """True if fp16 gradients overflowed and nothing was updated."""


class Phase:
    """`network` as prepared by Accelerate, with its fused Adam; gradients are summed over backward calls until `step`.

    `broken` (float scalar on the device, shared by the phases of a step) becomes 1 at the first gradient that is not
    finite, and from then on no phase updates anything: the weights stay those of the last good step until somebody
    reads `broken`, which would wait for the GPU and so is not done every step. Gradients are averaged over the
    processes before, so one process's NaN stops all of them at the same step. With a scaler (fp16) overflows are
    ordinary: the step is skipped, the scale halved, and `broken` left alone.
    """

    def __init__(
        self, accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, clip: float, broken: Tensor
    ) -> None:
        self.accelerator, self.network, self.optimizer = accelerator, network, optimizer
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.clip, self.broken = clip, broken

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward of a micro-batch: processes exchange gradients at the last one only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)

    def backward(self, loss: Tensor) -> None:
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def step(self) -> StepResult:
        """Unscale (this optimizer only), clip, step, forget the gradients."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or float("inf"))
        skipped = False
        if scaler is None:
            self.broken.copy_(torch.maximum(self.broken, (~norm.isfinite()).float()))
            # Read by the fused kernel itself (torch's grad scaler sets it too): nothing moves where it is 1.
            self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
            skipped = not bool(norm.isfinite())  # the one wait for the GPU: EMA and counters must know
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(norm.detach(), skipped)
