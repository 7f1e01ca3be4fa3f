"""Embeddings that are not what they should be: refused with expected and found when shards are built and when read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from shards import create, embed
from shards.create import CreateOptions
from shards.embed import EmbedOptions
from tests.hostile import SHARD, Canary, members, npy, seal, tar_of
from tests.hostile import build as build_folder
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME, Manifest
from toolkit.data.shard_reader import DamagedSample, ShardSet
from toolkit.data.sidecar import check_sidecar
from toolkit.data.tar_index import index_tar
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError

UNIT = np.eye(768)[3]
WRONG = {
    "512-d": (np.ones(512, "f4"), r"shape \[512\], expected \[768\]", r"shape \(512,\), expected 768-d"),
    "1024-d": (np.ones((1, 1024), "f2"), r"shape \[1, 1024\]", r"shape \(1, 1024\), expected 768-d"),
    "wrong rank": (np.ones((1, 1, 768), "f4"), r"shape \[1, 1, 768\]", r"shape \(1, 1, 768\), expected 768-d"),
    "transposed": (np.ones((768, 1), "f4"), r"shape \[768, 1\]", r"shape \(768, 1\), expected 768-d"),
    "int": (np.ones(768, "i8"), "int64 values, expected floating point", "'int64'.*: expected real numbers"),
    "NaN": (np.where(UNIT > 0, np.nan, UNIT), "NaN or infinity", "NaN or infinity"),
    "inf": (np.where(UNIT > 0, -np.inf, UNIT), "NaN or infinity", "NaN or infinity"),
    "zero": (np.zeros(768, "f4"), "a zero vector, expected a direction", "a zero vector as embedding, expected a dir"),
    "wrong count": (np.ones((2, 768), "f4"), r"shape \[2, 768\]", "1 captions but 2 embeddings"),
}
RIGHT = {
    "float64": UNIT,
    "unnormalised": 7 * UNIT.astype("f4"),
    "hardly any length": UNIT.astype("f4") / 1000,
    "big-endian": UNIT.astype(">f4"),
    "Fortran order": np.asfortranarray(UNIT[None].astype("f2")),
}


def build_with(folder: Path, data: bytes) -> tuple[ShardSet | None, str]:
    """`shards.create` of three images of which one's embedding is `data`, and why that one was left out."""
    images, vectors = folder / "images", folder / "vectors"
    for path in (images, vectors):
        path.mkdir(parents=True)
    for name, content in members(3):
        (vectors if name.endswith("npy") else images).joinpath(name).write_bytes(content)
    (vectors / "000000001.npy").write_bytes(data)
    create.main(CreateOptions(images, folder / "out", 8, embeddings=vectors, encoder="hashing", workers=1))
    report = {row["path"]: row["reason"] for row in json.loads((folder / "out/report.json").read_text())["skipped"]}
    return ShardSet(folder / "out"), report.get("000000001.npy", "")


def shards_with(folder: Path, data: bytes) -> Path:
    """Shards of another maker, all of whose hashes are right, of which sample 1's embedding is `data`."""
    build_folder(folder)
    content = members(3)
    content[5] = (content[5][0], data)
    (folder / SHARD).write_bytes(tar_of(content))
    np.save(folder / INDEX_NAME, index_tar(folder / SHARD, 0))
    seal(folder)
    return folder


@pytest.mark.parametrize("what", WRONG)
class TestWrong:
    def test_at_build(self, tmp_path: Path, what: str) -> None:
        array, reason, _ = WRONG[what]
        shards, found = build_with(tmp_path, npy(array))
        assert len(shards) == 2 and found.startswith("wrong embedding: ")
        with pytest.raises(UserError, match=reason):
            raise UserError(found)

    def test_at_load(self, tmp_path: Path, what: str) -> None:
        array, _, reason = WRONG[what]
        shards = ShardSet(shards_with(tmp_path / "shards", npy(array)))
        for read in (shards.read, shards.read_texts):
            with pytest.raises(DamagedSample, match=f"{SHARD}: sample 1 .*{reason}"):
                read(1)
        assert shards.read(0).vectors.shape == (1, 768)


