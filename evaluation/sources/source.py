"""What is scored: a folder of pictures, a shard folder or a checkpoint -> uint8 batches, with captions if it has them.

Which pictures are taken is a function of (seed, count); picture i of a checkpoint is one of (seed, i) alone.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from toolkit import draws
from toolkit.data.addresses import is_address
from toolkit.data.decoding import SUFFIXES, fit_square, read_picture
from toolkit.data.images import from_pil, to_pil
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.text_encoder import EncoderIdentity, load_encoder_of
from toolkit.errors import UserError, check
from toolkit.run_folder.checkpoint import GENERATOR, checkpoints
from toolkit.sampling import TrainedGenerator, load_generator

CPU, WHITE = torch.device("cpu"), (255, 255, 255)


@dataclass(frozen=True)
class Source:
    """N pictures of one size."""

    name: str
    kind: str
    """'pictures', 'shards' or 'checkpoint'."""
    count: int
    width: int
    height: int
    draw: Callable[[range], Tensor]
    """Numbers in [0, count) -> uint8 [B, 3, H, W] in [0, 255]."""
    read_captions: Callable[[], list[str] | None]
    identity: EncoderIdentity | None = None
    """The text encoder of a checkpoint."""
    prompts: str | None = None
    """Where a checkpoint's captions come from."""

    def batches(self, batch: int) -> Iterator[Tensor]:
        """uint8 [B, 3, H, W] in [0, 255], `batch` pictures at a time, N in all."""
        for start in range(0, self.count, batch):
            yield self.draw(range(start, min(start + batch, self.count)))

    @property
    def captions(self) -> list[str] | None:
        """One for each picture, in the order of the batches; None if the source has none."""
        return self.read_captions()


