"""A reader taught from scratch: what it learns, how it is kept, and the scores it gives."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evaluation import read
from evaluation.metrics.layout_sameness import layout_sameness
from evaluation.options import listed
from evaluation.reader import teaching
from evaluation.reader.network import Reader, augmented, prepared
from evaluation.reader.store import key_of, taught_or_kept
from evaluation.reader.teaching import Labelled, classes, places, teach
from tests.running import train
from toolkit.command_line import parse
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

COLOURS = torch.tensor([[230, 20, 20], [20, 230, 20], [20, 20, 230], [220, 220, 20]])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few images looked at: a colour is learnt in seconds."""
    monkeypatch.setattr(teaching, "SEEN", 1500)


def coloured(count: int, seed: int = 0, kinds: int = 4, noise: float = 12.0) -> Labelled:
    """16 px squares of one colour each with noise; captions say the colour."""
    drawn = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % kinds
    base = COLOURS[kind][:, :, None, None].expand(-1, -1, 16, 16).float()
    images = (base + noise * torch.randn(base.shape, generator=drawn)).clamp(0, 255).byte()
    vectors = F.normalize(torch.eye(4)[kind] + 0.5, dim=1)
    return Labelled(images, [f"colour {k}" for k in kind.tolist()], vectors)


@pytest.fixture(scope="module")
def taught():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "SEEN", 1500)
        return teach(coloured(240), seed=0, shown=False)


def test_it_reads_what_it_was_taught_in_images_it_has_not_seen(taught):
    unseen = coloured(64, seed=1)
    assert (places(taught, unseen, unseen, 0) == 0).float().mean() > 0.95
    wrong = unseen._replace(captions=unseen.captions[1:] + unseen.captions[:1])
    assert (places(taught, wrong, wrong, 0) == 0).float().mean() < 0.05


def test_teaching_is_a_function_of_images_and_seed_and_leaves_the_random_state_alone(taught):
    before = torch.get_rng_state()
    again, other = (teach(coloured(240), seed, shown=False) for seed in (0, 1))
    assert torch.equal(before, torch.get_rng_state())
    one, two, three = (found.reader.choose.weight for found in (taught, again, other))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_captions_that_all_differ_are_found_by_their_vectors():
    """300 captions, each its own vector, of four colours: an image tells the colour alone, one in four captions."""
    real = coloured(300)
    drawn = torch.Generator().manual_seed(5)
    vectors = F.normalize(real.vectors + 0.02 * torch.randn(300, 4, generator=drawn), dim=1)
    real = real._replace(captions=[f"{c} {i}" for i, c in enumerate(real.captions)], vectors=vectors)
    assert classes(real.captions) == ()
    taught = teach(real, 0, shown=False)
    found = places(taught, real, real, 0).float()
    assert found.max() < 100
    assert found.mean() < 20  # a blind reader: 49.5; one that tells the colour: 12.4


