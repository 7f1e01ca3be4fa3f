"""torch.compile for the parts of a training step, with a way back.

R1 differentiates D inside the compiled function and the optimizer's step differentiates it again outside: that works if
both are in one graph and the images come from outside (`Objective.judged`). A part that torch cannot compile runs
as it is from then on, with one line to say so.
"""

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

Mode = Literal["no", "default", "reduce-overhead"]


def prepare() -> None:
    """Settings of the whole process that compiled parts need."""
    options = torch._dynamo.config
    if hasattr(options, "trace_autograd_ops"):  # private; torch 2.11 to 2.15 have it, and R1 needs it
        options.trace_autograd_ops = True
    options.optimize_ddp = False  # DDP's own splitting fails with more than one bucket


class Compiled:
    """`function`, compiled at its first call for each kind of arguments. Called as the function is.

    `first`: a loss begins with it. `loss`: it returns a loss to differentiate and its statistics. With
    'reduce-overhead' (CUDA graphs) the next loss overwrites the results of this one, so that statistics are copied.
    """

    def __init__(self, function: Callable, mode: Mode, backend: str, first: bool, loss: bool) -> None:
        self.function, self.first, self.loss = function, first, loss
        self.graphs = mode == "reduce-overhead"
        self.name = function.__name__.lstrip("_")
        self.compiled: Callable | None = torch.compile(
            function, backend=backend, fullgraph=True, mode=mode if self.graphs else None
        )

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            return self.function(*arguments)
        if self.first and self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._checked(self.compiled(*arguments))
        except (torch._dynamo.exc.TorchDynamoException, NotDifferentiable) as error:
            self.compiled = None
            reason = " ".join(str(error).split())[:200]
            tqdm.write(f"train: '{self.name}' runs without torch.compile ({reason})", file=sys.stderr)
            return self.function(*arguments)

    def _checked(self, found: Any) -> Any:
        if not self.loss:
            return found
        loss, stats = found
        _check_differentiable(loss, stats)
        return loss, {name: value.clone() for name, value in stats.items()} if self.graphs else stats


class NotDifferentiable(Exception):
    """A result has lost its gradient."""


def _check_differentiable(loss: Tensor, stats: dict[str, Tensor]) -> None:
    """torch 2.11 may give a penalty without a gradient, and no error: the training would be one without R1."""
    for name, value in (
        ("the loss", loss),
        *((name, stats[name]) for name in ("r1", "r2", "r1_frozen") if name in stats),
    ):
        if not value.requires_grad:
            raise NotDifferentiable(f"{name} came back without a gradient")