@dataclass(frozen=True, kw_only=True)
class ScoredOptions:
    """The options of a command that scores one source."""

    fake: str
    """What is scored: a checkpoint, a shard folder (local or an address), or a picture folder (captions: a .txt of the
    same stem each)."""
    count: int | None = None
    """Number of pictures, drawn by seed (default: all; a checkpoint draws one a prompt)."""
    size: int | None = None
    """Centre-crop and resize every picture to this many pixels (default: as they are)."""
    prompts: str | None = None
    """Prompts for a checkpoint: a shard folder (local or an address), or a text file with one a line."""
    encoder_weights: Path | None = None
    """Local weights of the checkpoint's text encoder, for prompts from a text file."""
    batch: int = 32
    """Pictures at a time."""
    seed: int = 0
    """Chooses the pictures, and the noise of a checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def open(self, device: torch.device) -> "Source":
        """Raises UserError."""
        check(self.batch > 0, "batch", self.batch, "at least 1")
        return open_source(self.fake, self.count, self.size, self.seed, self.prompts, device, self.encoder_weights)

    def protocol(self, source: "Source") -> dict:
        """What of the source a reader must know to compare numbers."""
        return {
            "fake": source.name,
            "n_fake": source.count,
            "resolution": f"{source.width}x{source.height}",
            "checkpoint": source.name if source.kind == "checkpoint" else None,
            "prompts": source.prompts,
            "seed": self.seed,
            "batch": self.batch,
        }


def open_source(
    path: str | Path,
    count: int | None = None,
    size: int | None = None,
    seed: int = 0,
    prompts: str | Path | None = None,
    device: torch.device = CPU,
    encoder_weights: Path | None = None,
) -> Source:
    """`count` pictures (None: all) of the source at `path`, which may be an address of shards, drawn by `seed`.

    Pictures are centre-cropped and resized to `size` if it is given. The last three concern checkpoints: `prompts` is
    a shard folder or a text file with one prompt a line (`count` None: one picture a prompt). Raises UserError.
    """
    check(count is None or count > 0, "count", count, "at least 1")
    check(size is None or size > 0, "size", size, "at least 1")
    check(0 <= seed < 2**31, "seed", seed, "in [0, 2^31)")
    if is_address(path):
        return _shards(open_shards(path), str(path), count, size, seed)
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give pictures, a shard folder or a checkpoint")
    if is_checkpoint(path):
        generator = load_generator(path, device)
        if prompts is None:
            raise UserError(f"{path} draws from prompts: give --prompts, a shard folder or a text file")
        captions, text = _read_prompts(prompts, generator, count, seed, device, encoder_weights)
        return _generated(generator, captions, text, str(prompts), count or len(captions), size, seed)
    if is_shards(path):
        return _shards(open_shards(path), str(path), count, size, seed)
    return _picture_folder(path, count, size, seed)


def is_shards(path: str | Path) -> bool:
    """A shard folder, or the address of one."""
    return is_address(path) or Path(path, MANIFEST_NAME).is_file()


def is_checkpoint(path: str | Path) -> bool:
    """A ckpt_* folder, a run folder with one, or a file (whose content is checked when it is loaded)."""
    if is_address(path):
        return False
    path = Path(path)
    return path.is_file() or (path / GENERATOR).is_file() or bool(checkpoints(path))


def _picture_folder(folder: Path, count: int | None, size: int | None, seed: int) -> Source:
    """Each picture may have a text file of the same stem; its first line is the caption."""
    files = _picture_files(folder)
    files = [files[i] for i in sorted(_drawn(len(files), count, seed))]
    shape = (size, size) if size else read_picture(files[0].read_bytes, files[0], WHITE).size

    def decode(i: int) -> Image.Image:
        picture = read_picture(files[i].read_bytes, files[i], WHITE)
        if not size and picture.size != shape:
            sizes = f"is {picture.width}x{picture.height} px, {files[0]} is {shape[0]}x{shape[1]}"
            raise UserError(f"{files[i]} {sizes}; choose one size for all with --size")
        return fit_square(picture, size) if size else picture

    def captions() -> list[str] | None:
        texts = [file.with_suffix(".txt") for file in files]
        missing = [text for text in texts if not text.is_file()]
        if missing and len(missing) < len(texts):
            raise UserError(f"{missing[0]}: no such file; {len(missing)} of {len(texts)} pictures have no caption")
        return None if missing else [_lines(text)[0] for text in texts]

    return Source(str(folder), "pictures", len(files), *shape, lambda numbers: _decoded(numbers, decode), captions)


def _shards(shards: ShardSet, name: str, count: int | None, size: int | None, seed: int) -> Source:
    """Of several captions of a picture the first is taken."""
    order = sorted(_drawn(len(shards), count, seed))
    side = size or shards.manifest.resolution

    def decode(i: int) -> Image.Image:
        data = shards.read(order[i]).picture
        return fit_square(read_picture(lambda: data, f"{shards.folder}: sample {order[i]}", WHITE), side)

    def captions() -> list[str]:
        return [shards.read(i).captions[0] for i in order]

    return Source(name, "shards", len(order), side, side, lambda n: _decoded(n, decode), captions)


def _generated(
    generator: TrainedGenerator,
    captions: list[str],
    text: Tensor,
    prompts: str,
    count: int,
    size: int | None,
    seed: int,
) -> Source:
    """Picture i comes from row i of `captions` and `text` [M, E], cycling, and from the noise of (seed, i)."""
    side = size or generator.config.resolution

    def draw(numbers: range) -> Tensor:
        rows = text[[i % len(text) for i in numbers]]
        # Not seed + i: seeds 0 and 1 would then share all of their noise but one vector.
        pictures = generator.sample(rows, [(seed << 32) + i for i in numbers], len(numbers))
        if side == generator.config.resolution:
            return pictures
        return torch.stack([from_pil(fit_square(to_pil(picture), side)) for picture in pictures])

    cycled = [captions[i % len(captions)] for i in range(count)]
    return Source(generator.name, "checkpoint", count, side, side, draw, lambda: cycled, generator.identity, prompts)


def _read_prompts(
    path: str | Path,
    generator: TrainedGenerator,
    count: int | None,
    seed: int,
    device: torch.device,
    weights: Path | None,
) -> tuple[list[str], Tensor]:
    """M captions and float32 [M, E] of the generator's own encoder. Raises UserError if they are another encoder's."""
    if is_address(path) or Path(path).is_dir():
        shards = open_shards(path)
        if other := generator.identity.difference(shards.manifest.encoder):
            raise UserError(f"{path} was embedded by another encoder than {generator.name} was trained on: {other}")
        samples = [shards.read(i) for i in _drawn(len(shards), count, seed)]
        return [sample.captions[0] for sample in samples], torch.stack([sample.vectors[0] for sample in samples])
    lines = _lines(Path(path))
    captions = [lines[i] for i in _drawn(len(lines), count, seed)]
    return captions, load_encoder_of(generator.identity, weights, device).encode(captions)


def _drawn(total: int, count: int | None, seed: int) -> list[int]:
    """Not the first N, for sorted folders stand in classes; a larger count only adds to what a smaller one drew."""
    return draws.permutation(total, seed, 0)[:count].tolist()


def _decoded(numbers: range, decode: Callable[[int], Image.Image]) -> Tensor:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter lock
        return torch.stack([from_pil(picture) for picture in pool.map(decode, numbers)])


def _picture_files(folder: Path) -> list[Path]:
    """By path, without hidden files and folders; links to folders are not followed (they can loop)."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not found:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}), no shards and no checkpoint")
    return sorted(found)


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank; at least one."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from None
    if not lines:
        raise UserError(f"{path} is empty")
    return lines
