"""--val_out: two shard folders that share no sample, chosen by the key alone."""

import hashlib
import math
from pathlib import Path

import pytest

from shards import create
from shards.building import parts
from shards.building.creation import is_validation
from tests.builds import beside, build, contents, paint
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError


def captions(folder: Path) -> set[str]:
    shards = ShardSet(folder)
    return {shards.read(i).captions[0] for i in range(len(shards))}


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_share_is_met_by_any_keys(share: float) -> None:
    """Within 4 standard deviations of the binomial distribution."""
    for name in ("disc{}", "images/plate_{:06d}", "ћевапи {}"):
        found = sum(is_validation(name.format(i), share) for i in range(5000))
        assert abs(found - 5000 * share) < 4 * math.sqrt(5000 * share * (1 - share))


def test_it_is_the_hash_of_the_key_and_nothing_else() -> None:
    """So the part may be found again without this program; a larger share only adds."""
    for key in ("a", "disc/00", "š"):
        place = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
        assert [is_validation(key, share) for share in (0.1, 0.5, 0.9)] == [place < share for share in (0.1, 0.5, 0.9)]


def test_parts_are_disjoint_complete_and_stay_when_images_come(tmp_path: Path) -> None:
    folder, train, val = paint(tmp_path / "in", range(0, 60, 2)), tmp_path / "train", tmp_path / "val"
    options = {"val_out": val, "val_share": 0.25}
    build(folder, train, **options)
    before = captions(train), captions(val)
    assert not before[0] & before[1] and before[0] | before[1] == {f"image number {n}" for n in range(0, 60, 2)}
    assert before[1] == {f"image number {n}" for n in range(0, 60, 2) if is_validation(f"{n:03d}", 0.25)}
    paint(folder, range(60))
    build(folder, train, **options)
    after = captions(train), captions(val)
    assert before[0] < after[0] and before[1] < after[1] and not after[0] & after[1]
    assert len(after[0] | after[1]) == 60 and not beside(train) and not beside(val)


@pytest.mark.parametrize("part", ["train", "val"])
def test_either_part_goes_on_after_a_stop(tmp_path: Path, monkeypatch, part: str) -> None:
    folder = paint(tmp_path / "in", range(40))
    options = {"val_share": 0.3, "samples_per_shard": 4}
    build(folder, tmp_path / "whole train", val_out=tmp_path / "whole val", **options)
    real = parts.Record.save

    def save(record: parts.Record, building: Path, number: int) -> None:
        if building.name == f".{part}.building" and number == 1:
            raise KeyboardInterrupt
        real(record, building, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Record, "save", save)
        build(folder, tmp_path / "train", val_out=tmp_path / "val", **options)
    assert (tmp_path / f".{part}.building" / "shard-00000.json").is_file()
    assert (tmp_path / "train").exists() == (part == "val") and not (tmp_path / "val").exists()
    build(folder, tmp_path / "train", val_out=tmp_path / "val", **options)
    for name in ("train", "val"):
        assert contents(tmp_path / name) == contents(tmp_path / f"whole {name}") and not beside(tmp_path / name)


def test_a_part_without_samples_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    folder = paint(tmp_path / "in", [n for n in range(20) if not is_validation(f"{n:03d}", 0.05)])
    with pytest.raises(UserError, match="--val_share 0.05 0 of .* samples are validation"):
        build(folder, tmp_path / "train", val_out=tmp_path / "val")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("val", ["out", "out/val", "."])
def test_the_two_folders_must_lie_apart(tmp_path: Path, val: str) -> None:
    with pytest.raises(UserError, match="--val_out is .*name another"):
        create.CreateOptions(tmp_path / "in", tmp_path / "out", 16, val_out=tmp_path / val)
