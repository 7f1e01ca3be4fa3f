"""The same prompts and noise over the training: how the images came to be."""

from pathlib import Path

from PIL import Image

from evaluation.report.page import figure, image_tag
from evaluation.report.run_record import RunRecord
from shards.report.findings import evenly
from shards.report.markup import shortened, text
from toolkit.config import ResolvedConfig
from toolkit.data.decoding import decode_image
from toolkit.errors import UserError
from toolkit.run_folder.sample_grid import COLUMNS

STEPS_SHOWN, PROMPTS_SHOWN = 8, 8
CELL, WHOLE = 128, 1080
"""Pixels: of one image, and of a grid shown as it is."""
GAP = 2
"""White pixels round each image, as toolkit.data.images.make_grid lays them."""


def timeline(record: RunRecord) -> list[str]:
    page = ["<h2>Samples over the training</h2>"]
    paths = sample_paths(record.folder)
    if not paths:
        return [*page, "<p>No samples yet: the run draws them every <code>--sample_every</code> steps.</p>"]
    chosen = [paths[i] for i in spread_to_the_end(len(paths), STEPS_SHOWN)]
    grids, notes = _open(chosen)
    prompts = _prompts(record.folder)
    if not prompts:
        notes.append("sample_captions.txt is missing: the prompts are not known")
    cut = {step: cells(grid, record.config) for step, grid in grids.items()}
    if grids and all(cut.values()):
        page += _by_prompt(record, cut, prompts) + _newest(*list(grids.items())[-1])
    elif grids:
        page += _whole(grids, prompts)
    return [*page, *(f'<p class="note">{text(note)}</p>' for note in notes)]


def sample_paths(run: Path) -> list[Path]:
    """sample_STEP.png of a run by step."""
    found = (path for path in run.glob("sample_*.png") if path.stem[7:].isdecimal() and len(path.stem) < 24)
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.stem[7:])


def spread_to_the_end(total: int, count: int) -> list[int]:
    """Up to `count` numbers spread over [0, total), the first and the last among them."""
    return evenly(total, count) if total <= count else [i * (total - 1) // (count - 1) for i in range(count)]


def cells(grid: Image.Image, config: ResolvedConfig | None) -> list[list[Image.Image]]:
    """Rows of images of a sample grid; [] if it is not laid out as this run's options say."""
    if config is None:
        return []
    side, columns = config.resolution, min(COLUMNS, config.n_sample)
    pitch = side + GAP
    if grid.width != columns * pitch + GAP or grid.height <= GAP or (grid.height - GAP) % pitch:
        return []
    corners = [[(GAP + column * pitch, GAP + row * pitch) for column in range(columns)]
               for row in range((grid.height - GAP) // pitch)]  # fmt: skip
    return [[grid.crop((x, y, x + side, y + side)) for x, y in row] for row in corners]


def _open(paths: list[Path]) -> tuple[dict[int, Image.Image], list[str]]:
    grids, notes = {}, []
    for path in paths:
        try:
            grids[step_of(path)] = decode_image(path.read_bytes())
        except (OSError, UserError) as error:
            notes.append(f"{path.name} cannot be shown: {getattr(error, 'strerror', None) or error}")
    return grids, notes


def _prompts(run: Path) -> list[str]:
    try:
        return (run / "sample_captions.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError):
        return []


def _by_prompt(record: RunRecord, cut: dict[int, list[list[Image.Image]]], prompts: list[str]) -> list[str]:
    rows = min(len(grid) for grid in cut.values())
    shown = spread_to_the_end(rows, PROMPTS_SHOWN)
    reals = real_images(record, rows)
    some = f" {len(shown)} of the run's {rows} prompts are shown." if rows > len(shown) else ""
    real = " The last image is a training image of that caption." if reals else ""
    page = [f'<p class="note">One noise vector for all, the same at every step.{some}{real}</p>']
    for row in shown:
        prompt = shortened(prompts[row]) if row < len(prompts) else f"prompt {row + 1}"
        figures = [figure(image_tag(grid[row][0], CELL, f"step {step}"), f"{step:,}") for step, grid in cut.items()]
        if reals:
            figures.append(figure(image_tag(reals[row], CELL, "training image"), "real"))
        page.append(f'<h3>{prompt}</h3><div class="steps">{"".join(figures)}</div>')
    return page


def real_images(record: RunRecord, rows: int) -> list[Image.Image]:
    """The training image of each row; [] if reals.png is not there, or is not of so many rows."""
    if record.config is None:
        return []
    side = record.config.resolution
    try:
        column = decode_image((record.folder / "reals.png").read_bytes())
    except (OSError, UserError):
        return []
    pitch = side + GAP
    if column.size != (pitch + GAP, rows * pitch + GAP):
        return []
    return [column.crop((GAP, GAP + row * pitch, GAP + side, GAP + row * pitch + side)) for row in range(rows)]


def _newest(step: int, grid: Image.Image) -> list[str]:
    shown = figure(image_tag(grid, WHOLE, f"all samples of step {step}"), f"step {step:,}, a row per prompt")
    return [f'<details><summary>All samples of step {step:,}</summary><div class="whole">{shown}</div></details>']


def _whole(grids: dict[int, Image.Image], prompts: list[str]) -> list[str]:
    page = ['<p class="note">Whole grids: their layout is not that of the run\'s options. A row per prompt:</p>']
    page.append("<ol>" + "".join(f"<li>{shortened(prompt)}</li>" for prompt in prompts[:64]) + "</ol>")
    shown = [figure(image_tag(grid, WHOLE // 2, f"step {step}"), f"step {step:,}") for step, grid in grids.items()]
    return [*page, f'<div class="curves">{"".join(shown)}</div>']
