"""Which kind of source a path or address is, and opening it."""

from dataclasses import replace
from pathlib import Path

import torch

from evaluation.sources.generated import generated_source
from evaluation.sources.image_folder import image_folder
from evaluation.sources.prompts import read_prompts
from evaluation.sources.shard_images import shard_images
from evaluation.sources.source import Source, chosen
from toolkit.data.addresses import is_address
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.errors import UserError, check
from toolkit.inference.sampling import load_generator
from toolkit.run_folder.checkpoint import GENERATOR, checkpoints

CPU = torch.device("cpu")


def open_source(
    path: str | Path,
    count: int | None = None,
    size: int | None = None,
    seed: int = 0,
    prompts: str | Path | None = None,
    device: torch.device = CPU,
    encoder_weights: Path | None = None,
    truncation: float = 1.0,
) -> Source:
    """`count` images (None: all) of the source at `path`, which may be an address of shards, drawn by `seed`.

    Images are centre-cropped and resized to `size` if it is given (shards that are fitted when they are read: as
    those say). The last four concern checkpoints: `prompts` is a shard folder or a text file with one prompt a line
    (`count` None: one image a prompt), `truncation` scales the noise. Raises UserError.
    """
    check(count is None or count > 0, "count", count, "at least 1")
    check(size is None or size > 0, "size", size, "at least 1")
    check(0 <= seed < 2**31, "seed", seed, "in [0, 2^31)")
    if is_address(path):
        return _shards(path, count, size, seed)
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give images, a shard folder or a checkpoint")
    if is_checkpoint(path):
        return _checkpoint(path, count, size, seed, prompts, device, encoder_weights, truncation)
    if is_shards(path):
        return _shards(path, count, size, seed)
    return image_folder(path, count, size, seed)


def is_shards(path: str | Path) -> bool:
    """A shard folder, or the address of one."""
    return is_address(path) or Path(path, MANIFEST_NAME).is_file()


def is_checkpoint(path: str | Path) -> bool:
    """A ckpt_* folder, a run folder with one, or a file (whose content is checked when it is loaded)."""
    if is_address(path):
        return False
    path = Path(path)
    return path.is_file() or (path / GENERATOR).is_file() or bool(checkpoints(path))


def _shards(path: str | Path, count: int | None, size: int | None, seed: int) -> Source:
    shards = open_shards(path)
    return shard_images(shards, str(path), sorted(chosen(len(shards), count, seed)), size)


def _checkpoint(
    path: Path,
    count: int | None,
    size: int | None,
    seed: int,
    prompts: str | Path | None,
    device: torch.device,
    weights: Path | None,
    truncation: float,
) -> Source:
    generator = load_generator(path, device)
    if prompts is None:
        raise UserError(f"{path} draws from prompts: give --prompts, a shard folder or a text file")
    captions, text = read_prompts(prompts, generator, count, seed, device, weights)
    source = generated_source(
        generator.network.to(memory_format=torch.channels_last),  # as in training, to the same bits
        generator.config.z_dim,
        generator.config.resolution,
        captions,
        text,
        count or len(captions),
        seed,
        generator.name,
        generator.identity,
        str(prompts),
        size,
        truncation,
    )
    return replace(source, frozen_backbone=generator.config.frozen_backbone, guided=generator.guided)
