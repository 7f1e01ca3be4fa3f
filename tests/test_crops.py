"""--crops: several squares of an image that is not square, through everything that a build may meet."""

import contextlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.building import parts
from shards.building.creation import is_validation
from shards.building.merging import read_sources
from shards.building.stored_images import crop_boxes
from shards.create import CreateOptions
from shards.inspect import __main__ as inspect_command
from tests.builds import beside, build, contents, pattern, run, skipped
from tests.test_build_kills import killed_at, one_thread_and_no_waiting  # noqa: F401
from toolkit.data.decoding import decode_pixels
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError

SHAPES = {"square": (40, 40), "nearly": (43, 40), "wide": (90, 30), "tall": (16, 37), "broad": (64, 40)}
PLACES = {
    "square": [(0, 0, 40, 40)],
    "nearly": [(1, 0, 41, 40)],
    "wide": [(0, 0, 30, 30), (30, 0, 60, 30), (60, 0, 90, 30)],
    "tall": [(0, 0, 16, 16), (0, 10, 16, 26), (0, 21, 16, 37)],
    "broad": [(0, 0, 40, 40), (12, 0, 52, 40), (24, 0, 64, 40)],
}
"""By hand, for three crops: 43 to 40 leaves 3 px, not the tenth of a side that two crops need."""


def image(number: int, size: tuple[int, int]) -> Image.Image:
    return pattern(number, max(size)).resize(size, Image.Resampling.BICUBIC)


def save(folder: Path, name: str, number: int, size: tuple[int, int]) -> None:
    image(number, size).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(f"image {name}\n{name}, again\n")


def paint(folder: Path, numbers: range) -> Path:
    """NUMBER.png, of all shapes in turn: 11 samples in every five images."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        save(folder, f"{number:02d}", number, list(SHAPES.values())[number % len(SHAPES)])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 images, 24 samples of three crops."""
    return paint(tmp_path / "in", range(12))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """An image of each shape, by its name."""
    (tmp_path / "in").mkdir()
    for number, (name, size) in enumerate(SHAPES.items()):
        save(tmp_path / "in", name, number, size)
    return tmp_path / "in"


def build3(folder: Path, out: Path, **options) -> ShardSet:
    """Of two images a shard."""
    return build(folder, out, **{"crops": 3, "format": "png", "samples_per_shard": 6} | options)


def samples(out: Path) -> list[tuple[str, tuple[int, ...]]]:
    """(key, crop) of every sample, in order."""
    return [(source.key, source.crop) for source in read_sources(out)]


