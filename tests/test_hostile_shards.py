"""Fuzzed and hostile shards: each is refused or found, no sample is lost or changed without a word, nothing executes.

Where it says `seal`, sizes and hashes in the manifest agree with what is there: then only the structure can tell.
"""

import gzip
import random
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import toolkit.train
from shards.inspect import __main__ as inspect_command
from shards.inspect import checks
from tests.hostile import ROOM, SHARD, Canary, build, contents, data_end, members, outcome, seal, tar_of
from tests.test_damaged import memory
from toolkit.config import ResolvedConfig
from toolkit.data.shard_format import INDEX_NAME, Manifest
from toolkit.data.shard_reader import DamagedSample, ShardSet
from toolkit.data.tar_index import index_tar
from toolkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder to be spoilt."""
    return build(tmp_path / "shards")


def test_the_sound_folder_passes(folder):
    """Without it every 'found' below could be a flaw of the fixture."""
    assert outcome(folder) == "missed"


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def judged(path: Path, expected: np.ndarray) -> str:
    try:
        rows = index_tar(path, 0)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    return "same samples" if np.array_equal(rows, expected) else "found"  # check_index compares with the index


def test_every_single_bit_of_every_header(tmp_path):
    """2 samples, 6 headers, 4,096 bits each. What is not refused has the same samples at the same places."""
    path, counts = build(tmp_path / "shards", 2) / SHARD, Counter()
    expected = index_tar(path, 0)
    with path.open("r+b", buffering=0) as file:
        for start in headers(path):
            block = path.read_bytes()[start : start + 512]
            for bit in range(4096):
                spoilt = bytearray(block)
                spoilt[bit // 8] ^= 1 << bit % 8
                file.seek(start + bit // 8)
                file.write(spoilt[bit // 8 : bit // 8 + 1])
                counts[judged(path, expected)] += 1
                file.seek(start)
                file.write(block)
    # Of the checksum's own bytes, which it does not cover: the last one is not read (8 bits), and a blank for the
    # leading zero or for the end mark is the same number. The hash of the file finds those.
    assert counts == {"refused": 6 * 4086, "same samples": 6 * 10}


def read_header(block: bytes) -> tuple | None:
    """What matters of a header: name in any case, type and size; None if it is none."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info.name.lower(), info.type, info.size


def test_header_bytes_with_the_checksum_put_right(tmp_path):
    """One seeded bit in every byte of every header. A change of size or name is never taken for the same sample."""
    path, counts, bits = build(tmp_path / "shards", 2) / SHARD, Counter(), random.Random(0)
    data, expected = path.read_bytes(), index_tar(path, 0)
    for start in headers(path):
        before = read_header(data[start : start + 512])
        for place in range(512):
            block = bytearray(data[start : start + 512])
            block[place] ^= 1 << bits.randrange(8)
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            path.write_bytes(data[:start] + block + data[start + 512 :])
            with memory(ROOM):
                found = judged(path, expected)
            counts[found] += 1
            assert (found == "same samples") == (read_header(block) == before), (start, place)
    assert counts.total() == 6 * 512 and counts["refused"] > 250 and counts["found"] > 0


def test_flipped_payload_bits_are_found_by_the_hash_and_stay_in_their_sample(folder):
    path, bits = folder / SHARD, random.Random(1)
    data, before, index = path.read_bytes(), contents(folder), np.load(folder / INDEX_NAME)
    counts = Counter()
    for _ in range(200):
        row = bits.randrange(3)
        column = bits.choice((1, 3, 5))
        place = index[row, column] + bits.randrange(index[row, column + 1])
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << bits.randrange(8)
        path.write_bytes(spoilt)
        assert checks.check_hashes(folder, Manifest.load(folder)).state == "BAD"
        shards = ShardSet(folder)
        for i in range(3):
            try:
                now = shards.read(i)
            except DamagedSample:
                assert i == row
                counts["refused"] += 1
                continue
            same = now[:2] == before[i][:2] and torch.equal(now.vectors, before[i].vectors)
            assert same or i == row
    assert 0 < counts["refused"] < 200


