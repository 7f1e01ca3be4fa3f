"""B5, prompts to images, beside the loop of most repositories: each prompt encoded, then drawn, by itself.

Random weights of the text encoder and of G: they take as long as any.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.embedding import build, write_captions
from benchmarks.images import fresh_folder
from benchmarks.plain_networks import PlainGenerator
from benchmarks.side_by_side import Different, Row, Setting, compared, in_turns
from toolkit import draws
from toolkit.data.images import to_uint8
from toolkit.encoders.open_clip_encoder import OpenClip, OpenClipEncoder
from toolkit.encoders.prompts import PromptEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.inference.folding import FoldedGenerator
from toolkit.inference.sampling import sample
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.models import Generator

NAME, MODEL, BASELINE = "drawing", "ViT-L-14", "one prompt at a time, eager"
PROMPTS = {"cpu": 8, "cuda": 256}
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
GOALS = {"repeated prompts": 2.5, "new prompts": 1.6}
SIZE, WIDTH = 128, 32
FEW_ROUNDS = 3
"""Where texts are encoded, which takes longest."""


def rows(setting: Setting, model: str = MODEL) -> Iterator[Row]:
    """`model`: an open_clip text tower."""
    clip = build(model, setting.device)
    G = trained(setting, clip.model.text_projection.shape[1])
    plain, folded = PlainGenerator(G).eval().to(setting.device), FoldedGenerator(G)
    for batch in BATCHES[setting.device.type]:
        yield from_vectors(setting, plain, folded, batch, G.cond_dim)
    yield from from_prompts(setting, model, clip, plain, folded)


def trained(setting: Setting, cond_dim: int) -> Generator:
    """G with statistics that some batches have left."""
    torch.manual_seed(0)
    published = ModelConfig(resolution=SIZE, base_ch=WIDTH, cond_dim=cond_dim, g_modulation="text")
    G = Generator(published).to(setting.device)
    with torch.no_grad():
        for _ in range(3):
            G(*numbers(8, cond_dim, setting.device))
    return G.eval().requires_grad_(False)


def numbers(count: int, cond_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """z and text."""
    random = torch.Generator().manual_seed(count)
    text = normalize(torch.randn(count, cond_dim, generator=random), dim=1)
    return torch.randn(count, 128, generator=random).to(device), text.to(device)


def from_vectors(setting: Setting, plain: PlainGenerator, folded: FoldedGenerator, batch: int, cond_dim: int) -> Row:
    """G alone."""
    inputs = numbers(batch, cond_dim, setting.device)
    times = max(1, 16 // batch)
    ways = {"theirs": partial(repeated, plain, inputs, times), "ours": partial(repeated, folded, inputs, times)}
    parity = same_images(*(to_uint8(way()).cpu() for way in ways.values()))
    seconds = in_turns(ways, setting.rounds, setting.clock)
    point = f"G alone, {SIZE} px, base_ch {WIDTH}, batch {batch}"
    return compared(NAME, point, "G as trained, eager", "images/s", batch * times, seconds["theirs"],
                    seconds["ours"], parity)  # fmt: skip


@torch.inference_mode()
def repeated(network: torch.nn.Module, inputs: tuple[Tensor, Tensor], times: int) -> Tensor:
    for _ in range(times):
        images = network(*inputs)
    return images


def from_prompts(
    setting: Setting, model: str, clip: OpenClip, plain: PlainGenerator, folded: FoldedGenerator
) -> Iterator[Row]:
    """Prompts whose vectors were kept the last time, and prompts never seen; loading the encoder counts nowhere."""
    prompts = list(dict.fromkeys(write_captions(2 * PROMPTS[setting.device.type])))[: PROMPTS[setting.device.type]]
    encoder = OpenClipEncoder(model, clip, setting.device)
    identity = EncoderIdentity.of(encoder)
    kept = PromptEncoder(identity, None, setting.device, fresh_folder(setting, "prompts"))
    none = PromptEncoder(identity, None, setting.device, None)
    kept._encoder = none._encoder = encoder
    theirs = partial(one_by_one, clip, plain, prompts, setting.device)
    for kind, prompt_encoder in (("repeated prompts", kept), ("new prompts", none)):
        ours = partial(together, prompt_encoder, folded, prompts)
        parity = same_images(theirs(), ours())
        seconds = in_turns({"theirs": theirs, "ours": ours}, min(setting.rounds, FEW_ROUNDS), setting.clock)
        point = f"{kind}, {model}, {SIZE} px, base_ch {WIDTH}"
        yield compared(NAME, point, BASELINE, "images/s", len(prompts), seconds["theirs"], seconds["ours"], parity,
                       GOALS[kind])  # fmt: skip


@torch.inference_mode()
def one_by_one(clip: OpenClip, G: PlainGenerator, prompts: list[str], device: torch.device) -> Tensor:
    """uint8 [N, 3, R, R]: all 77 tokens of each prompt, then its image."""
    images = []
    for seed, prompt in enumerate(prompts):
        text = normalize(clip.model.encode_text(clip.tokenizer([prompt]).to(device)), dim=1)
        z = draws.sample_noise([seed], 128).to(device)
        images.append(to_uint8(G(z, text)).cpu())
    return torch.cat(images)


def together(encoder: PromptEncoder, G: FoldedGenerator, prompts: list[str]) -> Tensor:
    """As `toolkit.generate` does."""
    text, _ = encoder.encode(prompts)
    return sample(G, draws.sample_noise(list(range(len(prompts))), 128), text)


def same_images(theirs: Tensor, ours: Tensor) -> str:
    """Raises Different where a pixel is more than a level apart."""
    apart = (ours.int() - theirs.int()).abs()
    if ours.shape != theirs.shape or apart.max() > 1:
        raise Different(f"images differ by up to {apart.max()} levels")
    return (
        f"pixels equal but {(apart > 0).double().mean():.1e} of them, a level apart" if apart.any() else "equal pixels"
    )
