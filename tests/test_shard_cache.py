"""The cache of fetched shards: its bound, what it evicts, and what it never does."""

import os
import shutil
import time
from pathlib import Path

import pytest

from toolkit.data import shard_cache
from toolkit.data.shard_cache import CachedSet, cache_bound, cache_root
from toolkit.errors import UserError

A, B, C = "a" * 64, "b" * 64, "c" * 64
LONG_AGO = 1_000_000_000


def filled(root: Path, set_id: str, files: dict[str, tuple[int, int]]) -> CachedSet:
    """A set in use with files of {name: (bytes, age in seconds)}."""
    cached = CachedSet(root, set_id, b"{}")
    for name, (size, age) in files.items():
        path = cached.path(name, size, lambda target, size=size: target.write_bytes(bytes(size)))
        os.utime(path, (LONG_AGO - age, LONG_AGO - age))
    return cached


def names(root: Path, set_id: str) -> set[str]:
    return {path.name for path in (root / set_id / "shards").iterdir()} - {"manifest.json"}


def test_least_recently_used_files_of_idle_sets_go_first(tmp_path):
    filled(tmp_path, A, {"old": (100, 40), "new": (100, 10)})
    filled(tmp_path, B, {"older": (100, 50), "middle": (100, 20)})
    mine = filled(tmp_path, C, {"mine": (100, 99)})
    mine.reserve(200, bound=500)  # 400 of others and 200: 100 too much
    assert (names(tmp_path, A), names(tmp_path, B), names(tmp_path, C)) == ({"old", "new"}, {"middle"}, {"mine"})
    mine.reserve(201, bound=500)  # 300 of others and 201: 1 too much
    assert (names(tmp_path, A), names(tmp_path, B), names(tmp_path, C)) == ({"new"}, {"middle"}, {"mine"})


def test_reading_a_file_makes_it_recently_used(tmp_path):
    filled(tmp_path, A, {"first": (100, 40), "second": (100, 10)}).path("first", 100, lambda path: pytest.fail("again"))
    filled(tmp_path, B, {}).reserve(100, bound=200)
    assert names(tmp_path, A) == {"first"}


def test_sets_in_use_lose_nothing_and_count_whole(tmp_path):
    used = filled(tmp_path, A, {"used": (100, 99)})
    used.reserve(300, bound=1000)  # 200 of it are still to come
    filled(tmp_path, B, {"idle": (100, 1)})
    mine = filled(tmp_path, C, {})
    mine.reserve(650, bound=1000)
    assert (names(tmp_path, A), names(tmp_path, B)) == ({"used"}, set())
    with pytest.raises(UserError, match=r"has 0.00 MB, the cache .* sets in use need; raise TEXT_GAN_CACHE_GB"):
        mine.reserve(701, bound=1000)
    del used
    mine.reserve(701, bound=1000)


def test_a_set_above_the_bound_is_refused_and_nothing_evicted(tmp_path):
    filled(tmp_path, A, {"idle": (100, 1)})
    mine = filled(tmp_path, B, {})
    with pytest.raises(UserError, match=r"150,000.00 GB, .* may hold 100.00 GB; raise TEXT_GAN_CACHE_GB") as refused:
        mine.reserve(150_000 * 10**9, bound=100 * 10**9)
    assert "\n" not in str(refused.value)
    assert names(tmp_path, A) == {"idle"}


def test_a_full_disk_evicts_then_refuses(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda path: usage._replace(free=500))
    filled(tmp_path, A, {"old": (100, 2), "new": (100, 1)})
    mine = filled(tmp_path, B, {"mine": (50, 9)})
    with pytest.raises(UserError, match=r"do not fit on the disk .* make room or set TEXT_GAN_CACHE"):
        mine.reserve(751, bound=10**6)
    assert names(tmp_path, A) == {"old", "new"}
    mine.reserve(640, bound=10**6)  # 590 are missing, 500 free
    assert (names(tmp_path, A), names(tmp_path, B)) == ({"new"}, {"mine"})


def test_only_what_the_cache_has_made_is_touched(tmp_path):
    (tmp_path / "holiday" / "shards").mkdir(parents=True)
    (tmp_path / "holiday" / "shards" / "photo.tar").write_bytes(bytes(1000))
    filled(tmp_path, A, {}).reserve(100, bound=100)
    assert [path.name for path in (tmp_path / "holiday").rglob("*")] == ["shards", "photo.tar"]


def test_where_it_lies_and_how_large_it_is(tmp_path, monkeypatch):
    for name in ("TEXT_GAN_CACHE", "TEXT_GAN_CACHE_GB", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_root() == Path("/home/somebody/.cache/text-gan-toolkit/shards")
    assert cache_bound() == 100 * 10**9
    monkeypatch.setenv("XDG_CACHE_HOME", "/large")
    assert cache_root() == Path("/large/text-gan-toolkit/shards")
    monkeypatch.setenv("TEXT_GAN_CACHE", "/larger")
    monkeypatch.setenv("TEXT_GAN_CACHE_GB", "0.5")
    assert (cache_root(), cache_bound()) == (Path("/larger"), 5 * 10**8)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_a_bound_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("TEXT_GAN_CACHE_GB", text)
    with pytest.raises(UserError, match="TEXT_GAN_CACHE_GB is"):
        cache_bound()


def test_a_cache_that_is_not_writable_is_explained(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="the cache of shards does not work at .*file.* set TEXT_GAN_CACHE"):
        CachedSet(tmp_path / "file", A, b"{}")


def test_a_failed_fetch_leaves_nothing_and_the_next_tries_again(tmp_path):
    cached = CachedSet(tmp_path, A, b"{}")

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise UserError("the line is dead")

    with pytest.raises(UserError, match="the line is dead"):
        cached.path("x", 8, half)
    assert [path.name for path in tmp_path.rglob("x") if path.stat().st_size] == []
    before = time.time() - 5
    path = cached.path("x", 8, lambda path: path.write_bytes(bytes(8)))
    assert path.read_bytes() == bytes(8)
    assert path.stat().st_mtime > before
