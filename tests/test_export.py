"""What is in a shard folder can be read by others: exported as files, and as it is by webdataset and datasets."""

import json

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import adopt, create, export
from shards.adopt import AdoptOptions
from shards.export import ExportOptions
from tests import foreign
from toolkit.data.dataset import read_decoded
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError


def images(folder) -> list[np.ndarray]:
    shards = ShardSet(folder)
    return [read_decoded(shards, i)[1].permute(1, 2, 0).numpy() for i in range(len(shards))]


def captions(folder) -> list[tuple[str, ...]]:
    shards = ShardSet(folder)
    return [shards.read(i).captions for i in range(len(shards))]


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["png", "webp", "raw", "jpg"])
def stored(request) -> str:
    return request.param


@pytest.fixture
def built(stored, caption_folder, tmp_path):
    """12 samples in two tars, two of them with two captions."""
    out = tmp_path / "built"
    options = {"encoder": "hashing", "format": stored, "samples_per_shard": 7}
    create.main(create.CreateOptions(caption_folder, out, 16, **options))
    return out


@pytest.fixture
def adopted(tmp_path):
    foreign.img2dataset_folder(tmp_path / "foreign")
    adopt.main(AdoptOptions(tmp_path / "foreign", 16, encoder="hashing"))
    return tmp_path / "foreign"


def test_files_are_the_stored_ones_and_go_round(built, tmp_path):
    export.main(ExportOptions(built, tmp_path / "out"))
    shards, found = ShardSet(built), rows(tmp_path / "out")
    for i, row in enumerate(found):
        sample, path = shards.read(i), tmp_path / "out" / row["file_name"]
        assert (row["text"], tuple(row["captions"])) == (sample.captions[0], sample.captions)
        if path.suffix != ".png":
            assert path.read_bytes() == sample.image
        np.testing.assert_array_equal(foreign.pixels(path.read_bytes()), images(built)[i])
    assert [row["file_name"].split(".")[0] for row in found] == [f"000/{i:09d}" for i in range(12)]
    again = tmp_path / "again"
    create.main(create.CreateOptions(tmp_path / "out", again, 16, encoder="hashing", format="png"))
    assert captions(again) == captions(built) and len(set(captions(built))) > 1
    np.testing.assert_array_equal(images(again), images(built))


@pytest.mark.parametrize("fitted", (False, True))
def test_of_an_adopted_set(adopted, tmp_path, fitted):
    export.main(ExportOptions(adopted, tmp_path / "out", fitted))
    shards, found = ShardSet(adopted), rows(tmp_path / "out")
    keys = ["00000.tar/000000002", "00000.tar/000000000", "00000.tar/000000001", "00000.tar/000000003"]
    assert [row["key"] for row in found[:4]] == keys  # the one without a caption is left out
    for i, row in enumerate(found):
        data = (tmp_path / "out" / row["file_name"]).read_bytes()
        if fitted:
            np.testing.assert_array_equal(foreign.pixels(data), images(adopted)[i])
        else:
            assert data == shards.read(i).image and row["file_name"].endswith(".jpg")


def test_a_folder_in_use_is_refused_and_damage_is_left_out_by_name(adopted, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        export.main(ExportOptions(adopted, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    at, size = ShardSet(adopted).index[1, 1:3]
    with (adopted / "00000.tar").open("r+b") as tar:
        tar.seek(at)
        tar.write(bytes(size))
    export.main(ExportOptions(adopted, tmp_path / "good"))
    assert len(rows(tmp_path / "good")) == 7 == len(list((tmp_path / "good" / "000").iterdir()))
    assert "skipped 00000.tar/000000000" in capsys.readouterr().err


def test_nothing_is_left_when_it_fails(adopted, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_export", full)
    with pytest.raises(UserError, match="No space left"):
        export.main(ExportOptions(adopted, tmp_path / "out"))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_plain_webdataset_reads_our_tars(built):
    shards = ShardSet(built)
    tars = [str(built / shard.name) for shard in shards.manifest.shards]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))  # bytes: nothing is decoded, nothing unpickled
    assert len(found) == 12
    for i, sample in enumerate(found):
        ours = shards.read(i)
        suffix = next(suffix for suffix in ("jpg", "png", "webp", "image.npy") if suffix in sample)
        assert sample[suffix] == ours.image
        assert tuple(sample["txt"].decode().split("\n")) == ours.captions
    decoded = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    for i, sample in enumerate(decoded):
        suffix = next(suffix for suffix in ("jpg", "png", "webp", "image.npy") if suffix in sample)
        np.testing.assert_array_equal(sample[suffix], images(built)[i])
        np.testing.assert_allclose(np.array(sample["npy"], dtype=np.float32), shards.read(i).vectors.numpy(), atol=1e-3)


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    found.disable_progress_bars()
    return lambda *names, **options: found.load_dataset(*names, cache_dir=str(tmp_path / "cache"), **options)["train"]


def test_hugging_face_reads_our_tars(built, datasets):
    """Also where samples differ in their number of captions, for every .npy is [K, E]."""
    shards = ShardSet(built)
    found = datasets("webdataset", data_files=[str(built / shard.name) for shard in shards.manifest.shards])
    assert len(found) == 12
    for i, sample in enumerate(found):
        image = next(sample[name] for name in ("jpg", "png", "webp", "image.npy") if name in sample)
        np.testing.assert_array_equal(np.asarray(image), images(built)[i])
        assert tuple(sample["txt"].split("\n")) == shards.read(i).captions
        np.testing.assert_allclose(np.array(sample["npy"], dtype=np.float32), shards.read(i).vectors.numpy(), atol=1e-3)


def test_hugging_face_reads_an_adopted_set(adopted, datasets):
    found = datasets("webdataset", data_files=str(adopted / "*.tar"))
    assert [" ".join(text.split()) for text in found["txt"] if text] == [texts[0] for texts in captions(adopted)]


def test_hugging_face_reads_the_export(built, tmp_path, datasets):
    export.main(ExportOptions(built, tmp_path / "out"))
    found = datasets("imagefolder", data_dir=str(tmp_path / "out"))
    assert found.column_names == ["image", "text", "captions", "key"]
    for i, sample in enumerate(found):
        assert isinstance(sample["image"], Image.Image)
        np.testing.assert_array_equal(np.asarray(sample["image"].convert("RGB")), images(built)[i])
        assert tuple(sample["captions"]) == captions(built)[i] and sample["text"] == captions(built)[i][0]
