"""Shards hold exactly what went in, appear whole or not at all, and no damage to them passes unnoticed."""

import errno
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import create, writer
from shards.create import CreateOptions
from shards.embed import load_identity, save_identity
from toolkit.decoding import decode_picture, fit_square
from toolkit.errors import UserError
from toolkit.hashing_encoder import HashingEncoder
from toolkit.shard_format import INDEX_NAME, Manifest, index_tar
from toolkit.shard_reader import ShardSet

REPOSITORY = Path(__file__).resolve().parents[1]
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")


def build(folder: Path, out: Path, **options) -> ShardSet:
    if "embeddings" not in options:
        options["encoder"] = "hashing"
    create.main(CreateOptions(**{"input": folder, "out": out, "size": 16, "samples_per_shard": 5} | options))
    return ShardSet(out)


def skipped(out: Path) -> dict[str, str]:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry["reason"] for entry in report["skipped"]}


def nothing_left(folder: Path, out: Path) -> bool:
    return not out.exists() and not [path for path in folder.iterdir() if path.name.startswith(".")]


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ["png", "webp"])
    def test_lossless_pictures_equal_the_fitted_source(self, caption_folder: Path, tmp_path: Path, kind: str) -> None:
        shards = build(caption_folder, tmp_path / "out", format=kind)
        sources = sorted(caption_folder.rglob("*.[jp][pn]g"), key=lambda p: p.relative_to(caption_folder).as_posix())
        assert len(shards) == len(sources) == 12
        for i, source in enumerate(sources):
            sample = shards.read(i)
            expected = fit_square(decode_picture(source.read_bytes()), 16)
            assert (np.asarray(decode_picture(sample.picture)) == np.asarray(expected)).all()
            assert sample.captions == tuple(source.with_suffix(".txt").read_text().split("\n")[:-1])
            vectors = HashingEncoder().encode(list(sample.captions))
            assert (sample.vectors - vectors).abs().max() < 1e-3

    def test_jpeg_is_close(self, caption_folder: Path, tmp_path: Path) -> None:
        exact, lossy = (build(caption_folder, tmp_path / kind, format=kind) for kind in ("png", "jpg"))
        for i in range(12):
            one, two = (np.asarray(decode_picture(s.read(i).picture)).astype(int) for s in (exact, lossy))
            assert np.abs(one - two).mean() < 4

    def test_plain_webdataset_reads_the_same(self, shard_folder: Path) -> None:
        shards = ShardSet(shard_folder)
        tars = [str(path) for path in sorted(shard_folder.glob("*.tar"))]
        assert len(tars) == 3
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(24)]
        for i, sample in enumerate(samples):
            mine = shards.read(i)
            assert sample["png"] == mine.picture
            assert tuple(sample["txt"].decode().split("\n")) == mine.captions
            vectors = np.atleast_2d(np.load(io.BytesIO(sample["npy"])))
            assert vectors.dtype == np.float16 and vectors.shape == mine.vectors.shape
            assert np.abs(vectors - mine.vectors.numpy()).max() < 1e-3
            source = json.loads(sample["json"])
            assert source["key"] == f"{i:02d}" and {"width", "height"} < set(source)

    def test_manifest_counts(self, shard_folder: Path) -> None:
        manifest = Manifest.load(shard_folder)
        assert (manifest.samples, manifest.distinct_captions, manifest.resolution) == (24, 7, 16)
        assert [shard.samples for shard in manifest.shards] == [10, 10, 4]
        assert json.loads((shard_folder / "report.json").read_text()) == {"written": 24, "skipped": []}

    def test_same_input_same_bytes(self, caption_folder: Path, tmp_path: Path) -> None:
        a, b = (build(caption_folder, tmp_path / n, threads=t).folder for n, t in (("a", 1), ("b", 4)))
        names = sorted(path.name for path in a.iterdir())
        assert names == sorted(path.name for path in b.iterdir())
        assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)

    def test_no_profile_or_comment_is_carried_along(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        picture = Image.new("RGB", (16, 16), "red")
        picture.save(tmp_path / "in" / "a.png", icc_profile=b"x" * 5000)
        picture.save(tmp_path / "in" / "b.jpg", comment=b"y" * 5000)
        for kind in ("png", "jpg", "webp"):
            options = {"format": kind, "class_template": "{}"}
            shards = build(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{kind}"), **options)
            assert all(len(shards.read(i).picture) < 1000 for i in range(2))

    def test_transparent_pictures_get_the_background(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "clear").mkdir(parents=True)
        Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "in/clear/a.png")
        options = {"format": "png", "class_template": "{}"}
        shards = build(tmp_path / "in", tmp_path / "out", background="#00ff80", **options)
        assert decode_picture(shards.read(0).picture).getcolors() == [(256, (0, 255, 128))]


class TestSkipping:
    def test_bad_pictures_are_named_and_counted(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        data = (caption_folder / "disc01.jpg").read_bytes()
        (caption_folder / "disc01.jpg").write_bytes(data[: len(data) // 2])
        (caption_folder / "disc05.jpg").write_text("text")
        (caption_folder / "disc07.jpg").write_bytes(b"")
        (caption_folder / "disc08.txt").unlink()
        shards = build(caption_folder, tmp_path / "out")
        reasons = skipped(tmp_path / "out")
        assert len(shards) == 8 and len(reasons) == 4
        assert reasons["disc01.jpg"].startswith("bad picture: damaged")
        assert reasons["disc05.jpg"] == reasons["disc07.jpg"] == "bad picture: no JPEG, PNG, WEBP, GIF, BMP picture"
        assert reasons["disc08.png"] == "image without caption"
        output = capsys.readouterr()
        assert "wrote 8 samples" in output.out and "skipped 4 (3 bad picture, 1 image without caption)" in output.out
        assert output.err.count("skipped disc0") == 4

    def test_strict_stops_and_writes_nothing(self, caption_folder: Path, tmp_path: Path) -> None:
        (caption_folder / "disc05.jpg").write_text("text")
        with pytest.raises(UserError, match=r"--strict true and skipped 1 .*disc05.jpg: bad picture"):
            build(caption_folder, tmp_path / "out", strict=True)
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_no_usable_sample(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for i in range(5):
            (tmp_path / "in" / f"{i}.jpg").write_text("text")
            (tmp_path / "in" / f"{i}.txt").write_text("caption")
        with pytest.raises(UserError, match=r"no sample .*\(5 bad picture\): 0.jpg: bad picture: no JPEG.* \.\.\.$"):
            build(tmp_path / "in", tmp_path / "out")
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_one_sample_is_enough(self, caption_folder: Path, tmp_path: Path) -> None:
        assert len(build(caption_folder, tmp_path / "out", limit=1)) == 1


class TestEmbeddings:
    def folder(self, caption_folder: Path, tmp_path: Path) -> Path:
        """Vectors from elsewhere: no encoder.json, several spoilt."""
        folder = tmp_path / "vectors"
        for path in caption_folder.rglob("*.txt"):
            target = folder / path.relative_to(caption_folder).with_suffix(".npy")
            target.parent.mkdir(parents=True, exist_ok=True)
            vectors = HashingEncoder().encode(path.read_text().splitlines()).numpy()
            np.save(target, vectors.astype(np.float64) * 7 if len(vectors) == 1 else vectors)
        return folder

    def test_declared_encoder(self, caption_folder: Path, tmp_path: Path) -> None:
        folder = self.folder(caption_folder, tmp_path)
        np.save(folder / "disc01.npy", np.ones(512, "f4"))
        np.save(folder / "disc02.npy", np.full(768, np.nan, "f4"))
        np.save(folder / "disc04.npy", np.array([{}], dtype=object), allow_pickle=True)
        (folder / "disc05.npy").unlink()
        np.save(folder / "stray.npy", np.ones(768, "f4"))
        shards = build(caption_folder, tmp_path / "out", embeddings=folder, encoder="hashing")
        reasons = skipped(tmp_path / "out")
        assert len(shards) == 8 and len(reasons) == 5
        assert reasons["disc01.npy"].endswith("shape [512], expected [2, 768]")
        assert "NaN" in reasons["disc02.npy"] and "Object arrays" in reasons["disc04.npy"]
        assert reasons["disc05.npy"] == "missing embedding" and reasons["stray.npy"] == "embedding without image"
        identity = shards.manifest.encoder
        assert identity.name == "hashing" and set(identity.probe_captions) < {f"a {c} disc" for c in COLOURS}
        assert len(identity.probe_captions) == 4 and identity.cosine(HashingEncoder()) > 0.999
        for i in range(len(shards)):
            expected = HashingEncoder().encode(list(shards.read(i).captions))
            assert (shards.read(i).vectors - expected).abs().max() < 1e-3

    def test_origin_must_be_known(self, caption_folder: Path, tmp_path: Path) -> None:
        folder = self.folder(caption_folder, tmp_path)
        with pytest.raises(UserError, match="does not say which encoder made it"):
            build(caption_folder, tmp_path / "out", embeddings=folder)
        built = build(caption_folder, tmp_path / "declared", embeddings=folder, encoder="hashing")
        save_identity(folder, built.manifest.encoder)
        assert load_identity(folder) == built.manifest.encoder
        with pytest.raises(UserError, match="was embedded by hashing, not by --encoder ViT-L-14/openai"):
            build(caption_folder, tmp_path / "out", embeddings=folder, encoder="ViT-L-14/openai")
        assert len(build(caption_folder, tmp_path / "out", embeddings=folder)) == 12
        with pytest.raises(UserError, match="no folder of embeddings"):
            build(caption_folder, tmp_path / "other", embeddings=tmp_path / "gone")

    def test_folder_without_vectors(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "vectors").mkdir()
        with pytest.raises(UserError, match=r"no usable embedding KEY.npy, the first expected is disc01.npy"):
            build(caption_folder, tmp_path / "out", embeddings=tmp_path / "vectors", encoder="hashing")


class TestAppearsWhole:
    @pytest.mark.parametrize(
        "failure, expected",
        [(OSError(errno.ENOSPC, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
    )
    @pytest.mark.parametrize("place", ["add", "index"])
    def test_failure_leaves_nothing(
        self, caption_folder: Path, tmp_path: Path, monkeypatch, failure: BaseException, expected: type, place: str
    ) -> None:
        def fail(*_) -> None:
            raise failure

        monkeypatch.setattr(writer.ShardWriter, place, fail)
        with pytest.raises(expected):
            build(caption_folder, tmp_path / "out")
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_overwrite_replaces_only_shards_and_only_when_complete(
        self, caption_folder: Path, tmp_path: Path, monkeypatch
    ) -> None:
        out = tmp_path / "out"
        build(caption_folder, out, limit=3)
        with pytest.raises(UserError, match="exists and is not empty.*--overwrite true"):
            build(caption_folder, out)
        with monkeypatch.context() as patch, pytest.raises(UserError, match="no space"):
            patch.setattr(writer.ShardWriter, "index", lambda self: (_ for _ in ()).throw(OSError("no space")))
            build(caption_folder, out, overwrite=True)
        assert len(ShardSet(out)) == 3
        assert len(build(caption_folder, out, overwrite=True)) == 12
        assert not list(tmp_path.glob(".*"))
        (out / "thesis.docx").write_text("precious")
        with pytest.raises(UserError, match="it holds thesis.docx"):
            build(caption_folder, out, overwrite=True)
        with pytest.raises(UserError, match="no shard folder"):
            build(caption_folder, caption_folder, overwrite=True)

    def test_output_in_the_way(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            build(caption_folder, tmp_path / "file")
        with pytest.raises(UserError, match="cannot write"):
            build(caption_folder, tmp_path / "file" / "out")
        with pytest.raises(UserError, match="mount point"):
            build(caption_folder, Path("/proc"))
        (tmp_path / "empty").mkdir()
        (tmp_path / ".empty.tmp-1").mkdir()
        assert len(build(caption_folder, tmp_path / "empty")) == 12
        assert ".empty.tmp-1 is of another build" in capsys.readouterr().err

    def test_killed_by_path_from_elsewhere(self, tmp_path: Path) -> None:
        """The script by its path, from another folder; SIGTERM in the middle leaves nothing."""
        for i in range(60):
            (tmp_path / f"in/{i}").mkdir(parents=True)
        Image.new("RGB", (3000, 3000)).save(tmp_path / "in/0/a.png")
        for i in range(1, 60):
            os.link(tmp_path / "in/0/a.png", tmp_path / f"in/{i}/a.png")
        flags = ["--input=in", "--out=out", "--size=8", "--encoder=hashing", "--class_template={}"]
        script = [sys.executable, REPOSITORY / "shards" / "create.py", *flags]
        with subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".out.tmp-*/*.tar")) and time.monotonic() < deadline:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
            assert process.stderr.read() == ""
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_one_line_errors_by_module(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "shards.create", "--input", "gone", "--out", "out", "--size", "8"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "create: no folder at gone\n"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 4},
        {"size": 2048},
        {"quality": 0},
        {"samples_per_shard": 0},
        {"limit": -1},
        {"threads": 0},
        {"background": "#12"},
        {"background": "#11223344"},
        {"where": "split"},
        {"class_template": "a photo"},
    ],
)
def test_options_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} is "):
        CreateOptions(**{"input": tmp_path, "out": tmp_path, "size": 16} | wrong)


@pytest.fixture
def damaged(shard_folder: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(shard_folder, tmp_path / "copy")
    return tmp_path / "copy"


class TestDamage:
    def test_truncated_anywhere(self, damaged: Path) -> None:
        path = damaged / "shard-00002.tar"
        data = path.read_bytes()
        for end in range(0, len(data), 512):
            path.write_bytes(data[:end])
            with pytest.raises(UserError, match="shard-00002.tar"):
                ShardSet(damaged)
            if data[end:].strip(b"\0"):  # else only the padding after the end mark is gone
                with pytest.raises(UserError, match=r"damaged or truncated|lack a picture"):
                    index_tar(path, 0)

    def test_a_flipped_header_never_loses_samples_silently(self, damaged: Path) -> None:
        path = damaged / "shard-00002.tar"
        data, expected = path.read_bytes(), index_tar(path, 0)
        with tarfile.open(path) as tar:
            headers = [member.offset for member in tar]
        for offset in headers:
            for place in (0, 100, 124, 148, 156):  # name, mode, size, checksum, type
                spoilt = bytearray(data)
                spoilt[offset + place] ^= 1
                path.write_bytes(spoilt)
                try:
                    found = index_tar(path, 0)
                except UserError:
                    continue
                assert (found == expected).all()

    @pytest.mark.parametrize("content", ["missing", "empty", "zeros", "html", "gzip"])
    def test_replaced_shard(self, damaged: Path, content: str) -> None:
        path = damaged / "shard-00001.tar"
        data = path.read_bytes()
        path.unlink()
        contents = {
            "empty": b"",
            "zeros": bytes(len(data)),
            "html": b"<html>".ljust(len(data)),
            "gzip": gzip.compress(data),
        }
        if content == "missing":
            with pytest.raises(UserError, match="shard-00001.tar is missing; the manifest lists it with 10 samples"):
                ShardSet(damaged)
            return
        path.write_bytes(contents[content])
        with pytest.raises(UserError, match="shard-00001.tar"):
            ShardSet(damaged).read(12)
        with pytest.raises(UserError, match="shard-00001.tar"):
            index_tar(path, 1)

    @pytest.mark.parametrize(
        "members",
        [
            ["a.png", "a.txt"],
            ["a.png", "b.txt", "a.npy"],
            ["a.png", "a.txt", "a.npy", "a.png", "a.txt", "a.npy"],
            ["a.png", "b.png", "a.txt", "b.txt", "a.npy", "b.npy"],
            [],
        ],
    )
    def test_samples_that_are_not_whole(self, tmp_path: Path, members: list[str]) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
        with pytest.raises(UserError, match="x.tar"):
            index_tar(tmp_path / "x.tar", 0)

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_members_that_are_no_files(self, tmp_path: Path, kind: bytes) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        with pytest.raises(UserError, match="no plain file"):
            index_tar(tmp_path / "x.tar", 0)

    @pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY"])
    def test_damaged_index(self, damaged: Path, content: bytes) -> None:
        (damaged / INDEX_NAME).write_bytes(content)
        with pytest.raises(UserError, match="index.npy cannot be read"):
            ShardSet(damaged)

    @pytest.mark.parametrize(
        "change",
        [{"version": 2}, {"shards": 3}, {"encoder": {"name": "x"}}, {"extra": 1}, {"samples": 23}],
    )
    def test_damaged_manifest(self, damaged: Path, change: dict) -> None:
        path = damaged / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(UserError, match=r"manifest\.json|the manifest"):
            ShardSet(damaged)

    def test_probe_vectors_that_do_not_fit(self, damaged: Path) -> None:
        path = damaged / "manifest.json"
        fields = json.loads(path.read_text())
        fields["encoder"]["dimension"] = 512
        path.write_text(json.dumps(fields))
        with pytest.raises(UserError, match="manifest.json is damaged"):
            ShardSet(damaged)


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
            found = np.asarray(decode_picture(shards.read(i).picture))
            assert np.abs(found - expected).max() <= 1
