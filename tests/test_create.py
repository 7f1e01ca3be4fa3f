"""Shards hold exactly what went in; what cannot be used is left out by name."""

import os
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.create import CreateOptions
from tests.builds import beside, build, contents, paint, run, skipped
from toolkit.data.decoding import decode_image, fit_square
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ["png", "webp"])
    def test_lossless_images_equal_the_fitted_source(self, caption_folder: Path, tmp_path: Path, kind: str) -> None:
        shards = build(caption_folder, tmp_path / "out", format=kind)
        sources = sorted(caption_folder.rglob("*.[jp][pn]g"), key=lambda p: p.relative_to(caption_folder).as_posix())
        assert len(shards) == len(sources) == 12
        for i, source in enumerate(sources):
            sample = shards.read(i)
            expected = fit_square(decode_image(source.read_bytes()), 16)
            assert (np.asarray(decode_image(sample.image)) == np.asarray(expected)).all()
            assert sample.captions == tuple(source.with_suffix(".txt").read_text().split("\n")[:-1])
            vectors = HashingEncoder().encode(list(sample.captions))
            assert (sample.vectors - vectors).abs().max() < 1e-3

    def test_jpeg_is_close(self, caption_folder: Path, tmp_path: Path) -> None:
        exact, lossy = (build(caption_folder, tmp_path / kind, format=kind) for kind in ("png", "jpg"))
        for i in range(12):
            one, two = (np.asarray(decode_image(s.read(i).image)).astype(int) for s in (exact, lossy))
            assert np.abs(one - two).mean() < 4

    def test_same_input_same_bytes(self, caption_folder: Path, tmp_path: Path) -> None:
        """Wherever it lies, and whatever the clock says."""
        one = contents(build(caption_folder, tmp_path / "a").folder)
        copy = shutil.copytree(caption_folder, tmp_path / "elsewhere" / caption_folder.name)
        for path in copy.rglob("*.*"):
            os.utime(path, (1, 1))
        assert contents(build(copy, tmp_path / "b").folder) == one

    def test_no_profile_or_comment_is_carried_along(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        image = Image.new("RGB", (16, 16), "red")
        image.save(tmp_path / "in" / "a.png", icc_profile=b"x" * 5000)
        image.save(tmp_path / "in" / "b.jpg", comment=b"y" * 5000)
        for kind in ("png", "jpg", "webp"):
            options = {"format": kind, "class_template": "{}"}
            shards = build(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{kind}"), **options)
            assert all(len(shards.read(i).image) < 1000 for i in range(2))

    def test_transparent_images_get_the_background(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "clear").mkdir(parents=True)
        Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "in/clear/a.png")
        options = {"format": "png", "class_template": "{}"}
        shards = build(tmp_path / "in", tmp_path / "out", background="#00ff80", **options)
        assert decode_image(shards.read(0).image).getcolors() == [(256, (0, 255, 128))]


class TestSkipping:
    def test_bad_images_are_named_and_counted(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        data = (caption_folder / "disc01.jpg").read_bytes()
        (caption_folder / "disc01.jpg").write_bytes(data[: len(data) // 2])
        (caption_folder / "disc05.jpg").write_text("text")
        (caption_folder / "disc07.jpg").write_bytes(b"")
        (caption_folder / "disc08.txt").unlink()
        shards = build(caption_folder, tmp_path / "out")
        reasons = skipped(tmp_path / "out")
        assert len(shards) == 8 and len(reasons) == 4
        assert reasons["disc01.jpg"].startswith("bad image: damaged")
        assert reasons["disc05.jpg"] == reasons["disc07.jpg"] == "bad image: no JPEG, PNG, WEBP, GIF, BMP image"
        assert reasons["disc08.png"] == "image without caption"
        output = capsys.readouterr()
        assert "wrote 8 samples" in output.out and "skipped 4 (3 bad image, 1 image without caption)" in output.out
        assert output.err.count("skipped disc0") == 4

    def test_strict_stops_and_goes_on_once_it_is_mended(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        """Parts that left nothing out are not built again."""
        sound, out = (caption_folder / "disc11.jpg").read_bytes(), tmp_path / "out"
        (caption_folder / "disc11.jpg").write_text("text")
        with pytest.raises(UserError, match=r"--strict and skipped 1 .*disc11.jpg: bad image"):
            build(caption_folder, out, strict=True)
        done = tmp_path / ".out.building" / "shard-00000.tar"
        before = done.stat().st_ino
        with pytest.raises(UserError, match=r"--strict and skipped 1 .*disc11.jpg: bad image"):
            build(caption_folder, out, strict=True)
        assert done.stat().st_ino == before and not out.exists()
        (caption_folder / "disc11.jpg").write_bytes(sound)
        assert len(build(caption_folder, out, strict=True)) == 12
        assert (out / "shard-00000.tar").stat().st_ino == before and not beside(out)
        assert contents(build(caption_folder, tmp_path / "whole").folder) == contents(out)

    def test_parts_of_a_build_that_was_not_strict_are_judged_too(self, caption_folder: Path, tmp_path: Path) -> None:
        sound, out = (caption_folder / "disc11.jpg").read_bytes(), tmp_path / "out"
        (caption_folder / "disc11.jpg").write_text("text")
        run(caption_folder, out, share="1/2")
        with pytest.raises(UserError, match=r"--strict and skipped 1 .*disc11.jpg: bad image"):
            build(caption_folder, out, strict=True)
        (caption_folder / "disc11.jpg").write_bytes(sound)
        assert len(build(caption_folder, out, strict=True)) == 12

    def test_no_usable_sample(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for i in range(5):
            (tmp_path / "in" / f"{i}.jpg").write_text("text")
            (tmp_path / "in" / f"{i}.txt").write_text("caption")
        with pytest.raises(UserError, match=r"no sample .*\(5 bad image\): 0.jpg: bad image: no JPEG.* \.\.\.$"):
            build(tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists() and not beside(tmp_path / "out")

    def test_one_sample_is_enough(self, caption_folder: Path, tmp_path: Path) -> None:
        assert len(build(caption_folder, tmp_path / "out", limit=1)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 4},
        {"size": 2048},
        {"quality": 0},
        {"samples_per_shard": 0},
        {"limit": -1},
        {"workers": -1},
        {"workers": 257},
        {"val_share": 0.0},
        {"val_share": 1.0},
        {"near": 11},
        {"background": "#12"},
        {"background": "#11223344"},
        {"where": "split"},
        {"class_template": "a photo"},
    ],
)
def test_options_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} is "):
        CreateOptions(**{"input": tmp_path, "out": tmp_path, "size": 16} | wrong)


class TestFolders:
    def test_output_in_the_way(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for out, said in (("file", "is a file"), ("file/out", "cannot write"), ("/proc", "mount point"),
                          ("/", "mount point"), ("x" * 250, "cannot write .*too long")):  # fmt: skip
            with pytest.raises(UserError, match=said):
                build(caption_folder, tmp_path / out)
        with pytest.raises(UserError, match="no shard folder"):
            build(caption_folder, caption_folder, overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "images"]

    def test_overwrite_of_several_processes_is_refused(self, caption_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--overwrite in several processes"):
            build(caption_folder, tmp_path / "out", overwrite=True, share="0/2")

    def test_a_link_keeps_pointing_to_its_folder(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
        assert len(build(caption_folder, tmp_path / "out")) == 12
        assert (tmp_path / "out").is_symlink() and not beside(tmp_path / "disk" / "out")

    def test_one_line_errors_by_module(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "shards.create", "--input", "gone", "--out", "out", "--size", "8"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "create: no folder at gone\n"
        assert list(tmp_path.iterdir()) == []

    def test_bad_images_cost_little_memory(self, tmp_path: Path) -> None:
        """A header of 20000 x 20000 px among sound images: 1.2 GB if it were decoded."""
        paint(tmp_path / "in", range(2))
        head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
        data = b"".join(
            struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks
        )
        (tmp_path / "in" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shards = build(tmp_path / "in", tmp_path / "out")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
        assert len(shards) == 1
        assert skipped(tmp_path / "out") == {"000.png": "bad image: over the limit of 100,000,000 pixels"}


class TestRealData:
    def test_food(self, real_data: Path, tmp_path: Path, capsys) -> None:
        shards = build(
            real_data / "data/food101-10", tmp_path / "out", size=32, where="split=test", samples_per_shard=1000
        )
        assert len(shards) == 1250 and shards.manifest.distinct_captions == 10
        captions = [shards.read(i).captions for i in range(1250)]
        assert captions.count(("a photo of apple pie",)) == 125
        assert "skipped 0" in capsys.readouterr().out

    def test_cooking(self, real_data: Path, tmp_path: Path) -> None:
        shards = build(real_data / "data/based-cooking", tmp_path / "out", size=32)
        assert len(shards) == 136
        assert shards.read(0).captions == ("a photo of älplermagronen (Alpine macaroni)",)

    def test_emoji_lie_on_the_background(self, real_data: Path, tmp_path: Path) -> None:
        """At 128 px nothing is resized, so the stored pixels can be computed by hand."""
        folder = real_data / "data/fluent-emoji"
        shards = build(folder, tmp_path / "out", size=128, limit=200, format="png", background="#ff8000")
        assert len(shards) == 200
        sources = sorted((folder / "images").iterdir())[:200]
        for i in range(0, 200, 10):
            rgba = np.asarray(Image.open(sources[i]).convert("RGBA")).astype(float)
            share = rgba[..., 3:] / 255
            expected = rgba[..., :3] * share + np.array([255, 128, 0]) * (1 - share)
            found = np.asarray(decode_image(shards.read(i).image))
            assert np.abs(found - expected).max() <= 1
