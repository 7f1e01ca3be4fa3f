"""Shards at an address: equal to the local ones, fetched once, never taken for whole or genuine when they are not."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shards.inspect import __main__ as inspect_command
from shards.report import __main__ as report_command
from tests.forking import Forked
from tests.running import finish
from tests.shard_server import ShardServer, send, send_half, serving
from toolkit.data import fetching
from toolkit.data.dataset import ShardDataset, batches
from toolkit.data.remote_shards import RemoteShardSet, open_shards
from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

pytest.importorskip("aiohttp", reason="aiohttp, with which fsspec reads https, is not installed")

SHARD = "shard-00001.tar"
SAMPLE = 12
"""One of its samples."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TEXT_GAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TEXT_GAN_CACHE_GB", raising=False)
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def server(shard_folder, tmp_path, cache):
    shutil.copytree(shard_folder, tmp_path / "served")
    with serving(tmp_path / "served") as server:
        yield server


def fetched(cache: Path) -> set[str]:
    """Names of all files in the cache, but for those that hold no data."""
    return {path.name for path in cache.rglob("*") if path.is_file() and path.stat().st_size} - {"reserved"}


def assert_equal_samples(a: ShardSet, b: ShardSet) -> None:
    assert len(a) == len(b)
    for one, other in ((a.read(i), b.read(i)) for i in range(len(a))):
        assert one[:2] == other[:2]
        assert torch.equal(one.vectors, other.vectors)


def test_it_reads_what_lies_there_and_fetches_each_file_once(server, shard_folder, cache):
    local, remote = ShardSet(shard_folder), open_shards(server.address)
    assert set(server.asked) == {"manifest.json", "index.npy"}, "nothing else before it is read"
    assert remote.manifest == local.manifest
    assert_equal_samples(remote, local)
    assert_equal_samples(open_shards(server.address + "/"), local)
    names = {file.name for file in local.manifest.files} | {"index.npy"}
    assert server.asked == {MANIFEST_NAME: 2} | dict.fromkeys(names, 1)
    assert fetched(cache) == names | {MANIFEST_NAME}
    assert_equal_samples(ShardSet(remote.folder), local)  # the cached folder is a shard folder like any other


def test_workers_fetch_for_each_other_and_make_the_same_batches(server, shard_folder):
    def draw(shards: ShardSet, workers: int) -> list:
        stream = batches(ShardDataset(shards, seed=0), 0, 8, slice(0, 8), 1, workers)
        drawn = [part for _, (part,) in zip(range(6), stream, strict=False)]
        stream.close()
        return drawn

    for here, there in zip(draw(ShardSet(shard_folder), 0), draw(open_shards(server.address), 2), strict=True):
        assert here.captions == there.captions
        assert all(torch.equal(a, b) for a, b in zip(here[:4], there[:4], strict=True))
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}


def test_threads_fetch_a_file_once(server):
    shards = open_shards(server.address)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shards.read, [0, 1, 2, 3, 4, 5, 6, 7]))
    assert server.asked["shard-00000.tar"] == 1


READER = "import sys; from toolkit.data.remote_shards import open_shards; s = open_shards(sys.argv[1]); s.fetch_all()"


