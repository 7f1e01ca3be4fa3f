"""An image to show around: a row per prompt, a column per seed, the prompt beside its row."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from toolkit.data.images import to_pil

SMALLEST_SIDE, MAX_ROWS, GAP, TEXT_WIDTH = 96, 64, 8, 300


def draw_captioned_grid(images: Tensor, prompts: list[str]) -> Image.Image:
    """uint8 [P * S, 3, R, R], S images per prompt -> RGB; small images are enlarged (bicubic), long texts cut."""
    columns = len(images) // len(prompts)
    rows = min(len(prompts), MAX_ROWS)
    side = max(images.shape[-1], SMALLEST_SIDE)
    cell = side + GAP
    grid = Image.new("RGB", (columns * cell + GAP + TEXT_WIDTH, rows * cell + GAP), "white")
    pen, font = ImageDraw.Draw(grid), _font(15)
    for row in range(rows):
        for column in range(columns):
            image = to_pil(images[row * columns + column])
            enlarged = image.resize((side, side), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (GAP + column * cell, GAP + row * cell))
        lines = _wrap(prompts[row], font, TEXT_WIDTH - 2 * GAP)[: side // 20]
        left, middle = columns * cell + 2 * GAP, GAP + row * cell + side / 2
        pen.multiline_text((left, middle), "\n".join(lines), fill="black", font=font, anchor="lm", spacing=4)
    return grid


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib: unlike Pillow's own font it has Serbian Latin and Cyrillic."""
    import matplotlib  # half a second of import, only when a grid is drawn

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
