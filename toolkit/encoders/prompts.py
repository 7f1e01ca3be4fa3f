"""Prompts to vectors for drawing images, remembering those of the last times.

A text encoder takes seconds to load and, on a CPU, longer for a prompt than G for its image. A vector is a function
of encoder and prompt alone, so that a prompt that was drawn before needs no encoder at all.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.feature_cache import FeatureCache
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity, TextEncoder, load_encoder_of

BOUND = 10**8
"""Most bytes of remembered vectors; a prompt takes 3.3 kB with 768 numbers."""
FEW = 200
"""Prompts at once that are remembered; more are a data set of their own."""
VECTOR, CUT = "vector", "cut"


class PromptEncoder:
    """The encoder of `identity`, loaded when a prompt needs it. Its vectors are kept in `folder` (None: nowhere).

    With `weights`, a file of the user's, it is loaded and compared with `identity` in any case, and nothing is taken
    from the folder: what is there came from an encoder that had passed that comparison.
    """

    def __init__(
        self, identity: EncoderIdentity, weights: Path | None, device: torch.device, folder: Path | None
    ) -> None:
        self.identity, self.weights, self.device = identity, weights, device
        known = folder is not None and weights is None and identity.name != HashingEncoder.name
        self.cache = FeatureCache(folder if known else None, BOUND)
        self.key = hashlib.sha256(json.dumps(asdict(identity), sort_keys=True).encode()).hexdigest()
        self._encoder: TextEncoder | None = None

    def encode(self, prompts: list[str]) -> tuple[Tensor, int]:
        """float32 [N, E] of unit length, and how many prompts were cut as too long. Raises UserError."""
        found = {prompt: self._recall(prompt) for prompt in dict.fromkeys(prompts)} if len(prompts) <= FEW else {}
        if new := [prompt for prompt in dict.fromkeys(prompts) if found.get(prompt) is None]:
            found |= self._compute(new, keep=len(prompts) <= FEW)
        vectors, cuts = zip(*(found[prompt] for prompt in prompts), strict=True)
        return torch.stack(vectors), sum(cuts)

    def _compute(self, prompts: list[str], keep: bool) -> dict[str, tuple[Tensor, bool]]:
        if self._encoder is None:
            self._encoder = load_encoder_of(self.identity, self.weights, self.device)
        found = {}
        for prompt, vector in zip(prompts, self._encoder.encode(prompts), strict=True):
            found[prompt] = vector, self._encoder.count_truncated([prompt]) > 0
            if keep:
                features = {VECTOR: vector[None], CUT: torch.tensor([[float(found[prompt][1])]])}
                self.cache.store(_fingerprint(prompt), self.key, features)
        return found

    def _recall(self, prompt: str) -> tuple[Tensor, bool] | None:
        kept = self.cache.load(_fingerprint(prompt), self.key, (VECTOR, CUT))
        if kept is None or kept[VECTOR].shape != (1, self.identity.dimension):
            return None
        return kept[VECTOR][0], bool(kept[CUT][0, 0])


def _fingerprint(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