def test_ranks_of_a_blind_reader_are_even():
    real = coloured(400)
    real = real._replace(captions=[str(i) for i in range(400)], vectors=F.normalize(torch.randn(400, 16), dim=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "RATE", 1e-9)
        blind = teach(real, 0, shown=False)
    assert abs(places(blind, real, real, 0).float().mean() - 49.5) < 5


def test_captions_count_as_classes_where_each_has_five_images():
    assert classes(["a", "b"] * 5) == ("a", "b")
    assert classes(["a", "b"] * 4) == () and classes(["a"] * 20) == ()


def test_what_it_has_not_been_taught_is_refused(taught):
    with pytest.raises(UserError, match="no caption 'soup'"):
        places(taught, coloured(4)._replace(captions=["soup"] * 4), coloured(4), 0)
    with pytest.raises(UserError, match="needs 200"):
        teach(coloured(100), 0)


def test_augmentation_keeps_shape_and_range_and_the_seed_decides():
    images = prepared(coloured(8).images)
    one, two = (augmented(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == images.shape and one.abs().max() < 2
    assert prepared(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).shape == (1, 3, 64, 64)
    assert sum(p.numel() for p in Reader(32, 10, 768).parameters()) == pytest.approx(1.2e6, rel=0.05)


def test_a_kept_reader_is_the_one_that_was_taught(taught, tmp_path, monkeypatch, capsys):
    real, key = coloured(240), key_of("shards", [1, 2], 0)
    kept = taught_or_kept(real, key, 0, tmp_path)
    monkeypatch.setattr("evaluation.reader.store.teach", lambda *_: pytest.fail("taught again"))
    again = taught_or_kept(real, key, 0, tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept.reader.state_dict().values(), again.reader.state_dict().values(), strict=True)
    )
    assert key != key_of("shards", [1, 2], 1) != key_of("others", [1, 2], 1)
    monkeypatch.undo()
    monkeypatch.setattr(teaching, "SEEN", 1500)
    (tmp_path / f"{key}.safetensors").write_bytes(b"damaged")
    assert torch.equal(taught_or_kept(real, key, 0, tmp_path).reader.choose.weight, kept.reader.choose.weight)
    assert "is not used" in capsys.readouterr().err


# Sameness of layout


def test_sameness_of_equal_images_is_one_whatever_their_brightness_and_colour():
    one = torch.randint(0, 100, (1, 3, 16, 16), dtype=torch.uint8)
    images = torch.cat([one, one * 2, one + 50])
    assert layout_sameness(images, ["a"] * 3) == pytest.approx(1, abs=1e-3)
    assert layout_sameness(255 - images[:2].repeat(1, 1, 1, 1), ["a", "a"]) == pytest.approx(1, abs=1e-2)
    assert layout_sameness(torch.cat([one, 255 - one]), ["a", "a"]) == pytest.approx(-1, abs=1e-3)


def test_sameness_is_within_captions_and_none_without_two_images_of_one():
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert abs(layout_sameness(images, ["a"] * 40)) < 0.02
    twins = torch.cat([images[:4], images[:4]])
    assert layout_sameness(twins, list("abcdabcd")) == pytest.approx(1, abs=1e-5)
    assert layout_sameness(images[:4], list("abcd")) is None
    three = layout_sameness(torch.cat([images[:1], images[:1], images[1:3]]), list("aabb"))
    assert three == pytest.approx((1 + layout_sameness(images[1:3], ["b", "b"])) / 2, abs=1e-6)


# The command


def test_the_command_reads_a_run_and_says_how(shard_folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "FEWEST", 8)
    monkeypatch.setattr(read, "split", lambda shards, options: (list(range(16)), (shards, list(range(24)))))
    train(shard_folder, tmp_path / "run", iters=1)
    arguments = ["--data", str(shard_folder), "--fake", str(tmp_path / "run"), "--cache", "", "--count", "64"]
    read.main(parse(read.ReadOptions, listed([*arguments, "--out", str(tmp_path / "read.json")])))
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "read.json").read_text())
    scores = report["scores"]
    for name in ("read", "read_top10", "read_fd", "same_layout"):
        assert {name, f"{name}_real"} <= scores.keys()
    assert 0 <= scores["read"] <= 1 and scores["read_fd"] > 0 and -1 <= scores["same_layout"] <= 1
    assert report["protocol"]["images"] == 64 and report["protocol"]["taught_on"] == 16


def test_a_tenth_is_held_out_and_the_same_shards_twice_are_refused(shard_folder: Path):
    shards = ShardSet(shard_folder)
    options = read.ReadOptions(data=str(shard_folder), fake=["x"])
    with pytest.raises(UserError, match="unseen real images are too few"):
        read.split(shards, options)
    with pytest.raises(UserError, match="same shards"):
        read.split(shards, read.ReadOptions(data=str(shard_folder), fake=["x"], held_out=str(shard_folder)))
