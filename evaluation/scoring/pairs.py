"""Samples beside their nearest training images: memorised ones catch the eye."""

import torch
from PIL import Image

from evaluation.sources.source import Source
from toolkit.run_folder.captioned_grid import draw_captioned_grid


def draw_pairs(nearest: list[dict], real: Source, fake: Source) -> Image.Image:
    """Rows of sample | nearest training image | the sample's caption and the distance, nearest first."""
    images, lines = [], []
    for pair in nearest:
        sample, training = (
            source.draw(range(pair[key], pair[key] + 1)) for source, key in ((fake, "sample"), (real, "training"))
        )
        if sample.shape != training.shape:
            training = torch.nn.functional.interpolate(training.float(), sample.shape[2:]).to(torch.uint8)
        images += [sample, training]
        lines.append(f"{pair.get('caption', '')[:120]} (distance {pair['distance']:.3g})")
    return draw_captioned_grid(torch.cat(images), lines)
