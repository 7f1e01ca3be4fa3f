"""grid.png: the same prompts and noise by every variant, a row for each; where its generator is still there."""

from pathlib import Path

import torch

from benchmarks.ablate.grid import Grid
from benchmarks.ablate.results import Results
from benchmarks.ablate.table import ranked
from toolkit.inference.sampling import load_generator
from toolkit.run_folder.captioned_grid import draw_captioned_grid
from toolkit.run_folder.checkpoint import GENERATOR, checkpoints

PROMPTS, NOISES, ROWS = 5, 2, 20


def generator_file(out: Path, variant: str, seed: int) -> Path | None:
    """Of a run that has ended."""
    folder = out / "runs" / variant / f"seed_{seed}"
    kept = [folder / GENERATOR, *(path / GENERATOR for path in reversed(checkpoints(folder)))]
    return next((path for path in kept if path.is_file()), None)


def draw_images(grid: Grid, results: Results, out: Path) -> Path | None:
    """OUT/grid.png by the first seed's averaged generators, the best variants first below the control."""
    text, captions = _prompts(grid)
    rows, names = [], []
    for name in [grid.control, *ranked(results)][:ROWS]:
        files = [generator_file(out, name, run["seed"]) for run in results.of(name)]
        file = next((file for file in files if file), None)
        if file is not None:
            seeds = list(range(NOISES)) * len(captions)
            rows.append(load_generator(file).sample(text.repeat_interleave(NOISES, dim=0), seeds))
            names.append(name)
    if not rows:
        return None
    image = draw_captioned_grid(torch.cat(rows), names)
    image.save(out / "grid.png", optimize=True)
    return out / "grid.png"


def _prompts(grid: Grid) -> tuple[torch.Tensor, list[str]]:
    """The first different captions of the data and their vectors."""
    found: dict[str, torch.Tensor] = {}
    for number in range(len(grid.shards)):
        one = grid.shards.read_texts(number)
        found.setdefault(one.captions[0], one.vectors[0])
        if len(found) == PROMPTS:
            break
    return torch.stack(list(found.values())), list(found)
