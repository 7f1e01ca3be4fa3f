"""CLIP score of captioned pictures under every convention in use: JSON with the numbers and how they were made."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from evaluation.sources import ScoredOptions, Source
from toolkit import draws
from toolkit.command_line import run
from toolkit.data.images import to_pil
from toolkit.devices import pick_device
from toolkit.encoders.open_clip_encoder import OpenClip, OpenClipEncoder, load_open_clip
from toolkit.encoders.text_encoder import SAME_ENCODER_COSINE
from toolkit.errors import UserError

FORMULAS = {
    "clip_score": "100 * mean(max(cos, 0)): torchmetrics' convention",
    "clip_score_hessel": "2.5 * mean(max(cos, 0)): Hessel et al. 2021, there with the prefix 'A photo depicts '",
    "mean_cosine": "mean(cos)",
    "clip_score_shuffled": "clip_score with every caption given to another picture: the floor to beat",
}


@dataclass(frozen=True, kw_only=True)
class ClipScoreOptions(ScoredOptions):
    """CLIP score (higher is better): do the pictures show what their captions say?"""

    model: str = "ViT-B-32"
    """open_clip architecture. Not the one that conditions the generator: that would praise itself."""
    pretrained: str = "laion2b_s34b_b79k"
    """open_clip tag of the weights."""
    clip_weights: Path | None = None
    """Local copy of these weights (default: open_clip's download)."""
    prefix: str = ""
    """Put in front of every caption."""


class ClipScore(NamedTuple):
    """One set of cosines under three conventions; FORMULAS says which."""

    clip_score: float
    clip_score_hessel: float
    mean_cosine: float


def clip_score(image_vectors: Tensor, text_vectors: Tensor) -> ClipScore:
    """Vectors [N, E] of pictures and of their captions, of any length (only directions count)."""
    cosines = cosine_similarity(image_vectors.double(), text_vectors.double(), dim=1)
    positive = float(cosines.clamp(min=0).mean())
    return ClipScore(100 * positive, 2.5 * positive, float(cosines.mean()))


def shuffled_clip_score(image_vectors: Tensor, text_vectors: Tensor, seed: int = 0) -> float | None:
    """`clip_score` with every caption at another picture; None for fewer than two."""
    if len(image_vectors) < 2:
        return None
    order = draws.permutation(len(image_vectors), seed, 0)  # along one cycle: no picture keeps its own caption
    return clip_score(image_vectors[order], text_vectors[order.roll(1)]).clip_score


def main(options: ClipScoreOptions) -> None:
    print(json.dumps(score(options), indent=1, ensure_ascii=False))


def score(options: ClipScoreOptions) -> dict:
    """The report: the keys of FORMULAS, "protocol", "notes". Raises UserError."""
    device = pick_device(options.device)
    source = options.open(device)
    captions = source.captions
    if captions is None:
        raise UserError(f"{source.name} has no captions; put a .txt of the same stem beside every picture")
    clip = _load(options, device)
    texts = encode_texts(clip, [options.prefix + caption for caption in captions], device)
    pictures = encode_pictures(clip, source, device, options.batch)
    return {
        **clip_score(pictures, texts)._asdict(),
        "clip_score_shuffled": shuffled_clip_score(pictures, texts, options.seed),
        "protocol": _protocol(options, source, device),
        "notes": _notes(clip, source, device),
    }


def encode_texts(clip: OpenClip, captions: list[str], device: torch.device) -> Tensor:
    """N captions -> float32 [N, E] on the CPU, unit length; equal ones are computed once, none longer than it is."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    vectors = OpenClipEncoder("", clip, device).encode(list(number))
    return vectors[[number[caption] for caption in captions]]


@torch.no_grad()
def encode_pictures(clip: OpenClip, source: Source, device: torch.device, batch: int) -> Tensor:
    """Every picture of `source` -> float32 [N, E] on the CPU, unit length. Progress on stderr."""
    chunks = []
    with tqdm(total=source.count, desc=Path(source.name).name, unit=" pictures") as progress:
        for pictures in source.batches(batch):
            inputs = torch.stack([clip.preprocess(to_pil(picture)) for picture in pictures])
            chunks.append(clip.model.encode_image(inputs.to(device)).float().cpu())
            progress.update(len(pictures))
    return normalize(torch.cat(chunks), dim=1)


def _load(options: ClipScoreOptions, device: torch.device) -> OpenClip:
    try:
        return load_open_clip(f"{options.model}/{options.pretrained}", options.clip_weights, device)
    except UserError as error:  # it names the option of the commands that condition on CLIP
        raise UserError(str(error).replace("--encoder_weights", "--clip_weights")) from None


def _protocol(options: ClipScoreOptions, source: Source, device: torch.device) -> dict:
    return {
        **options.protocol(source),
        "model": options.model,
        "pretrained": options.pretrained,
        "clip_weights": str(options.clip_weights) if options.clip_weights else None,
        "formulas": FORMULAS,
        "prefix": options.prefix,
        "device": str(device),
        "torch": torch.__version__,
        "open_clip": version("open_clip_torch"),
    }


def _notes(clip: OpenClip, source: Source, device: torch.device) -> list[str]:
    """By vectors, not by name: the same weights have several names."""
    if source.identity is None:
        return []
    recorded = source.identity.vectors()
    found = encode_texts(clip, list(source.identity.probe_captions), device)
    if found.shape != recorded.shape or cosine_similarity(found, recorded).min() < SAME_ENCODER_COSINE:
        return []
    return ["self-serving: this CLIP also conditions the generator; score with another one"]


if __name__ == "__main__":
    run(main, ClipScoreOptions)