def members(out: Path) -> dict[str, bytes]:
    """Of all tars."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            new = {member.name: tar.extractfile(member).read() for member in tar}
        assert not found.keys() & new.keys()
        found |= new
    return found


class TestPlaces:
    @pytest.mark.parametrize("name", SHAPES)
    def test_by_hand(self, name: str) -> None:
        found = crop_boxes(*SHAPES[name], 3)
        assert found == (PLACES[name] if len(PLACES[name]) > 1 else [])
        turned = crop_boxes(*reversed(SHAPES[name]), 3)
        assert turned == [(top, left, bottom, right) for left, top, right, bottom in found]
        assert crop_boxes(*SHAPES[name], 1) == []

    def test_they_reach_from_end_to_end_evenly_and_overlap_by_90_percent_at_most(self) -> None:
        random = np.random.default_rng(0)
        for side, overhang, most in zip(*(random.integers(low, high, 3000) for low, high in
                                          ((1, 300), (0, 400), (2, 12))), strict=True):  # fmt: skip
            width, height, most = int(side + overhang), int(side), int(most)
            starts = [box[0] for box in crop_boxes(width, height, most)]
            step = -(-height // 10)
            if not starts:
                assert width - height < step  # not even two
                continue
            assert starts[0] == 0 and starts[-1] + height == width and 2 <= len(starts) <= most
            assert all(box == (box[0], 0, box[0] + height, height) for box in crop_boxes(width, height, most))
            steps = np.diff(starts)
            assert steps.max() - steps.min() <= 1 and (height - steps.min()) / height <= 0.9
            assert len(starts) == most or (width - height) / len(starts) < step  # one more would be too close

    def test_a_single_pixel_high(self) -> None:
        assert crop_boxes(5, 1, 5) == [(i, 0, i + 1, 1) for i in range(5)]


class TestStored:
    @pytest.mark.parametrize("size", [16, 30, 64])
    def test_pixels_and_captions(self, shapes: Path, tmp_path: Path, size: int) -> None:
        """Against Pillow alone; of 30 px the crops of `wide` are not resized at all."""
        shards = build3(shapes, tmp_path / "out", size=size)
        expected = [(name, box) for name in sorted(SHAPES) for box in PLACES[name]]
        assert len(shards) == len(expected) == 11
        for i, (name, box) in enumerate(expected):
            sample = shards.read(i)
            cropped = Image.open(shapes / f"{name}.png").crop(box)
            pixels = np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))
            assert (decode_pixels(sample.image) == pixels).all(), (name, box)
            assert sample.captions == (f"image {name}", f"{name}, again")
            vectors = HashingEncoder().encode(list(sample.captions))
            assert (sample.vectors - vectors).abs().max() < 1e-3
            if size == 30 and name == "wide":
                assert (pixels == np.asarray(Image.open(shapes / "wide.png"))[:, box[0] : box[2]]).all()

    def test_of_the_upright_image(self, tmp_path: Path) -> None:
        """Stored lying, to be shown standing: the crops follow each other from top to bottom."""
        (tmp_path / "in").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        lying = image(1, (48, 16))
        lying.save(tmp_path / "in" / "a.png", exif=exif)
        (tmp_path / "in" / "a.txt").write_text("an image\n")
        shards = build3(tmp_path / "in", tmp_path / "out")
        upright = np.rot90(np.asarray(lying), -1)
        for i in range(3):
            assert (decode_pixels(shards.read(i).image) == upright[16 * i : 16 * (i + 1)]).all()

    def test_origins_tell_image_and_crop_and_lead_back_to_the_pixels(self, shapes: Path, tmp_path: Path) -> None:
        out = build3(shapes, tmp_path / "out", keep_originals=True).folder
        expected = [(name, box if len(PLACES[name]) > 1 else ()) for name in sorted(SHAPES) for box in PLACES[name]]
        assert samples(out) == expected
        found, rows, shards = members(out), [], ShardSet(out)
        numbers = sorted({name.partition(".")[0] for name in found})
        originals = [name for name in found if ".original." in name]
        assert len(originals) == 5  # once per image
        for i, (number, (name, box)) in enumerate(zip(numbers, expected, strict=True)):
            row = json.loads(found[f"{number}.json"])
            rows.append((row["key"], tuple(row.get("crop", ()))))
            assert (row["width"], row["height"]) == SHAPES[name]
            if f"{number}.original.png" in found:
                source = Image.open(io.BytesIO(found[f"{number}.original.png"]))
            if box:
                again = np.asarray(source.crop(box).resize((16, 16), Image.Resampling.LANCZOS))
                assert (decode_pixels(shards.read(i).image) == again).all()
        assert rows == expected

    def test_one_crop_is_the_centre_square_and_leaves_no_trace(self, shapes: Path, tmp_path: Path) -> None:
        """Neither in the tars nor in the list of sources."""
        one = build(shapes, tmp_path / "one", format="png")
        assert contents(one.folder) == contents(build(shapes, tmp_path / "same", format="png", crops=1).folder)
        assert [source.crop for source in read_sources(one.folder)] == [()] * 5
        assert all(len(json.loads(line)) == 4 for line in (one.folder / "sources.jsonl").read_text().splitlines())
        assert not any(b"crop" in data for name, data in members(one.folder).items() if name.endswith(".json"))
        centre = Image.open(shapes / "wide.png").crop((30, 0, 60, 30)).resize((16, 16), Image.Resampling.LANCZOS)
        assert (decode_pixels(one.read(4).image) == np.asarray(centre)).all()
        three = build3(shapes, tmp_path / "three")
        assert three.read(9).image == one.read(4).image  # the second of three crops is the centre one

    def test_stored_embeddings_serve_all_crops(self, shapes: Path, tmp_path: Path) -> None:
        vectors, stored = HashingEncoder(), tmp_path / "embeddings"
        stored.mkdir()
        for name in SHAPES:
            np.save(stored / f"{name}.npy", vectors.encode([f"image {name}", f"{name}, again"]).numpy())
        np.save(stored / "wide.npy", np.zeros((1, 3), dtype=np.float32))
        out = build3(shapes, tmp_path / "out", embeddings=stored, encoder="hashing").folder
        assert len(ShardSet(out)) == 8 and list(skipped(out)) == ["wide.npy"]
        assert len(json.loads((out / "report.json").read_text())["skipped"]) == 1


class TestBuilds:
    def test_shards_hold_no_more_than_asked_for_and_numbers_do_not_repeat(self, folder: Path, tmp_path: Path) -> None:
        shards = build3(folder, tmp_path / "out", samples_per_shard=10)  # three images a shard
        assert [shard.samples for shard in shards.manifest.shards] == [5, 7, 7, 5] and len(shards) == 24
        numbers = [int(name[:9]) for name in members(shards.folder) if name.endswith(".txt")]
        assert numbers == sorted(numbers) and numbers[:6] == [0, 3, 6, 7, 8, 9] and numbers[-1] == 33
        inspect_command.main(inspect_command.InspectOptions(shards.folder, verify=True))
        assert len(build3(folder, tmp_path / "small", samples_per_shard=2).manifest.shards) == 12

    def test_workers_change_no_byte(self, folder: Path, tmp_path: Path) -> None:
        one, two = (build3(folder, tmp_path / str(n), workers=n).folder for n in (1, 2))
        assert contents(one) == contents(two)

    def test_shares_change_no_byte(self, folder: Path, tmp_path: Path) -> None:
        whole = contents(build3(folder, tmp_path / "whole").folder)
        for share in ("1/3", "0/3", "2/3"):
            assert not (tmp_path / "out").exists()
            run(folder, tmp_path / "out", crops=3, format="png", samples_per_shard=6, share=share)
        assert contents(tmp_path / "out") == whole and not beside(tmp_path / "out")

    @pytest.mark.parametrize("dedupe", [False, True])
    def test_stopped_after_any_part_it_ends_with_the_same_bytes(self, folder, tmp_path, monkeypatch, dedupe) -> None:
        whole = contents(build3(folder, tmp_path / "whole", dedupe=dedupe).folder)
        real = parts.Record.save
        for last in range(6):
            out = tmp_path / f"out{last}"

            def save(record: parts.Record, building: Path, number: int, last: int = last) -> None:
                if number == last:
                    raise KeyboardInterrupt
                real(record, building, number)

            with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setattr(parts.Record, "save", save)
                build3(folder, out, dedupe=dedupe)
                raise AssertionError("it was not stopped")
            assert not out.exists() and len(beside(out)) == 1
            build3(folder, out, dedupe=dedupe)
            assert contents(out) == whole and not beside(out)

    @pytest.mark.parametrize("number", [20, 33, 46, 55])
    def test_killed_while_adding_it_ends_with_the_same_bytes(self, folder: Path, tmp_path: Path, number: int) -> None:
        options = {"crops": 3, "format": "png"}
        for name in ("whole", "killed"):
            build(paint(tmp_path / f"of {name}", range(5)), tmp_path / name, **options)
        paint(tmp_path / "of whole", range(12))
        source = paint(tmp_path / "of killed", range(12))
        whole = contents(build(tmp_path / "of whole", tmp_path / "whole", **options).folder)
        assert killed_at(number, source, tmp_path / "killed", options)
        build(source, tmp_path / "killed", **options)
        found = contents(tmp_path / "killed")
        manifests = [json.loads(files.pop("manifest.json")) for files in (whole, found)]
        for manifest in manifests:
            assert manifest["built_with"].pop("input") in ("of whole", "of killed")
        assert manifests[0] == manifests[1] and found == whole and not beside(tmp_path / "killed")


class TestGrowing:
    def test_new_images_come_in_all_their_crops_and_old_shards_stay(self, tmp_path: Path, capsys) -> None:
        folder, out = paint(tmp_path / "in", range(0, 10, 2)), tmp_path / "out"
        before = contents(build3(folder, out).folder)
        old = samples(out)
        assert len(old) == 11
        paint(folder, range(10))
        capsys.readouterr()
        shards = build3(folder, out)
        assert "adding 5 images, up to 3 samples each, to the 11 of" in capsys.readouterr().out
        assert all(contents(out)[name] == data for name, data in before.items() if name.endswith(".tar"))
        found = samples(out)
        assert found[:11] == old and len(found) == len(set(found)) == len(shards) == 22
        alone = build3(paint(tmp_path / "alone", range(1, 10, 2)), tmp_path / "of alone")
        assert [shards.read(11 + i).image for i in range(11)] == [alone.read(i).image for i in range(11)]
        inspect_command.main(inspect_command.InspectOptions(out, verify=True))
        capsys.readouterr()
        build3(folder, out)
        assert "holds all 22 samples already; nothing to add" in capsys.readouterr().out

    @pytest.mark.parametrize("before,after", [(3, 2), (3, 1), (1, 3)])
    def test_another_number_is_refused(self, folder: Path, tmp_path: Path, before: int, after: int) -> None:
        out = build3(folder, tmp_path / "out", crops=before).folder
        files = contents(out)
        with pytest.raises(UserError, match=f"was built with --crops {before}, not {after}; .*--overwrite") as refused:
            build3(folder, out, crops=after)
        assert "\n" not in str(refused.value) and contents(out) == files and not beside(out)
        assert len(build3(folder, out, crops=after, overwrite=True)) == {1: 12, 2: 18, 3: 24}[after]

    def test_a_folder_that_does_not_record_the_option_has_one(self, folder: Path, tmp_path: Path) -> None:
        out = build3(folder, tmp_path / "out", crops=1).folder
        manifest = json.loads((out / "manifest.json").read_text())
        del manifest["built_with"]["crops"]
        (out / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="was built with --crops 1, not 3"):
            build3(folder, out)
        assert len(build3(paint(folder, range(13)), out, crops=1)) == 13

    def test_an_unfinished_build_with_another_number_is_refused(self, folder, tmp_path, monkeypatch) -> None:
        real = parts.Record.save
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(parts.Record, "save", lambda *of: real(*of) if of[2] < 2 else (_ for _ in ()).throw(
                KeyboardInterrupt))  # fmt: skip
            build3(folder, tmp_path / "out")
        with pytest.raises(UserError, match="was begun with --crops 3, not 2"):
            build3(folder, tmp_path / "out", crops=2)
        assert len(build3(folder, tmp_path / "out")) == 24


class TestDedupe:
    def plant(self, folder: Path) -> Path:
        """An image of stripes whose crops are all the same, three ordinary ones, and copies of both kinds."""
        folder.mkdir()
        stripes = np.repeat(np.random.default_rng(0).integers(0, 256, (30, 1, 3), dtype=np.uint8), 90, axis=1)
        for name in ("a", "e"):
            Image.fromarray(stripes).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"stripes {name}\n")
        for name, number in (("b", 1), ("c", 2), ("d", 3), ("f", 2)):
            save(folder, name, number, (90, 30))
        image(2, (90, 30)).save(folder / "f.png", compress_level=1)
        return folder

    def test_crops_of_an_image_are_no_duplicates_and_those_of_another_go_together(self, tmp_path: Path) -> None:
        out = build3(self.plant(tmp_path / "in"), tmp_path / "out", dedupe=True).folder
        assert [key for key, _ in samples(out)] == [key for key in "abcd" for _ in range(3)]
        shards = ShardSet(out)
        assert len({shards.read(i).image for i in range(3)}) == 1  # these do look alike
        like = "near-duplicate: looks like "
        assert json.loads((out / "report.json").read_text()) == {"written": 12, "skipped": [
            {"path": "e.png", "reason": f"{like}a.png"}, {"path": "f.png", "reason": f"{like}c.png"},
        ]}  # fmt: skip

    def test_nor_are_they_when_they_are_added_to_others(self, tmp_path: Path) -> None:
        folder = self.plant(tmp_path / "in")
        everything = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name in everything:
            if name[0] in "de":
                (folder / name).unlink()
        out = build3(folder, tmp_path / "out", dedupe=True).folder
        assert [key for key, _ in samples(out)] == [key for key in "abc" for _ in range(3)]
        for name, data in everything.items():
            (folder / name).write_bytes(data)
        build3(folder, out, dedupe=True)
        assert [key for key, _ in samples(out)] == [key for key in "abcd" for _ in range(3)]
        like = "near-duplicate: looks like "
        assert skipped(out) == {"e.png": f"{like}a.png", "f.png": f"{like}c.png"}


def test_all_crops_of_an_image_are_in_the_same_part(tmp_path: Path) -> None:
    folder = paint(tmp_path / "in", range(40))
    train = build3(folder, tmp_path / "train", val_out=tmp_path / "val", val_share=0.3).folder
    sides = {part: samples(tmp_path / part) for part in (train.name, "val")}
    keys = {part: {key for key, _ in found} for part, found in sides.items()}
    assert not keys["train"] & keys["val"] and len(keys["train"] | keys["val"]) == 40
    assert keys["val"] == {f"{n:02d}" for n in range(40) if is_validation(f"{n:02d}", 0.3)}
    for found in sides.values():
        for key in {key for key, _ in found}:
            assert len([1 for other, _ in found if other == key]) == (1, 1, 3, 3, 3)[int(key) % 5]


def test_what_is_left_out_is_named_once(folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:300])
    out = build3(folder, tmp_path / "out", min_side=17).folder
    report = json.loads((out / "report.json").read_text())
    assert [entry["path"] for entry in report["skipped"]] == ["02.png", "03.png", "08.png"]
    assert report["written"] == len(ShardSet(out)) == 15
    said = capsys.readouterr().out
    assert "wrote 15 samples" in said and "skipped 3 (2 too small, 1 bad image)" in said


def test_only_the_first_images(folder: Path, tmp_path: Path) -> None:
    out = build3(folder, tmp_path / "out", limit=4).folder
    assert [key for key, _ in samples(out)] == ["00", "01", *["02"] * 3, *["03"] * 3]


@pytest.mark.parametrize("mode", ["pad", "stretch", "none"])
def test_modes_that_crop_nothing_refuse_it_in_one_line(mode: str) -> None:
    with pytest.raises(UserError, match=f"--crops is 2; it must be 1 with --resize_mode {mode}") as refused:
        CreateOptions(Path("in"), Path("out"), 16, crops=2, resize_mode=mode)
    assert "\n" not in str(refused.value)
    assert CreateOptions(Path("in"), Path("out"), 16, crops=1, resize_mode=mode).crops == 1


@pytest.mark.parametrize("crops", [0, -1, 101])
def test_numbers_out_of_range(crops: int) -> None:
    with pytest.raises(UserError, match=f"--crops is {crops}; it must be from 1 to 100"):
        CreateOptions(Path("in"), Path("out"), 16, crops=crops)


def test_a_damaged_list_of_sources_is_refused(folder: Path, tmp_path: Path) -> None:
    out = build3(folder, tmp_path / "out").folder
    lines = (out / "sources.jsonl").read_text().splitlines()
    for wrong in ("[1, 2]", json.dumps([*json.loads(lines[2]), [1]]), json.dumps([*json.loads(lines[0]), 5])):
        (out / "sources.jsonl").write_text("\n".join([*lines[:-1], wrong]) + "\n")
        with pytest.raises(UserError, match="sources.jsonl is damaged"):
            build3(folder, out)
