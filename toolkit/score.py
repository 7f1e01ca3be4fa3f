"""The score of a checkpoint during training, by which the best one is kept. Lower is better."""

import itertools

import torch
from torch import Tensor

from toolkit import draws
from toolkit.config import TrainConfig
from toolkit.data.dataset import sound_samples
from toolkit.data.shard_reader import ShardSet
from toolkit.networks.ema import EMA
from toolkit.sampling import sample
from toolkit.swd import sliced_wasserstein


class SwdScore:
    """Sliced Wasserstein distance between `score_count` training pictures and pictures drawn for their captions.

    The same pictures, captions and noise at every checkpoint, so that scores differ by the generator alone.
    """

    def __init__(self, shards: ShardSet, config: TrainConfig) -> None:
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
            pictures = torch.stack([picture for _, picture in pairs])
            self._real = pictures, torch.stack([one.vectors[0] for one, _ in pairs])
        return self._real
