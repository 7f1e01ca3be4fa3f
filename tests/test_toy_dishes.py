"""Toy dishes: captions invert, held-out combinations are fair, the oracle is right and honest."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evaluation.toy_oracle import agreement, chance, read_attributes, read_images
from shards.toy_dishes import (
    DISHES,
    GARNISHES,
    PLATES,
    TABLES,
    Attributes,
    all_attributes,
    draw_dish,
    is_held_out,
    training_attributes,
    write_caption_folder,
)
from shards.toy_drawing import COLOURS

EVERYTHING = all_attributes()


def draw_all(expected: list[Attributes], size: int, seed: int) -> list[Image.Image]:
    return [draw_dish(a, size, np.random.default_rng([seed, i])) for i, a in enumerate(expected)]


def stack(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """Every combination once, [960] at 32 px, with seeds that the oracle's bank never uses."""
    return draw_all(EVERYTHING, 32, seed=11)


def test_vocabulary_counts() -> None:
    assert (len(DISHES), len(PLATES), len(TABLES), len(GARNISHES)) == (8, 6, 6, 4)
    assert len(EVERYTHING) == len(set(EVERYTHING)) == 8 * 6 * 5 * 4
    assert all(a.plate != a.table for a in EVERYTHING)


def test_colours_stand_apart() -> None:
    levels = np.array(list(COLOURS.values()), float)
    apart = np.linalg.norm(levels[:, None] - levels[None], axis=2)[np.triu_indices(6, 1)]
    # Two colours that each stray by 12 levels in every channel come 42 closer.
    assert apart.min() > 80


def test_captions_read_as_sentences_and_invert() -> None:
    assert Attributes("ćevapi", "red", "blue", "parsley").caption == ("ćevapi with parsley on a red plate, blue table")
    assert Attributes("fried egg", "white", "green", "plain").caption == (
        "plain fried egg on a white plate, green table"
    )
    assert all(Attributes.from_caption(a.caption) == a for a in EVERYTHING)
    assert len({a.caption for a in EVERYTHING}) == 960


def test_accent_typed_as_two_characters_is_understood() -> None:
    assert Attributes.from_caption("plain c\u0301evapi on a red plate, blue table").dish == "ćevapi"


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "burek",
        "burek on a red plate, blue table",
        "plain burek on a red plate, red table",
        "plain burek with lemon on a red plate, blue table",
        "burek with plain on a red plate, blue table",
        "burek with lemon on a red plate, beige table",
        "soup with lemon on a red plate, blue table",
        "burek with lemon on a red plate, blue table and more",
    ],
)
def test_nonsense_captions_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="not a toy-dish caption"):
        Attributes.from_caption(caption)


def test_held_out_share_and_pairs_left_in_training() -> None:
    triples = {(a.dish, a.plate, a.table): is_held_out(a) for a in EVERYTHING}
    assert sum(triples.values()) == 30 and len(triples) == 240
    seen = [triple for triple, held_out in triples.items() if not held_out]
    assert len({(dish, plate) for dish, plate, _ in seen}) == 8 * 6
    assert len({(dish, table) for dish, _, table in seen}) == 8 * 6
    assert len({(plate, table) for _, plate, table in seen}) == 6 * 5
    held_dishes = Counter(triple[0] for triple, held_out in triples.items() if held_out)
    assert sorted(held_dishes.values()) == [3, 3, 4, 4, 4, 4, 4, 4]
    for left_out in (0, 1):
        held = Counter(triple[1 + left_out] for triple, held_out in triples.items() if held_out)
        assert set(held.values()) == {5}


