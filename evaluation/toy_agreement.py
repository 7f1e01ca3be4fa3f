"""Command: does a generator trained on toy dishes draw what the prompt says? Read back by the oracle, beside chance."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from evaluation.toy_oracle import agreement, chance
from shards.toy_dishes import Attributes, all_attributes, is_held_out
from toolkit.command_line import run
from toolkit.encoders.text_encoder import load_encoder_of
from toolkit.errors import check
from toolkit.inference.sampling import TrainedGenerator, load_generator


@dataclass(frozen=True)
class AgreementOptions:
    """Draw dishes for captions seen in training and for held-out combinations, and read the attributes back."""

    RENAMED: ClassVar[dict[str, str]] = {"pictures": "images"}

    checkpoint: Path
    """Checkpoint folder, run folder (its newest valid checkpoint) or generator.safetensors, trained on toy dishes."""
    images: int = 960
    """Images per group (seen, held out), spread over its captions; at least 32."""
    seed: int = 10_000
    """First sample seed; image i has seed + i."""

    def __post_init__(self) -> None:
        check(self.images >= 32, "images", self.images, "at least 32")


def main(options: AgreementOptions) -> None:
    trained = load_generator(options.checkpoint)
    groups = {
        "seen in training": [attributes for attributes in all_attributes() if not is_held_out(attributes)],
        "held-out combinations": [attributes for attributes in all_attributes() if is_held_out(attributes)],
    }
    scores = {name: score(trained, group, options.images, options.seed) for name, group in groups.items()}
    print(table(scores), file=sys.stderr)
    protocol = {"checkpoint": trained.name, "images_per_group": options.images, "first_seed": options.seed}
    print(json.dumps({"agreement": scores, "chance": chance(), "protocol": protocol}, indent=1))


def score(trained: TrainedGenerator, group: list[Attributes], count: int, seed: int) -> dict[str, float]:
    """Share of `count` images, drawn for the group's captions in turn, that read as their prompt says."""
    expected = [group[i * len(group) // count % len(group)] for i in range(count)]
    text = load_encoder_of(trained.identity).encode([attributes.caption for attributes in expected])
    images = trained.sample(text, list(range(seed, seed + count)))
    return agreement(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()), expected)


def table(scores: dict[str, dict[str, float]]) -> str:
    """The same as lines to read."""
    names = list(chance())
    lines = [f"{'the image shows the prompted':32}" + "".join(f"{name:>10}" for name in names)]
    for group, values in [*scores.items(), ("by chance", chance())]:
        lines.append(f"{group:32}" + "".join(f"{values[name]:>10.1%}" for name in names))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, AgreementOptions)