@pytest.mark.parametrize("what", RIGHT)
class TestRight:
    def test_at_build(self, tmp_path: Path, what: str) -> None:
        shards, found = build_with(tmp_path, npy(RIGHT[what]))
        assert len(shards) == 3 and found == ""
        assert (shards.read(1).vectors - torch.from_numpy(UNIT)).abs().max() < 1e-6

    def test_at_load(self, tmp_path: Path, what: str) -> None:
        shards = ShardSet(shards_with(tmp_path / "shards", npy(RIGHT[what])))
        assert (shards.read(1).vectors - torch.from_numpy(UNIT)).abs().max() < 1e-6


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    shards, found = build_with(tmp_path / "built", canary.in_an_array())
    assert len(shards) == 2 and "Object arrays cannot be loaded" in found
    read = ShardSet(shards_with(tmp_path / "shards", canary.in_an_array()))
    with pytest.raises(DamagedSample, match="sample 1 is damaged .*'object'"):
        read.read(1)
    assert not canary.path.exists()


SIDECARS = {
    "512-d": (npy(np.ones((3, 512), "f2")), r"float16 \[3, 512\], expected float16 \[rows, 768\]"),
    "float32": (npy(np.ones((3, 768), "f4")), r"float32 \[3, 768\], expected float16"),
    "int": (npy(np.ones((3, 768), "i2")), "int16"),
    "big-endian": (npy(np.ones((3, 768), ">f2")), ">f2"),
    "one dimension": (npy(np.ones(768, "f2")), r"float16 \[768\]"),
    "by columns": (npy(np.asfortranarray(np.ones((3, 768), "f2"))), "by columns, expected .* row by row"),
    "short": (npy(np.ones((3, 768), "f2"))[:-2], "truncated"),
    "long": (npy(np.ones((3, 768), "f2")) + b"\0\0", "truncated"),
    "no npy": (b"<html>" * 99, "no readable .npy"),
    "empty": (b"", "no readable .npy|is '0'|bytes"),
}


def with_sidecar(folder: Path, data: bytes) -> Path:
    """Shards embedded anew, of which the new file is `data`, under its right size and hash."""
    embed.main(EmbedOptions(data=build_folder(folder), encoder="hashing"))
    name = Manifest.load(folder).vectors[0].name
    (folder / name).write_bytes(data)
    fields = json.loads((folder / MANIFEST_NAME).read_text())
    fields["vectors"][0] |= {"bytes": len(data), "sha256": file_sha256(folder / name)}
    (folder / MANIFEST_NAME).write_text(json.dumps(fields))
    return folder


class TestSidecar:
    @pytest.mark.parametrize("what", SIDECARS)
    def test_wrong(self, tmp_path: Path, what: str) -> None:
        data, reason = SIDECARS[what]
        with pytest.raises(UserError, match=reason):
            ShardSet(with_sidecar(tmp_path / "shards", data))

    def test_objects_are_never_unpickled(self, tmp_path: Path) -> None:
        canary = Canary(tmp_path / "canary")
        with pytest.raises(UserError, match="object"):
            ShardSet(with_sidecar(tmp_path / "shards", canary.in_an_array()))
        assert not canary.path.exists()

    def test_too_few_rows(self, tmp_path: Path) -> None:
        vectors = HashingEncoder().encode([f"drawing number {i}" for i in range(3)]).numpy().astype("f2")
        shards = ShardSet(with_sidecar(tmp_path / "shards", npy(vectors[:2])))
        assert shards.read(1).vectors.shape == (1, 768)
        with pytest.raises(DamagedSample, match="sample 2 lies outside its shard"):
            shards.read(2)
        path = tmp_path / "shards" / shards.manifest.vectors[0].name
        assert check_sidecar(path, 768, 2) == 128
        with pytest.raises(UserError, match=r"float16 \[2, 768\], expected float16 \[3, 768\]"):
            check_sidecar(path, 768, 3)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 0])
    def test_values(self, tmp_path: Path, value: float) -> None:
        vectors = HashingEncoder().encode([f"drawing number {i}" for i in range(3)]).numpy().astype("f2")
        vectors[1] = value
        shards = ShardSet(with_sidecar(tmp_path / "shards", npy(vectors)))
        assert shards.read(0).vectors.shape == (1, 768)
        with pytest.raises(DamagedSample, match="sample 1 is damaged .*(NaN or infinity|zero vector)"):
            shards.read(1)


@pytest.mark.parametrize("name", ["../index.npy", "a/b.npy", "", "..", MANIFEST_NAME, SHARD, 5, None, "a\nb"])
def test_an_index_of_another_place_is_refused(tmp_path: Path, name: object) -> None:
    folder = build_folder(tmp_path / "shards")
    shutil.copy(folder / INDEX_NAME, tmp_path / INDEX_NAME)
    fields = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(fields | {"index_name": name}))
    with pytest.raises(UserError, match="is damaged"):
        ShardSet(folder)
