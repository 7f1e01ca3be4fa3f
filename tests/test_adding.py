"""The same command again: nothing to do changes nothing; new images come in shards of their own."""

import os
from pathlib import Path

import pytest

from shards.building.build import PLAN_NAME
from shards.inspect import __main__ as inspect_command
from tests.builds import beside, build, contents, paint, skipped
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return paint(tmp_path / "in", range(0, 40, 4))


@pytest.fixture
def out(tmp_path: Path, folder: Path) -> Path:
    """10 samples in 2 shards."""
    return build(folder, tmp_path / "out", format="png").folder


def add(folder: Path, out: Path, **options) -> ShardSet:
    return build(folder, out, **{"format": "png"} | options)


def state(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [out, *out.iterdir()]}


def said(folder: Path, out: Path, capsys, **options) -> str:
    capsys.readouterr()
    add(folder, out, **options)
    captured = capsys.readouterr()
    return captured.out + captured.err


class TestNothingToDo:
    def test_changes_no_file(self, folder: Path, out: Path, capsys) -> None:
        before = state(out)
        assert "holds all 10 samples already; nothing to add; skipped 0" in said(folder, out, capsys)
        assert state(out) == before and not beside(out)

    def test_a_bad_image_that_is_still_bad_changes_no_file(self, folder: Path, out: Path, capsys) -> None:
        (folder / "001.png").write_text("text")
        (folder / "001.txt").write_text("a text\n")
        before = state(out)
        assert "no new sample is usable" in (text := said(folder, out, capsys))
        assert "skipped 001.png: bad image" in text and state(out) == before and not beside(out)

    def test_near_duplicates_left_out_once_change_no_file(self, folder: Path, tmp_path: Path, capsys) -> None:
        (folder / "050.png").write_bytes((folder / "008.png").read_bytes())
        (folder / "050.txt").write_text("again\n")
        out = add(folder, tmp_path / "deduped", dedupe=True).folder
        before = state(out)
        assert "no new sample is usable" in said(folder, out, capsys, dedupe=True) and state(out) == before

    def test_images_that_are_gone_stay_in_the_shards(self, folder: Path, out: Path, capsys) -> None:
        (folder / "004.png").unlink()
        (folder / "004.txt").unlink()
        assert "nothing to add" in said(folder, out, capsys) and len(ShardSet(out)) == 10

    def test_changed_captions_are_named_and_not_built_again(self, folder: Path, out: Path, capsys) -> None:
        before = state(out)
        (folder / "004.txt").write_text("quite another caption\n")
        text = said(folder, out, capsys)
        assert "nothing to add; skipped 1 (1 changed captions)" in text and "skipped 004.png: changed captions" in text
        assert state(out) == before
        with pytest.raises(UserError, match="--strict and skipped 1 .1 changed captions"):
            add(folder, out, strict=True)
        assert state(out) == before and not beside(out)


