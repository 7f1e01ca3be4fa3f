"""Hostile index.npy, manifest.json and embeddings: nothing outside the shards is read, nothing executes."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hostile import ROOM, SHARD, Canary, build, members, npy, outcome, seal, tar_of
from tests.test_damaged import memory
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME
from toolkit.data.shard_reader import DamagedSample, ShardSet
from toolkit.data.tar_index import index_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder to be spoilt."""
    return build(tmp_path / "shards")


def changed(row: int, column: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(index: np.ndarray) -> np.ndarray:
        index[row, column] = value
        return index

    return change


def header(shape: str, descr: str = "'<i8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zipped(index: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, index=index)
    return file.getvalue()


INDEXES: dict[str, Callable] = {
    "offset beyond the end": changed(1, 1, 10**6),
    "offset beyond all files": changed(1, 1, 2**62),
    "negative offset": changed(1, 3, -512),
    "the smallest number": changed(1, 3, -(2**63)),
    "size beyond the end": changed(1, 2, 10**6),
    "size beyond all memory": changed(1, 6, 2**62),
    "negative size": changed(1, 4, -1),
    "no size": changed(1, 4, 0),
    "a shard too many": changed(1, 0, 1),
    "negative shard": changed(1, 0, -1),
    "overlapping": lambda index: index[[0, 0, 2]],
    "another sample's caption": lambda index: np.hstack([index[:, :3], index[[1, 0, 2], 3:5], index[:, 5:]]),
    "another order": lambda index: index[[1, 0, 2]],
    "a row too few": lambda index: index[:2],
    "a column too few": lambda index: index[:, :6],
    "flat": lambda index: index.ravel(),
    "real numbers": lambda index: index.astype(float),
    "32 bits": lambda index: index.astype(np.int32),
    "records": lambda index: index.view([("x", np.int64)]),
    "a zip": zipped,
    "huge": lambda index: header("(1000000000000, 7)"),
    "overflowing": lambda index: header("(9223372036854775807, 9223372036854775807)"),
    "a negative shape": lambda index: header("(-3, 7)") + bytes(168),
    "deep brackets": lambda index: header("(" * 9000),
    "a shape of words": lambda index: header("('a', 'b')"),
    "a type of objects": lambda index: header("(3, 7)", "'|O'") + bytes(168),
    "text": lambda index: b"hello",
    "nothing": lambda index: b"",
}


OUTSIDE = list(INDEXES)[:10]


@pytest.mark.parametrize("what", INDEXES)
def test_a_hostile_index(folder, what):
    path = folder / INDEX_NAME
    spoilt = INDEXES[what](np.load(path))
    path.write_bytes(spoilt if isinstance(spoilt, bytes) else npy(spoilt))
    seal(folder)
    with memory(ROOM):
        assert outcome(folder) in ("refused", "found")
        if what in OUTSIDE:
            with pytest.raises(DamagedSample, match="sample 1 lies outside its shard"):
                ShardSet(folder).read(1)


def test_a_shard_that_shrinks_while_it_is_read(folder):
    shards = ShardSet(folder)
    offset, size = (int(value) for value in shards.index[1, 1:3])
    os.truncate(folder / SHARD, offset + size - 1)  # the image's last byte, which no decoder needs
    with pytest.raises(DamagedSample, match=f"only {size - 1} of {size} bytes are left"):
        shards.read(1)


def test_an_index_or_manifest_that_holds_code(folder, tmp_path):
    canary = Canary(tmp_path / "canary")
    for name in (INDEX_NAME, MANIFEST_NAME):
        before = (folder / name).read_bytes()
        for content in (canary.pickled(), canary.in_an_array(), header("(2,)", "'|O'") + canary.pickled()):
            (folder / name).write_bytes(content)
            if name == INDEX_NAME:
                seal(folder)
            assert outcome(folder) == "refused"
        (folder / name).write_bytes(before)
    assert not canary.path.exists()


def embedding(folder: Path, data: bytes, captions: bytes = b"one caption") -> None:
    """Put `data` in the place of sample 1's embedding, sealed."""
    content = members(3)
    content[4:6] = (content[4][0], captions), (content[5][0], data)
    (folder / SHARD).write_bytes(tar_of(content))
    np.save(folder / INDEX_NAME, index_tar(folder / SHARD, 0))
    seal(folder)


EMBEDDINGS = {
    "too large for its bytes": header("(1, 768)", "'<f2'") + bytes(10),
    "larger than memory": header("(1000000000, 768)", "'<f4'") + bytes(1536),
    "negative": header("(-1, 768)", "'<f2'") + bytes(1536),
    "overflowing": header("(4611686018427387904, 8)", "'<f2'") + bytes(1536),
    "more bytes than numbers": header("(768,)", "'<f2'") + bytes(1538),
    "text": npy(np.array(["a"] * 768)),
    "whole numbers": npy(np.ones(768, dtype=np.int64)),
    "dates": npy(np.zeros(768, dtype="datetime64[s]")),
    "records": npy(np.zeros(768, dtype=[("x", "<f2")])),
    "beyond float32": npy(np.full(768, 1e300)),
    "three dimensions": npy(np.ones((1, 1, 768), dtype=np.float16)),
    "none": npy(np.ones((0, 768), dtype=np.float16)),
    "two for one caption": npy(np.ones((2, 768), dtype=np.float16)),
    "deep brackets": header("(" * 9000) + bytes(1536),
    "no end of header": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "version 9": b"\x93NUMPY\x09\x00" + header("(768,)")[8:],
}


@pytest.mark.parametrize("what", EMBEDDINGS)
def test_a_hostile_embedding(folder, what):
    embedding(folder, EMBEDDINGS[what])
    with memory(ROOM), pytest.raises(DamagedSample, match=f"{SHARD}: sample 1 ") as refused:
        ShardSet(folder).read(1)
    assert "\n" not in str(refused.value)
    assert outcome(folder) == "found"


def test_embeddings_stored_by_columns_or_in_other_precisions_are_read_the_same(folder):
    vectors = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)))
    for array in (np.asfortranarray(vectors), vectors.astype(np.float64), vectors.astype(">f4")):
        embedding(folder, npy(array), b"one caption\nanother one")
        assert torch.allclose(ShardSet(folder).read(1).vectors, expected, atol=1e-6)


