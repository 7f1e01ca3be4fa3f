"""Random numbers as a function of (seed, purpose, counters), never of a stream's history or of the process.

So a resumed run, another number of processes or another worker count draws the same numbers, and no RNG state needs
saving. Noise is drawn on the CPU for the whole global batch and sliced: a few kilobytes a step.
"""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one point of the run."""
    return torch.Generator().manual_seed(_hash(seed, purpose, *counters) >> 1)  # manual_seed takes 63 bits


def integer(below: int, seed: int, purpose: str, *counters: int) -> int:
    """Uniform in [0, below); the bias of the remainder is below 2^-32 for any data set."""
    return _hash(seed, purpose, *counters) % below


def permutation(count: int, seed: int, epoch: int, purpose: str = "order") -> Tensor:
    """int64 [count]: the order of the samples in one epoch, or of something else there."""
    return torch.randperm(count, generator=generator(seed, purpose, epoch))


def sample_noise(seeds: list[int], z_dim: int) -> Tensor:
    """float32 [N, z_dim]: the noise that belongs to each sample seed, whatever else is in the batch."""
    return torch.stack([torch.randn(z_dim, generator=generator(seed, "sample")) for seed in seeds])


class StepDraws:
    """The draws of one optimizer step for the global batch; `rows` picks a process's micro-batch."""

    def __init__(self, seed: int, batch: int, *counters: int) -> None:
        self.seed, self.batch, self.counters = seed, batch, counters

    def normal(self, purpose: str, rows: slice, width: int) -> Tensor:
        """float32 [rows, width], standard normal."""
        return torch.randn(self.batch, width, generator=self._generator(purpose))[rows]

    def uniform(self, purpose: str, rows: slice, width: int) -> Tensor:
        """float32 [rows, width] in [0, 1)."""
        return torch.rand(self.batch, width, generator=self._generator(purpose))[rows]

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(self.seed, purpose, *self.counters)


def _hash(seed: int, purpose: str, *counters: int) -> int:
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
