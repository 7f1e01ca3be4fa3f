"""A text encoder for data sets: equal captions once, a GPU per process, and the same bytes from any of them."""

from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from toolkit.devices import pick_device
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.encoders.text_encoder import EncoderIdentity, TextEncoder, load_encoder
from toolkit.errors import UserError


class CaptionEncoder:
    """A text encoder that encodes equal captions of a call once.

    It remembers nothing between calls: a vector's last bits depend on the captions beside it, so a memory would make
    them depend on what this process happened to do before.
    `half`: in float16, which only open_clip's encoders can; `encoder` itself, and so its probes, stays in float32.
    """

    def __init__(self, encoder: TextEncoder, half: bool = False) -> None:
        self.encoder, self.half, self.truncated = encoder, half, 0

    @cached_property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity.of(self.encoder, "fp16" if self.half else "fp32")

    def encode(self, captions: list[str]) -> np.ndarray:
        """N captions, at least one -> float32 [N, E], unit length, a function of the set of captions.

        `truncated` counts those longer than the encoder reads.
        """
        distinct = by_length(captions)
        vectors = self._in_half(distinct) if self.half else self.encoder.encode(distinct)
        self.truncated += self.encoder.count_truncated(distinct)
        number = {caption: i for i, caption in enumerate(distinct)}
        return vectors.numpy()[[number[caption] for caption in captions]]

    def _in_half(self, captions: list[str]) -> Tensor:
        assert isinstance(self.encoder, OpenClipEncoder)  # no other can
        return self.encoder.encode(captions, half=True)


def by_length(captions: list[str]) -> list[str]:
    """The distinct ones, short ones first: neighbours then need about as many tokens."""
    return sorted(set(captions), key=lambda caption: (len(caption), caption))


def load_caption_encoder(name: str, weights: Path | None, device: str, half: bool = False) -> CaptionEncoder:
    """`device` 'auto': this process's GPU if there is one. UserError for `half` where it is slower or means nothing."""
    place = pick_device(device)
    if half and place.type == "cpu":
        raise UserError("fp16 is slower than fp32 on a CPU; leave --precision out, or pass --device cuda")
    encoder = load_encoder(name, weights, place)
    if half and not isinstance(encoder, OpenClipEncoder):
        raise UserError(f"the encoder '{name}' has no fp16; leave --precision out")
    return CaptionEncoder(encoder, half)