@pytest.mark.dist
def test_two_processes_fetch_each_file_once(server, shard_folder, cache, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    started = [Forked([str(tmp_path / "reader.py"), server.address], tmp_path, dict(os.environ)) for _ in range(2)]
    said = [finish(process) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert {count for name, count in server.asked.items() if name != MANIFEST_NAME} == {1}
    assert_equal_samples(ShardSet(next(cache.glob("*/shards"))), ShardSet(shard_folder))


def flip(handler, data: bytes) -> None:
    send(handler, 200, data[:600] + bytes([data[600] ^ 1]) + data[601:])


@pytest.mark.parametrize(
    ("answer", "message", "times"),
    [
        (flip, "has SHA-256 [0-9a-f]{64}, its manifest says [0-9a-f]{64}", 1),
        (lambda handler, data: send(handler, 200, data + b"\0"), "holds more than the", 1),
        (lambda handler, data: send(handler, 200, data[:-512]), "bytes came", 4),
        (send_half, "cannot be fetched", 4),
        (lambda handler, data: send(handler, 503, b""), "503", 4),
        (lambda handler, data: send(handler, 403, b""), "403", 1),
        (lambda handler, data: send(handler, 404, b""), "no such file", 1),
    ],
    ids=["flipped", "longer", "shorter", "hung up", "busy", "forbidden", "missing"],
)
def test_what_is_not_the_file_is_refused_in_one_line_and_not_kept(server, cache, answer, message, times):
    server.answers[SHARD] = answer
    shards = open_shards(server.address)
    for _ in range(2):  # the second time without asking again
        with pytest.raises(UserError, match=message) as refused:
            shards.read(SAMPLE)
        assert type(refused.value) is UserError, "no damaged sample, for which another would stand in"
        assert f"{server.address}/{SHARD}" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert server.asked[SHARD] == times
    assert fetched(cache) == {MANIFEST_NAME, "index.npy"}
    shards.read(0)
    server.answers.clear()
    assert open_shards(server.address).read(SAMPLE).captions


def test_both_hashes_are_named(server):
    server.answers["index.npy"] = flip
    with pytest.raises(UserError) as refused:
        open_shards(server.address)
    expected = json.loads((server.folder / MANIFEST_NAME).read_text())["index_sha256"]
    assert expected in str(refused.value)


def test_a_server_that_comes_back_is_asked_again(server, shard_folder, cache):
    def fails_twice(handler, data):
        if server.asked[SHARD] == 1:
            send_half(handler, data)
        else:
            send(handler, 503 if server.asked[SHARD] == 2 else 200, data)

    server.answers[SHARD] = fails_twice
    assert open_shards(server.address).read(SAMPLE)[:2] == ShardSet(shard_folder).read(SAMPLE)[:2]
    assert server.asked[SHARD] == 3


def test_what_a_killed_process_left_is_not_taken_for_whole(server, shard_folder, cache):
    shards = open_shards(server.address)
    (shards.folder.parent / "partial" / SHARD).write_bytes(b"half of it")
    (shards.folder / "shard-00000.tar").write_bytes(b"of another size")
    assert_equal_samples(shards, ShardSet(shard_folder))


def test_an_interrupted_fetch_leaves_nothing(server, cache, monkeypatch):
    shards, read = open_shards(server.address), fetching._fetch_once

    def interrupted(address, path, least, most):
        read(address, path, least, most)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_fetch_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shards.read(SAMPLE)
    assert fetched(cache) == {MANIFEST_NAME, "index.npy"}
    monkeypatch.undo()
    assert shards.read(SAMPLE).captions


def test_a_changed_set_at_the_same_address_is_another_set(server, cache):
    first = open_shards(server.address)
    manifest = json.loads((server.folder / MANIFEST_NAME).read_text())
    manifest["built_with"]["note"] = "another"
    (server.folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    second = open_shards(server.address)
    assert first.folder != second.folder
    assert server.asked["index.npy"] == 2


@pytest.mark.parametrize("field", ["index_sha256", "shards"])
def test_a_manifest_without_hashes_is_refused(server, cache, field):
    manifest = json.loads((server.folder / MANIFEST_NAME).read_text())
    if field == "shards":
        manifest["shards"][1]["sha256"] = "../../x"
    else:
        manifest[field] = ""
    (server.folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="gives no SHA-256"):
        open_shards(server.address)
    assert not cache.exists()


def test_a_damaged_manifest_is_refused_and_not_kept(server: ShardServer, cache):
    (server.folder / MANIFEST_NAME).write_text("<html>not found</html>")
    with pytest.raises(UserError, match=f"{server.address}/manifest.json is damaged"):
        open_shards(server.address)
    assert not cache.exists()


def test_commands_take_an_address(server, shard_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inspect_command.main(inspect_command.InspectOptions(server.address, samples=2, json=True))
    facts = json.loads(capsys.readouterr().out)
    assert server.asked[SHARD] == 1
    assert {check["state"] for check in facts["checks"] if check["name"] in ("sizes", "sha256")} == {"not checked"}
    inspect_command.main(inspect_command.InspectOptions(server.address, verify=True, json=True))
    assert {check["state"] for check in json.loads(capsys.readouterr().out)["checks"]} == {"ok"}
    report_command.main(report_command.ReportOptions(server.address))
    shutil.copytree(shard_folder, "local", ignore=shutil.ignore_patterns("report.json"))  # not fetched: not verified
    report_command.main(report_command.ReportOptions("local", out=tmp_path / "local.html"))
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "local.html").read_bytes()


def test_inspect_calls_a_replaced_shard_bad(server, capsys):
    server.answers[SHARD] = flip
    with pytest.raises(UserError, match="failed: sizes"):
        inspect_command.main(inspect_command.InspectOptions(server.address, verify=True))
    assert "its manifest says" in capsys.readouterr().out


def test_a_set_is_sent_to_spawned_workers_without_its_lock(server, shard_folder):
    shards = open_shards(server.address)
    twin = RemoteShardSet.__new__(RemoteShardSet)
    twin.__setstate__(shards.__getstate__())
    assert "_held" not in shards.__getstate__()
    assert_equal_samples(twin, ShardSet(shard_folder))
