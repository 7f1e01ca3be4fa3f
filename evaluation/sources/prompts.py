"""Prompts for a generator: captions and their vectors, from shards or from a text file."""

from pathlib import Path

import torch
from torch import Tensor

from evaluation.sources.source import GROUP, chosen
from toolkit.data.addresses import is_address
from toolkit.data.remote_shards import open_shards
from toolkit.encoders.text_encoder import load_encoder_of
from toolkit.errors import UserError
from toolkit.inference.sampling import TrainedGenerator


def read_prompts(
    path: str | Path,
    generator: TrainedGenerator,
    count: int | None,
    seed: int,
    device: torch.device,
    weights: Path | None,
) -> tuple[list[str], Tensor]:
    """M captions and float32 [M, E] of the generator's own encoder: enough for the groups of `count` images, or all.

    Row i is a function of (seed, i). Raises UserError if the vectors of shards are another encoder's.
    """
    wanted = None if count is None else -(-count // GROUP) * GROUP
    if is_address(path) or Path(path).is_dir():
        shards = open_shards(path)
        if other := generator.identity.difference(shards.manifest.encoder):
            raise UserError(f"{path} was embedded by another encoder than {generator.name} was trained on: {other}")
        texts = [shards.read_texts(i) for i in chosen(len(shards), wanted, seed)]
        return [one.captions[0] for one in texts], torch.stack([one.vectors[0] for one in texts])
    lines = lines_of(Path(path))
    captions = [lines[i] for i in chosen(len(lines), wanted, seed)]
    encoder = load_encoder_of(generator.identity, weights, device)
    parts = [captions[start : start + GROUP] for start in range(0, len(captions), GROUP)]
    return captions, torch.cat([encoder.encode(part) for part in parts])  # as together as their images, bit for bit


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank; at least one. Raises UserError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from None
    if not lines:
        raise UserError(f"{path} is empty")
    return lines
