"""The score of a checkpoint during training, by which the best one is kept. Lower is better."""

import torch
from torch import Tensor

from toolkit import draws
from toolkit.config import TrainConfig
from toolkit.data.decoding import decode_picture
from toolkit.data.images import from_pil
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
        z = draws.sample_noise(list(range(self.count)), self.config.z_dim)
        return sliced_wasserstein(real, sample(ema.module, z, text))["swd"]

    def _read(self) -> tuple[Tensor, Tensor]:
        """uint8 [N, 3, R, R] and float32 [N, E], once."""
        if self._real is None:
            chosen = draws.permutation(len(self.shards), self.config.seed, epoch=-2)[: self.count].tolist()
            samples = [self.shards.read(number) for number in chosen]
            pictures = torch.stack([from_pil(decode_picture(one.picture)) for one in samples])
            self._real = pictures, torch.stack([one.vectors[0] for one in samples])
        return self._real
