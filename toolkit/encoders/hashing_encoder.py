"""A text encoder that needs no download: a stand-in for CLIP in demos and tests.

It knows spelling, not meaning: captions that share words, word pairs or letters get similar vectors, synonyms do not.
"""

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

DIMENSION = 768
WORD_WEIGHT, PAIR_WEIGHT, LETTERS_WEIGHT = 1.0, 1.0, 0.25


class HashingEncoder:
    """Sum of signed random vectors, one per word, word pair and letter trigram; unit length.

    Random signs keep inner products of the counts (Achlioptas 2003, "Database-friendly random projections").
    Deterministic on every machine: the signs are the bits of SHAKE-256 of the feature.
    """

    name = "hashing"
    dimension = DIMENSION
    weights_sha256 = ""

    def encode(self, captions: list[str]) -> Tensor:
        """N captions -> float32 [N, 768], unit length."""
        return torch.from_numpy(np.stack([_embed(caption) for caption in captions]))

    def count_truncated(self, captions: list[str]) -> int:
        """How many captions are longer than the encoder reads: none, this one reads everything."""
        return 0


def _embed(caption: str) -> np.ndarray:
    vector = np.zeros(DIMENSION)
    for feature, weight in _features(caption):
        vector += weight * _signs(feature)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _features(caption: str) -> list[tuple[str, float]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", caption).casefold())
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    trigrams = [f" {word} "[i : i + 3] for word in words for i in range(len(word))]
    return (
        [("<caption>", 0.1)]  # so that a caption without a word has a direction too
        + [(word, WORD_WEIGHT) for word in words]
        + [(pair, PAIR_WEIGHT) for pair in pairs]
        + [(f"#{letters}", LETTERS_WEIGHT) for letters in trigrams]
    )


@lru_cache(maxsize=65536)
def _signs(feature: str) -> np.ndarray:
    bits = np.frombuffer(hashlib.shake_256(feature.encode()).digest(DIMENSION // 8), dtype=np.uint8)
    return np.unpackbits(bits).astype(np.float64) * 2 - 1
