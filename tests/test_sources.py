"""Sources of images: which are read, in which order, by which pixels, and with which captions."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.sources.decoded import AHEAD, decoded
from evaluation.sources.opening import open_source
from shards import adopt
from tests import foreign
from tests.scored import images_of, write_images, write_shards
from toolkit.data import decoding
from toolkit.data.dataset import read_decoded
from toolkit.data.decoding import fit_square
from toolkit.data.images import from_pil
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

WITH_ALPHA = (200, 30, 90, 128)


def test_a_folder_is_read_whole_or_in_a_draw_by_seed(tmp_path):
    folder = write_images(tmp_path / "x", 11)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"no image")
    everything = images_of(open_source(folder))
    assert everything.shape == (11, 3, 24, 24) and everything.dtype == torch.uint8
    drawn = [open_source(folder, count=n, seed=seed) for n, seed in ((None, 0), (4, 0), (7, 0), (4, 1))]
    of_all, few, more, other = (set(images_of(source).float().mean((1, 2, 3)).tolist()) for source in drawn)
    assert few < more < of_all and len(few) == 4 and few != other
    assert torch.equal(images_of(open_source(folder, count=4), batch=3), images_of(open_source(folder, count=4)))
    assert len(set(everything.flatten(1).float().mean(1).tolist())) == 11


def test_mixed_sizes_need_a_size(tmp_path):
    folder = write_images(tmp_path / "x", 3)
    Image.new("RGB", (40, 20)).save(folder / "wide.png")
    with pytest.raises(UserError, match="choose one size for all with --size"):
        images_of(open_source(folder))
    assert images_of(open_source(folder, size=16)).shape == (4, 3, 16, 16)


def test_shards_give_images_with_their_own_captions(tmp_path):
    source = open_source(write_shards(tmp_path / "s", 9), count=5)
    reds = images_of(source, batch=2)[:, 0, 0, 0].tolist()
    assert source.captions == [f"dish {red}" for red in reds] and len(set(reds)) == 5


def test_an_image_folder_reads_captions_beside_the_images(tmp_path):
    for stem, red in (("a", 10), ("b", 20)):
        Image.new("RGB", (8, 8), (red, 0, 0)).save(tmp_path / f"{stem}.png")
    assert open_source(tmp_path).captions is None
    (tmp_path / "a.txt").write_text("\ufeffdish 10\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.txt: no such file; 1 of 2"):
        _ = open_source(tmp_path).captions
    (tmp_path / "b.txt").write_text("dish 20", encoding="utf-8")
    source = open_source(tmp_path)
    assert source.captions == [f"dish {red}" for red in images_of(source)[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize(("name", "reason"), [("nothing", "no such file"), ("empty", "no images")])
def test_sources_that_are_none(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=reason):
        open_source(tmp_path / name)


@pytest.mark.parametrize("size", [None, 32])
def test_pixels_are_those_of_a_pillow_loop(tmp_path, size):
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(["jpg", "png", "webp", "bmp", "jpg"]):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((60, 48), Image.Resampling.BICUBIC).convert("RGB" if i < 4 else "L").save(
            tmp_path / f"{i}.{suffix}"
        )
    opened = [Image.open(path).convert("RGB") for path in sorted(tmp_path.iterdir())]
    expected = torch.stack([from_pil(fit_square(image, size) if size else image) for image in opened])
    assert torch.equal(images_of(open_source(tmp_path, size=size), batch=3), expected)


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (8, 8), WITH_ALPHA).save(tmp_path / "a.png")
    opaque = torch.tensor([255 + (level - 255) * WITH_ALPHA[3] / 255 for level in WITH_ALPHA[:3]])
    assert (images_of(open_source(tmp_path))[0] - opaque[:, None, None]).abs().max() <= 1


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_shards_that_are_fitted_on_reading_are_fitted_as_in_training(tmp_path, fit):
    folder = tmp_path / "set"
    foreign.img2dataset_folder(folder)
    adopt.main(adopt.AdoptOptions(folder, size=16, encoder="hashing", workers=1, resize_mode=fit))
    shards = ShardSet(folder)
    expected = torch.stack([read_decoded(shards, i)[1] for i in range(len(shards))])
    assert torch.equal(images_of(open_source(folder)), expected)


def test_captions_are_read_without_decoding_an_image(tmp_path, monkeypatch):
    def decode(data):
        raise AssertionError("decoded")

    source = open_source(write_shards(tmp_path / "s", 5))
    for module in ("evaluation.sources.decoded.decode_pixels", "toolkit.data.decoding.decode_image"):
        monkeypatch.setattr(module, decode)
    assert source.captions == [f"dish {i}" for i in range(5)]
    with pytest.raises(AssertionError, match="decoded"):
        images_of(source)


def test_a_damaged_image_is_named_in_one_line(tmp_path):
    folder = write_images(tmp_path / "x", 40)
    bad = folder / "class1" / "0010.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=r"class1/0010\.png: ") as caught:
        images_of(open_source(folder), batch=7)
    assert "\n" not in str(caught.value)
    bad.unlink()
    bad.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"class1/0010\.png: cannot be read \(No such file"):
        images_of(open_source(folder), batch=7)


def numbered(number: int) -> np.ndarray:
    return np.full((4, 6, 3), number, dtype=np.uint8)


def test_any_ranges_come_in_order():
    stream = decoded(numbered, width=6, height=4)
    ranges = [range(0, 7), range(7, 8), range(30, 10, -3), range(100, 133), range(5, 5)]
    found = list(stream(ranges))
    assert [batch.shape for batch in found] == [(len(numbers), 3, 4, 6) for numbers in ranges]
    assert [batch[:, 2, 3, 5].tolist() for batch in found] == [list(numbers) for numbers in ranges]


def test_the_next_batches_are_decoded_while_the_caller_works():
    """And no more than these: the memory of a pass does not grow with the set."""
    started = {number: threading.Event() for number in range(8)}

    def pixels(number: int) -> np.ndarray:
        started[number].set()
        return numbered(number)

    batches = decoded(pixels, width=6, height=4)(range(i, i + 1) for i in range(8))
    next(batches)
    assert all(started[number].wait(60) for number in range(1 + AHEAD))
    assert not any(started[number].wait(0.2) for number in range(1 + AHEAD, 8))
    batches.close()


def test_a_pass_that_is_given_up_leaves_no_threads(tmp_path):
    before = threading.active_count()
    batches = open_source(write_images(tmp_path / "x", 12)).batches(2)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_each_image_is_decoded_once(tmp_path, monkeypatch):
    seen = []
    real = decoding.decode_pixels
    monkeypatch.setattr("evaluation.sources.decoded.decode_pixels", lambda data: seen.append(data) or real(data))
    source = open_source(write_images(tmp_path / "x", 11), size=16)
    images_of(source, batch=4)
    assert len(seen) == len(set(seen)) == 11
