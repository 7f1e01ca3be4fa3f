"""A text encoder for data sets, where the same captions come again and again."""

from pathlib import Path

import numpy as np

from toolkit.devices import pick_device
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.encoders.text_encoder import TextEncoder, load_encoder
from toolkit.errors import UserError

MAX_CACHED_CAPTIONS = 100_000
"""About 300 MB at 768 dimensions; beyond it the cache starts anew."""


class CachedEncoder:
    """A text encoder that encodes equal captions once.

    `half`: in float16, which only open_clip's encoders can; `encoder` itself, and so its identity, stays in float32.
    """

    def __init__(self, encoder: TextEncoder, half: bool = False) -> None:
        self.encoder, self.half, self.truncated = encoder, half, 0
        self._known: dict[str, np.ndarray] = {}

    def encode(self, captions: list[str]) -> np.ndarray:
        """N captions -> float32 [N, E], unit length; `truncated` counts those longer than the encoder reads."""
        if len(self._known) > MAX_CACHED_CAPTIONS:
            self._known.clear()
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._known]:
            vectors = self.encoder.encode(new, half=True) if self.half else self.encoder.encode(new)
            self._known.update(zip(new, vectors.numpy(), strict=True))
            self.truncated += self.encoder.count_truncated(new)
        return np.stack([self._known[caption] for caption in captions])


def load_cached(name: str, weights: Path | None, device: str, half: bool = False) -> CachedEncoder:
    """`device` 'auto': a GPU if there is one. Raises UserError for `half` where it is slower or means nothing."""
    place = pick_device(device)
    if half and place.type == "cpu":
        raise UserError("fp16 is slower than fp32 on a CPU; leave --precision out, or pass --device cuda")
    encoder = load_encoder(name, weights, place)
    if half and not isinstance(encoder, OpenClipEncoder):
        raise UserError(f"the encoder '{name}' has no fp16; leave --precision out")
    return CachedEncoder(encoder, half)
