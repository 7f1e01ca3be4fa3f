"""What a run measures of itself: the score by which the best checkpoint is kept, and evaluations."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit import draws
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import sound_samples
from toolkit.data.shard_reader import ShardSet
from toolkit.health.swd import sliced_wasserstein
from toolkit.inference.sampling import sample
from toolkit.networks.ema import EMA
from toolkit.training.trainer import Trainer

Evaluate = Callable[[Trainer], dict | None]
"""All processes call it at the same point. The main one gets the report: "scores" (flat: name -> number or None),
"protocol", "notes", "prompts", "nearest" and maybe "images", a PIL image of the nearest pairs; the others get None.
Raises UserError on all alike."""


class Scoring(NamedTuple):
    metric: str = ""
    """Decides which checkpoint is the best: 'swd', or the name of a score of the evaluations; '': nothing does."""
    higher_is_better: bool = False
    score: Callable[[Trainer], float] | None = None
    """Of 'swd', which the main process computes alone."""
    evaluate: Evaluate | None = None

    @property
    def by_evaluation(self) -> bool:
        return bool(self.metric) and self.score is None


class SwdScore:
    """Sliced Wasserstein distance between `score_count` training images and images drawn for their captions.

    The same images, captions and noise at every checkpoint, so that scores differ by the generator alone.
    Lower is better.
    """

    def __init__(self, shards: ShardSet, config: ResolvedConfig) -> None:
        self.shards, self.config = shards, config
        self.count = min(config.score_count, len(shards))
        self._real: tuple[Tensor, Tensor] | None = None

    def __call__(self, ema: EMA) -> float:
        real, text = self._read()
        z = draws.sample_noise(list(range(len(real))), self.config.z_dim)
        return sliced_wasserstein(real, sample(ema.module, z, text))["swd"]

    def _read(self) -> tuple[Tensor, Tensor]:
        """uint8 [N, 3, R, R] and float32 [N, E], once."""
        if self._real is None:
            numbers = draws.permutation(len(self.shards), self.config.seed, epoch=-2).tolist()
            pairs = list(itertools.islice(sound_samples(self.shards, numbers), self.count))
            images = torch.stack([image for _, image in pairs])
            self._real = images, torch.stack([one.vectors[0] for one, _ in pairs])
        return self._real
