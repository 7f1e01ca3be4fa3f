"""Toy dishes: captions whose every word is visible in the image, and images drawn to match.

They make an honest small test of text conditioning: four attributes decide the image up to small nuisance
(pose, lighting, toppings), some combinations are never shown in training, and `evaluation/toy_oracle.py`
reads the attributes back from any image.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from shards.toy_drawing import COLOURS, DISH_PAINTERS, GARNISH_PAINTERS, draw_plate_of
from toolkit.command_line import run
from toolkit.errors import check

DISHES: tuple[str, ...] = tuple(DISH_PAINTERS)
PLATES: tuple[str, ...] = tuple(COLOURS)
TABLES: tuple[str, ...] = tuple(COLOURS)
PLAIN = "plain"
GARNISHES: tuple[str, ...] = (PLAIN, *GARNISH_PAINTERS)

_CAPTION = re.compile(r"(plain )?(.+?)(?: with (\w+))? on a (\w+) plate, (\w+) table")


@dataclass(frozen=True)
class ToyOptions:
    """Draw a captioned folder of toy dishes to train on."""

    out: Path
    """Folder that receives the images and captions; made if missing."""
    count: int = 3000
    """Number of images."""
    size: int = 32
    """Width and height of an image in pixels, at least 32."""
    seed: int = 0
    """Seed of every random choice, any integer from 0."""

    def __post_init__(self) -> None:
        check(1 <= self.count <= 99_999, "count", self.count, "from 1 to 99,999")
        check(32 <= self.size <= 1024, "size", self.size, "from 32 to 1024")
        check(self.seed >= 0, "seed", self.seed, "at least 0")


@dataclass(frozen=True)
class Attributes:
    """The four things a caption says, each one word list's member.

    Equal plate and table colours can be held (the oracle may read them) but are no valid combination.
    """

    dish: str
    plate: str
    table: str
    garnish: str

    @property
    def caption(self) -> str:
        """Say it in one sentence; every adjective stands right before its noun, so word pairs bind them."""
        head = f"plain {self.dish}" if self.garnish == PLAIN else f"{self.dish} with {self.garnish}"
        return f"{head} on a {self.plate} plate, {self.table} table"

    @classmethod
    def from_caption(cls, caption: str) -> "Attributes":
        """Invert `caption`; raises ValueError unless it is exactly the caption of a valid combination."""
        # A typed "ć" may arrive as "c" plus a combining accent.
        match = _CAPTION.fullmatch(unicodedata.normalize("NFC", caption.strip()))
        if match:
            plain, dish, garnish, plate, table = match.groups()
            read = cls(dish, plate, table, garnish if garnish and not plain else PLAIN)
            if read in _positions() and read.caption == match.string:
                return read
        raise ValueError(f"not a toy-dish caption: {caption!r}; one is {all_attributes()[0].caption!r}")


def all_attributes() -> list[Attributes]:
    """List all 960 valid combinations in a fixed order; the plate never has the table's colour."""
    return list(_positions())


@cache
def _positions() -> dict[Attributes, int]:
    combinations = (
        Attributes(dish, plate, table, garnish)
        for dish in DISHES
        for plate in PLATES
        for table in TABLES
        for garnish in GARNISHES
        if plate != table
    )
    return {attributes: position for position, attributes in enumerate(combinations)}


def is_held_out(attributes: Attributes) -> bool:
    """Tell whether training never sees this (dish, plate, table), whatever the garnish.

    Each of the 30 (plate, table) pairs leaves out one of the 8 dishes (12.5 %), spread like a Latin square:
    every pair of values is still trained, and the held-out set has all dishes about equally, so that always
    drawing the same dish scores chance there too.
    """
    plate, table = PLATES.index(attributes.plate), TABLES.index(attributes.table)
    rank = table - (table > plate)  # among the tables this plate may stand on
    return DISHES.index(attributes.dish) == (3 * plate + rank) % len(DISHES)


def draw_dish(attributes: Attributes, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw an RGB image of `size` x `size` pixels (at least 32); `rng` decides only the nuisance."""
    return draw_plate_of(attributes.dish, attributes.plate, attributes.table, attributes.garnish, size, rng)


def training_attributes(seed: int) -> list[Attributes]:
    """List the combinations that are not held out, shuffled by `seed`."""
    seen = [attributes for attributes in all_attributes() if not is_held_out(attributes)]
    return [seen[position] for position in np.random.default_rng(seed).permutation(len(seen))]


def write_caption_folder(folder: Path, count: int, size: int, seed: int) -> None:
    """Write `count` training images `00000.png` ... of `size` pixels, each with its caption `00000.txt`.

    Combinations come round in turn, so all appear about equally; image i depends on (seed, i) only, so a
    longer run extends a shorter one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turn = training_attributes(seed)
    for number in range(count):
        attributes = turn[number % len(turn)]
        image = draw_dish(attributes, size, np.random.default_rng([seed, number]))
        image.save(folder / f"{number:05d}.png", compress_level=1)
        (folder / f"{number:05d}.txt").write_text(attributes.caption + "\n", encoding="utf-8")


def main(options: ToyOptions) -> None:
    write_caption_folder(options.out, options.count, options.size, options.seed)
    print(f"drew {options.count:,} dishes of {options.size} px with captions in {options.out}")


if __name__ == "__main__":
    run(main, ToyOptions)
