"""The cache of features: what was stored comes back bit for bit, or not at all."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation.sources.opening import open_source
from tests.scored import write_images
from toolkit.data.feature_cache import FeatureCache

IMAGES, OTHERS, KEY = "a" * 64, "b" * 64, "inception 64,clip legacy sha256:00"
TAPS = ("inception_64", "clip")


def features(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {tap: torch.randn(count, width, generator=random) for tap, width in zip(TAPS, (6, 3), strict=True)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[tap], b[tap]) for tap in a)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def only_file(cache: FeatureCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_what_was_stored_comes_back(cache, capfd):
    assert cache.load(IMAGES, KEY, TAPS) is None
    cache.store(IMAGES, KEY, features())
    found = FeatureCache(cache.folder).load(IMAGES, KEY, TAPS)
    assert same(found, features()) and all(tensor.dtype == torch.float32 for tensor in found.values())
    assert cache.load(IMAGES, KEY, ("clip",)).keys() == {"clip"}
    assert capfd.readouterr().err == ""


def test_other_images_extractors_and_layers_are_not_there(cache, capfd):
    cache.store(IMAGES, KEY, features())
    assert cache.load(OTHERS, KEY, TAPS) is None and cache.load(IMAGES, KEY + " fp16", TAPS) is None
    assert cache.load(IMAGES, KEY, ("clip", "inception_2048")) is None
    assert cache.load(IMAGES[:-1], "a" + KEY, TAPS) is None  # where one ends and the other begins counts
    assert capfd.readouterr().err == ""


def test_without_a_folder_or_a_fingerprint_nothing_is_kept(cache, tmp_path):
    cache.store(None, KEY, features())
    assert cache.load(None, KEY, TAPS) is None and not cache.folder.exists()
    off = FeatureCache(None)
    off.store(IMAGES, KEY, features())
    assert off.load(IMAGES, KEY, TAPS) is None and list(tmp_path.iterdir()) == []


def test_changed_images_miss(cache, tmp_path):
    """The whole way: an image, its size, their number."""
    folder = write_images(tmp_path / "x", 6)
    source = open_source(folder)
    cache.store(source.fingerprint(), KEY, features(6))
    shutil.copytree(folder, tmp_path / "copy")
    assert same(cache.load(open_source(tmp_path / "copy").fingerprint(), KEY, TAPS), features(6))
    for options in ({"size": 8}, {"count": 5}):
        assert cache.load(open_source(folder, **options).fingerprint(), KEY, TAPS) is None
    shutil.copy(folder / "class0" / "0000.png", folder / "class1" / "0001.png")
    assert cache.load(source.fingerprint(), KEY, TAPS) is None


# --- damage


def refused(cache: FeatureCache, capfd) -> str:
    """The line that says why nothing was read."""
    assert cache.load(IMAGES, KEY, TAPS) is None
    said = capfd.readouterr().err
    assert said.startswith("feature cache: ") and said.count("\n") == 1 and "computed anew" in said
    return said


def test_any_flipped_bit_is_noticed(cache, capfd):
    cache.store(IMAGES, KEY, features())
    path = only_file(cache)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        refused(cache, capfd)
    path.write_bytes(data)
    assert same(cache.load(IMAGES, KEY, TAPS), features())


def test_truncated_and_lengthened_files_are_noticed(cache, capfd):
    cache.store(IMAGES, KEY, features())
    path = only_file(cache)
    data = path.read_bytes()
    for other in [data[:length] for length in range(0, len(data), 7)] + [data + b"\0", data + data]:
        path.write_bytes(other)
        refused(cache, capfd)


def test_files_of_others_are_noticed(cache, tmp_path, capfd):
    cache.store(IMAGES, KEY, features())
    mine = only_file(cache)
    for fingerprint, key in ((OTHERS, KEY), (IMAGES, "another")):
        strange = FeatureCache(tmp_path / f"{key}{fingerprint[0]}")
        strange.store(fingerprint, key, features(seed=1))
        shutil.copy(only_file(strange), mine)
        assert "other images or another extractor" in refused(cache, capfd)
    save_file(features(), mine)
    refused(cache, capfd)
    save_file({tap: tensor.half() for tap, tensor in features().items()}, mine)
    assert "other things than features" in refused(cache, capfd)
    save_file({}, mine)
    refused(cache, capfd)


def test_features_that_are_not_finite_are_neither_kept_nor_read(cache, monkeypatch, capfd):
    for bad in (float("nan"), float("inf")):
        broken = features()
        broken["clip"][2, 1] = bad
        cache.store(IMAGES, KEY, broken)
        assert "clip hold NaN or infinity" in capfd.readouterr().err and list(cache.folder.parent.iterdir()) == []
    monkeypatch.setattr(Tensor, "isfinite", lambda tensor: torch.ones(1, dtype=torch.bool))
    cache.store(IMAGES, KEY, broken)
    monkeypatch.undo()
    assert "NaN or infinity" in refused(cache, capfd)


def test_a_pickle_in_its_place_is_not_run(cache, tmp_path, capfd):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    cache.store(IMAGES, KEY, features())
    path = only_file(cache)
    for write in (lambda: path.write_bytes(pickle.dumps(Hostile())), lambda: torch.save({"clip": Hostile()}, path)):
        write()
        refused(cache, capfd)
    assert not canary.exists()


def test_what_is_no_file_is_not_waited_for(cache, capfd):
    cache.store(IMAGES, KEY, features())
    path = only_file(cache)
    path.unlink()
    os.mkfifo(path)
    refused(cache, capfd)
    path.unlink()
    path.mkdir()
    refused(cache, capfd)
    cache.store(IMAGES, KEY, features())
    assert "are not kept in" in capfd.readouterr().err and [other.name for other in cache.folder.iterdir()] == [
        path.name
    ]


def test_damage_is_mended_by_storing_again(cache, capfd):
    cache.store(IMAGES, KEY, features(seed=1))
    only_file(cache).write_bytes(b"damaged")
    refused(cache, capfd)
    cache.store(IMAGES, KEY, features())
    assert same(cache.load(IMAGES, KEY, TAPS), features())
