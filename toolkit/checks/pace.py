"""How fast a run would go on this machine: steps, data, images, measured on a trainer that is thrown away."""

import statistics
import time
from typing import NamedTuple

import torch

from toolkit import draws
from toolkit.config import ResolvedConfig
from toolkit.data.loader_workers import AHEAD
from toolkit.inference.sampling import sample
from toolkit.training.trainer import Trainer

REPEATS, REPEATS_PENALISED = 7, 3
SLOW = 5.0
"""Seconds of the first step above which nothing is repeated: that it warms up no longer matters."""


class Pace(NamedTuple):
    """Seconds, those of the slowest process."""

    step: float
    """Of a training step without R1 and R2, its data already loaded."""
    penalised: float
    """The same with R1 and R2."""
    loading: float
    """Of the data of one step, from the loader alone."""
    image: float
    """Of an image drawn by the averaged G."""

    def mean_step(self, config: ResolvedConfig) -> float:
        """Computation alone, with the penalties at their interval."""
        return self.step + max(0.0, self.penalised - self.step) / config.r1_interval

    def total(self, config: ResolvedConfig, steps: int, checkpoint_seconds: float) -> float:
        """Of `steps` steps with their samples and checkpoints, by the slower of step and data."""
        computing = self.mean_step(config)
        # Loading processes work ahead of the step; without any the step waits for its data.
        step = max(computing, self.loading) if config.workers else computing + self.loading
        checkpoints, samples = (steps // every + 1 for every in (config.ckpt_every, config.sample_every))
        scored = checkpoints * config.score_count if config.score == "swd" else 0
        if config.evaluates:
            scored += (steps // config.evaluation_steps + 1) * config.evaluation_count
        drawn = self.image * (samples * config.n_sample + scored)
        return steps * step + drawn + checkpoints * checkpoint_seconds


def measure(trainer: Trainer) -> Pace:
    """All processes call it, with a trainer for this alone: its weights move. Raises UserError for damaged data."""
    config = trainer.config
    loading = _loading(trainer)
    lazy = config.r1_interval > 1 and (config.r1_penalty or config.r2_penalty)
    if config.compile != "no":  # the first step of each kind is spent on compiling it
        _step(trainer, 0), _step(trainer, 1)
    first, second = _step(trainer, 0), _step(trainer, 1)
    if _slowest(trainer, first) > SLOW:
        step, penalised = second, first if lazy else second
    else:
        step = statistics.median(_step(trainer, 1) for _ in range(REPEATS))
        penalised = statistics.median(_step(trainer, 0) for _ in range(REPEATS_PENALISED)) if lazy else step
    trainer.close()
    return Pace(*(_slowest(trainer, seconds) for seconds in (step, penalised, loading, _image(trainer))))


def _step(trainer: Trainer, number: int) -> float:
    """Step number 0 has the penalties, 1 has them where every step has."""
    trainer.step_number = number
    trainer.fetch()
    start = _now(trainer)
    trainer.step()
    return _now(trainer) - start


def _loading(trainer: Trainer) -> float:
    """Mean over batches read without a pause, once those that the loading processes had in stock are gone."""
    trainer.feed.settle()
    stream = trainer.feed.open(0, trainer.share, trainer.parts)
    stock = 1 + -(-AHEAD * trainer.feed.workers.count // trainer.parts)
    for _ in range(stock):
        next(stream)
    start, read = time.perf_counter(), 0
    while read < 4 * stock and (read < 2 or time.perf_counter() - start < 3 * SLOW):
        next(stream)
        read += 1
    seconds = (time.perf_counter() - start) / read
    stream.close()
    return seconds * trainer.config.d_steps


def _image(trainer: Trainer) -> float:
    config, count = trainer.config, min(trainer.config.n_sample, 32)
    z, text = draws.sample_noise(list(range(count)), config.z_dim), torch.zeros(count, config.cond_dim)
    sample(trainer.ema.module, z[:1], text[:1])
    start = time.perf_counter()
    sample(trainer.ema.module, z, text)
    return (time.perf_counter() - start) / count


def _now(trainer: Trainer) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()


def _slowest(trainer: Trainer, seconds: float) -> float:
    return float(trainer.accelerator.gather(torch.tensor([seconds], device=trainer.device)).max())
