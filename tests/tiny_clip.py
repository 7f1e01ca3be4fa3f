"""A random CLIP of 32 dimensions that open_clip knows by name, in files of different weights."""

import json
from pathlib import Path

import open_clip
import torch

NAME = "tiny-test/local"


def save_weights(folder: Path, count: int = 2) -> list[Path]:
    """Make the architecture known to open_clip in this process; `register` does so in another one."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-test.json").write_text(json.dumps(config))
    register(folder)
    paths = [folder / f"weights{i}.pt" for i in range(count)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("tiny-test").state_dict(), path)
    return paths


def register(folder: Path) -> None:
    open_clip.add_model_config(folder / "tiny-test.json")
