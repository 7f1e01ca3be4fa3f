"""Small shard folders for the fuzz, and what becomes of them: refused, found by inspection, or missed."""

import contextlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shards.inspect import __main__ as inspect_command
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import ShardFile, index_tar
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

SHARD = "shard-00000.tar"
ROOM = 2**28
"""Bytes of memory a hostile file may cost at most."""
Member = tuple[str, bytes]


class Canary:
    """Unpickled, it writes a file: code has run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")

    def pickled(self) -> bytes:
        return pickle.dumps(self)

    def in_an_array(self) -> bytes:
        """A .npy file that holds it as an object array."""
        file = io.BytesIO()
        np.save(file, np.array([self, 1], dtype=object), allow_pickle=True)
        return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def members(count: int) -> list[Member]:
    """Of `count` samples of 8x8 px: an image, a caption and an embedding each."""
    found, encoder = [], HashingEncoder()
    for i in range(count):
        image = io.BytesIO()
        Image.new("RGB", (8, 8), (20 * i, 30, 40)).save(image, "png")
        caption = f"drawing number {i}"
        vector = npy(encoder.encode([caption])[0].numpy().astype(np.float16))
        found += [(f"{i:09d}.png", image.getvalue()), (f"{i:09d}.txt", caption.encode()), (f"{i:09d}.npy", vector)]
    return found


def plain(name: str, size: int, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(content: list[Member]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in content:
            tar.addfile(plain(name, len(data)), io.BytesIO(data))
    return file.getvalue()


def build(folder: Path, count: int = 3) -> Path:
    """A sound folder of one shard."""
    folder.mkdir()
    path = folder / SHARD
    path.write_bytes(tar_of(members(count)))
    np.save(folder / INDEX_NAME, index_tar(path, 0))
    shard = ShardFile(SHARD, count, path.stat().st_size, file_sha256(path))
    identity = EncoderIdentity.of(HashingEncoder())
    Manifest(count, count, 8, identity, (shard,), file_sha256(folder / INDEX_NAME), {}).save(folder)
    return folder


def seal(folder: Path) -> None:
    """Make the manifest's sizes and hashes those of the files as they are now, as an attacker would."""
    path = folder / MANIFEST_NAME
    fields = json.loads(path.read_text())
    fields["index_sha256"] = file_sha256(folder / INDEX_NAME)
    shard = folder / SHARD
    fields["shards"][0] |= {"bytes": shard.stat().st_size, "sha256": file_sha256(shard)}
    path.write_text(json.dumps(fields))


def outcome(folder: Path) -> str:
    """'refused' by the reader, 'found' by inspection, or 'missed'; any other error than a one-line UserError fails."""
    try:
        shards = ShardSet(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 800, str(error)
        return "refused"
    for i in range(len(shards)):
        with contextlib.suppress(UserError):
            shards.read(i)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            inspect_command.main(inspect_command.InspectOptions(folder, verify=True))
    except UserError as error:
        assert "\n" not in str(error), str(error)
        return "found"
    return "missed"


def contents(folder: Path) -> list[tuple[bytes, tuple[str, ...], torch.Tensor]]:
    """Every sample as the reader gives it."""
    shards = ShardSet(folder)
    return [shards.read(i) for i in range(len(shards))]


def data_end(data: bytes) -> int:
    """Where the end mark begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.getmembers()
        return tar.offset
