"""Captions to vectors by a CLIP text tower, beside the loop that one writes with open_clip.

Random weights, which take as long as any.
"""

import random
from collections.abc import Callable, Iterator
from importlib.metadata import version

import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.side_by_side import Different, Row, Setting, compared, in_turns
from shards.embedding.caption_encoder import CaptionEncoder
from toolkit.encoders.open_clip_encoder import OpenClip, OpenClipEncoder

MODEL = {"cpu": "ViT-B-32", "cuda": "ViT-L-14"}
COUNT = {"cpu": 200, "cuda": 4000}
BATCH, GOAL = 64, 2.5
FEW_ROUNDS = 3
"""On a CPU, where the plain loop takes 20 seconds; without warming up."""
AGAIN = 10
"""Every so manieth caption has been there before."""
SAME, SAME_DIRECTION = 1e-5, 0.9999
"""Largest difference of unit vectors in float32; smallest cosine between those in float16 and those in float32."""

MANNERS = ("", "homemade ", "freshly baked ", "a close-up of ", "a photo of ", "two bowls of ", "a plate of spicy ")
DISHES = ("pizza", "ramen", "lobster bisque", "grilled salmon", "caesar salad", "ćevapi", "apple pie", "fried rice")
ADDED = ("onions", "fresh basil", "melted cheese", "a slice of lemon", "roasted potatoes", "cream", "chili flakes")
PLACES = ("a wooden table", "a white plate", "a blue ceramic bowl", "a cutting board", "a sheet of baking paper")
LIGHTS = ("", ", seen from above", ", in soft morning light", " in a small restaurant by the sea")


def rows(setting: Setting, count: int | None = None, model: str | None = None) -> Iterator[Row]:
    """`count` captions and an open_clip `model` (default: by device); on GPUs in float16 too."""
    kind = setting.device.type
    captions, model = write_captions(count or COUNT[kind]), model or MODEL[kind]
    clip = build(model, setting.device)
    for half in (False, True)[: 1 + (kind == "cuda")]:
        yield _row(setting, model, clip, captions, half)


def write_captions(count: int) -> list[str]:
    """Of 3 to 31 tokens, 16 on average; AGAIN tells how many are repeated."""
    draw, distinct = random.Random(0), {}
    while len(distinct) < count - count // AGAIN:
        added = draw.sample(ADDED, draw.choice((0, 1, 1, 2)))
        place = draw.choice(("", f" on {draw.choice(PLACES)}"))
        caption = f"{draw.choice(MANNERS)}{draw.choice(DISHES)}{' with ' * bool(added)}{' and '.join(added)}{place}"
        distinct[caption + draw.choice(LIGHTS)] = None
    captions = [*distinct, *draw.choices([*distinct], k=count // AGAIN)]
    draw.shuffle(captions)
    return captions


def build(model: str, device: torch.device) -> OpenClip:
    """Its text half, beside an image half that is hardly there."""
    config = open_clip.get_model_config(model)
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=32)
    clip = CLIP(config["embed_dim"], vision, open_clip.CLIPTextCfg(**config["text_cfg"]))
    return OpenClip(clip.to(device).eval().requires_grad_(False), None, open_clip.get_tokenizer(model))


@torch.no_grad()
def plain(clip: OpenClip, captions: list[str], device: torch.device, half: bool = False) -> Tensor:
    """float32 [N, E] on the CPU, unit length: batch after batch, in order, all 77 tokens of each."""
    found = []
    with torch.autocast(device.type, torch.float16, enabled=half):
        for start in range(0, len(captions), BATCH):
            tokens = clip.tokenizer(captions[start : start + BATCH]).to(device)
            found.append(normalize(clip.model.encode_text(tokens).float(), dim=1).cpu())
    return torch.cat(found)


def check_vectors(found: Tensor, exact: Tensor, half: bool) -> str:
    """How equal they are. Raises Different beyond SAME, or below SAME_DIRECTION for float16."""
    if half:
        cosine = float(cosine_similarity(found, exact).min())
        if not cosine >= SAME_DIRECTION:
            raise Different(f"vectors in float16 have a cosine of {cosine:.6f} with those in float32")
        return f"cosine with float32 at least {cosine:.6f}"
    apart = float((found - exact).abs().max())
    if not apart <= SAME:
        raise Different(f"unit vectors differ by {apart:.1e}")
    return f"unit vectors within {apart:.0e}"


def _row(setting: Setting, model: str, clip: OpenClip, captions: list[str], half: bool) -> Row:
    encoder, found = CaptionEncoder(OpenClipEncoder(model, clip, setting.device), half), {}
    ways: dict[str, Callable[[], object]] = {
        "theirs": lambda: found.update(theirs=plain(clip, captions, setting.device, half)),
        "ours": lambda: found.update(ours=torch.from_numpy(encoder.encode(captions))),
    }
    on_gpu = setting.device.type == "cuda"
    seconds = in_turns(ways, setting.rounds if on_gpu else min(setting.rounds, FEW_ROUNDS), setting.clock, int(on_gpu))
    exact = plain(clip, captions, setting.device) if half else found["theirs"]
    lengths = encoder.encoder.tower.lengths(clip.tokenizer(captions)).double()
    return compared(
        "embedding", f"{model} {'fp16' if half else 'fp32'}, {len(captions)} captions, 1 in {AGAIN} repeated",
        f"open_clip {version('open_clip_torch')}", "captions/s", len(captions), seconds["theirs"], seconds["ours"],
        check_vectors(found["ours"], exact, half), GOAL, mean_tokens=float(lengths.mean()),
    )  # fmt: skip
