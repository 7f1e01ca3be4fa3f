"""Read the attributes of a toy dish back from its image, without any training.

Colours are read where only the table or only the plate can be; dish and garnish are the nearest among
drawings of every one of them (analysis by synthesis). Nothing here sees the caption or the generator, so
agreement with the prompt can only come from the image.
"""

from functools import cache

import numpy as np

from shards.toy_dishes import DISHES, GARNISHES, PLATES, TABLES, Attributes, draw_dish
from shards.toy_drawing import COLOURS, DISH_CENTRE, GARNISH_CENTRE

GRID = 32
DRAWS = 5
# Away from the seeds (seed, i) that training folders use, so that the bank holds no training image.
BANK_SEED = 7_919_000_000


def _distance(centre: tuple[float, float]) -> np.ndarray:
    """Give each grid pixel's distance [32,32] from a point, in shares of the width."""
    steps = (np.arange(GRID) + 0.5) / GRID
    return np.hypot(steps[None, :] - centre[0], steps[:, None] - centre[1])


# The plate reaches 0.455 from the middle and its shadow 0.5; the dish reaches 0.37.
_FROM_MIDDLE, _FROM_GARNISH = _distance((0.5, 0.5)), _distance(GARNISH_CENTRE)
TABLE_PART = _FROM_MIDDLE > 0.54
PLATE_PART = (_FROM_MIDDLE > 0.37) & (_FROM_MIDDLE < 0.435) & (_FROM_GARNISH > 0.15)
DISH_PART = (_distance(DISH_CENTRE) < 0.36) & (_FROM_GARNISH > 0.125)
GARNISH_PART = (_FROM_GARNISH < 0.115) & (_FROM_MIDDLE < 0.44)


def _on_grid(images: np.ndarray) -> np.ndarray:
    """Reduce images [N,H,W,3] uint8 to float32 [N,32,32,3] by averaging blocks."""
    count, height, width, channels = images.shape
    if images.dtype != np.uint8 or channels != 3 or height != width or height % GRID:
        raise ValueError(f"need uint8 [N,H,H,3] with H a multiple of {GRID}, got {images.dtype} {images.shape}")
    block = height // GRID
    blocks = images.reshape(count, GRID, block, GRID, block, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _smooth(images: np.ndarray) -> np.ndarray:
    """Blur [N,32,32,3] by (1 2 1)/4 both ways: detail finer than this is what a small GAN cannot place."""
    for axis in (1, 2):
        padding = [(1, 1) if axis == other else (0, 0) for other in range(4)]
        padded = np.pad(images, padding, mode="edge")
        before, after = (np.take(padded, np.arange(GRID) + step, axis) for step in (0, 2))
        images = (before + 2 * images + after) / 4
    return images


def _nearest_colour(images: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Give the index [N] of the named colour nearest to the median over a part of the images."""
    seen = np.median(images[:, part], axis=1)
    named = np.array(list(COLOURS.values()), np.float32)
    return ((seen[:, None] - named[None]) ** 2).sum(axis=2).argmin(axis=1)


def _nearest_drawing(images: np.ndarray, bank: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Give the index [N] of the drawing in bank [B,32,32,3] that is nearest over a part of the images."""
    seen, drawn = (images[:, part].reshape(len(images), -1) for images in (images, bank))
    # |seen|^2 is the same for every drawing and is left out.
    return ((drawn**2).sum(axis=1)[None] - 2 * seen @ drawn.T).argmin(axis=1)


@cache
def _bank(plate: str) -> tuple[np.ndarray, list[Attributes]]:
    """Draw every dish with every garnish a few times on one plate: smoothed [B,32,32,3] and what they are."""
    table = next(colour for colour in TABLES if colour != plate)
    shown = [Attributes(d, plate, table, g) for d in DISHES for g in GARNISHES for _ in range(DRAWS)]
    drawings = [
        np.asarray(draw_dish(attributes, GRID, np.random.default_rng([BANK_SEED, number])))
        for number, attributes in enumerate(shown)
    ]
    return _smooth(_on_grid(np.stack(drawings))), shown


def read_images(images: np.ndarray) -> list[Attributes]:
    """Read images uint8 [N,H,H,3], H a multiple of 32; any image gets some answer, noise included."""
    reduced = _on_grid(images)
    tables, plates = _nearest_colour(reduced, TABLE_PART), _nearest_colour(reduced, PLATE_PART)
    smooth = _smooth(reduced)
    read: dict[int, Attributes] = {}
    for plate in np.unique(plates):
        members = np.flatnonzero(plates == plate)
        bank, shown = _bank(PLATES[plate])
        dishes = _nearest_drawing(smooth[members], bank, DISH_PART)
        garnishes = _nearest_drawing(smooth[members], bank, GARNISH_PART)
        for member, dish, garnish in zip(members, dishes, garnishes, strict=True):
            read[int(member)] = Attributes(
                shown[dish].dish, PLATES[plate], TABLES[tables[member]], shown[garnish].garnish
            )
    return [read[number] for number in range(len(images))]


def read_attributes(image: np.ndarray) -> Attributes:
    """Read one image uint8 [H,H,3], H a multiple of 32."""
    return read_images(image[None])[0]


def agreement(images: np.ndarray, expected: list[Attributes]) -> dict[str, float]:
    """Give for each attribute the share, 0..1, of images uint8 [N,H,H,3] that read as expected."""
    if len(images) != len(expected) or not expected:
        raise ValueError(f"need as many images as expectations, got {len(images)} and {len(expected)}")
    read = read_images(images)
    return {
        name: float(np.mean([getattr(r, name) == getattr(e, name) for r, e in zip(read, expected, strict=True)]))
        for name in chance()
    }


def chance() -> dict[str, float]:
    """Give for each attribute the agreement, 0..1, that images made without reading the prompt reach."""
    choices = {"dish": DISHES, "plate": PLATES, "table": TABLES, "garnish": GARNISHES}
    return {name: 1 / len(values) for name, values in choices.items()}
