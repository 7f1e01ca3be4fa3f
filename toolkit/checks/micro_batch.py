"""The trial behind `--batch_gpu auto`: how many images at once does the device really take?"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from toolkit.checks.memory import explain_out_of_memory, is_out_of_memory
from toolkit.data.dataset import Batch
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.training.trainer import Trainer, frozen


def largest_micro_batch(trainer: Trainer, share: int) -> int:
    """The largest divisor of `share` with which both phases fit on the device of every process; `share` on a CPU.

    Tried from the largest on, like `accelerate.utils.find_executable_batch_size`, on made-up images, with R1 and R2
    if they are on, and room taken for Adam's moments. All processes call it, between steps. Weights, buffers, counters
    and draws are afterwards what they were, gradients are gone. Raises UserError on all processes if one has no room
    for a single image.
    """
    if trainer.device.type == "cpu":
        return share
    return agreed(trainer, largest_that_fits(trainer, share))


def largest_that_fits(trainer: Trainer, share: int) -> int:
    """This process's part of `largest_micro_batch`, free of collectives; 0 if not even one image fits."""
    for images in (n for n in range(share, 0, -1) if share % n == 0):
        fits = _fits(trainer, images, passes=1 if images == share else 2)
        gc.collect()  # here, where no traceback holds tensors any more
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
        if fits:
            return images
    return 0


def agreed(trainer: Trainer, fits: int) -> int:
    """The smallest of all processes' `fits`. All call it; raises UserError on all if it is 0."""
    least = int(trainer.accelerator.gather(torch.tensor([fits], device=trainer.device)).min())
    if least == 0:
        raise UserError(explain_out_of_memory(dataclasses.replace(trainer.config, batch_gpu=1), trainer.device))
    return least


def _fits(trainer: Trainer, images: int, passes: int) -> bool:
    """Both phases; of two `passes` the second finds the gradients of the first, as accumulation does."""
    try:
        with _restoring(trainer):
            moments = [torch.empty_like(parameter) for parameter in _without_moments(trainer) for _ in range(2)]
            for name in ("D", "G"):
                for _ in range(passes):
                    _forward_backward(trainer, name, images)
                trainer.phases[name].optimizer.zero_grad(set_to_none=True)
            del moments
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _forward_backward(trainer: Trainer, name: str, images: int) -> None:
    """As a micro-batch that is not the last: no exchange, for a process that fails must leave none in a collective."""
    batch, noise = _made_up(trainer, images), StepDraws(trainer.config.seed, images, 0, 0)
    loss_of = {"D": trainer.discriminator_loss, "G": trainer.generator_loss}[name]
    with contextlib.ExitStack() as stack:
        for phase in trainer.phases.values():
            stack.enter_context(phase.accumulating(last=False))
        if name == "G":
            stack.enter_context(frozen(trainer.D))
        loss, _ = loss_of(batch, noise)
        trainer.phases[name].backward(loss)


def _made_up(trainer: Trainer, images: int) -> Batch:
    config = trainer.config
    shape = (images, 3, config.resolution, config.resolution)
    grey = torch.full(shape, 128, dtype=torch.uint8)
    text = nn.functional.normalize(torch.ones(images, config.cond_dim), dim=1)
    batch = Batch(
        grey, text, text, torch.ones(images), ("",) * images, torch.zeros(images, dtype=torch.long), slice(0, images)
    )
    return batch.to(trainer.device)


def _without_moments(trainer: Trainer) -> list[Tensor]:
    """Weights whose optimizer has made no step yet; of a resumed run's the moments are there already."""
    return [p for phase in trainer.phases.values() for p in phase.parameters if not phase.optimizer.state.get(p)]


@contextlib.contextmanager
def _restoring(trainer: Trainer) -> Iterator[None]:
    """Meanwhile: a step of R1 and R2, and no statistics over processes. Afterwards: as before, without gradients."""
    networks = [phase.network for phase in trainer.phases.values()]
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    synced = [m for network in networks for m in network.modules() if isinstance(m, nn.SyncBatchNorm) and m.training]
    step, trainer.step_number = trainer.step_number, 0  # a multiple of any r1_interval
    for norm in synced:
        norm.eval()
    try:
        yield
    finally:
        trainer.step_number = step
        for norm in synced:
            norm.train()
        for phase in trainer.phases.values():
            phase.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
