"""--dedupe keeps the first of images that look alike, whoever builds, and however often it is killed."""

import contextlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.building import build as engine
from shards.building import merging
from shards.building.folders import Folders
from shards.inspect import __main__ as inspect_command
from tests.builds import beside, build, contents, paint, pattern, skipped
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError


def plant(folder: Path) -> dict[str, str]:
    """25 images in 5 parts, of which 5 are like another: by bytes, by JPEG, by scale; in one part and across."""
    paint(folder, range(25))
    sources = {"003": 1, "006": 1, "011": 10, "014": 2, "019": 8}
    (folder / "003.png").write_bytes((folder / "001.png").read_bytes())
    data = io.BytesIO()
    pattern(1).save(data, "JPEG", quality=80)
    (folder / "006.png").write_bytes(data.getvalue())
    for name, size in (("011", 24), ("014", 96), ("019", 33)):
        pattern(sources[name]).resize((size, size), Image.Resampling.LANCZOS).save(folder / f"{name}.png")
    return {f"{name}.png": f"near-duplicate: looks like {first:03d}.png" for name, first in sources.items()}


def numbers(shards: ShardSet) -> list[int]:
    return [int(shards.read(i).captions[0].removeprefix("image number ")) for i in range(len(shards))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "in"


def test_the_first_is_kept_and_the_others_named(folder: Path, tmp_path: Path) -> None:
    expected = plant(folder)
    shards = build(folder, tmp_path / "out", dedupe=True)
    assert skipped(shards.folder) == expected
    assert numbers(shards) == [n for n in range(25) if f"{n:03d}.png" not in expected]
    assert shards.manifest.distinct_captions == len(shards) == 20
    inspect_command.main(inspect_command.InspectOptions(shards.folder, verify=True))


def test_what_stays_is_stored_as_without_it(folder: Path, tmp_path: Path) -> None:
    plant(folder)
    every, some = (build(folder, tmp_path / str(d), dedupe=d, keep_originals=True) for d in (False, True))
    for i, number in enumerate(numbers(some)):
        a, b = every.read(number), some.read(i)
        assert (a.image, a.captions) == (b.image, b.captions) and (a.vectors == b.vectors).all()


def test_other_colours_are_another_image(folder: Path, tmp_path: Path) -> None:
    """In grey they are one, and so are their hashes."""
    paint(folder, range(3))
    grey = np.asarray(pattern(0).convert("L")).astype(float)
    for number, tint in ((1, (1.0, 0.6, 0.6)), (2, (0.6, 0.6, 1.0))):
        pixels = (grey[..., None] * np.array(tint)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    assert len(build(folder, tmp_path / "out", dedupe=True)) == 3


def test_near_says_how_near(folder: Path, tmp_path: Path) -> None:
    """Positions of like images fall as more bits may differ; all 0 finds equal bytes at least."""
    plant(folder)
    found = [len(skipped(build(folder, tmp_path / str(n), dedupe=True, near=n).folder)) for n in (0, 4, 10)]
    assert 1 <= found[0] <= found[1] == 5 <= found[2]


def test_images_like_those_that_stand_there_are_not_added(folder: Path, tmp_path: Path, capsys) -> None:
    paint(folder, range(8))
    out = build(folder, tmp_path / "out", dedupe=True).folder
    before = contents(out)
    paint(folder, [20, 21, 22])
    pattern(4, 40).save(folder / "020.png")
    pattern(22, 40).save(folder / "021.png")
    shards = build(folder, out, dedupe=True)
    assert numbers(shards) == [*range(8), 21]
    like = "near-duplicate: looks like "
    assert skipped(out) == {"020.png": f"{like}004.png", "022.png": f"{like}021.png"}
    assert all(contents(out)[name] == data for name, data in before.items() if name.endswith(".tar"))


def test_a_part_of_duplicates_alone_leaves_no_shard(folder: Path, tmp_path: Path) -> None:
    paint(folder, range(15))
    for number in range(5, 10):
        pattern(number - 5, 40).save(folder / f"{number:03d}.png")
    shards = build(folder, tmp_path / "out", dedupe=True)
    assert [shard.name for shard in shards.manifest.shards] == ["shard-00000.tar", "shard-00002.tar"]
    assert numbers(shards) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14] and set(shards.index[:, 0]) == {0, 1}
    assert numbers(build(paint(folder, [30]), tmp_path / "out", dedupe=True))[-1] == 30


@pytest.mark.parametrize("owner,step", [(merging, "copy_without"), (merging, "seal"), (merging, "place"),
                                        (Folders, "_replace"), (Folders, "discard")])  # fmt: skip
def test_stopped_at_any_step_of_it_the_parts_are_as_they_were(folder, tmp_path, monkeypatch, owner, step) -> None:
    """A tar of fewer samples may be of the same size, so a part must never be changed in its place."""
    plant(folder)
    whole = contents(build(folder, tmp_path / "whole", dedupe=True).folder)
    out, real = tmp_path / "out", getattr(owner, step)
    for stop in itertools.count():
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            stopped = stopping(patch, owner, step, real, stop)
            build(folder, out, dedupe=True)
        if not stopped:
            break
        assert not out.exists() or contents(out) == whole
    assert stop > 0 and contents(out) == whole and not beside(out)


def stopping(patch: pytest.MonkeyPatch, owner: object, step: str, real: Callable, stop: int) -> list[int]:
    """From now on the call `stop` of `step` is interrupted; filled when it was."""
    calls, stopped = itertools.count(), []

    def call(*arguments):
        if next(calls) == stop:
            stopped.append(stop)
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(owner, step, call)
    return stopped


def test_a_finished_part_that_is_damaged_is_built_again(folder: Path, tmp_path: Path, monkeypatch) -> None:
    plant(folder)
    whole = contents(build(folder, tmp_path / "whole", dedupe=True).folder)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="stopped here"):
        patch.setattr(engine, "_merge", lambda *_: (_ for _ in ()).throw(UserError("stopped here")))
        build(folder, tmp_path / "out", dedupe=True)
    building = tmp_path / ".out.building"
    assert len(list(building.glob("*.tar"))) == 5
    (building / "shard-00000.json").write_text('{"shard": null}')
    (building / "shard-00001.tar").unlink()
    (building / "shard-00002.tar").write_bytes(b"short")
    build(folder, tmp_path / "out", dedupe=True)
    assert contents(tmp_path / "out") == whole and not beside(tmp_path / "out")
