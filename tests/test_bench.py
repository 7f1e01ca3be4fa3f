"""The comparison with webdataset: both do the same work on the same files, and what cannot be compared is not."""

import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from shards.inspect import bench
from shards.inspect.bench import compare_speed
from toolkit.data.dataset import read_decoded
from toolkit.data.shard_format import INDEX_NAME
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import ShardFile, list_tar
from toolkit.durable import file_sha256


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(bench, "SAMPLES", 24)
    monkeypatch.setattr(bench, "ROUNDS", 2)


def rewritten(shard_folder: Path, out: Path, suffix: str, npy: bytes | None = None) -> ShardSet:
    """The samples in one tar, their images raw under `suffix`; all with the embedding file `npy` if given."""
    shards, tar = ShardSet(shard_folder), out / "shard-00000.tar"
    out.mkdir()
    with webdataset.TarWriter(str(tar), encoder=False) as writer:
        for i in range(len(shards)):
            sample, image = read_decoded(shards, i)
            members = {"txt": sample.captions[0].encode(), "npy": npy or as_npy(sample.vectors[0].half().numpy())}
            pixels = as_npy(image.permute(1, 2, 0).contiguous().numpy())
            writer.write({"__key__": f"{i:03d}", suffix: pixels, **members})
    _, rows = list_tar(tar, 0)
    np.save(out / INDEX_NAME, rows)
    files = (ShardFile(tar.name, len(rows), tar.stat().st_size, file_sha256(tar)),)
    dataclasses.replace(shards.manifest, shards=files, index_sha256=file_sha256(out / INDEX_NAME)).save(out)
    return ShardSet(out)


def as_npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_both_ways_read_every_sample(shard_folder):
    shards = ShardSet(shard_folder)
    assert bench._ours(shards) == bench._plain_webdataset(shards) == 24


@pytest.mark.parametrize("suffix", ["png", "image.npy", "picture.npy"])  # the last in shards of earlier versions
def test_both_ways_make_the_same_of_a_sample(shard_folder, tmp_path, suffix):
    shards = ShardSet(shard_folder) if suffix == "png" else rewritten(shard_folder, tmp_path / "raw", suffix)
    paths = [str(shards.folder / shard.name) for shard in shards.manifest.shards]
    for i, sample in enumerate(webdataset.WebDataset(paths, shardshuffle=False)):
        image, vector, text = bench._decoded(sample)
        own, decoded = read_decoded(shards, i)
        assert torch.equal(image, decoded) and text.splitlines() == list(own.captions)
        assert torch.allclose(vector.float(), own.vectors[0], atol=1e-3)
    assert i == 23


@pytest.mark.parametrize("kind", ["png", "raw"])
def test_the_numbers_belong_together(shard_folder, tmp_path, kind):
    shards = ShardSet(shard_folder) if kind == "png" else rewritten(shard_folder, tmp_path / "raw", "image.npy")
    threads = torch.get_num_threads()
    found = compare_speed(shards)
    assert found.state == "ok" and torch.get_num_threads() == threads
    ours, ratio, plain = (
        float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", found.detail)[:3]
    )
    assert ours > 0 and plain > 0 and 0.2 < ratio / (ours / plain) < 5  # a median of ratios beside one of medians


def test_rates_are_what_the_clock_says(shard_folder, monkeypatch):
    """A clock that gives ours 2 s a round and webdataset 3 s; the first round, which fills caches, is not like them."""
    now, counts = iter(range(0, 10**6)), iter([999, 24, 24])
    monkeypatch.setattr(bench.time, "process_time", lambda: next(now))
    monkeypatch.setattr(bench, "_ours", lambda shards: next(now) and next(counts))
    monkeypatch.setattr(bench, "_plain_webdataset", lambda shards: next(now) and next(now) and 24)
    found = compare_speed(ShardSet(shard_folder)).detail
    assert found == "12 samples/s on a core, 1.50 times the 8 of plain webdataset (2 rounds)"


@pytest.mark.parametrize(
    "change, reason",
    [({"fit": "crop"}, "does not fit images to a size"), ({"vectors": ("some",)}, "stand beside the tars")],
)
def test_other_work_is_not_compared(shard_folder, change, reason):
    shards = ShardSet(shard_folder)
    shards.manifest = dataclasses.replace(shards.manifest, **change)
    found = compare_speed(shards)
    assert found.state == "not checked" and reason in found.detail


def test_what_webdataset_cannot_read_is_one_line(shard_folder, tmp_path, monkeypatch):
    """Its own complaint, whatever that is."""

    def failing(sample):
        raise OSError("a complaint\nof two lines")

    copy = shutil.copytree(shard_folder, tmp_path / "copy")
    monkeypatch.setattr(bench, "_decoded", failing)
    found = compare_speed(ShardSet(copy))
    expected = "webdataset cannot read these shards (a complaint of two lines)"
    assert (found.state, found.detail) == ("not checked", expected)