class TestNewImages:
    def test_stand_in_shards_of_their_own(self, folder: Path, out: Path, capsys) -> None:
        old, before, rows = contents(out), state(out), ShardSet(out).index.copy()
        paint(folder, [1, 2, 3, 17, 38, 39])  # before, between and behind the old names
        assert "adding 6 samples to the 10 of" in said(folder, out, capsys)
        new = contents(out)
        tars = [f"shard-0000{i}.tar" for i in range(4)]
        assert [name for name in new if name.endswith(".tar")] == tars
        for name in tars[:2]:
            assert new[name] == old[name] and state(out)[name] == before[name]
        shards = ShardSet(out)
        assert (shards.index[:10] == rows).all() and (shards.index[10:, 0] == [2] * 5 + [3]).all()
        numbers = [int(shards.read(i).captions[0].removeprefix("image number ")) for i in range(16)]
        assert numbers == [*range(0, 40, 4), 1, 2, 3, 17, 38, 39]
        assert shards.manifest.samples == shards.manifest.distinct_captions == 16
        inspect_command.main(inspect_command.InspectOptions(out, verify=True))
        assert not beside(out)

    def test_give_what_a_build_of_theirs_alone_gives(self, folder: Path, out: Path, tmp_path: Path) -> None:
        paint(folder, (one := [1, 2, 3]))
        added, alone = add(folder, out), add(paint(tmp_path / "alone", one), tmp_path / "alone out")
        for i in range(3):
            a, b = added.read(10 + i), alone.read(i)
            assert (a.image, a.captions) == (b.image, b.captions) and (a.vectors == b.vectors).all()
            vector = HashingEncoder().encode(list(a.captions))
            assert (a.vectors - vector).abs().max() < 1e-3

    def test_three_additions_equal_whatever_was_left_over_in_between(self, folder: Path, out: Path) -> None:
        for number in (50, 51, 52):
            add(paint(folder, [number]), out)
        shards = ShardSet(out)
        assert [shard.samples for shard in shards.manifest.shards] == [5, 5, 1, 1, 1]
        assert [shards.read(i).captions[0] for i in (10, 11, 12)] == [f"image number {n}" for n in (50, 51, 52)]

    def test_old_captions_count_once(self, folder: Path, out: Path) -> None:
        paint(folder, [50])
        (folder / "050.txt").write_text("image number 0\n")
        assert add(folder, out).manifest.distinct_captions == 10

    def test_a_mended_image_is_one(self, folder: Path, tmp_path: Path) -> None:
        sound = (folder / "008.png").read_bytes()
        (folder / "008.png").write_bytes(sound[: len(sound) // 2])
        out = add(folder, tmp_path / "out").folder
        assert len(ShardSet(out)) == 9 and list(skipped(out)) == ["008.png"]
        (folder / "008.png").write_bytes(sound)
        shards = add(folder, out)
        assert len(shards) == 10 and skipped(out) == {} and shards.read(9).captions == ("image number 8",)

    def test_no_number_is_given_twice_after_skips_at_the_end(self, folder: Path, tmp_path: Path) -> None:
        """The last part is all bad: its shard is never written, and what comes next takes the number."""
        for number in (90, 91):
            (paint(folder, [number]) / f"{number:03d}.png").write_text("text")
        out = add(folder, tmp_path / "out").folder
        paint(folder, [90, 91, 95])
        shards = add(folder, out)
        assert len(shards) == 13 and [shard.name for shard in shards.manifest.shards][-1] == "shard-00002.tar"

    def test_a_page_and_foreign_files(self, folder: Path, out: Path) -> None:
        """The page would be of another state; what is no shard folder's is never touched."""
        (out / "report.html").write_text("old page")
        add(paint(folder, [1]), out)
        assert not (out / "report.html").exists()
        for name in ("thesis.docx", "backup.tar", "mine.npy"):
            (out / name).write_text("precious")
            before = state(out)
            for overwrite in (False, True):
                with pytest.raises(UserError, match=f"no shard folder alone .it holds {name}"):
                    add(paint(folder, [2]), out, overwrite=overwrite)
            assert state(out) == before and not beside(out)
            (out / name).unlink()


class TestRefused:
    @pytest.mark.parametrize("changed", [
        {"size": 32}, {"format": "jpg"}, {"quality": 90}, {"background": "#102030"}, {"resize_mode": "pad"},
        {"min_side": 2}, {"max_aspect": 2.0}, {"keep_originals": True}, {"dedupe": True}, {"near": 2},
        {"class_template": "a {}"}, {"val_share": 0.5}, {"caption_column": "text"}, {"file_column": "f"},
    ], ids=str)  # fmt: skip
    def test_other_options(self, folder: Path, out: Path, changed: dict) -> None:
        before = state(out)
        with pytest.raises(UserError, match=f"was built with --{next(iter(changed))} .*, not .*--overwrite"):
            add(paint(folder, [1]), out, **changed)
        assert state(out) == before and not beside(out)

    def test_a_folder_of_another_name(self, folder: Path, out: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="was built with --input 'in', not 'other'"):
            add(paint(tmp_path / "other", [1]), out)

    def test_another_encoder(self, folder: Path, out: Path, monkeypatch) -> None:
        before, real = state(out), HashingEncoder.encode
        monkeypatch.setattr(HashingEncoder, "encode", lambda self, captions: real(self, captions).flip(1))
        with pytest.raises(UserError, match="with another encoder: same name hashing, other weights: cosine"):
            add(paint(folder, [1]), out)
        assert state(out) == before and not beside(out)

    def test_validation_samples_are_not_added_to_the_training_part(self, folder: Path, tmp_path: Path) -> None:
        val = {"val_out": tmp_path / "val", "val_share": 0.3}
        add(folder, tmp_path / "train", **val)
        with pytest.raises(UserError, match="was built with --val_out"):
            add(folder, tmp_path / "train", val_share=0.3)
        with pytest.raises(UserError, match="was built with --val_out"):
            add(folder, tmp_path / "val", val_out=tmp_path / "train", val_share=0.3)

    def test_a_folder_without_its_list_or_with_a_damaged_one(self, folder: Path, out: Path) -> None:
        lines = (out / "sources.jsonl").read_text().splitlines(keepends=True)
        for text in ("".join([*lines[:5], lines[5][:20]]), "[1]\n", "{}\n"):
            (out / "sources.jsonl").write_text(text)
            with pytest.raises(UserError, match="sources.jsonl is damaged .*--overwrite"):
                add(paint(folder, [1]), out)
        (out / "sources.jsonl").unlink()
        with pytest.raises(UserError, match="holds no sources.jsonl, so nothing can be added"):
            add(folder, out)
        assert len(add(folder, out, overwrite=True)) == 11 and not beside(out)

    def test_a_shard_that_was_truncated(self, folder: Path, out: Path) -> None:
        tar = out / "shard-00000.tar"
        os.chmod(tar, 0o644)
        os.truncate(tar, 5120)
        with pytest.raises(UserError, match="shard-00000.tar has 5,120 bytes"):
            add(paint(folder, [1]), out)
        assert tar.stat().st_size == 5120
        assert len(add(folder, out, overwrite=True)) == 11 and not beside(out)

    def test_a_damaged_plan(self, folder: Path, tmp_path: Path) -> None:
        building = tmp_path / ".new.building"
        for text in ("", "{}", "[]", "no json", '{"settings": {}}'):
            building.mkdir(exist_ok=True)
            (building / PLAN_NAME).write_text(text)
            with pytest.raises(UserError, match="plan.jsonl is damaged; delete its folder"):
                add(folder, tmp_path / "new")
