"""Which captions D's matching head looks among, and how much of the matching loss counts in G's."""

import contextlib

import torch
from torch import Tensor

from toolkit import draws
from toolkit.data.shard_reader import DamagedSample, ShardSet

POOL = 4096
"""Most captions to draw from: 12 MB at width 768."""
HALF_LIFE = 1000
"""Images after which a value counts half in the running means."""
RANGE = 0.05
"""Nats over which the gate opens: a step from 0 to 1 would make G's loss jump with each batch's noise."""
HELD_OUT = 10
"""Of so many real images one is held out, where D's head reads frozen features: it soon knows the others by heart,
and images as well read as those would be caricatures."""


class CaptionPool:
    """Up to POOL different captions of the data set, the same on every process and after a resumption."""

    def __init__(self, shards: ShardSet, seed: int, device: torch.device) -> None:
        self.seed = seed
        wanted = min(POOL, shards.manifest.distinct_captions)
        found: dict[str, tuple[Tensor, int]] = {}
        for number in draws.permutation(len(shards), seed, 0)[: 4 * POOL].tolist():
            if len(found) >= wanted:
                break
            with contextlib.suppress(DamagedSample):  # named and counted when its own turn comes
                texts = shards.read_texts(number)
                found |= {c: (v, number) for c, v in zip(texts.captions, texts.vectors, strict=True) if c not in found}
        vectors, numbers = zip(*list(found.values())[:POOL], strict=True)
        self.vectors = torch.stack(vectors).to(device)
        """float32 [P, E], unit length."""
        self.numbers = torch.tensor(numbers, device=device)
        """int64 [P]: a sample that has this caption."""

    def draw(self, count: int, phase: str, *counters: int) -> tuple[Tensor, Tensor]:
        """Vectors [K, E] and sample numbers [K] of up to `count` captions, for one phase of one step."""
        if count >= len(self.vectors):
            return self.vectors, self.numbers
        chosen = torch.randperm(
            len(self.vectors), generator=draws.generator(self.seed, f"captions for {phase}", *counters)
        )[:count].to(self.vectors.device)
        return self.vectors[chosen], self.numbers[chosen]


class MatchGate:
    """How much of G's matching loss counts: none once generated images are read as well as real ones.

    Running means of the matching loss on real images, as D has it *before* it learns from them, and on generated ones,
    over all processes. A G held to more than real images reach draws caricatures of its captions: one such run
    collapsed. Every process holds the same values.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.keep = 0.5 ** (batch / HALF_LIFE)
        self.sums = torch.zeros(2, 2, device=device)
        """Of real images, of generated ones: sum of the losses and of their weights."""

    def observe(self, generated: bool, total: Tensor, measured: Tensor) -> None:
        """Sum of the losses of a batch and number of images they are of, both over the batch's size.

        What is not finite is left out: an overflow in half precision would stay for ever.
        """
        now = torch.stack([total, measured]).float()
        kept = self.keep * self.sums[int(generated)] + (1 - self.keep) * now
        self.sums[int(generated)] = torch.where(now.isfinite().all(), kept, self.sums[int(generated)])

    def means(self) -> Tensor:
        """[2]: on real images, on generated ones; NaN before the first."""
        return self.sums[:, 0] / self.sums[:, 1]

    def value(self) -> Tensor:
        """Scalar in [0, 1]; 0 until both have been seen."""
        real, generated = self.means()
        return ((generated - real) / RANGE).clamp(0, 1).nan_to_num(0.0)

    def state(self) -> list[list[float]]:
        """JSON for the checkpoint."""
        return self.sums.tolist()

    def restore(self, state: list[list[float]]) -> None:
        self.sums.copy_(torch.tensor(state))


def held_out(seed: int, numbers: list[int]) -> Tensor:
    """float32 [N], 1 where a sample is held out: the same samples in every epoch."""
    return torch.tensor([float(draws.integer(HELD_OUT, seed, "held out", number) == 0) for number in numbers])
