"""Command: python -m toolkit.generate --checkpoint RUN --prompt "..." -> PNG files with a JSON sidecar each."""

import json
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.command_line import run
from toolkit.data.feature_cache import default_folder
from toolkit.data.images import save_png
from toolkit.devices import pick_device
from toolkit.encoders.prompts import PromptEncoder
from toolkit.errors import UserError, check
from toolkit.inference.sampling import TrainedGenerator, load_generator
from toolkit.run_folder.captioned_grid import draw_captioned_grid
from toolkit.run_folder.checkpoint import MAIN_AVERAGE

MAX_PROMPT_CHARACTERS, MAX_PROMPTS = 2000, 100_000


@dataclass(frozen=True)
class GenerateOptions:
    """Draw images for prompts with a trained generator. Give one of prompt, prompts_file, interactive, embedding."""

    checkpoint: str = ""
    """Checkpoint folder (ckpt_*), run folder (its newest valid checkpoint), RUN/best (that with the best score during
    training), generator.safetensors or the file of another average."""
    prompt: str | None = None
    """One prompt."""
    prompts_file: str | None = None
    """UTF-8 text file, one prompt a line; blank lines are passed over."""
    interactive: bool = False
    """Read prompts from the terminal until an empty line."""
    embedding: str | None = None
    """.npy file with one text embedding [E] or several [N, E] in place of prompts."""
    seeds: str = "0-3"
    """Seeds per prompt, e.g. '0,3,8-11': the same prompt and seed give the same image, to a level of 255."""
    truncation: float = 1.0
    """Scale of the noise, 0 to 2: below 1 the images of a prompt draw near to its middle, typical and alike; at 0
    they are one; above 1 they are bolder."""
    out_dir: str = "generated"
    """Folder for the images; existing files of the same name are replaced."""
    individual: bool = True
    """Write every image to a file of its own, with a JSON sidecar."""
    grid: bool = True
    """Write grid.png: a row per prompt with its text, a column per seed; of more than 64 prompts the first 64."""
    batch: int = 32
    """Images drawn at once."""
    encoder_weights: str | None = None
    """Local copy of the text encoder's weights; by default open_clip finds or downloads them."""
    cache: str | None = None
    """Folder that keeps the vectors of prompts for the next time (default: in the user's cache folder; '': none)."""
    device: str = "auto"
    """'auto' (GPU if there is one), 'cpu', 'cuda', 'cuda:1'."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "prompts_file", "interactive", "embedding") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                f"give exactly one of --prompt, --prompts_file, --interactive true, --embedding, not {given}"
            )
        check(
            bool(self.checkpoint),
            "checkpoint",
            self.checkpoint,
            "a checkpoint folder, e.g. runs/gan/ckpt_0010000",
        )
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(0 <= self.truncation <= 2, "truncation", self.truncation, "from 0 to 2")
        parse_seeds(self.seeds)


def main(options: GenerateOptions) -> None:
    device = pick_device(options.device)
    trained = load_generator(options.checkpoint, device)
    out_dir = Path(options.out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out_dir {out_dir} cannot be written ({error.strerror}); choose another --out_dir") from None
    if options.embedding:
        text = read_embeddings(Path(options.embedding), trained)
        draw(trained, [f"{Path(options.embedding).stem} {i}" for i in range(len(text))], text, options, out_dir)
        return
    weights = Path(options.encoder_weights) if options.encoder_weights else None
    folder = default_folder("prompts") if options.cache is None else Path(options.cache) if options.cache else None
    encoder = PromptEncoder(trained.identity, weights, device, folder)
    if options.interactive:
        converse(trained, encoder, options, out_dir)
        return
    if options.prompt:
        prompts = [clean_prompt(options.prompt, "--prompt")]
    else:
        assert options.prompts_file is not None  # one of the four is given
        prompts = read_prompts(Path(options.prompts_file))
    draw(trained, prompts, encode(encoder, prompts), options, out_dir)


def draw(
    trained: TrainedGenerator,
    prompts: list[str],
    text: Tensor,
    options: GenerateOptions,
    out_dir: Path,
    first=0,
):
    """Draw every prompt with every seed; files are numbered from `first`."""
    seeds = parse_seeds(options.seeds)
    every_seed = seeds * len(prompts)
    repeated = text.repeat_interleave(len(seeds), dim=0)
    images = trained.sample(repeated, every_seed, options.batch, options.truncation)
    if options.individual:
        for i, (image, seed) in enumerate(zip(images, every_seed, strict=True)):
            number = i // len(seeds)
            stem = out_dir / f"{first + number:04d}_{slug(prompts[number])}_seed{seed}"
            save_png(image, stem.with_name(stem.name + ".png"))
            sidecar = {"prompt": prompts[number], "seed": seed, "checkpoint": trained.name, "step": trained.step,
                       "encoder": trained.identity.name, "resolution": trained.config.resolution}  # fmt: skip
            sidecar |= {"truncation": options.truncation} if options.truncation != 1 else {}
            sidecar |= {"average": trained.average} if trained.average != MAIN_AVERAGE else {}
            text_json = json.dumps(sidecar, ensure_ascii=False, indent=1) + "\n"
            stem.with_name(stem.name + ".json").write_text(text_json, encoding="utf-8")
    if options.grid:
        draw_captioned_grid(images, prompts).save(out_dir / "grid.png")
    print(f"{len(images)} images of {len(prompts)} prompts in {out_dir}")


def converse(trained: TrainedGenerator, encoder: PromptEncoder, options: GenerateOptions, out_dir: Path) -> None:
    """Prompt by prompt from the terminal."""
    number = 0
    while True:
        try:
            line = input("prompt> ").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            prompts = [clean_prompt(line, "prompt")]
            draw(trained, prompts, encode(encoder, prompts), options, out_dir, first=number)
            number += 1
        except UserError as error:
            print(error, file=sys.stderr)


def encode(encoder: PromptEncoder, prompts: list[str]) -> Tensor:
    vectors, cut = encoder.encode(prompts)
    if cut:
        name = encoder.identity.name
        print(f"generate: {cut} of {len(prompts)} prompts are longer than {name} reads and were cut", file=sys.stderr)
    return vectors


def parse_seeds(seeds: str) -> list[int]:
    """'0,3,8-11' -> [0, 3, 8, 9, 10, 11]. Raises UserError."""
    found: list[int] = []
    for part in seeds.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        check(match is not None, "seeds", seeds, "numbers and ranges like '0,3,8-11'")
        assert match is not None
        first, last = int(match[1]), int(match[2] or match[1])
        check(first <= last < first + 10_000, "seeds", seeds, "rising ranges of at most 10,000 seeds")
        found += range(first, last + 1)
    return found


def read_prompts(path: Path) -> list[str]:
    """One prompt a line. Raises UserError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts file {path} cannot be read as UTF-8 text ({error})") from None
    prompts = [clean_prompt(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"prompts file {path} holds no prompt; write one a line")
    check(len(prompts) <= MAX_PROMPTS, "the number of prompts", len(prompts), f"at most {MAX_PROMPTS:,}")
    return prompts


def clean_prompt(prompt: str, where: str) -> str:
    """NFC, outer blanks stripped. Raises UserError for control characters, nothing, or far too much."""
    prompt = unicodedata.normalize("NFC", prompt).strip()
    if not prompt or len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(f"{where}: a prompt has 1 to {MAX_PROMPT_CHARACTERS} characters, this one {len(prompt)}")
    if any(unicodedata.category(character) == "Cc" for character in prompt):
        raise UserError(f"{where}: the prompt holds control characters; remove them")
    return prompt


def slug(prompt: str) -> str:
    """ASCII name part of at most 60 characters; 'ćevapi & onions' -> 'cevapi-onions'."""
    plain = (
        unicodedata.normalize("NFKD", prompt.replace("đ", "dj").replace("Đ", "Dj")).encode("ascii", "ignore").decode()
    )
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:60].strip("-") or "prompt"


def read_embeddings(path: Path, trained: TrainedGenerator) -> Tensor:
    """float32 [N, E] of unit length from a .npy file. Raises UserError."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"embedding {path} cannot be read as .npy ({error})") from None
    text = torch.from_numpy(np.atleast_2d(array).astype(np.float32))
    if text.ndim != 2 or text.shape[1] != trained.config.cond_dim:
        raise UserError(
            f"embedding {path} has shape {array.shape}; {trained.name} expects {trained.config.cond_dim} numbers"
        )
    if not torch.isfinite(text).all() or (text.norm(dim=1) == 0).any():
        raise UserError(f"embedding {path} holds NaN, infinity or a zero vector")
    return torch.nn.functional.normalize(text, dim=1)


if __name__ == "__main__":
    run(main, GenerateOptions)
