"""What is scored: N images of one size, with captions if there are any, however they come about."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from toolkit import draws
from toolkit.encoders.text_encoder import EncoderIdentity

GROUP = 16
"""Images that a network draws together, always the same ones: its sums are rounded otherwise in other batches."""


class Vectors(NamedTuple):
    """The captions of a source as an encoder's vectors."""

    values: Tensor
    """float32 [N, E], unit length."""
    encoder: EncoderIdentity


@dataclass(frozen=True)
class Source:
    """N images of one size."""

    name: str
    kind: str
    """'images', 'shards' or 'checkpoint'."""
    count: int
    width: int
    height: int
    stream: Callable[[Iterable[range]], Iterator[Tensor]]
    """Ranges of numbers in [0, count) -> uint8 [B, 3, H, W] in [0, 255] for each, a few of them made in advance."""
    read_captions: Callable[[], list[str] | None]
    read_fingerprint: Callable[[], str | None] = lambda: None
    identity: EncoderIdentity | None = None
    """The text encoder of a checkpoint."""
    frozen_backbone: str = ""
    """The pretrained network on whose features a checkpoint's discriminator was trained."""
    guided: bool = False
    """Whether the CLIP of `identity` was in the checkpoint's loss."""
    prompts: str | None = None
    """Where a checkpoint's captions come from."""
    truncation: float = 1.0
    """What a checkpoint's noise was multiplied by."""
    read_vectors: Callable[[], Vectors] | None = None
    """Vectors of the captions by the encoder that training knows them by; None if the source has none."""

    def batches(self, batch: int) -> Iterator[Tensor]:
        """uint8 [B, 3, H, W] in [0, 255], `batch` images at a time, N in all."""
        return self.stream(range(first, min(first + batch, self.count)) for first in range(0, self.count, batch))

    def draw(self, numbers: range) -> Tensor:
        """Numbers in [0, count), at least one -> uint8 [B, 3, H, W] in [0, 255]."""
        (images,) = self.stream([numbers])
        return images

    @property
    def captions(self) -> list[str] | None:
        """One for each image, in the order of the batches; None if the source has none."""
        return self.read_captions()

    def fingerprint(self) -> str | None:
        """SHA-256 over what the N images are made from, read now; None if that is a network. Progress on stderr.

        Equal exactly where the images are, up to other files of equal pixels: `images_fingerprint` says of what.
        """
        return self.read_fingerprint()


def chosen(total: int, count: int | None, seed: int) -> list[int]:
    """`count` of `total` (None: all), in random order. Not the first N, for sorted folders stand in classes; a larger
    count only adds to what a smaller one chose."""
    return draws.permutation(total, seed, 0)[:count].tolist()
