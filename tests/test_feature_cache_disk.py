"""The cache of features and the disk: full, read-only, bounded, shared by processes."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.test_feature_cache import IMAGES, KEY, OTHERS, TAPS, features, only_file, same
from toolkit.data import feature_cache
from toolkit.data.feature_cache import BOUND, FeatureCache, default_folder


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def test_a_folder_that_cannot_be_made_costs_a_line(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache")
    cache.store(IMAGES, KEY, features())
    said = capfd.readouterr().err
    assert said.startswith("feature cache: features are not kept in ") and said.count("\n") == 1


def test_a_read_only_folder_is_still_read(cache, monkeypatch, capfd):
    cache.store(IMAGES, KEY, features())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: missing_ok or refuse())
    cache.store(OTHERS, KEY, features())
    assert "Permission denied" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(os, "utime", refuse)
    assert same(cache.load(IMAGES, KEY, TAPS), features()) and cache.load(OTHERS, KEY, TAPS) is None


def test_a_disk_that_fills_up_leaves_what_was_there(cache, monkeypatch, capfd):
    cache.store(IMAGES, KEY, features())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for fingerprint in (IMAGES, OTHERS):
        cache.store(fingerprint, KEY, features(seed=1))
        assert "No space left on device" in capfd.readouterr().err
    monkeypatch.undo()
    assert same(cache.load(IMAGES, KEY, TAPS), features()) and only_file(cache)


def test_a_disk_with_too_little_room_is_not_filled(cache, monkeypatch, capfd):
    cache.store(IMAGES, KEY, features())
    size = only_file(cache).stat().st_size
    usage = shutil.disk_usage(cache.folder)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage._replace(free=10))
    cache.store(OTHERS, KEY, features(50))
    assert "the disk is full" in capfd.readouterr().err
    assert cache.load(IMAGES, KEY, TAPS) is not None
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    cache.store(OTHERS, KEY, features())
    assert cache.load(IMAGES, KEY, TAPS) is None and cache.load(OTHERS, KEY, TAPS) is not None


def test_the_least_recently_used_go_first(tmp_path, capfd):
    folder, names = tmp_path / "cache", [f"{number:064d}" for number in range(9)]
    ages = dict(zip(names, (3, 7, 0, 5, 8, 1, 6, 2, 4), strict=True))
    for name, age in ages.items():
        FeatureCache(folder).store(name, KEY, features())
        path = FeatureCache(folder)._path(name, KEY)
        os.utime(path, (10**9 - age, 10**9 - age))
    (folder / "mine.safetensors").write_bytes(bytes(10_000))  # whatever else the user keeps there
    bounded = FeatureCache(folder, bound=6 * path.stat().st_size)
    assert bounded.load(names[4], KEY, TAPS)  # the oldest is the newest now
    bounded.store(IMAGES, KEY, features())
    left = {name for name in names if bounded._path(name, KEY).exists()}
    assert left == {names[4]} | {name for name, age in ages.items() if age <= 3} and bounded.load(IMAGES, KEY, TAPS)
    assert (folder / "mine.safetensors").exists()
    bounded.store(IMAGES, KEY, features(200))
    assert "it may hold" in capfd.readouterr().err and len(list(folder.iterdir())) == 7


def test_what_a_kill_has_left_is_removed_in_time(cache):
    cache.store(IMAGES, KEY, features())
    path = only_file(cache)
    left = [cache.folder / f".{path.name}.1234-0123456{i}.tmp" for i in range(2)]
    for old in left:
        old.write_bytes(bytes(100))
    os.utime(left[0], (time.time() - feature_cache.ABANDONED - 60,) * 2)
    FeatureCache(cache.folder, bound=path.stat().st_size + 50).store(IMAGES, KEY, features())
    assert sorted(cache.folder.iterdir()) == sorted([left[1], path])


@pytest.mark.dist
def test_two_writers_at_once_leave_one_valid_file(cache, tmp_path):
    """Each writes 100 times and reads in between; never does one see the other's half file."""
    code = (
        "import sys\nfrom pathlib import Path\nimport torch\nfrom toolkit.data.feature_cache import FeatureCache\n"
        "cache, mine = FeatureCache(Path(sys.argv[1])), {'clip': torch.full((400, 32), float(sys.argv[2]))}\n"
        "for _ in range(100):\n"
        f"    cache.store({IMAGES!r}, {KEY!r}, mine)\n"
        f"    found = cache.load({IMAGES!r}, {KEY!r}, ('clip',))['clip']\n"
        "    assert found.shape == (400, 32) and found.unique().item() in (1, 2)\n"
    )
    (tmp_path / "write.py").write_text(code)
    command = [str(tmp_path / "write.py"), str(cache.folder)]
    writers = [Forked([*command, number], REPOSITORY, dict(os.environ)) for number in "12"]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0)] * 2
    assert only_file(cache) and cache.load(IMAGES, KEY, ("clip",))["clip"].unique().item() in (1, 2)


def test_the_default_folder_is_beside_that_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.delenv("TEXT_GAN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "text-gan-toolkit" / "features"
    monkeypatch.setenv("TEXT_GAN_CACHE", str(tmp_path / "chosen"))
    assert default_folder() == tmp_path / "chosen" / "features" and FeatureCache(default_folder()).bound == BOUND