def test_images_are_deterministic_and_vary_modestly() -> None:
    dish = EVERYTHING[100]
    first, again, other = (np.asarray(draw_dish(dish, 32, np.random.default_rng(s))) for s in (1, 1, 2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert 0.5 < np.abs(first.astype(float) - other).mean() < 30


def test_same_scene_at_every_size() -> None:
    for dish in EVERYTHING[:: 960 // 16]:
        small, large = (draw_dish(dish, size, np.random.default_rng(5)) for size in (32, 128))
        reduced = large.resize((32, 32), Image.Resampling.LANCZOS)
        # Another scene of the same caption differs by 14 or more.
        assert np.abs(np.asarray(small, float) - np.asarray(reduced, float)).mean() < 6


def test_folder_holds_training_combinations_about_equally(tmp_path: Path) -> None:
    write_caption_folder(tmp_path / "a", 48, 32, seed=3)
    write_caption_folder(tmp_path / "b", 40, 32, seed=3)
    assert sorted(path.name for path in (tmp_path / "a").iterdir())[:3] == [
        "00000.png",
        "00000.txt",
        "00001.png",
    ]
    captions = [(tmp_path / "a" / f"{i:05d}.txt").read_text(encoding="utf-8").strip() for i in range(48)]
    expected = [Attributes.from_caption(caption) for caption in captions]
    assert expected == training_attributes(3)[:48] and len(set(expected)) == 48
    assert not any(is_held_out(a) for a in training_attributes(3)) and len(training_attributes(3)) == 840
    for number in range(40):
        name = f"{number:05d}.png"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "00047.png") as image:
        assert image.mode == "RGB" and image.size == (32, 32)
        assert read_attributes(np.asarray(image)) == expected[47]


def test_oracle_reads_fresh_drawings(drawn: list[Image.Image]) -> None:
    shares = agreement(stack(drawn), EVERYTHING)
    assert min(shares["dish"], shares["plate"], shares["table"]) >= 0.99
    assert shares["garnish"] >= 0.95


def test_oracle_reads_blurred_noisy_shifted_drawings(drawn: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    blurred = stack([image.filter(ImageFilter.GaussianBlur(0.7)) for image in drawn])
    noisy = np.clip(blurred + rng.normal(0, 6, blurred.shape), 0, 255).astype(np.uint8)
    for images in (noisy, np.roll(noisy, 1, axis=2)):
        shares = agreement(images, EVERYTHING)
        assert min(shares["dish"], shares["plate"], shares["table"]) >= 0.97
        assert shares["garnish"] >= 0.9


def test_oracle_reads_larger_images() -> None:
    expected = EVERYTHING[::31]
    for size in (64, 128):
        shares = agreement(stack(draw_all(expected, size, seed=12)), expected)
        assert min(shares.values()) >= 0.95


def test_oracle_agrees_only_by_chance_without_the_prompt(drawn: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    images = stack(drawn)
    shuffled = [EVERYTHING[position] for position in rng.permutation(960)]
    noise = rng.integers(0, 256, images.shape, dtype=np.uint8)
    for shares in (agreement(images, shuffled), agreement(noise, EVERYTHING)):
        # Four standard deviations of a share of 960 at a quarter.
        assert all(abs(shares[name] - expected) < 0.056 for name, expected in chance().items())


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_score_exactly_chance(level: int) -> None:
    shares = agreement(np.full((960, 32, 32, 3), level, np.uint8), EVERYTHING)
    assert shares == pytest.approx(chance())


def test_empty_plates_read_as_one_dish(drawn: list[Image.Image]) -> None:
    """Colours alone, as an early generator makes them, must not pass for dishes."""
    images = stack(drawn)
    steps = np.arange(32) - 15.5
    plate = np.hypot(steps[:, None], steps[None]) < 0.455 * 32
    for image, attributes in zip(images, EVERYTHING, strict=True):
        image[plate] = COLOURS[attributes.plate]
    shares = agreement(images, EVERYTHING)
    assert shares["plate"] == shares["table"] == 1.0
    assert shares["dish"] == pytest.approx(1 / 8) and shares["garnish"] == pytest.approx(1 / 4)


def test_oracle_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        read_images(np.zeros((1, 48, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        read_images(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="as many"):
        agreement(np.zeros((2, 32, 32, 3), np.uint8), EVERYTHING[:1])
