"""The images a run draws of itself: the same noise and captions every time."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from toolkit import draws
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import read_decoded
from toolkit.data.images import make_grid, save_png
from toolkit.data.shard_reader import DamagedSample, Sample, ShardSet
from toolkit.errors import UserError
from toolkit.inference.sampling import sample
from toolkit.networks.ema import EMA

COLUMNS = 4
"""Noise vectors per caption: a row shows how z changes the image, a column how the text does."""


class SampleGrid:
    """`n_sample` images whatever the batch size; row r is caption r of captions drawn once from the data."""

    def __init__(self, shards: ShardSet, config: ResolvedConfig) -> None:
        self.columns = min(COLUMNS, config.n_sample)
        found = _distinct(shards, config.seed, -(-config.n_sample // self.columns))
        self.rows, self.reals = [sample for sample, _ in found], torch.stack([image for _, image in found])
        count = min(config.n_sample, len(self.rows) * self.columns)
        self.text = torch.stack([self.rows[i // self.columns].vectors[0] for i in range(count)])
        self.z = draws.sample_noise([i % self.columns for i in range(count)], config.z_dim)

    def write_reals(self, run: Path) -> None:
        """reals.png, a real image per row, and sample_captions.txt."""
        save_png(make_grid(self.reals, 1), run / "reals.png")
        captions = "".join(f"{row.captions[0]}\n" for row in self.rows)
        (run / "sample_captions.txt").write_text(captions, encoding="utf-8")

    def draw(self, ema: EMA) -> Tensor:
        """uint8 [n_sample, 3, R, R] by the averaged generator."""
        return sample(ema.module, self.z, self.text)

    def write(self, images: Tensor, run: Path, step: int) -> Path:
        """sample_STEP.png."""
        path = run / f"sample_{step:07d}.png"
        save_png(make_grid(images, self.columns), path)
        return path

    def arrange(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The full rows of `images` as [prompts, noises, 3, R, R], and a real image [prompts, 3, R, R] for each."""
        full = len(images) // self.columns
        return images[: full * self.columns].unflatten(0, (full, self.columns)), self.reals[:full]


def _distinct(shards: ShardSet, seed: int, count: int) -> list[tuple[Sample, Tensor]]:
    """The first `count` sound samples with different captions in a fixed random order, and their images."""
    found: dict[str, tuple[Sample, Tensor]] = {}
    wanted = min(count, shards.manifest.distinct_captions)
    for number in draws.permutation(len(shards), seed, epoch=-1).tolist():
        with contextlib.suppress(DamagedSample):
            if (caption := shards.read(number).captions[0]) not in found:
                found[caption] = read_decoded(shards, number)
        if len(found) == wanted:
            break
    if not found:
        raise UserError(f"no sample of {shards.folder} can be read; run python -m shards.inspect {shards.folder}")
    return list(found.values())
