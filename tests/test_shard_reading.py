"""Any WebDataset reader reads the shards, and no damage to them passes unnoticed."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from toolkit.data.shard_format import INDEX_NAME, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import index_tar
from toolkit.errors import UserError


class TestSound:
    def test_plain_webdataset_reads_the_same(self, shard_folder: Path) -> None:
        shards = ShardSet(shard_folder)
        tars = [str(path) for path in sorted(shard_folder.glob("*.tar"))]
        assert len(tars) == 3
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(24)]
        for i, sample in enumerate(samples):
            mine = shards.read(i)
            assert sample["png"] == mine.image
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
                with pytest.raises(UserError, match=r"damaged or truncated|lack an image"):
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
            with pytest.raises(UserError, match="shard-00001.tar is missing, but the manifest lists it"):
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
        [{"version": 3}, {"shards": 3}, {"encoder": {"name": "x"}}, {"extra": 1}, {"samples": 23}],
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
