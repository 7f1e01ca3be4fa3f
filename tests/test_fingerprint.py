"""The fingerprint of a source follows every byte that is scored, and nothing else."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from evaluation.sources import fingerprint
from evaluation.sources.opening import open_source
from tests.scored import images_of, write_images, write_shards
from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "here", 12)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", 12)


@pytest.fixture(params=["images", "shards"])
def either(request, tmp_path: Path) -> Path:
    return request.getfixturevalue("folder" if request.param == "images" else "shards")


def of(path: Path, **options) -> str | None:
    return open_source(path, **options).fingerprint()


def test_the_same_images_elsewhere(either, tmp_path):
    shutil.copytree(either, tmp_path / "elsewhere" / "renamed")
    found = [of(path, count=count) for path in (either, tmp_path / "elsewhere" / "renamed") for count in (None, 7)]
    assert found[:2] == found[2:] and found[0] != found[1]
    assert all(len(one) == 64 for one in found)


def test_another_count_seed_or_size(either):
    options = [
        {},
        {"count": 7},
        {"count": 8},
        {"count": 7, "seed": 1},
        {"size": 8},
        {"size": 9},
        {"size": 8, "count": 7},
    ]
    assert len({of(either, **one) for one in options}) == len(options)
    assert of(either) == of(either, seed=1)  # all of them, in the same order


def test_any_changed_bit_of_an_image(folder):
    original, target = of(folder), folder / "class1" / "0004.png"
    data = target.read_bytes()
    for at in range(0, len(data), 37):
        target.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert of(folder) != original
    target.write_bytes(data)
    assert of(folder) == original


def test_one_more_image_one_less_or_another_order(folder):
    original = of(folder)
    first, second = folder / "class0" / "0000.png", folder / "class0" / "0003.png"
    first.rename(folder / "aside.png"), second.rename(first)
    (folder / "aside.png").rename(second)
    swapped = of(folder)
    shutil.copy(first, folder / "class0" / "0000_again.png")
    more = of(folder)
    (folder / "class0" / "0000_again.png").unlink()
    second.unlink()
    assert len({original, swapped, more, of(folder)}) == 4


def test_captions_are_no_part_of_images(folder):
    original = of(folder)
    for path in sorted(folder.rglob("*.png")):
        path.with_suffix(".txt").write_text("a caption")
    assert of(folder) == original


def test_an_image_changed_behind_the_manifests_back(shards):
    """The manifest still vouches for the old bytes, whose number is the same."""
    original, tar = of(shards), shards / "shard-00000.tar"
    with tarfile.open(tar) as archive:
        member = archive.getmember("000005.png")
    other = io.BytesIO()
    Image.new("RGB", (16, 16), (6, 0, 0)).save(other, format="PNG")
    assert len(other.getvalue()) == member.size
    data = bytearray(tar.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = other.getvalue()
    tar.write_bytes(data)
    assert images_of(open_source(shards))[5, 0, 0, 0] == 6 and of(shards) != original


def test_shards_that_are_fitted_otherwise(shards):
    original, path = of(shards), shards / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    found = {original}
    for fit in ("pad", "stretch"):
        path.write_text(json.dumps(manifest | {"fit": fit}))
        found.add(of(shards))
    assert len(found) == 3


def test_other_decoders(folder, monkeypatch):
    original = of(folder)
    monkeypatch.setattr(fingerprint, "version", lambda package: "0.1")
    other = of(folder)
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "RULES", fingerprint.RULES + 1)
    assert len({original, other, of(folder)}) == 3


def test_an_unreadable_image_is_named(folder):
    source = open_source(folder)
    (folder / "class2" / "0005.png").unlink()
    with pytest.raises(UserError, match=r"0005\.png: cannot be read"):
        source.fingerprint()
