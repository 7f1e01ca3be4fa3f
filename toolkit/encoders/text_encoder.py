"""Which encoder made these vectors? The identity that travels from shards to checkpoint to inference.

768 numbers name no encoder: open_clip 3.3 has 39 architectures of that width, ViT-L-14 alone has 12 tags. So the
identity carries probe captions with their vectors, and a loaded encoder must reproduce them.
"""

import base64
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.errors import UserError

DEFAULT_ENCODER = "ViT-L-14/laion2b_s32b_b82k"
PROBE_CAPTIONS = ("a photo of a plate of food", "ćevapi with onions", "a red bicycle against a brick wall")
SAME_ENCODER_COSINE = 0.99
"""Below this the vectors come from other weights: fp16 rounding costs 1e-3 at most, other weights end below 0.9."""


class TextEncoder(Protocol):
    """Captions -> unit-length vectors."""

    name: str

    @property
    def dimension(self) -> int: ...

    @property
    def weights_sha256(self) -> str:
        """'' if it has none."""

    def encode(self, captions: list[str]) -> Tensor: ...

    def count_truncated(self, captions: list[str]) -> int: ...


@dataclass(frozen=True)
class EncoderIdentity:
    """Name, width and fingerprint of the encoder of a set of embeddings; JSON through `dataclasses.asdict`."""

    name: str
    """'hashing' or open_clip 'architecture/tag'."""
    dimension: int
    probe_captions: tuple[str, ...]
    probe_vectors: str
    """Base64 of float16 [len(probe_captions), dimension], unit length; always of a computation in float32."""
    weights_sha256: str = ""
    """Of the text tower's parameters; '' if there are none, or nobody knows."""
    precision: str = "fp32"
    """fp32 or fp16: what the vectors, not the probes, were computed in."""
    normalised: bool = True
    """Whether the vectors were scaled to unit length when they were computed."""

    @classmethod
    def of(cls, encoder: TextEncoder, precision: str = "fp32") -> "EncoderIdentity":
        vectors = encoder.encode(list(PROBE_CAPTIONS))
        found = cls.from_vectors(encoder.name, list(PROBE_CAPTIONS), vectors)
        return replace(found, weights_sha256=encoder.weights_sha256, precision=precision)

    @classmethod
    def from_vectors(cls, name: str, captions: list[str], vectors: Tensor) -> "EncoderIdentity":
        """For vectors computed elsewhere: some of the data's own captions serve as probes."""
        packed = base64.b64encode(vectors.numpy().astype("<f2").tobytes()).decode()
        return cls(name, vectors.shape[1], tuple(captions), packed)

    @classmethod
    def from_json(cls, fields: dict) -> "EncoderIdentity":
        """Also of identities that were written when they had fewer fields. Raises ValueError, KeyError or TypeError."""
        found = cls(**{**fields, "probe_captions": tuple(fields["probe_captions"])})
        if not re.fullmatch(r"([0-9a-f]{64})?", found.weights_sha256):
            raise ValueError(f"weights_sha256 is {found.weights_sha256[:80]!r}")
        if found.precision not in ("fp32", "fp16") or type(found.normalised) is not bool:
            raise ValueError(f"precision is {str(found.precision)[:80]!r}, normalised {str(found.normalised)[:80]!r}")
        return found

    def vectors(self) -> Tensor:
        """float32 [P, E]: the recorded vectors of the probe captions."""
        flat = np.frombuffer(base64.b64decode(self.probe_vectors), dtype="<f2").astype(np.float32)
        return torch.from_numpy(flat.reshape(len(self.probe_captions), self.dimension))

    def cosine(self, encoder: TextEncoder) -> float:
        """Smallest cosine between the recorded probe vectors and those of `encoder`; -1 if the widths differ."""
        if encoder.dimension != self.dimension:
            return -1.0
        found = encoder.encode(list(self.probe_captions))
        return float(torch.nn.functional.cosine_similarity(found, self.vectors()).min())

    def difference(self, other: "EncoderIdentity") -> str:
        """'' if both can be the same encoder, else what differs. Probes are compared where both have the caption."""
        if (self.name, self.dimension) != (other.name, other.dimension):
            return f"{self.name} ({self.dimension}-d) against {other.name} ({other.dimension}-d)"
        mine, theirs = (dict(zip(i.probe_captions, i.vectors(), strict=True)) for i in (self, other))
        cosines = [float(torch.dot(mine[c], theirs[c])) for c in mine if c in theirs]
        if cosines and min(cosines) < SAME_ENCODER_COSINE:
            hashes = _hashes(self.weights_sha256, other.weights_sha256)
            return f"same name {self.name}, other weights: cosine {min(cosines):.3f} on the probe captions{hashes}"
        return ""


def load_encoder(name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> TextEncoder:
    """'hashing' or an open_clip 'architecture/tag' -> a frozen encoder. Raises UserError if it cannot be had."""
    if name == HashingEncoder.name:
        return HashingEncoder()
    return OpenClipEncoder.load(name, weights, device)


def load_encoder_of(
    identity: EncoderIdentity, weights: Path | None = None, device: str | torch.device = "cpu"
) -> TextEncoder:
    """The very encoder that made the training vectors; refused with the measured cosine if it is another."""
    encoder = load_encoder(identity.name, weights, device)
    cosine = identity.cosine(encoder)
    if cosine < SAME_ENCODER_COSINE:
        raise UserError(
            f"the loaded encoder '{identity.name}' is not the one of the training data: cosine {cosine:.3f} "
            f"on the probe captions, needed {SAME_ENCODER_COSINE}"
            f"{_hashes(encoder.weights_sha256, identity.weights_sha256)}. "
            "Load the weights the shards were embedded with"
        )
    return encoder


def _hashes(found: str, expected: str) -> str:
    """For the end of a line on two encoders, where both hashes are known and differ."""
    known = found and expected and found != expected
    return f" (SHA-256 of the text tower {found[:12]} against {expected[:12]})" if known else ""
