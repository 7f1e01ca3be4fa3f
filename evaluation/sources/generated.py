"""Images that a network draws: image i is a function of (network, seed, i), bit for bit, in any batch."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from evaluation.extractors.extractor import exact_float32
from evaluation.sources.source import GROUP, Source, Vectors
from toolkit import draws
from toolkit.data.decoding import fit_square
from toolkit.data.images import from_pil, to_pil
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.inference.sampling import sample, truncated


def generated_source(
    network: nn.Module,
    z_dim: int,
    resolution: int,
    captions: list[str],
    text: Tensor,
    count: int,
    seed: int,
    name: str,
    identity: EncoderIdentity | None = None,
    prompts: str | None = None,
    size: int | None = None,
    truncation: float = 1.0,
) -> Source:
    """The first `count` images of an endless sequence, from `network` (z, text) as it is when they are drawn.

    Image i comes from row i of `captions` and `text` [M, E], cycling, and from the noise of (seed, i), on the
    network's device and in its memory format, in float32; it is resized to `size` if that is given, and truncated as
    `toolkit.inference.sampling.truncated` says. Images are drawn in fixed groups, so that neither `count` nor the
    caller's batches change a bit of them. The network is in evaluation mode only meanwhile; nothing of it and no random
    state is changed.
    """
    side = size or resolution

    def group(number: int) -> Tensor:
        numbers = range(number * GROUP, (number + 1) * GROUP)
        # Not seed + i: seeds 0 and 1 would then share all of their noise but one vector.
        z = truncated(draws.sample_noise([(seed << 32) + i for i in numbers], z_dim), truncation)
        with evaluating(network), exact_float32(next(network.parameters()).device):
            images = sample(network, z, text[[i % len(text) for i in numbers]], GROUP)
        return images if side == resolution else _resized(images, side)

    def stream(chunks: Iterable[range]) -> Iterator[Tensor]:
        kept, images = -1, torch.empty(0)  # by this pass alone: before the next one the network may have learned
        for numbers in chunks:
            rows = []
            for i in numbers:
                if i // GROUP != kept:
                    kept, images = i // GROUP, group(i // GROUP)
                rows.append(images[i % GROUP])
            yield torch.stack(rows)

    def cycled() -> list[str]:
        return [captions[i % len(captions)] for i in range(count)]

    def vectors(encoder: EncoderIdentity) -> Vectors:
        return Vectors(text[torch.arange(count) % len(text)], encoder)

    return Source(
        name,
        "checkpoint",
        count,
        side,
        side,
        stream,
        cycled,
        identity=identity,
        prompts=prompts,
        truncation=truncation,
        read_vectors=None if identity is None else lambda: vectors(identity),
    )


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for every part of the network, and afterwards the mode that each had."""
    before = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _resized(images: Tensor, side: int) -> Tensor:
    return torch.stack([from_pil(fit_square(to_pil(image), side)) for image in images])