def in_shard(**change) -> Callable[[dict], dict]:
    return lambda fields: fields | {"shards": [fields["shards"][0] | change]}


def in_encoder(**change) -> Callable[[dict], dict]:
    return lambda fields: fields | {"encoder": fields["encoder"] | change}


MANIFESTS: dict[str, Callable] = {
    "deep": lambda fields: b'{"version": 1, "shards": ' + b"[" * 100_000,
    "deep objects": lambda fields: b'{"a":' * 100_000,
    "a list": lambda fields: [],
    "a number": lambda fields: 5,
    "null": lambda fields: None,
    "no UTF-8": lambda fields: b"\xff\xfe",
    "endless digits": lambda fields: b'{"version": ' + b"9" * 10_000 + b"}",
    "version in lines": lambda fields: fields | {"version": "1\n2"},
    "infinitely many samples": lambda fields: fields | {"samples": float("inf")},
    "real samples": lambda fields: fields | {"samples": 3.0},
    "samples beyond all files": lambda fields: fields | {"samples": 2**70},
    "no samples": lambda fields: fields | {"samples": 0},
    "true": lambda fields: fields | {"resolution": True},
    "negative resolution": lambda fields: fields | {"resolution": -8},
    "shards by name": lambda fields: fields | {"shards": {"a": 1}},
    "no shards": lambda fields: fields | {"shards": []},
    "a shard twice": lambda fields: fields | {"shards": fields["shards"] * 2},
    "above": in_shard(name="../outside.tar"),
    "absolute": in_shard(name="/etc/passwd"),
    "a device": in_shard(name="/dev/zero", bytes=0),
    "the folder": in_shard(name=".."),
    "no name": in_shard(name=""),
    "a name that is none": in_shard(name=5),
    "a nul": in_shard(name="a\0b"),
    "a name in lines": in_shard(name="a\nb"),
    "an encoder in lines": in_encoder(name="a\nb"),
    "a command": in_shard(name="pipe:cat x"),
    "negative bytes": in_shard(bytes=-1),
    "bytes as text": in_shard(bytes="10"),
    "more samples in the shard": in_shard(samples=4),
    "another hash": in_shard(sha256="0" * 64),
    "hash a list": in_shard(sha256=[1]),
    "index hash a number": lambda fields: fields | {"index_sha256": 1},
    "dimension -1": in_encoder(dimension=-1),
    "dimension as text": in_encoder(dimension="768"),
    "encoder a number": in_encoder(name=7),
    "probes are numbers": in_encoder(probe_captions=[1, 2, 3]),
    "no base64": in_encoder(probe_vectors="!"),
    "probes null": in_encoder(probe_vectors=None),
}


FOUND = ("another hash", "more samples in the shard", "no shards")
"""What opens all the same: the hashes are compared, and the counts summed up, by inspection only."""


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_hostile_manifest(folder, tmp_path, what):
    (tmp_path / "outside.tar").write_bytes((folder / SHARD).read_bytes())
    path = folder / MANIFEST_NAME
    spoilt = MANIFESTS[what](json.loads(path.read_text()))
    path.write_bytes(spoilt if isinstance(spoilt, bytes) else json.dumps(spoilt).encode())
    with memory(ROOM):
        found = outcome(folder)
    assert found == ("found" if what in FOUND else "refused")