@pytest.mark.parametrize("sealed", [False, True])
def test_truncation_at_every_block(folder, sealed):
    path, counts = folder / SHARD, Counter()
    data = path.read_bytes()
    for end in range(0, len(data), 512):
        path.write_bytes(data[:end])
        if sealed:
            seal(folder)
        found = outcome(folder)
        padding = len(data[:end].rstrip(b"\0")) == len(data.rstrip(b"\0")) and end >= data_end(data) + 1024
        assert (found == "missed") == (sealed and padding), end  # only zeros after the end mark are gone
        counts[found] += 1
    blocks, spare = len(data) // 512, (len(data) - data_end(data)) // 512 - 2
    # A file of no bytes is refused by the manifest's own check, sealed or not.
    expected = {"refused": blocks} if not sealed else {"refused": 1, "found": blocks - spare - 1, "missed": spare}
    assert counts == expected


REPLACED: dict[str, Callable[[bytes], bytes]] = {
    "zeroed": lambda data: bytes(len(data)),
    "html": lambda data: b"<html>not found</html>".ljust(len(data)),
    "gzip": gzip.compress,
    "empty": lambda data: b"",
    "one zero block": lambda data: bytes(512),
    "a gzip bomb": lambda data: gzip.compress(bytes(2**24)),
    "two tars in a row": lambda data: data + data,
    "an end mark in the middle": lambda data: data[:512] + bytes(1536) + data[2048:],
    "the last sample cut off": lambda data: tar_of(members(2)).ljust(len(data), b"\0"),
    "a sample more": lambda data: tar_of(members(4)),
}


@pytest.mark.parametrize("what", REPLACED)
def test_a_replaced_shard(folder, what):
    path = folder / SHARD
    path.write_bytes(REPLACED[what](path.read_bytes()))
    with memory(ROOM):
        assert outcome(folder) in ("refused", "found")
        seal(folder)
        assert outcome(folder) in ("refused", "found")


def test_a_missing_shard(folder):
    (folder / SHARD).unlink()
    assert outcome(folder) == "refused"


@pytest.mark.parametrize("kind", ["pyd", "pkl", "pickle", "pth", "pt", "PKL", "cls.pkl", "npy"])
def test_members_with_code_are_found_and_never_run(folder, tmp_path, kind):
    canary = Canary(tmp_path / "canary")
    __import__("pickle").loads(canary.pickled())
    assert canary.path.exists(), "the canary is dead: this test would prove nothing"
    canary.path.unlink()
    path = folder / SHARD
    before = contents(folder)
    content = members(3)
    if kind == "npy":
        content[5] = (content[5][0], canary.in_an_array())
    else:
        content.append((f"{2:09d}.{kind}", canary.pickled()))  # the index fits all the same
    path.write_bytes(tar_of(content))
    if kind == "npy":  # in its place in the index; the others must still be read
        np.save(folder / INDEX_NAME, index_tar(path, 0))
        seal(folder)
        with pytest.raises(DamagedSample, match="sample 1 is damaged"):
            ShardSet(folder).read(1)
        assert ShardSet(folder).read(2)[:2] == before[2][:2]
    seal(folder)
    assert outcome(folder) == "found"
    assert not canary.path.exists()


SPECS = (
    "pipe:touch canary", "pipe:cat shards.tar", "https://x.invalid/{000..999}.tar",
    "hf://datasets/x/y", "file:///etc/passwd", "file:shards", "ssh://host/x",
    "data:,x", "shards-{0..99999999}.tar", "a::b", "shards/*.tar", "$HOME/shards", "${HOME}", "`touch canary`",
    "$(touch canary)",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_only_local_folders_are_read(tmp_path, monkeypatch, spec):
    """No process, no connection, no expansion (a hundred million names would take minutes), one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "shards=pipe:touch canary")
    with (
        mock.patch("subprocess.Popen") as popen,
        mock.patch("os.system") as system,
        mock.patch("os.posix_spawn") as spawn,
        mock.patch.object(urllib.request, "urlopen") as urlopen,
        mock.patch("socket.socket.connect") as connect,
        memory(ROOM),
    ):
        for ask in (
            lambda: toolkit.train.main(ResolvedConfig(data=spec, out_dir="run")),
            lambda: inspect_command.main(inspect_command.InspectOptions(Path(spec), verify=True)),
            lambda: ShardSet(spec),
        ):
            with pytest.raises(UserError, match="no shard folder at") as refused:
                ask()
            assert "\n" not in str(refused.value)
            if "`" not in spec:
                assert "pass a local folder" in str(refused.value)
    for called in (popen, system, spawn, urlopen, connect):
        called.assert_not_called()
    assert list(tmp_path.iterdir()) == []
