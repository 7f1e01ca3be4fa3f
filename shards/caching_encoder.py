"""A text encoder for data sets, where the same captions come again and again."""

from pathlib import Path

import numpy as np

from toolkit.devices import pick_device
from toolkit.encoders.text_encoder import TextEncoder, load_encoder

MAX_CACHED_CAPTIONS = 100_000
"""About 300 MB at 768 dimensions; beyond it the cache starts anew."""


class CachedEncoder:
    """A text encoder that encodes equal captions once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.truncated = encoder, 0
        self._known: dict[str, np.ndarray] = {}

    def encode(self, captions: list[str]) -> np.ndarray:
        """N captions -> float32 [N, E], unit length; `truncated` counts those longer than the encoder reads."""
        if len(self._known) > MAX_CACHED_CAPTIONS:
            self._known.clear()
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._known]:
            self._known.update(zip(new, self.encoder.encode(new).numpy(), strict=True))
            self.truncated += self.encoder.count_truncated(new)
        return np.stack([self._known[caption] for caption in captions])


def load_cached(name: str, weights: Path | None, device: str) -> CachedEncoder:
    """`device` 'auto': a GPU if there is one."""
    return CachedEncoder(load_encoder(name, weights, pick_device(device)))
